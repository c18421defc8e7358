"""From the spool to the database: records are inserted once, images stripped and kept within their quota."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import Column, Connection, func, select

from .. import progress
from ..errors import ImageError
from .database import Database, RejectedValue, images, predictions
from .image_store import ImageStore, content_name
from .records import PredictionRecord, encode_lines
from .spool import Spool, list_segments, read_segment, segment_mentions

QUOTA_RECOUNT_SECONDS = 30.0
"""Seconds after which the images of other processes are counted again."""

MAX_STATEMENT_VALUES = 400
"""Values named in one SQL statement."""

_RECORD_COLUMNS = tuple(name for name in PredictionRecord.__dataclass_fields__ if name != "image")
"""Columns of ``predictions`` that a record has by the same name; ``image`` becomes the name of a file."""

_MAX_BATCH_RECORDS, _MAX_BATCH_BYTES = 500, 16_000_000
"""Records, and bytes of their images, inserted in one transaction."""


class JournalWriter:
    """Moves the records of spools to a database. Thread-safe: one thread at a time drains."""

    def __init__(self, database: Database, spool: Spool, images: ImageStore, *, quota: float):
        """``quota`` in bytes, for the kept images of all processes together."""
        self._database, self._spool, self._images, self._quota = database, spool, images, quota
        self._lock = Lock()
        self._used, self._counted_at = 0, -QUOTA_RECOUNT_SECONDS
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

    def drain_mentions(self, word: bytes) -> None:
        """Write the segments of any process that contain ``word``, before their owner does; raise JournalError."""
        for segment in list_segments(self._spool.folder):
            if segment_mentions(segment, word):
                with self._lock, suppress(ValueError):
                    self._write_batches(read_segment(segment))

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
        with self._database.write_transaction(durable=False) as connection:
            kept: dict[str, str] = {}
            if stripped:
                known = _existing_values(connection, predictions.c.id, list(stripped))
                kept = self._store_images(connection, {id: one for id, one in stripped.items() if id not in known})
            rows = [
                {name: getattr(one, name) for name in _RECORD_COLUMNS} | {"image": kept.get(id)}
                for id, one in unique.items()
            ]
            connection.execute(self._database.insert_ignore(predictions), rows)

    def _store_images(self, connection: Connection, stripped: dict[str, tuple[str, bytes]]) -> dict[str, str]:
        """Write the images that fit into the quota; return their names by record."""
        if not stripped:
            return {}
        if time.monotonic() - self._counted_at > QUOTA_RECOUNT_SECONDS:
            self._used = connection.scalar(select(func.coalesce(func.sum(images.c.bytes), 0))) or 0
            self._counted_at = time.monotonic()
        stored = _existing_values(connection, images.c.name, [name for name, _ in stripped.values()])
        kept, new = {}, {}
        for id, (name, data) in stripped.items():
            if name not in stored and name not in new:
                if not self._store_image(name, data):
                    continue
                new[name] = len(data)
            kept[id] = name
        if new:
            rows = [{"name": name, "bytes": size} for name, size in new.items()]
            connection.execute(self._database.insert_ignore(images), rows)
        return kept

    def _store_image(self, name: str, data: bytes) -> bool:
        """Write one image; return False if there is no room for it."""
        try:
            if self._used + len(data) <= self._quota:
                self._images.put(name, data)
                self._used += len(data)
                return True
            reason = f"'{self._images.folder}' has reached its {self._quota / 1e6:,.0f} MB; raise --quota-mb"
        except OSError as error:
            reason = f"'{self._images.folder}' cannot be written ({(error.strerror or str(error)).lower()})"
        if not self.dropped_images:
            progress.notify(f"No more images are kept: {reason}. Answers are journalled as before.")
        self.dropped_images += 1
        return False


def _existing_values(connection: Connection, column: Column[Any], values: Sequence[str]) -> set[str]:
    """Return those of ``values`` that a column contains."""
    found: set[str] = set()
    for i in range(0, len(values), MAX_STATEMENT_VALUES):
        found.update(connection.scalars(select(column).where(column.in_(values[i : i + MAX_STATEMENT_VALUES]))))
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
