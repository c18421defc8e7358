"""What a journal holds: predictions, corrections, and what is asked of them."""

import os
import time
from dataclasses import dataclass
from typing import TypedDict

from ..errors import JournalError
from .sketching import SketchInputs

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
    sketch: bytes | None = None
    """One row of ``sketch_dtype``, for monitoring."""
    sketch_inputs: SketchInputs | None = None
    """What the journal's writer makes the sketch of, where it is not made yet; never in the spool."""


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
