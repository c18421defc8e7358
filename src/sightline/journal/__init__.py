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
    UnknownPrediction,
    new_prediction_id,
)

if TYPE_CHECKING:
    from .journal import JOURNAL_FILE, Journal

__all__ = [
    "JOURNAL_FILE",
    "Correction",
    "DatabaseUnavailable",
    "Erasure",
    "Journal",
    "JournalRow",
    "PredictionRecord",
    "UnknownPrediction",
    "new_prediction_id",
]


def __getattr__(name: str) -> Any:
    """Import ``Journal`` when it is first used: a service without a journal starts without SQLAlchemy."""
    if name in ("JOURNAL_FILE", "Journal"):
        from . import journal

        return getattr(journal, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
