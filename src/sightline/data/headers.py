"""What the images of a source are like, from the headers of a sample."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..errors import DataError, ImageError
from ..sources.source import Source
from .images import Header, inspect

SAMPLE = 256


@dataclass(frozen=True)
class Range:
    """Smallest, middle and largest of some lengths in pixels."""

    low: int
    median: float
    high: int


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Sizes and kinds of the images of a sample; it decides the working size."""

    total: int
    """Images in the source."""
    sampled: int
    """Images looked at, unreadable ones not counted."""
    width: Range
    height: Range
    short_side: Range
    grey: float
    """Share of grey images, in [0, 1]."""
    formats: dict[str, int]
    """How many of the sample are JPEG, PNG, ..."""
    unreadable: int


def survey(source: Source, *, sample: int = SAMPLE) -> Survey:
    """Read the headers of at most ``sample`` images, evenly spread over the source.

    Raises DataError when none of them can be read.
    """
    rows = np.unique(np.linspace(0, len(source) - 1, min(sample, len(source))).astype(np.int64))
    headers: list[Header] = []
    reason = ""
    for row in rows:
        try:
            headers.append(inspect(source.read(int(row))))
        except ImageError as error:
            reason = reason or f"{source.files[row]}: {error}"
    if not headers:
        raise DataError(f"None of the images of '{source.name}' can be read; the first is {reason}.")
    widths, heights = (np.array(side) for side in zip(*((h.width, h.height) for h in headers), strict=True))
    return Survey(
        total=len(source),
        sampled=len(headers),
        width=_range(widths),
        height=_range(heights),
        short_side=_range(np.minimum(widths, heights)),
        grey=float(np.mean([h.channels == 1 for h in headers])),
        formats=dict(Counter(h.format for h in headers).most_common()),
        unreadable=len(rows) - len(headers),
    )


def _range(lengths: np.ndarray) -> Range:
    return Range(int(lengths.min()), float(np.median(lengths)), int(lengths.max()))
