"""Reading the journal: rows, counts, and the images in it as a data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from ..data import load_dataset
from ..errors import DataError
from ..sources import FolderReader, Layout, Listing, sort_classes, source_from_files
from ..types import Dataset, Geometry
from .image_store import ImageStore
from .records import JournalRow
from .tables import corrections, images, predictions

MAX_QUERY_ROWS = 10_000
"""Rows that are given at once."""


def _select_rows() -> Select[Any]:
    """Every answer with its latest correction."""
    newer = corrections.alias()
    latest = select(func.max(newer.c.number)).where(newer.c.prediction == predictions.c.id).correlate(predictions)
    counts = and_(corrections.c.prediction == predictions.c.id, corrections.c.number == latest.scalar_subquery())
    said = (corrections.c.label.label("right"), corrections.c.at.label("corrected_at"), corrections.c.by)
    return select(predictions, *said).join_from(predictions, corrections, counts, isouter=True)


def _to_row(found: Any) -> JournalRow:
    return JournalRow(
        id=found.id,
        at=found.at,
        release=found.release,
        label=found.label,
        confidence=found.confidence,
        abstained=found.abstained,
        sha256=found.sha256,
        subject=found.subject,
        source=found.source,
        image=found.image,
        erased_at=found.erased_at,
        correction=found.right,
        corrected_at=found.corrected_at,
        corrected_by=found.by,
    )


def query_rows(
    connection: Connection,
    *,
    limit: int,
    before: str | None,
    label: str | None,
    release: int | None,
    abstained: bool | None,
    corrected: bool | None,
    subject: str | None,
    since: float | None,
    until: float | None,
) -> list[JournalRow]:
    """The newest answers, newest first; see ``Journal.predictions``."""
    t = predictions.c
    said = corrections.c.number
    wanted: list[ColumnElement[bool] | None] = [
        None if before is None else t.id < before,
        None if label is None else t.label == label,
        None if release is None else t.release == release,
        None if abstained is None else t.abstained.is_(abstained),
        None if corrected is None else (said.is_not(None) if corrected else said.is_(None)),
        None if subject is None else t.subject == subject,
        None if since is None else t.at >= since,
        None if until is None else t.at < until,
    ]
    chosen = _select_rows().where(*[one for one in wanted if one is not None])
    return [
        _to_row(one)
        for one in connection.execute(chosen.order_by(t.id.desc()).limit(max(0, min(limit, MAX_QUERY_ROWS))))
    ]


def count_rows(connection: Connection) -> dict[str, int]:
    """How much the journal holds."""
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


def query_labelled_rows(connection: Connection, least: float | None) -> list[JournalRow]:
    """The rows whose image is kept and whose label is known, each image once by its latest word.

    With ``least``, the answers of at least this confidence that nobody corrected too, their label as correction.
    """
    right = corrections.c.label.is_not(None)
    sure = and_(predictions.c.confidence >= (least or 0), ~predictions.c.abstained)
    known = right if least is None else or_(right, sure)
    chosen = _select_rows().where(predictions.c.image.is_not(None), known).order_by(predictions.c.id)
    found: dict[str, JournalRow] = {}
    for row in map(_to_row, connection.execute(chosen)):
        before = found.get(str(row.image))
        if before is None or (row.corrected_at or 0) >= (before.corrected_at or 0):
            found[str(row.image)] = row
    return sorted(found.values(), key=lambda row: row.id)


def build_dataset(held: Sequence[JournalRow], site: Path, geometry: Geometry) -> Dataset:
    """These rows' images, by the way of every other data set."""
    kept = ImageStore(site / "images")
    there = [(row, path) for row in held if (path := kept.path(str(row.image))).is_file()]
    if not there:
        raise DataError(
            f"The journal of '{site}' has no labelled images: serve with --keep-images, and correct some answers."
        )
    names = [path.relative_to(kept.folder).as_posix() for _, path in there]
    looks = [path.stat() for _, path in there]
    stamps = np.array([look.st_mtime_ns for look in looks], np.int64)
    sizes = np.array([look.st_size for look in looks], np.int64)
    listing = Listing(names, sizes, stamps, frozenset(), FolderReader(kept.folder, names))
    source = source_from_files(f"journal of {site}", listing, _dataset_layout([row for row, _ in there]))
    return load_dataset(source, geometry)


def _dataset_layout(held: Sequence[JournalRow]) -> Layout:
    labels = [row.correction or row.label for row in held]
    classes = sort_classes(labels)
    number = {name: i for i, name in enumerate(classes)}
    columns = {
        "release": np.array([row.release for row in held]),
        "prediction": _object_array(row.id for row in held),
    }
    if any(row.subject for row in held):
        columns["group"] = _object_array(row.subject or row.id for row in held)
    places = np.arange(len(held), dtype=np.int64)
    return Layout(places, np.array([number[one] for one in labels], np.int64), classes, None, (), columns)


def _object_array(values: Any) -> np.ndarray:
    held = list(values)
    array = np.empty(len(held), object)
    array[:] = held
    return array
