"""Bytes become labelled images: find them, decode them once, split them, hand them out in batches."""

from ..sources.builtin import BUILTIN
from ..sources.source import Source, find
from .dataset import load
from .duplicates import near_duplicates
from .findings import as_text, audit, faults, sample_sheet, write_clean
from .headers import Range, Survey, survey
from .images import Header, decode, inspect
from .loader import Shuffled, batches, count_batches, order_of, to_batch
from .parts import Fold, folds, leaks, split, units

__all__ = [
    "BUILTIN",
    "Fold",
    "Header",
    "Range",
    "Shuffled",
    "Source",
    "Survey",
    "as_text",
    "audit",
    "batches",
    "count_batches",
    "decode",
    "faults",
    "find",
    "folds",
    "inspect",
    "leaks",
    "load",
    "near_duplicates",
    "order_of",
    "sample_sheet",
    "split",
    "survey",
    "to_batch",
    "units",
    "write_clean",
]
