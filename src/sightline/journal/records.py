"""What a journal holds: a prediction that was served, a correction of it, and both as they are read back."""

import json
import math
import os
import time
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from ..errors import JournalError

LINE_FORMAT = 1
"""Version of a line in the spool; a release reads its own version and every earlier one."""

MAX_LINE_CHARACTERS = 4_000_000
"""Characters of encoded images after which a new line is begun: a segment is read line by line."""

MAX_TEXT_CHARACTERS = 500
"""Characters of a label, subject or source that are stored; the rest is cut off."""


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
        confidence = one.confidence if math.isfinite(one.confidence) else 0.0
        label, subject, source = map(database_safe_text, (one.label, one.subject, one.source))
        rows.append(
            (one.id, one.at, one.release, label, confidence, one.abstained, one.sha256, subject, source, image)
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
        if version == LINE_FORMAT:
            return [
                PredictionRecord(*row[:-1], image=None if row[-1] is None else b64decode(row[-1])) for row in rows
            ]
    except TypeError as error:
        raise ValueError("a damaged line") from error
    raise ValueError(f"a line of version {version!r}")
