"""What was answered, and what people said of it: predictions, corrections, their images."""

from .journal import JOURNAL_FILE, Journal
from .records import (
    Correction,
    DatabaseUnavailable,
    JournalRow,
    PredictionRecord,
    UnknownPrediction,
    new_prediction_id,
)

__all__ = [
    "JOURNAL_FILE",
    "Correction",
    "DatabaseUnavailable",
    "Journal",
    "JournalRow",
    "PredictionRecord",
    "UnknownPrediction",
    "new_prediction_id",
]
