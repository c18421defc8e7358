"""The SQL of an erasure: images, hashes and sketches go, the rows of the answers stay and are marked."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from ..files import read_csv_rows, read_json_object
from ..sources import erase_exemplars
from .database import images, predictions, queue, sketches
from .image_store import ImageStore
from .records import is_new_id
from .statements import chunk_values

CANDIDATES_FOLDER = "improve"
"""Folder of a site for classifiers that learn from its images."""


def erase_subject(connection: Connection, store: ImageStore, subject: str) -> int:
    """Erase images and hashes of a subject's rows, and equal ones in other rows; return the number of rows.

    Exemplars of the same bytes, which runs in the site or in a folder of it learned from, are deleted too.
    """
    of_subject = predictions.c.subject == subject
    found = connection.execute(select(predictions.c.image, predictions.c.sha256).where(of_subject)).all()
    names = sorted({row.image for row in found if row.image is not None})
    hashes = sorted({row.sha256 for row in found if row.sha256 is not None})
    count = _clear_rows(connection, of_subject)
    for column, values in ((predictions.c.image, names), (predictions.c.sha256, hashes)):
        for some in chunk_values(values):
            # Sent again under another subject or none, it is still the same picture.
            more = connection.scalars(select(predictions.c.image).where(column.in_(some))).all()
            names += [name for name in set(more) if name is not None and name not in names]
            count += _clear_rows(connection, column.in_(some))
    for some in chunk_values(names):
        count += _clear_rows(connection, predictions.c.image.in_(some))
    _delete_images(connection, store, names)
    site, erased = store.folder.parent, {*hashes, *(Path(name).stem for name in names)}
    for folder in (site, *(one for one in site.iterdir() if one.is_dir())) if erased else ():
        erase_exemplars(folder, erased)
    for job in (site / CANDIDATES_FOLDER).glob("[0-9]*") if names else ():  # what was not released learns again
        if "released" not in read_json_object(job / "job.json") and _lacks_images(job):
            shutil.rmtree(job, ignore_errors=True)
    return count


def released_copies(site: Path) -> Iterator[str]:
    """Yield a sentence for each release that learned from images that are gone."""
    for job in sorted((site / CANDIDATES_FOLDER).glob("[0-9]*")):
        released = read_json_object(job / "job.json").get("released")
        if released and _lacks_images(job):
            yield (
                f"Release {released} learned from images that are erased: sightline improve {site} makes one without "
                "them."
            )


def _lacks_images(job: Path) -> bool:
    """Whether an image in the table of a candidate is gone."""
    table = job / "images.csv"
    return table.is_file() and any(not Path(row["path"]).is_file() for row in read_csv_rows(table))


def erase_before(connection: Connection, store: ImageStore, until: float) -> int:
    """Erase images and hashes of rows older than ``until`` (seconds since 1970); return the number of rows."""
    old = predictions.c.at < until
    with_image = predictions.c.image.is_not(None)
    names = set(connection.scalars(select(predictions.c.image).where(old, with_image).distinct()))
    count = _clear_rows(connection, old)
    shared: set[str] = set()
    for some in chunk_values(sorted(names)):  # a younger row may hold the same image
        shared.update(connection.scalars(select(predictions.c.image).where(predictions.c.image.in_(some))))
    _delete_images(connection, store, sorted(names - shared))
    return count


def _clear_rows(connection: Connection, which: ColumnElement[bool]) -> int:
    """Clear image, hash and sketch of these rows and set ``erased_at``; rows that have neither are not counted."""
    has_any = predictions.c.image.is_not(None) | predictions.c.sha256.is_not(None)
    ids = connection.scalars(select(predictions.c.id).where(which, has_any)).all()
    for some in chunk_values([id for id in ids if is_new_id(id)]):
        connection.execute(delete(sketches).where(sketches.c.prediction.in_([bytes.fromhex(id) for id in some])))
    for some in chunk_values(ids):
        connection.execute(delete(queue).where(queue.c.prediction.in_(some)))
    cleared = {"image": None, "sha256": None, "erased_at": time.time()}
    return connection.execute(update(predictions).where(which, has_any).values(cleared)).rowcount


def _delete_images(connection: Connection, store: ImageStore, names: Sequence[str]) -> None:
    """Delete images before the commit: a process killed in between has erased too much, not too little."""
    for some in chunk_values(names):
        connection.execute(delete(images).where(images.c.name.in_(some)))
    for name in names:
        store.delete(name)
    for unfinished in store.folder.glob("*/.*"):  # of killed processes: this transaction is the only writer
        unfinished.unlink(missing_ok=True)


def exported_copies(connection: Connection, noted: Path) -> Iterator[str]:
    """Yield a sentence for each export in the list ``noted`` that still holds images or hashes that were erased."""
    lines = noted.read_text(errors="replace").splitlines() if noted.is_file() else []
    for line in dict.fromkeys(lines):
        with suppress(OSError, ValueError, LookupError, TypeError):  # a changed export, or a line cut short
            out = Path(json.loads(line)["out"])
            rows = read_csv_rows(out / "labels.csv" if out.is_dir() else out)
            if out.is_dir():
                what, ids = "images", [row["prediction"] for row in rows if (out / row["path"]).is_file()]
            else:
                what, ids = "hashes", [row["id"] for row in rows if row["sha256"] or row["image"]]
            if count := count_erased(connection, ids):
                yield f"The export '{out}' holds {count:,} of the erased {what}: delete or export it again."


def count_erased(connection: Connection, ids: Sequence[str]) -> int:
    """Return how many of these predictions were erased."""
    erased = predictions.c.erased_at.is_not(None)
    return sum(
        connection.scalar(select(func.count()).where(erased, predictions.c.id.in_(some))) or 0
        for some in chunk_values(ids)
    )
