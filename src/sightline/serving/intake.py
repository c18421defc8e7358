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
from .database import Database, Unfit
from .entries import Entry, to_lines
from .kept import Kept, named
from .spool import Spool, everything, mentions, read
from .tables import images, predictions

AFRESH = 30.0
"""Seconds after which other processes' images are counted anew."""

_BATCH, _BATCH_BYTES = 500, 16_000_000
"""Entries, and bytes of their images, that are inserted at once."""

_FEW = 400
"""Values that one statement names."""


class Intake:
    """What brings the entries of spools to a database. One thread at a time goes through it."""

    def __init__(self, database: Database, spool: Spool, kept: Kept, *, quota: float):
        """``quota`` in bytes of all kept images together."""
        self._database, self._spool, self._kept, self._quota = database, spool, kept, quota
        self._lock = Lock()
        self._used, self._counted = 0, -AFRESH
        self.unkept = 0
        """Images that were not kept: the quota is used up, the disk is full, or they cannot be read."""

    def drain(self, *, inherit: bool) -> None:
        """Everything that waits, oldest first, and what dead processes left; raises JournalError."""
        with self._lock:
            for segment in self._spool.inherited() if inherit else ():
                self._take(segment)
                segment.unlink(missing_ok=True)
            while segment := self._spool.oldest():
                self._take(segment)
                self._spool.done(segment)

    def fetch(self, word: bytes) -> None:
        """What any process's spool says of a word, before its owner brings it; raises JournalError."""
        for segment in everything(self._spool.folder):
            if mentions(segment, word):
                with self._lock, suppress(ValueError):
                    self._store_all(read(segment))

    def _take(self, segment: Path) -> None:
        try:
            self._store_all(read(segment))
        except ValueError:
            aside = segment.with_suffix(".damaged")
            aside.write_bytes(segment.read_bytes())
            progress.say(f"A part of the journal's spool cannot be read; it was set aside as '{aside}'.")

    def _store_all(self, batches: Iterable[list[Entry]]) -> None:
        for batch in _gathered(batches):
            try:
                self._store(batch)
            except Unfit:
                self._store_each(batch)

    def _store_each(self, entries: Sequence[Entry]) -> None:
        """One by one: what the database cannot hold is put aside, and the rest goes on."""
        for entry in entries:
            try:
                self._store([entry])
            except Unfit:
                aside = self._spool.folder / "refused"
                with aside.open("ab") as stream:
                    stream.write(to_lines([entry], images=True))
                progress.say(f"The journal's database cannot hold an answer; it was put aside in '{aside}'.")

    def _store(self, entries: Sequence[Entry]) -> None:
        pictures = self._stripped(entries)
        fresh = {entry.id: entry for entry in entries}
        with self._database.writing(sure=False) as connection:
            kept: dict[str, str] = {}
            if pictures:
                known = _known(connection, predictions.c.id, list(pictures))
                kept = self._keep(connection, {id: one for id, one in pictures.items() if id not in known})
            rows = [_row(entry, kept.get(id)) for id, entry in fresh.items()]
            connection.execute(self._database.insert(predictions), rows)  # those that are there stay as they are

    def _stripped(self, entries: Sequence[Entry]) -> dict[str, tuple[str, bytes]]:
        """The names and bytes of the images to keep, by entry."""
        found = {}
        for entry in entries:
            if entry.image is not None:
                try:
                    found[entry.id] = named(entry.image)
                except ImageError:
                    self.unkept += 1
        return found

    def _keep(self, connection: Connection, pictures: dict[str, tuple[str, bytes]]) -> dict[str, str]:
        """Write the images that the quota has room for; their names by entry."""
        if not pictures:
            return {}
        if time.monotonic() - self._counted > AFRESH:
            self._used = connection.scalar(select(func.coalesce(func.sum(images.c.bytes), 0))) or 0
            self._counted = time.monotonic()
        there = _known(connection, images.c.name, [name for name, _ in pictures.values()])
        kept, fresh = {}, {}
        for id, (name, data) in pictures.items():
            if name not in there and name not in fresh:
                if not self._put(name, data):
                    continue
                fresh[name] = len(data)
            kept[id] = name
        if fresh:
            rows = [{"name": name, "bytes": size} for name, size in fresh.items()]
            connection.execute(self._database.insert(images), rows)
        return kept

    def _put(self, name: str, data: bytes) -> bool:
        """Write an image, unless there is no room."""
        try:
            if self._used + len(data) <= self._quota:
                self._kept.put(name, data)
                self._used += len(data)
                return True
            why = f"'{self._kept.folder}' has the {self._quota / 1e6:,.0f} MB it may have; --quota-mb gives more"
        except OSError as error:
            why = f"'{self._kept.folder}' cannot be written ({(error.strerror or str(error)).lower()})"
        if not self.unkept:
            progress.say(f"No more images are kept: {why}. Answers are journalled as before.")
        self.unkept += 1
        return False


def _known(connection: Connection, column: Column[Any], values: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for i in range(0, len(values), _FEW):
        found.update(connection.scalars(select(column).where(column.in_(values[i : i + _FEW]))))
    return found


def _row(entry: Entry, image: str | None) -> dict[str, Any]:
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


def _gathered(batches: Iterable[list[Entry]]) -> Iterator[list[Entry]]:
    """Batches put together to what is inserted at once."""
    held: list[Entry] = []
    size = 0
    for batch in batches:
        held += batch
        size += sum(len(entry.image) for entry in batch if entry.image is not None)
        if len(held) >= _BATCH or size >= _BATCH_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held
