"""Taking images and hashes out of the journal: of a subject who asks, and of what is old."""

import time
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, delete, select, update

from .database import Database
from .image_store import ImageStore
from .tables import images, predictions

_MAX_STATEMENT_VALUES = 400
"""Values that one statement names."""


def erase_subject(database: Database, kept: ImageStore, subject: str) -> int:
    """Remove images and hashes of a subject's rows, and the very same ones from others'; how many rows."""
    theirs = predictions.c.subject == subject
    with database.write_transaction(sure=True) as connection:
        found = connection.execute(select(predictions.c.image, predictions.c.sha256).where(theirs)).all()
        names = sorted({row.image for row in found if row.image is not None})
        hashes = sorted({row.sha256 for row in found if row.sha256 is not None})
        count = _clear_rows(connection, theirs)
        for column, values in ((predictions.c.image, names), (predictions.c.sha256, hashes)):
            for some in _chunks(values):
                # Sent again under another name or none, it is still the same picture of the same subject.
                more = connection.scalars(select(predictions.c.image).where(column.in_(some))).all()
                names += [name for name in set(more) if name is not None and name not in names]
                count += _clear_rows(connection, column.in_(some))
        for some in _chunks(names):
            count += _clear_rows(connection, predictions.c.image.in_(some))
        _delete_images(connection, kept, names)
    return count


def erase_before(database: Database, kept: ImageStore, until: float) -> int:
    """Remove images and hashes of rows from before ``until`` (seconds since 1970); how many rows."""
    old = predictions.c.at < until
    with database.write_transaction(sure=True) as connection:
        held = predictions.c.image.is_not(None)
        names = set(connection.scalars(select(predictions.c.image).where(old, held).distinct()))
        count = _clear_rows(connection, old)
        still: set[str] = set()
        for some in _chunks(sorted(names)):  # a younger row may hold the same image
            still.update(connection.scalars(select(predictions.c.image).where(predictions.c.image.in_(some))))
        _delete_images(connection, kept, sorted(names - still))
    return count


def _clear_rows(connection: Connection, which: ColumnElement[bool]) -> int:
    """Empty image and hash of these rows, where they have any, and note when."""
    something = predictions.c.image.is_not(None) | predictions.c.sha256.is_not(None)
    emptied = {"image": None, "sha256": None, "erased_at": time.time()}
    return connection.execute(update(predictions).where(which, something).values(emptied)).rowcount


def _delete_images(connection: Connection, kept: ImageStore, names: Sequence[str]) -> None:
    """Remove images before the commit: a process killed in between has erased too much, not too little."""
    for some in _chunks(names):
        connection.execute(delete(images).where(images.c.name.in_(some)))
    for name in names:
        kept.delete(name)


def _chunks(values: Sequence[str]) -> list[Sequence[str]]:
    return [values[i : i + _MAX_STATEMENT_VALUES] for i in range(0, len(values), _MAX_STATEMENT_VALUES)]
