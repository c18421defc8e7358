"""Bytes become labelled images: find them, decode them once, split them, hand them out in batches."""

from ..sources.builtin import BUILTIN
from ..sources.source import Source, find
from .dataset import load
from .findings import as_text, audit, sample_sheet
from .headers import Range, Survey, survey
from .images import Header, decode, inspect
from .loader import Shuffled, batches, count_batches, order_of, to_batch
from .parts import leaks, split, units

__all__ = [
    "BUILTIN",
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
    "find",
    "inspect",
    "leaks",
    "load",
    "order_of",
    "sample_sheet",
    "split",
    "survey",
    "to_batch",
    "units",
]
