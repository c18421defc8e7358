"""A source becomes a ``Dataset``: decoded, labelled, its unreadable files listed; and a survey of its headers."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from ..errors import DataError, ImageError
from ..sources import Source, find
from ..types import Dataset, Geometry, SkippedFile
from .decode import FULL_RANGE_16_BIT, ImageHeader, read_header
from .store import open_store

_MAX_LISTED_FILES = 12
FACT_COLUMNS = ("width", "height", "channels", "rotated")
"""Columns of a dataset that come from the image files themselves."""


def load_dataset(
    source: Source | str | Path,
    geometry: Geometry,
    *,
    cache: Path | None = None,
    max_bad: float = 0.05,
    keep: bool | None = None,
) -> Dataset:
    """The images of a source, decoded at the working size.

    Args:
        source: a source, or what ``sources.find`` takes.
        geometry: working size, channels and how images are brought there.
        cache: folder of the decoded images; default the user's cache.
        max_bad: share of unreadable files up to which they are skipped, listed in ``skipped`` and noted.
        keep: False decodes images whenever they are read instead of storing their pixels on disk; default where the
            disk has no room for them.

    The columns hold ``width``, ``height``, ``channels`` and ``rotated`` of each file, and those of the source. Raises
    DataError, with the list, for more unreadable files than ``max_bad``, or a class of which none can be read.
    """
    if not isinstance(source, Source):
        source = find(source)
    store = open_store(source, geometry, cache, keep=keep)
    skipped = tuple(SkippedFile(str(source.files[row]), store.reasons[row]) for row in sorted(store.reasons))
    if len(skipped) > max_bad * len(source) or len(skipped) == len(source):
        raise DataError(
            f"{len(skipped):,} of the {len(source):,} images of '{source.name}' cannot be read, "
            f"more than the {max_bad:.0%} that are skipped without asking: "
            f"repair or remove them.\n{format_skipped(skipped)}"
        )
    notes = [*source.notes]
    if skipped:
        count = "1 image" if len(skipped) == 1 else f"{len(skipped):,} images"
        first = f"{skipped[0].file}: {skipped[0].reason}{'; ...' if len(skipped) > 1 else ''}"
        notes.append(f"Skipped {count} of {len(source):,} that cannot be read ({first}).")
    rows = np.flatnonzero(store.facts["ok"])
    facts = store.facts[rows]
    notes += _describe_conversions(facts, geometry)
    if getattr(store.pixels, "decodes_on_read", False):
        size = np.prod([float(side) for side in store.pixels.shape]) / 1e9
        why = "as asked" if keep is False else "the disk has no room for them"
        notes.append(
            f"The decoded images would take {size:,.1f} GB and are not stored ({why}): every epoch decodes them "
            "again, which is slower. SIGHTLINE_CACHE names a folder with more room; a smaller --size needs less."
        )
    given = {name: column[rows] for name, column in source.columns.items() if name not in FACT_COLUMNS}
    dataset = Dataset(
        pixels=store.pixels,
        rows=rows,
        labels=source.labels[rows],
        classes=source.classes,
        files=source.files[rows],
        digests=np.ascontiguousarray(facts["digest"]),
        geometry=geometry,
        fingerprint=source.fingerprint,
        columns={**given, **{name: np.ascontiguousarray(facts[name]) for name in FACT_COLUMNS}},
        skipped=skipped,
        notes=tuple(notes),
    )
    for name, count in zip(dataset.classes, dataset.counts, strict=True):
        if not count:
            raise DataError(
                f"No image of the class '{name}' of '{source.name}' can be read: "
                f"repair its files or remove the class.\n{format_skipped(skipped)}"
            )
    return dataset


def format_skipped(skipped: tuple[SkippedFile, ...], shown: int = _MAX_LISTED_FILES) -> str:
    """The first few skipped files with their reasons, a line each."""
    lines = [f"  {each.file}: {each.reason}" for each in skipped[:shown]]
    more = len(skipped) - shown
    return "\n".join([*lines, f"  ... and {more:,} more"] if more > 0 else lines)


def _describe_conversions(facts: ndarray, geometry: Geometry) -> list[str]:
    """A sentence for each kind of image that was converted: turned, first frame, on white, from CMYK, 16 bits."""
    kinds = {
        "rotated": ("stored turned or mirrored", "turned upright by EXIF" if geometry.exif else "left so"),
        "animated": ("in several frames or pages", "only the first is used"),
        "transparent": ("partly transparent", "laid on white"),
        "inks": ("in printers' inks (CMYK)", "turned into RGB without a colour profile"),
    }
    notes = []
    for name, (what, done) in kinds.items():
        if count := int(facts[name].sum()):
            notes.append(f"{'1 image is' if count == 1 else f'{count:,} images are'} {what}: {done}.")
    deep = facts[facts["depth"] > 8]
    if not len(deep):
        return notes
    low, high = (f"{edge:g}" for edge in geometry.window or FULL_RANGE_16_BIT)
    what = "1 image has" if len(deep) == 1 else f"{len(deep):,} images have"
    note = f"{what} more than 8 bits a value: {low} becomes black and {high} white"
    grey = deep[(deep["channels"] == 1) & (deep["depth"] == 16)]
    if len(grey):
        least, most = int(grey["low"].min()), int(grey["high"].max())
        note += f" (their own values go from {least:,} to {most:,}"
        if geometry.window is None and most < FULL_RANGE_16_BIT[1] / 2:
            note += f", which leaves them dark: --window {least}:{most} shows their full contrast"
        note += ")"
    return [*notes, f"{note}."]


# the headers of a sample

SURVEY_IMAGES = 256
"""Images whose headers a survey reads."""


@dataclass(frozen=True)
class LengthRange:
    """Minimum, median and maximum of some lengths in pixels."""

    low: int
    median: float
    high: int


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Sizes and kinds of the images of a sample; the default working size is chosen from it."""

    total: int
    """Images in the source."""
    sampled: int
    """Readable images in the sample."""
    width: LengthRange
    height: LengthRange
    short_side: LengthRange
    grey: float
    """Share of grey images, in [0, 1]."""
    formats: dict[str, int]
    """Images of the sample by format: JPEG, PNG, ..."""
    unreadable: int


def survey(source: Source, *, sample: int = SURVEY_IMAGES) -> Survey:
    """Read the headers of at most ``sample`` images, evenly spread over the source.

    Raises DataError where none of them can be read.
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
    width, height = (np.array(side) for side in zip(*((h.width, h.height) for h in headers), strict=True))
    ranges = {
        name: LengthRange(int(sides.min()), float(np.median(sides)), int(sides.max()))
        for name, sides in (("width", width), ("height", height), ("short_side", np.minimum(width, height)))
    }
    return Survey(
        total=len(source),
        sampled=len(headers),
        grey=float(np.mean([h.channels == 1 for h in headers])),
        formats=dict(Counter(h.format for h in headers).most_common()),
        unreadable=len(rows) - len(headers),
        **ranges,
    )
