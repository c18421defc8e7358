"""All SQL on the journal: records moved from the spool, queries, corrections, erasure; and its images as a data set."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Column, ColumnElement, Connection, Select, and_, case, func, insert, or_, select
from sqlalchemy.exc import SQLAlchemyError

from .. import progress
from ..data import load_dataset
from ..errors import ImageError
from ..sources import FolderReader, Layout, Listing, sort_classes, source_from_files
from ..types import Dataset, Geometry
from .database import Database, RejectedValue, corrections, images, predictions, sketches
from .eviction import evict_images
from .image_store import ImageStore, content_name
from .records import Correction, JournalRow, PredictionRecord, RowConditions, SketchRow, is_new_id
from .spool import Spool, encode_lines, list_segments, read_segment, segment_mentions

CACHE_FOLDER = "cache"
"""Folder of a site for the decoded pixels of its images: beside them, so that an erasure removes it."""

MAX_QUERY_ROWS = 10_000
"""Rows returned by one query."""

QUOTA_RECOUNT_SECONDS = 30.0
"""Seconds after which the images of other processes are counted again."""

RECENT_SKETCHES = 20_000
"""The last sketches, among which that of an answer that was written a moment ago is looked for without an index."""

Value = TypeVar("Value", str, bytes)

MAX_STATEMENT_VALUES = 400
"""Values named in one SQL statement."""

_RECORD_COLUMNS = tuple(
    name for name in PredictionRecord.__dataclass_fields__ if name not in ("image", "sketch", "sketch_inputs")
)
"""Columns of ``predictions`` that a record has by the same name; ``image`` becomes the name of a file."""

_MAX_BATCH_RECORDS, _MAX_BATCH_BYTES = 500, 16_000_000
"""Records, and bytes of their images, inserted in one transaction."""


class JournalWriter:
    """Moves the records of spools to a database. Thread-safe: one thread at a time drains."""

    def __init__(self, database: Database, spool: Spool, images: ImageStore, *, quota: float):
        """``quota`` in bytes, for the kept images of all processes together."""
        self._database, self._spool, self._images, self._quota = database, spool, images, quota
        self._lock = Lock()
        self._used, self._counted_at, self._full_until = 0, -QUOTA_RECOUNT_SECONDS, 0.0
        self.dropped_images = 0
        """Images that were not kept: the quota or the disk is full, or they cannot be read."""

    def drain(self, *, inherit: bool) -> None:
        """Write everything that waits, oldest first; ``inherit`` adds the spools of dead processes.

        Raise JournalError.
        """
        with self._lock:
            for segment in self._spool.orphaned_segments() if inherit else ():
                self._write_segment(segment)
                segment.unlink(missing_ok=True)
            while segment := self._spool.oldest_segment():
                self._write_segment(segment)
                self._spool.remove(segment)

    def drain_mentions(self, word: bytes = b"") -> list[Path]:
        """Write the segments of any process that contain ``word``, before their owner does; raise JournalError.

        Return those segments, which their owners still have to remove.
        """
        found = [one for one in list_segments(self._spool.folder) if segment_mentions(one, word)]
        for segment in found:
            with self._lock, suppress(ValueError):
                self._write_batches(read_segment(segment))
        return found

    def _write_segment(self, segment: Path) -> None:
        try:
            self._write_batches(read_segment(segment))
        except ValueError:
            aside = segment.with_suffix(".damaged")
            aside.write_bytes(segment.read_bytes())
            progress.notify(f"A segment of the journal's spool cannot be read. It was moved to '{aside}'.")

    def _write_batches(self, batches: Iterable[list[PredictionRecord]]) -> None:
        for batch in _merge_batches(batches):
            try:
                self._write(batch)
            except RejectedValue:
                self._write_each(batch)

    def _write_each(self, records: Sequence[PredictionRecord]) -> None:
        """Write one record at a time; one that the database rejects is set aside."""
        for one in records:
            try:
                self._write([one])
            except RejectedValue:
                aside = self._spool.folder / "refused"
                with aside.open("ab") as stream:
                    stream.write(encode_lines([one], images=True))
                self._spool.sketches.remove([one.id])
                progress.notify(f"The journal's database cannot store an answer. It was appended to '{aside}'.")

    def _write(self, records: Sequence[PredictionRecord]) -> None:
        stripped: dict[str, tuple[str, bytes]] = {}  # name and bytes of the image to keep, by record
        for one in records:
            if one.image is not None:
                try:
                    stripped[one.id] = content_name(one.image)
                except ImageError:
                    self.dropped_images += 1
        unique = {one.id: one for one in records}
        made = self._spool.sketches.make(unique)  # before the transaction, for which others wait
        sketched = {id: one.sketch for id, one in unique.items() if one.sketch is not None} | made
        sketched = {id: one for id, one in sketched.items() if is_new_id(id)}
        with self._database.write_transaction(durable=False) as connection:
            kept: dict[str, str] = {}
            new: dict[str, int] = {}
            known: set[str] = set()
            if stripped or sketched:
                known = _existing_values(connection, predictions.c.id, list({**stripped, **sketched}))
            if stripped:
                wanted = {id: one for id, one in stripped.items() if id not in known}
                kept, new = self._store_images(connection, wanted)
            rows = [
                {name: getattr(one, name) for name in _RECORD_COLUMNS} | {"image": kept.get(id)}
                for id, one in unique.items()
            ]
            try:
                connection.execute(self._database.insert_ignore(predictions), rows)
                late = _find_unsketched(connection, [id for id in made if id in known])
                added = [
                    {"prediction": bytes.fromhex(id), "release": unique[id].release, "values": values}
                    for id, values in sketched.items()
                    if id not in known or id in late
                ]
                if added:
                    connection.execute(insert(sketches), added)
            except (SQLAlchemyError, OverflowError, UnicodeError):  # an image without a row could not be erased
                for name in new:
                    self._images.delete(name)
                raise
        self._spool.sketches.remove(unique)

    def _store_images(
        self, connection: Connection, stripped: dict[str, tuple[str, bytes]]
    ) -> tuple[dict[str, str], dict[str, int]]:
        """Write the images that fit into the quota; return their names by record, and the sizes of new ones."""
        if not stripped:
            return {}, {}
        if time.monotonic() - self._counted_at > QUOTA_RECOUNT_SECONDS:
            self._used = connection.scalar(select(func.coalesce(func.sum(images.c.bytes), 0))) or 0
            self._counted_at = time.monotonic()
        stored = _existing_values(connection, images.c.name, [name for name, _ in stripped.values()])
        kept, new = {}, {}
        size = sum(len(data) for name, data in {*stripped.values()} if name not in stored)
        if self._used + size > self._quota and time.monotonic() > self._full_until:
            self._used = evict_images(connection, self._images, self._quota, size)
            if self._used + size > self._quota:  # searching again at each batch would find nothing
                self._full_until = time.monotonic() + QUOTA_RECOUNT_SECONDS
            stored = _existing_values(connection, images.c.name, [name for name, _ in stripped.values()])
        for id, (name, data) in stripped.items():
            if name not in stored and name not in new:
                if not self._store_image(name, data):
                    continue
                new[name] = len(data)
            kept[id] = name
        if new:
            rows = [{"name": name, "bytes": size} for name, size in new.items()]
            connection.execute(self._database.insert_ignore(images), rows)
        return kept, new

    def _store_image(self, name: str, data: bytes) -> bool:
        """Write one image; return False if there is no room for it."""
        try:
            if self._used + len(data) <= self._quota:
                self._images.put(name, data)
                self._used += len(data)
                return True
            reason = (
                f"'{self._images.folder}' has reached its {self._quota / 1e6:,.0f} MB with images that were reviewed "
                "or wait for it: raise --quota-mb, or no new answer can be reviewed"
            )
        except OSError as error:
            reason = f"'{self._images.folder}' cannot be written ({(error.strerror or str(error)).lower()})"
        if not self.dropped_images:
            progress.notify(f"No more images are kept: {reason}. Answers are journalled as before.")
        self.dropped_images += 1
        return False


def chunk_values(values: Sequence[str]) -> list[Sequence[str]]:
    """Cut values into pieces that one SQL statement names."""
    return [values[i : i + MAX_STATEMENT_VALUES] for i in range(0, len(values), MAX_STATEMENT_VALUES)]


def _find_unsketched(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Return those of these answers that another process wrote without their sketch, and none has erased since."""
    if not ids:
        return set()
    left = _existing_values(connection, predictions.c.id, ids, predictions.c.erased_at.is_(None))
    recent = sketches.c.number > last_sketch_number(connection) - RECENT_SKETCHES
    return left - {
        one.hex()
        for one in _existing_values(connection, sketches.c.prediction, [bytes.fromhex(id) for id in left], recent)
    }


def _existing_values(
    connection: Connection, column: Column[Any], values: Sequence[Value], *where: ColumnElement[bool]
) -> set[Value]:
    """Return those of ``values`` that a column contains, in rows that satisfy the conditions."""
    found: set[Value] = set()
    for i in range(0, len(values), MAX_STATEMENT_VALUES):
        some = values[i : i + MAX_STATEMENT_VALUES]
        found.update(connection.scalars(select(column).where(column.in_(some), *where)))
    return found


def _merge_batches(batches: Iterable[list[PredictionRecord]]) -> Iterator[list[PredictionRecord]]:
    """Join small batches up to the size of one transaction."""
    joined: list[PredictionRecord] = []
    size = 0
    for batch in batches:
        joined += batch
        size += sum(len(one.image) for one in batch if one.image is not None)
        if len(joined) >= _MAX_BATCH_RECORDS or size >= _MAX_BATCH_BYTES:
            yield joined
            joined, size = [], 0
    if joined:
        yield joined


# Queries and corrections


def query_rows(connection: Connection, limit: int, conditions: RowConditions) -> list[JournalRow]:
    """Return the newest rows that satisfy ``conditions``, newest first."""
    t, noted = predictions.c, corrections.c.number
    clauses: dict[str, Callable[[Any], ColumnElement[bool]]] = {
        "before": lambda id: t.id < id,
        "label": lambda label: t.label == label,
        "release": lambda number: t.release == number,
        "abstained": t.abstained.is_,
        "corrected": lambda wanted: noted.is_not(None) if wanted else noted.is_(None),
        "subject": lambda subject: t.subject == subject,
        "since": lambda seconds: t.at >= seconds,
        "until": lambda seconds: t.at < seconds,
    }
    wanted = [clauses[name](value) for name, value in conditions.items() if value is not None]
    chosen = _select_rows().where(*wanted).order_by(t.id.desc()).limit(max(0, min(limit, MAX_QUERY_ROWS)))
    return [_to_row(one) for one in connection.execute(chosen)]


def find_rows(connection: Connection, ids: Sequence[str]) -> dict[str, JournalRow]:
    """Return the rows of these ids that are in the database, by id."""
    return {
        row.id: row
        for some in chunk_values(ids)
        for row in map(_to_row, connection.execute(_select_rows().where(predictions.c.id.in_(some))))
    }


def count_rows(connection: Connection) -> dict[str, int]:
    """Count predictions, abstentions, corrected and erased predictions, kept images and their bytes."""
    t = predictions.c
    chosen = {
        "predictions": select(func.count()).select_from(predictions),
        "abstained": select(func.count()).where(t.abstained),
        "corrected": select(func.count(func.distinct(corrections.c.prediction))),
        "erased": select(func.count()).where(t.erased_at.is_not(None)),
        "images": select(func.count()).select_from(images),
        "image_bytes": select(func.coalesce(func.sum(images.c.bytes), 0)),
    }
    return {name: int(connection.scalar(each) or 0) for name, each in chosen.items()}


def count_between(connection: Connection, edges: Sequence[float]) -> list[int]:
    """Count predictions between each two of the moments ``edges`` (seconds since 1970, ascending), first included."""
    at = predictions.c.at
    sums = [func.sum(case((and_(at >= low, at < high), 1), else_=0)) for low, high in pairwise(edges)]
    row = connection.execute(select(*sums).where(at >= edges[0], at < edges[-1])).one()
    return [int(one or 0) for one in row]


def query_labelled_rows(connection: Connection, min_confidence: float | None) -> list[JournalRow]:
    """Return the rows with a kept image and a known label, each image once with its latest correction.

    ``min_confidence`` adds uncorrected predictions of at least this confidence that did not abstain.
    """
    known = corrections.c.label.is_not(None)
    if min_confidence is not None:
        known = or_(known, and_(predictions.c.confidence >= min_confidence, ~predictions.c.abstained))
    chosen = _select_rows().where(predictions.c.image.is_not(None), known).order_by(predictions.c.id)
    found: dict[str, JournalRow] = {}
    for row in map(_to_row, connection.execute(chosen)):
        before = found.get(str(row.image))
        if before is None or (row.corrected_at or 0) >= (before.corrected_at or 0):
            found[str(row.image)] = row
    return sorted(found.values(), key=lambda row: row.id)


def query_sketches(
    connection: Connection, release: int, limit: int, *, after: int = 0, until: int | None = None
) -> list[SketchRow]:
    """Return sketches of a release in the order of storing: the next after a number, or the last until one."""
    t = sketches.c
    wanted = select(sketches).where(t.release == release, t.number > after).limit(limit)
    if until is None:
        found = connection.execute(wanted.order_by(t.number)).all()
    else:
        found = connection.execute(wanted.where(t.number <= until).order_by(t.number.desc())).all()[::-1]
    ids = [bytes(one.prediction).hex() for one in found]
    columns = [getattr(predictions.c, name) for name in ("id", "at", "subject", "source", "image")]
    answers = {
        row.id: row
        for some in chunk_values(ids)
        for row in connection.execute(select(*columns).where(predictions.c.id.in_(some)))
    }
    return [
        SketchRow(one.number, id, row.at, row.subject, row.source, row.image, bytes(one.values))
        for one, id in zip(found, ids, strict=True)
        if (row := answers.get(id)) is not None
    ]


def last_sketch_number(connection: Connection) -> int:
    """Return the number of the newest sketch; 0 without any."""
    return int(connection.scalar(select(func.max(sketches.c.number))) or 0)


def _select_rows() -> Select[Any]:
    """Select every prediction with its latest correction."""
    newer = corrections.alias()
    latest = select(func.max(newer.c.number)).where(newer.c.prediction == predictions.c.id).correlate(predictions)
    counts = and_(corrections.c.prediction == predictions.c.id, corrections.c.number == latest.scalar_subquery())
    columns = (
        corrections.c.label.label("correction"),
        corrections.c.at.label("corrected_at"),
        corrections.c.by.label("corrected_by"),
    )
    return select(predictions, *columns).join_from(predictions, corrections, counts, isouter=True)


def _to_row(found: Any) -> JournalRow:
    return JournalRow(**{field.name: getattr(found, field.name) for field in fields(JournalRow)})


def insert_correction(connection: Connection, id: str, label: str, by: str | None) -> Correction | None:
    """Add a correction unless its label is the latest already; None if the prediction is not in the database."""
    if connection.scalar(select(predictions.c.id).where(predictions.c.id == id)) is None:
        return None
    of_this = select(corrections).where(corrections.c.prediction == id)
    latest = connection.execute(of_this.order_by(corrections.c.number.desc()).limit(1)).first()
    if latest is not None and latest.label == label:
        return Correction(id, label, latest.at, latest.by, already=True)
    now = time.time()
    connection.execute(insert(corrections).values(prediction=id, label=label, at=now, by=by))
    return Correction(id, label, now, by, already=False)


# A data set


def build_dataset(name: str, store: ImageStore, rows: Sequence[JournalRow], geometry: Geometry) -> Dataset:
    """Load the kept images of ``rows``, labelled by correction or else prediction, as any other data set.

    The columns are ``release``, ``prediction`` (the id) and, if any row has a subject, ``group``.
    """
    paths = [store.path(str(row.image)) for row in rows]
    names = [path.relative_to(store.folder).as_posix() for path in paths]
    stats = [path.stat() for path in paths]
    changed = np.array([one.st_mtime_ns for one in stats], np.int64)
    sizes = np.array([one.st_size for one in stats], np.int64)
    listing = Listing(names, sizes, changed, frozenset(), FolderReader(store.folder, names))
    labels = [row.correction or row.label for row in rows]
    classes = sort_classes(labels)
    index = {label: i for i, label in enumerate(classes)}
    columns = {
        "release": np.array([row.release for row in rows]),
        "prediction": np.array([row.id for row in rows], object),
    }
    if any(row.subject for row in rows):
        columns["group"] = np.array([row.subject or row.id for row in rows], object)
    places = np.arange(len(rows), dtype=np.int64)
    numbers = np.array([index[label] for label in labels], np.int64)
    layout = Layout(places, numbers, classes, None, (), columns)
    cache = store.folder.with_name(CACHE_FOLDER)
    return load_dataset(source_from_files(name, listing, layout), geometry, cache=cache)
