"""Statements on the journal: reading rows, correcting, erasing, and the kept images as a data set."""

import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, Select, and_, delete, func, insert, or_, select, update

from ..data import load_dataset
from ..sources import FolderReader, Layout, Listing, sort_classes, source_from_files
from ..types import Dataset, Geometry
from .database import corrections, images, predictions
from .image_store import ImageStore
from .records import Correction, JournalRow, RowConditions
from .writer import MAX_STATEMENT_VALUES

MAX_QUERY_ROWS = 10_000
"""Rows returned by one query."""


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


# Erasure


def erase_subject(connection: Connection, store: ImageStore, subject: str) -> int:
    """Erase images and hashes of a subject's rows, and equal ones in other rows; return the number of rows."""
    of_subject = predictions.c.subject == subject
    found = connection.execute(select(predictions.c.image, predictions.c.sha256).where(of_subject)).all()
    names = sorted({row.image for row in found if row.image is not None})
    hashes = sorted({row.sha256 for row in found if row.sha256 is not None})
    count = _clear_rows(connection, of_subject)
    for column, values in ((predictions.c.image, names), (predictions.c.sha256, hashes)):
        for some in _chunks(values):
            # Sent again under another subject or none, it is still the same picture.
            more = connection.scalars(select(predictions.c.image).where(column.in_(some))).all()
            names += [name for name in set(more) if name is not None and name not in names]
            count += _clear_rows(connection, column.in_(some))
    for some in _chunks(names):
        count += _clear_rows(connection, predictions.c.image.in_(some))
    _delete_images(connection, store, names)
    return count


def erase_before(connection: Connection, store: ImageStore, until: float) -> int:
    """Erase images and hashes of rows older than ``until`` (seconds since 1970); return the number of rows."""
    old = predictions.c.at < until
    with_image = predictions.c.image.is_not(None)
    names = set(connection.scalars(select(predictions.c.image).where(old, with_image).distinct()))
    count = _clear_rows(connection, old)
    shared: set[str] = set()
    for some in _chunks(sorted(names)):  # a younger row may hold the same image
        shared.update(connection.scalars(select(predictions.c.image).where(predictions.c.image.in_(some))))
    _delete_images(connection, store, sorted(names - shared))
    return count


def _clear_rows(connection: Connection, which: ColumnElement[bool]) -> int:
    """Clear image and hash of these rows and set ``erased_at``; rows that have neither are not counted."""
    has_any = predictions.c.image.is_not(None) | predictions.c.sha256.is_not(None)
    cleared = {"image": None, "sha256": None, "erased_at": time.time()}
    return connection.execute(update(predictions).where(which, has_any).values(cleared)).rowcount


def _delete_images(connection: Connection, store: ImageStore, names: Sequence[str]) -> None:
    """Delete images before the commit: a process killed in between has erased too much, not too little."""
    for some in _chunks(names):
        connection.execute(delete(images).where(images.c.name.in_(some)))
    for name in names:
        store.delete(name)


def _chunks(values: Sequence[str]) -> list[Sequence[str]]:
    return [values[i : i + MAX_STATEMENT_VALUES] for i in range(0, len(values), MAX_STATEMENT_VALUES)]


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
    return load_dataset(source_from_files(name, listing, layout), geometry)
