"""What was answered, on its way to the journal's database: files that outlive the process that wrote them.

Each process appends to segments of its own, ``<name>.<n>.jsonl``, one ``write`` for each batch, and holds
``<name>.lock`` while it lives: a lock that can be had belongs to the dead, and whoever gets it inherits.
"""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock

from filelock import FileLock, Timeout

from ..errors import JournalError
from ..files import explain_write_errors
from .records import PredictionRecord, decode_line, encode_lines

MAX_SEGMENT_BYTES = 8_000_000
"""Bytes after which a segment is closed and the next begun."""

MAX_SPOOL_BYTES = 256_000_000
"""Bytes that the segments of one process may have while the database is away; images are left out beyond half."""


class Spool:
    """The segments of this process. Safe to share between threads; not to be carried through a fork."""

    def __init__(
        self, folder: Path, *, images: bool, limit: int = MAX_SPOOL_BYTES, segment: int = MAX_SEGMENT_BYTES
    ):
        """Raises OutputError where the folder cannot be written."""
        self.folder, self.images, self.limit, self.segment = folder, images, limit, segment
        with explain_write_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._name, self._life = _create_lock(folder)
        self._lock = Lock()
        self._file: int | None = None
        self._number, self._size = 0, 0
        self._closed: list[tuple[Path, int, int]] = []  # segment, its bytes, its entries
        self._bytes, self._entries = 0, 0
        self._open_entries = 0
        self.dropped_images = 0
        """Entries whose image was left out because the spool was half full."""

    @property
    def waiting(self) -> int:
        """Entries that are not in the database yet."""
        return self._entries

    def append(self, entries: Sequence[PredictionRecord]) -> None:
        """Write entries, all of them or none; raises JournalError where the spool or the disk is full."""
        images = self.images and self._bytes < self.limit // 2
        line = encode_lines(entries, images=images)
        with self._lock:
            if self._bytes + len(line) > self.limit:
                raise JournalError(
                    f"The journal's database has been away for so long that its spool is full: {self._entries:,} "
                    f"answers wait in '{self.folder}'. Bring the database back."
                )
            self._write(line)
            self._size += len(line)
            self._bytes += len(line)
            self._entries += len(entries)
            self._open_entries += len(entries)
            if self.images and not images:
                self.dropped_images += sum(entry.image is not None for entry in entries)
            if self._size >= self.segment:
                self._close()

    def oldest_segment(self) -> Path | None:
        """The oldest segment that nobody appends to any more; None where nothing waits."""
        with self._lock:
            if not self._closed and self._size:
                self._close()
            return self._closed[0][0] if self._closed else None

    def remove(self, segment: Path) -> None:
        """Remove a segment whose entries are in the database."""
        with self._lock:
            segment.unlink(missing_ok=True)
            for one in self._closed:
                if one[0] == segment:
                    self._closed.remove(one)
                    self._bytes -= one[1]
                    self._entries -= one[2]
                    return

    def close(self) -> None:
        """Let go: what is left is for whoever opens the journal next."""
        with self._lock:
            if self._size:
                self._close()
            self._life.release()
            if not self._closed:
                (self.folder / f"{self._name}.lock").unlink(missing_ok=True)

    def orphaned_segments(self) -> Iterator[Path]:
        """Segments of processes that are dead, each once; the lock file goes once they were taken and removed."""
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

    def _write(self, line: bytes) -> None:
        """One ``write``; what a full disk cuts short is taken back."""
        if self._file is None:
            path = self._path()
            with explain_write_errors(path):
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600)
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, "")
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise JournalError(
                f"The answer could not be written down in '{self.folder}': {_os_reason(error)}. Free some space."
            ) from error

    def _path(self) -> Path:
        return self.folder / f"{self._name}.{self._number}.jsonl"

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._closed.append((self._path(), self._size, self._open_entries))
        self._file, self._size, self._open_entries = None, 0, 0
        self._number += 1


def list_segments(folder: Path) -> Iterator[Path]:
    """Every segment of every process, dead or alive."""
    yield from sorted(folder.glob("*.jsonl"), key=_segment_order)


def read_segment(segment: Path) -> Iterator[list[PredictionRecord]]:
    """The batches of a segment; none where it is gone. A last line without its end was never acknowledged.

    Raises ValueError for a line that is damaged, or written by a newer release.
    """
    try:
        with segment.open("rb") as stream:
            for line in stream:
                if line.endswith(b"\n"):
                    yield decode_line(line)
    except FileNotFoundError:
        return


def segment_mentions(segment: Path, word: bytes) -> bool:
    """Whether a word is written anywhere in a segment."""
    try:
        with segment.open("rb") as stream:
            return any(word in line for line in stream)
    except FileNotFoundError:
        return False


def list_set_aside(folder: Path) -> Iterator[Path]:
    """What could not be read, or not be held by the database: only people can say what to do with it."""
    yield from sorted((*folder.glob("*.damaged"), *folder.glob("refused")))


def _segment_order(segment: Path) -> tuple[str, int]:
    name, number, _ = segment.name.rsplit(".", 2)
    return name, int(number) if number.isdigit() else 0


def _os_reason(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "the disk is full" if full else (error.strerror or str(error)).lower()


def _create_lock(folder: Path) -> tuple[str, FileLock]:
    """A name of our own and its lock, surely held: someone may take a file just made for a dead one's."""
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
