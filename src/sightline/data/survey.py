"""What the images of a source are like, from the headers of a sample."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ..errors import DataError, ImageError
from ..sources import Source
from .decode import ImageHeader, read_header

SURVEY_IMAGES = 256


@dataclass(frozen=True)
class LengthRange:
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
    width: LengthRange
    height: LengthRange
    short_side: LengthRange
    grey: float
    """Share of grey images, in [0, 1]."""
    formats: dict[str, int]
    """How many of the sample are JPEG, PNG, ..."""
    unreadable: int


def survey(source: Source, *, sample: int = SURVEY_IMAGES) -> Survey:
    """Read the headers of at most ``sample`` images, evenly spread over the source.

    Raises DataError when none of them can be read.
    """
    rows = np.unique(np.linspace(0, len(source) - 1, min(sample, len(source))).astype(np.int64))
    headers: list[ImageHeader] = []
    reason = ""
    for row in rows:
        try:
            headers.append(read_header(source.read(int(row))))
        except ImageError as error:
            reason = reason or f"{source.files[row]}: {error}"
    if not headers:
        raise DataError(f"None of the images of '{source.name}' can be read; the first is {reason}.")
    widths, heights = (np.array(side) for side in zip(*((h.width, h.height) for h in headers), strict=True))
    return Survey(
        total=len(source),
        sampled=len(headers),
        width=_length_range(widths),
        height=_length_range(heights),
        short_side=_length_range(np.minimum(widths, heights)),
        grey=float(np.mean([h.channels == 1 for h in headers])),
        formats=dict(Counter(h.format for h in headers).most_common()),
        unreadable=len(rows) - len(headers),
    )


def _length_range(lengths: np.ndarray) -> LengthRange:
    return LengthRange(int(lengths.min()), float(np.median(lengths)), int(lengths.max()))
