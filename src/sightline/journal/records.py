"""What a journal holds, and the spool: files with predictions that are on their way to the database.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypedDict

from filelock import FileLock, Timeout

from ..errors import JournalError
from ..files import explain_write_errors

LINE_FORMAT = 2
"""Version of a line in the spool; a release reads its own version and every earlier one."""

MAX_LINE_CHARACTERS = 4_000_000
"""Characters of encoded images after which a new line is begun: a segment is read line by line."""

MAX_TEXT_CHARACTERS = 500
"""Characters of a label, subject or source that are stored; the rest is cut off."""

MAX_SEGMENT_BYTES = 8_000_000
"""Bytes after which a segment is closed and the next one begun."""

MAX_SPOOL_BYTES = 256_000_000
"""Bytes in the segments of one process while the database is away; beyond half of it images are left out."""


class UnknownPrediction(JournalError):
    """A correction names a prediction that this journal never recorded."""


class DatabaseUnavailable(JournalError):
    """The database does not answer at the moment; nothing was changed."""


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """One served prediction."""

    id: str
    """From ``new_prediction_id``."""
    at: float
    """Seconds since 1970."""
    release: int
    """Number of the release that answered; 0 for a bundle served without releases."""
    label: str
    """Most probable class, also when the classifier abstained."""
    confidence: float
    """Probability of ``label``, in [0, 1]."""
    abstained: bool
    sha256: str | None
    """SHA-256 of the bytes received, in hexadecimal."""
    subject: str | None = None
    """Whom or what the image shows, as named by the caller: the key of ``Journal.erase``."""
    source: str | None = None
    """Where the image came from: a file name, a device."""
    image: bytes | None = None
    """The bytes received, if the image is to be kept."""
    sketch: bytes | None = None
    """One row of ``sketch_dtype``, for monitoring."""


@dataclass(frozen=True, slots=True)
class Correction:
    """The right label of a prediction, as a person reported it."""

    id: str
    """Of the prediction."""
    label: str
    at: float
    """Seconds since 1970."""
    by: str | None
    """Name of the API key it was sent with."""
    already: bool
    """Whether this label was already the latest correction; then no row was added."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """What an erasure or a retention did."""

    rows: int
    """Rows whose image and hash were cleared."""
    remains: tuple[str, ...]
    """The copies that it does not reach, and who can remove them: one sentence each."""


@dataclass(frozen=True, slots=True)
class JournalRow:
    """A prediction as stored, with its latest correction."""

    id: str
    at: float
    release: int
    label: str
    confidence: float | None
    abstained: bool
    sha256: str | None
    subject: str | None
    source: str | None
    image: str | None
    """Name of the kept image; None if none was kept, or it was erased."""
    erased_at: float | None
    """When image and hash were erased, in seconds since 1970."""
    correction: str | None
    """Latest correction of the label."""
    corrected_at: float | None
    corrected_by: str | None


@dataclass(frozen=True, slots=True)
class SketchRow:
    """The sketch of one answer, as stored."""

    number: int
    """Counts up in the order of storing."""
    id: str
    at: float
    subject: str | None
    source: str | None
    image: str | None
    """Name of the kept image; None if none was kept, or it was erased."""
    values: bytes


class RowConditions(TypedDict, total=False):
    """Conditions on rows of the journal, joined by AND; None is no condition."""

    before: str | None
    """Only ids that sort before this one: the next page."""
    label: str | None
    """Predicted class."""
    release: int | None
    abstained: bool | None
    corrected: bool | None
    subject: str | None
    since: float | None
    """Seconds since 1970, inclusive."""
    until: float | None
    """Seconds since 1970, exclusive."""


def new_prediction_id() -> str:
    """Return 32 hexadecimal characters that sort by time: microseconds since 1970, then 72 random bits."""
    return ((time.time_ns() // 1000).to_bytes(7, "big") + os.urandom(9)).hex()


def is_new_id(id: str) -> bool:
    """Whether an id has the form of ``new_prediction_id``."""
    return len(id) == 32 and set(id) <= set("0123456789abcdef")


def database_safe_text(text: str | None) -> str | None:
    """Return text that any database stores: no NUL, no lone surrogates, at most ``MAX_TEXT_CHARACTERS``."""
    if text is None or (text.isascii() and "\0" not in text and len(text) <= MAX_TEXT_CHARACTERS):
        return text
    return text[:MAX_TEXT_CHARACTERS].replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


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
