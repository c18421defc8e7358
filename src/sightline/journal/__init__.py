"""What was answered, and what people said of it: predictions, corrections, their images.

``Journal.open`` gives the journal of a site; ``Journal.dataset`` turns corrected images into a data set.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .records import (
    Correction,
    DatabaseUnavailable,
    Erasure,
    JournalRow,
    PredictionRecord,
    SketchRow,
    UnknownPrediction,
    new_prediction_id,
)
from .reference import (
    MIN_REFERENCE_IMAGES,
    REFERENCE_FILE,
    Projection,
    Reference,
    class_probabilities,
    confidences,
    entropies,
    predicted_classes,
)
from .sketches import Sketches, decode_sketches, make_sketches
from .sketching import SketchInputs, sketch_answers

if TYPE_CHECKING:
    from .erasure import CANDIDATES_FOLDER
    from .eviction import draw_number
    from .journal import JOURNAL_FILE, Journal
    from .reviews import LEASE_SECONDS, REVIEW_KINDS, QueuedAnswer, QueueEntry, Review, ReviewKind

__all__ = [
    "CANDIDATES_FOLDER",
    "JOURNAL_FILE",
    "LEASE_SECONDS",
    "MIN_REFERENCE_IMAGES",
    "REFERENCE_FILE",
    "REVIEW_KINDS",
    "Correction",
    "DatabaseUnavailable",
    "Erasure",
    "Journal",
    "JournalRow",
    "PredictionRecord",
    "Projection",
    "QueueEntry",
    "QueuedAnswer",
    "Reference",
    "Review",
    "ReviewKind",
    "SketchInputs",
    "SketchRow",
    "Sketches",
    "UnknownPrediction",
    "class_probabilities",
    "confidences",
    "decode_sketches",
    "draw_number",
    "entropies",
    "make_sketches",
    "new_prediction_id",
    "predicted_classes",
    "sketch_answers",
]

_MEMBERS = {
    "erasure": ("CANDIDATES_FOLDER",),
    "eviction": ("draw_number",),
    "journal": ("JOURNAL_FILE", "Journal"),
    "reviews": ("LEASE_SECONDS", "REVIEW_KINDS", "QueueEntry", "QueuedAnswer", "Review", "ReviewKind"),
}


def __getattr__(name: str) -> Any:
    """Import what needs SQLAlchemy when it is first used: a service without a journal starts without it."""
    for member, names in _MEMBERS.items():
        if name in names:
            return getattr(import_module(f".{member}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
