"""The spool: files that hold predictions on their way to the database and outlive the process that wrote them.

Each process appends to its own segments, ``<name>.<n>.jsonl``, with one ``write`` per batch, and holds the lock
``<name>.lock`` while it lives. If the lock can be acquired, its owner has died; the process that acquires it takes
over the owner's segments. So answers go on while a PostgreSQL server is away, and no request waits for SQLite.
"""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from filelock import FileLock, Timeout

from ..errors import JournalError
from ..files import explain_write_errors
from .records import PredictionRecord, decode_line, encode_lines

MAX_SEGMENT_BYTES = 8_000_000
"""Bytes after which a segment is closed and the next one begun."""

MAX_SPOOL_BYTES = 256_000_000
"""Bytes in the segments of one process while the database is away; beyond half of it images are left out."""


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
        self.dropped_images = 0
        """Images left out because the spool was half full."""

    @property
    def waiting(self) -> int:
        """Number of records that are not in the database yet."""
        return self._records

    def append(self, records: Sequence[PredictionRecord]) -> None:
        """Write all records or none; raise JournalError if the spool or the disk is full."""
        images = self.images and self._bytes < self.limit // 2
        lines = encode_lines(records, images=images)
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
        """Release the lock; segments that are left go to whoever opens the journal next."""
        with self._lock:
            if self._file_bytes:
                self._close_segment()
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
