"""The spool: files with predictions that are on their way to the database.

Each process appends to its own segments, ``<name>.<n>.jsonl``, with one ``write`` per batch, and holds the lock
``<name>.lock`` while it lives. If the lock can be acquired, its owner has died; the process that acquires it takes
over the owner's segments. So predictions survive their process, go on while a PostgreSQL server is unavailable, and
no request waits for SQLite.
"""

import errno
import json
import math
import os
import time
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from filelock import FileLock, Timeout

from ..errors import JournalError, OutputError
from ..files import atomic_replace, explain_write_errors
from .records import PredictionRecord, database_safe_text
from .sketching import SketchInputs, sketch_answers

LINE_FORMAT = 2
"""Version of a line in the spool; a release reads its own version and every earlier one."""

MAX_LINE_CHARACTERS = 4_000_000
"""Characters of encoded images after which a new line is begun: a segment is read line by line."""

MAX_SEGMENT_BYTES = 8_000_000
"""Bytes after which a segment is closed and the next one begun."""

MAX_SPOOL_BYTES = 256_000_000
"""Bytes in the segments of one process while the database is away; beyond half of it images are left out."""

MAX_WAITING_BYTES = 64_000_000
"""Bytes of inputs that wait for the writer in memory; beyond them an answer waits for its own sketch."""


def encode_lines(records: Sequence[PredictionRecord], *, images: bool) -> bytes:
    """Encode records as newline-terminated lines of the spool; ``images=False`` leaves the images out."""
    lines: list[bytes] = []
    rows: list[Any] = [LINE_FORMAT]
    size = 0
    for one in records:
        image = b64encode(one.image).decode("ascii") if images and one.image is not None else None
        sketch = None if one.sketch is None else b64encode(one.sketch).decode("ascii")
        confidence = one.confidence if math.isfinite(one.confidence) else 0.0
        label, subject, source = map(database_safe_text, (one.label, one.subject, one.source))
        rows.append(
            (
                one.id,
                one.at,
                one.release,
                label,
                confidence,
                one.abstained,
                one.sha256,
                subject,
                source,
                image,
                sketch,
            )
        )
        size += len(image or "")
        if size > MAX_LINE_CHARACTERS:
            lines.append(json.dumps(rows).encode("ascii"))
            rows, size = [LINE_FORMAT], 0
    if len(rows) > 1:
        lines.append(json.dumps(rows).encode("ascii"))
    return b"\n".join(lines) + b"\n"


def decode_line(line: bytes) -> list[PredictionRecord]:
    """Decode one line of the spool; raise ValueError if it is damaged or of a newer format."""
    try:
        version, *rows = json.loads(line)
        if version in (1, LINE_FORMAT):  # lines of version 1 end with the image
            return [
                PredictionRecord(*row[:9], *(None if one is None else b64decode(one) for one in row[9:]))
                for row in rows
            ]
    except TypeError as error:
        raise ValueError("a damaged line") from error
    raise ValueError(f"a line of version {version!r}")


# The spool


class WaitingSketches:
    """The inputs that wait for the journal's writer, by the id of the answer. Thread-safe.

    They are in memory only: a process that is killed loses the sketches of its last moments, and no answer.
    """

    def __init__(self, limit: int = MAX_WAITING_BYTES):
        self.limit = limit
        self._lock = Lock()
        self._inputs: dict[str, SketchInputs] = {}
        self._bytes = 0

    def add(self, records: Sequence[PredictionRecord]) -> list[PredictionRecord]:
        """Take the inputs of records; return the records, with their sketches where there is no room to wait."""
        found = list(records)
        beyond = []
        with self._lock:
            for i, one in enumerate(records):
                if one.sketch_inputs is None or one.id in self._inputs:
                    continue
                if self._bytes + one.sketch_inputs.nbytes > self.limit:
                    beyond.append(i)
                else:
                    self._inputs[one.id] = one.sketch_inputs
                    self._bytes += one.sketch_inputs.nbytes
        if beyond:
            made = sketch_answers([inputs for i in beyond if (inputs := records[i].sketch_inputs) is not None])
            for i, sketch in zip(beyond, made, strict=True):
                found[i] = replace(records[i], sketch=sketch)
        return found

    def make(self, ids: Collection[str]) -> dict[str, bytes]:
        """The sketches of those of these answers that wait; they go on waiting until ``remove``."""
        with self._lock:
            waiting = {id: self._inputs[id] for id in ids if id in self._inputs}
        made = zip(waiting, sketch_answers([*waiting.values()]), strict=True)
        return {id: sketch for id, sketch in made if sketch is not None}

    def remove(self, ids: Collection[str]) -> None:
        """Forget the inputs of these answers."""
        with self._lock:
            for id in ids:
                if (one := self._inputs.pop(id, None)) is not None:
                    self._bytes -= one.nbytes


@dataclass(frozen=True, slots=True)
class _Segment:
    """A file that is no longer appended to."""

    path: Path
    bytes: int
    records: int


class Spool:
    """The segments of this process. Thread-safe; must not be used after a fork."""

    def __init__(
        self, folder: Path, *, images: bool, limit: int = MAX_SPOOL_BYTES, segment: int = MAX_SEGMENT_BYTES
    ):
        """``limit`` and ``segment`` in bytes. Raise OutputError if the folder cannot be written."""
        self.folder, self.images, self.limit, self.segment = folder, images, limit, segment
        with explain_write_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._name, self._life = _create_lock(folder)
        self._lock = Lock()
        self._file: int | None = None  # the open segment, its bytes and its records
        self._number, self._file_bytes, self._file_records = 0, 0, 0
        self._closed: list[_Segment] = []
        self._bytes, self._records = 0, 0  # of all segments
        self.sketches = WaitingSketches()
        """What the sketches of its records are made of, until they are in the database."""
        self.dropped_images = 0
        """Images left out because the spool was half full."""

    @property
    def waiting(self) -> int:
        """Number of records that are not in the database yet."""
        return self._records

    def append(self, records: Sequence[PredictionRecord]) -> None:
        """Write all records or none; raise JournalError if the spool or the disk is full."""
        images = self.images and self._bytes < self.limit // 2
        known = self.sketches.add(records)  # first: the writer may look for them at once
        lines = encode_lines(known, images=images)
        try:
            with self._lock:
                if self._bytes + len(lines) > self.limit:
                    raise JournalError(
                        f"The journal's database has been unavailable for so long that the spool is full: "
                        f"{self._records:,} answers wait in '{self.folder}'. Bring the database back."
                    )
                if self._file is None:
                    path = self._path()
                    with explain_write_errors(path):
                        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600)
                try:
                    if os.write(self._file, lines) != len(lines):
                        raise OSError(errno.ENOSPC, "")
                except OSError as error:
                    os.ftruncate(self._file, self._file_bytes)  # takes back what a full disk cut short
                    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                    reason = "the disk is full" if full else (error.strerror or str(error)).lower()
                    raise JournalError(
                        f"The answer could not be written to '{self.folder}': {reason}. Free some space."
                    ) from error
                self._file_bytes += len(lines)
                self._file_records += len(records)
                self._bytes += len(lines)
                self._records += len(records)
                if self.images and not images:
                    self.dropped_images += sum(one.image is not None for one in records)
                if self._file_bytes >= self.segment:
                    self._close_segment()
        except BaseException:
            self.sketches.remove([one.id for one in records])
            raise

    def oldest_segment(self) -> Path | None:
        """Return the oldest segment, closed first if it is still open; None if nothing waits."""
        with self._lock:
            if not self._closed and self._file_bytes:
                self._close_segment()
            return self._closed[0].path if self._closed else None

    def remove(self, segment: Path) -> None:
        """Remove a segment whose records are in the database."""
        with self._lock:
            segment.unlink(missing_ok=True)
            for one in [one for one in self._closed if one.path == segment]:
                self._closed.remove(one)
                self._bytes -= one.bytes
                self._records -= one.records

    def close(self) -> None:
        """Release the lock; segments that are left go to whoever opens the journal next, with their sketches."""
        with self._lock:
            if self._file_bytes:
                self._close_segment()
            for one in self._closed:
                # A full or damaged disk: the segment keeps its rows.
                with (
                    suppress(OutputError, ValueError),
                    atomic_replace(one.path) as temporary,
                    temporary.open("wb") as stream,
                ):
                    for batch in read_segment(one.path):
                        made = self.sketches.make([row.id for row in batch])
                        rows = [replace(row, sketch=made.get(row.id, row.sketch)) for row in batch]
                        stream.write(encode_lines(rows, images=True))
            self._life.release()
            if not self._closed:
                (self.folder / f"{self._name}.lock").unlink(missing_ok=True)

    def orphaned_segments(self) -> Iterator[Path]:
        """Yield the segments of dead processes, each once; a lock file goes when its segments are gone."""
        names = {
            path.name.partition(".")[0] for kind in ("lock", "jsonl") for path in self.folder.glob(f"*.{kind}")
        }
        for name in sorted(names - {self._name}):
            lock = self.folder / f"{name}.lock"
            try:
                with FileLock(lock, timeout=0):
                    yield from sorted(self.folder.glob(f"{name}.*.jsonl"), key=_segment_order)
                    if not any(self.folder.glob(f"{name}.*.jsonl")):
                        lock.unlink(missing_ok=True)
            except Timeout:
                continue

    def _path(self) -> Path:
        return self.folder / f"{self._name}.{self._number}.jsonl"

    def _close_segment(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._closed.append(_Segment(self._path(), self._file_bytes, self._file_records))
        self._file, self._file_bytes, self._file_records = None, 0, 0
        self._number += 1


def list_segments(folder: Path) -> list[Path]:
    """Return the segments of every process, dead or alive."""
    return sorted(folder.glob("*.jsonl"), key=_segment_order)


def read_segment(segment: Path) -> Iterator[list[PredictionRecord]]:
    """Yield the batches of a segment; nothing if the file is gone.

    A last line without its newline was never acknowledged and is skipped. Raise ValueError for a line that is
    damaged, or was written by a newer release.
    """
    try:
        with segment.open("rb") as stream:
            for line in stream:
                if line.endswith(b"\n"):
                    yield decode_line(line)
    except FileNotFoundError:
        return


def segment_mentions(segment: Path, word: bytes) -> bool:
    """Return whether ``word`` occurs anywhere in a segment."""
    try:
        with segment.open("rb") as stream:
            return any(word in line for line in stream)
    except FileNotFoundError:
        return False


def list_set_aside(folder: Path) -> list[Path]:
    """Return the files that could not be read, or not be stored: a person has to decide about them."""
    return sorted((*folder.glob("*.damaged"), *folder.glob("refused")))


def _segment_order(segment: Path) -> tuple[str, int]:
    name, number, _ = segment.name.rsplit(".", 2)
    return name, int(number) if number.isdigit() else 0


def _create_lock(folder: Path) -> tuple[str, FileLock]:
    """Return a fresh name and its lock, held: another process may take a new lock file for a dead owner's."""
    while True:
        name = f"{os.getpid()}-{time.time_ns()}"
        lock = FileLock(folder / f"{name}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        if (folder / f"{name}.lock").exists():
            return name, lock
        lock.release()
