"""What a journal holds: an answer that was given, a correction of it, and both as they are read back."""

import json
import math
import os
import time
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import JournalError

LINE_FORMAT = 1
"""Version of a line of the spool; a release reads its own and every earlier one."""

MAX_LINE_CHARACTERS = 4_000_000
"""Characters of images in a line, nearly: a segment is read line by line."""

MAX_TEXT_CHARACTERS = 500
"""Characters of a label, a subject or a source that are kept."""


class UnknownPrediction(JournalError):
    """A correction of an answer that was never given here."""


class DatabaseUnavailable(JournalError):
    """The database does not answer now; nothing of what was asked has happened."""


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """An answer that was given."""

    id: str
    """From ``new_prediction_id``."""
    at: float
    """Seconds since 1970."""
    release: int
    """Number of the release that answered; 0 where a bundle was served without releases."""
    label: str
    """The likeliest class, where it abstained too."""
    confidence: float
    abstained: bool
    sha256: str | None
    """Of the bytes received, in hexadecimal."""
    subject: str | None = None
    """Whom or what it is about, as the caller named it: what ``erase`` goes by."""
    source: str | None = None
    """Where the image came from: a file name, a device."""
    image: bytes | None = None
    """The bytes received, where the image is to be kept."""


@dataclass(frozen=True, slots=True)
class Correction:
    """The right label of an answer, as someone said it."""

    id: str
    label: str
    at: float
    by: str | None
    """Name of the key it came by."""
    already: bool
    """Whether the same had been said before: nothing was added."""


@dataclass(frozen=True, slots=True)
class JournalRow:
    """An answer as the journal remembers it, with its latest correction."""

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
    """Name of the kept image; None where none was kept, or it was erased."""
    erased_at: float | None
    """When image and hash were removed."""
    correction: str | None
    """The right label, where someone said it."""
    corrected_at: float | None
    corrected_by: str | None


def new_prediction_id() -> str:
    """32 characters that sort by time: microseconds since 1970 and 72 random bits, in hexadecimal."""
    return ((time.time_ns() // 1000).to_bytes(7, "big") + os.urandom(9)).hex()


def database_safe_text(text: str | None) -> str | None:
    """Text that any database takes: no zero characters, no halves of characters, at most ``TEXT`` of them."""
    if text is None or (text.isascii() and "\0" not in text and len(text) <= MAX_TEXT_CHARACTERS):
        return text
    return text[:MAX_TEXT_CHARACTERS].replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def encode_lines(entries: Sequence[PredictionRecord], *, images: bool) -> bytes:
    """Lines of the spool, ended; ``images`` are left out unless they are to be kept."""
    lines: list[bytes] = []
    rows: list[Any] = [LINE_FORMAT]
    size = 0
    for e in entries:
        image = b64encode(e.image).decode("ascii") if images and e.image is not None else None
        sure = e.confidence if math.isfinite(e.confidence) else 0.0
        said = (
            database_safe_text(e.label),
            sure,
            e.abstained,
            e.sha256,
            database_safe_text(e.subject),
            database_safe_text(e.source),
            image,
        )
        rows.append((e.id, e.at, e.release, *said))
        size += len(image or "")
        if size > MAX_LINE_CHARACTERS:
            lines.append(json.dumps(rows).encode("ascii"))
            rows, size = [LINE_FORMAT], 0
    if len(rows) > 1:
        lines.append(json.dumps(rows).encode("ascii"))
    return b"\n".join(lines) + b"\n"


def decode_line(line: bytes) -> list[PredictionRecord]:
    """The entries of a line; raises ValueError for one that is damaged or newer than this release reads."""
    try:
        version, *rows = json.loads(line)
        if version == LINE_FORMAT:
            return [
                PredictionRecord(*row[:-1], image=None if row[-1] is None else b64decode(row[-1])) for row in rows
            ]
    except TypeError as error:
        raise ValueError("a damaged line") from error
    raise ValueError(f"a line of version {version!r}")
