"""From the spool to the database: batches inserted once, images stripped and kept within their quota."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import Column, Connection, func, select

from .. import progress
from ..errors import ImageError
from .database import Database, RejectedValue
from .image_store import ImageStore, content_name
from .records import PredictionRecord, encode_lines
from .spool import Spool, list_segments, read_segment, segment_mentions
from .tables import images, predictions

QUOTA_RECOUNT_SECONDS = 30.0
"""Seconds after which other processes' images are counted anew."""

_MAX_BATCH_RECORDS, _MAX_BATCH_BYTES = 500, 16_000_000
"""Entries, and bytes of their images, that are inserted at once."""

_MAX_STATEMENT_VALUES = 400
"""Values that one statement names."""


class JournalWriter:
    """What brings the entries of spools to a database. One thread at a time goes through it."""

    def __init__(self, database: Database, spool: Spool, kept: ImageStore, *, quota: float):
        """``quota`` in bytes of all kept images together."""
        self._database, self._spool, self._kept, self._quota = database, spool, kept, quota
        self._lock = Lock()
        self._used, self._counted = 0, -QUOTA_RECOUNT_SECONDS
        self.dropped_images = 0
        """Images that were not kept: the quota is used up, the disk is full, or they cannot be read."""

    def drain(self, *, inherit: bool) -> None:
        """Everything that waits, oldest first, and what dead processes left; raises JournalError."""
        with self._lock:
            for segment in self._spool.orphaned_segments() if inherit else ():
                self._write_segment(segment)
                segment.unlink(missing_ok=True)
            while segment := self._spool.oldest_segment():
                self._write_segment(segment)
                self._spool.remove(segment)

    def drain_mentions(self, word: bytes) -> None:
        """What any process's spool says of a word, before its owner brings it; raises JournalError."""
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
            progress.notify(f"A part of the journal's spool cannot be read; it was set aside as '{aside}'.")

    def _write_batches(self, batches: Iterable[list[PredictionRecord]]) -> None:
        for batch in _merge_batches(batches):
            try:
                self._write(batch)
            except RejectedValue:
                self._write_each(batch)

    def _write_each(self, entries: Sequence[PredictionRecord]) -> None:
        """One by one: what the database cannot hold is put aside, and the rest goes on."""
        for entry in entries:
            try:
                self._write([entry])
            except RejectedValue:
                aside = self._spool.folder / "refused"
                with aside.open("ab") as stream:
                    stream.write(encode_lines([entry], images=True))
                progress.notify(f"The journal's database cannot hold an answer; it was put aside in '{aside}'.")

    def _write(self, entries: Sequence[PredictionRecord]) -> None:
        pictures = self._stripped(entries)
        fresh = {entry.id: entry for entry in entries}
        with self._database.write_transaction(sure=False) as connection:
            kept: dict[str, str] = {}
            if pictures:
                known = _existing_values(connection, predictions.c.id, list(pictures))
                kept = self._store_images(connection, {id: one for id, one in pictures.items() if id not in known})
            rows = [_row(entry, kept.get(id)) for id, entry in fresh.items()]
            connection.execute(
                self._database.insert_ignore(predictions), rows
            )  # those that are there stay as they are

    def _stripped(self, entries: Sequence[PredictionRecord]) -> dict[str, tuple[str, bytes]]:
        """The names and bytes of the images to keep, by entry."""
        found = {}
        for entry in entries:
            if entry.image is not None:
                try:
                    found[entry.id] = content_name(entry.image)
                except ImageError:
                    self.dropped_images += 1
        return found

    def _store_images(self, connection: Connection, pictures: dict[str, tuple[str, bytes]]) -> dict[str, str]:
        """Write the images that the quota has room for; their names by entry."""
        if not pictures:
            return {}
        if time.monotonic() - self._counted > QUOTA_RECOUNT_SECONDS:
            self._used = connection.scalar(select(func.coalesce(func.sum(images.c.bytes), 0))) or 0
            self._counted = time.monotonic()
        there = _existing_values(connection, images.c.name, [name for name, _ in pictures.values()])
        kept, fresh = {}, {}
        for id, (name, data) in pictures.items():
            if name not in there and name not in fresh:
                if not self._store_image(name, data):
                    continue
                fresh[name] = len(data)
            kept[id] = name
        if fresh:
            rows = [{"name": name, "bytes": size} for name, size in fresh.items()]
            connection.execute(self._database.insert_ignore(images), rows)
        return kept

    def _store_image(self, name: str, data: bytes) -> bool:
        """Write an image, unless there is no room."""
        try:
            if self._used + len(data) <= self._quota:
                self._kept.put(name, data)
                self._used += len(data)
                return True
            why = f"'{self._kept.folder}' has the {self._quota / 1e6:,.0f} MB it may have; --quota-mb gives more"
        except OSError as error:
            why = f"'{self._kept.folder}' cannot be written ({(error.strerror or str(error)).lower()})"
        if not self.dropped_images:
            progress.notify(f"No more images are kept: {why}. Answers are journalled as before.")
        self.dropped_images += 1
        return False


def _existing_values(connection: Connection, column: Column[Any], values: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for i in range(0, len(values), _MAX_STATEMENT_VALUES):
        found.update(connection.scalars(select(column).where(column.in_(values[i : i + _MAX_STATEMENT_VALUES]))))
    return found


def _row(entry: PredictionRecord, image: str | None) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": entry.at,
        "release": entry.release,
        "label": entry.label,
        "confidence": entry.confidence,
        "abstained": entry.abstained,
        "sha256": entry.sha256,
        "subject": entry.subject,
        "source": entry.source,
        "image": image,
    }


def _merge_batches(batches: Iterable[list[PredictionRecord]]) -> Iterator[list[PredictionRecord]]:
    """Batches put together to what is inserted at once."""
    held: list[PredictionRecord] = []
    size = 0
    for batch in batches:
        held += batch
        size += sum(len(entry.image) for entry in batch if entry.image is not None)
        if len(held) >= _MAX_BATCH_RECORDS or size >= _MAX_BATCH_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held
