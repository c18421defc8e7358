"""What was answered, and what people said of it: predictions, corrections, their images.

``Journal.open`` gives the journal of a site; ``Journal.dataset`` turns corrected images into a data set.
"""

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
    predicted_classes,
)
from .sketches import Sketches, decode_sketches, make_sketches

if TYPE_CHECKING:
    from .journal import JOURNAL_FILE, Journal

__all__ = [
    "JOURNAL_FILE",
    "MIN_REFERENCE_IMAGES",
    "REFERENCE_FILE",
    "Correction",
    "DatabaseUnavailable",
    "Erasure",
    "Journal",
    "JournalRow",
    "PredictionRecord",
    "Projection",
    "Reference",
    "SketchRow",
    "Sketches",
    "UnknownPrediction",
    "class_probabilities",
    "confidences",
    "decode_sketches",
    "make_sketches",
    "new_prediction_id",
    "predicted_classes",
]


def __getattr__(name: str) -> Any:
    """Import ``Journal`` when it is first used: a service without a journal starts without SQLAlchemy."""
    if name in ("JOURNAL_FILE", "Journal"):
        from . import journal

        return getattr(journal, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
