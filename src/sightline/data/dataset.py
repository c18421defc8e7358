"""A source becomes a ``Dataset``: decoded, labelled, its unreadable files listed."""

from pathlib import Path

import numpy as np
from numpy import ndarray

from ..errors import DataError
from ..sources import Source, find
from ..types import Dataset, Geometry, SkippedFile
from .decode import FULL_RANGE_16_BIT
from .store import LivePixels, PixelStore, open_store

_MAX_LISTED_FILES = 12
FACT_COLUMNS = ("width", "height", "channels", "rotated")


def load_dataset(
    source: Source | str | Path,
    geometry: Geometry,
    *,
    cache: Path | None = None,
    max_bad: float = 0.05,
    keep: bool | None = None,
) -> Dataset:
    """The images of a source (or of what ``find`` finds there) at the working size.

    Unreadable files are skipped, listed in ``skipped`` and said in a note. The columns hold
    ``width``, ``height``, ``channels`` and ``rotated`` of each file, and what the source tells.
    ``keep`` False decodes images whenever they are asked for instead of keeping their pixels on disk; None
    does so where the disk has no room for them. Raises DataError when more than the share ``max_bad`` is
    unreadable, with the list.
    """
    if not isinstance(source, Source):
        source = find(source)
    store = open_store(source, geometry, cache, keep=keep)
    rows = np.flatnonzero(store.facts["ok"])
    skipped = _list_skipped(source, store)
    _check_unreadable_share(source, skipped, max_bad)
    facts = store.facts[rows]
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
        notes=(
            *source.notes,
            *_skipped_notes(source, skipped),
            *_conversion_notes(facts, geometry),
            *_live_notes(store, keep),
        ),
    )
    _check_no_class_lost(source, dataset)
    return dataset


def _list_skipped(source: Source, store: PixelStore) -> tuple[SkippedFile, ...]:
    return tuple(SkippedFile(str(source.files[row]), store.reasons[row]) for row in sorted(store.reasons))


def format_skipped(skipped: tuple[SkippedFile, ...], shown: int = _MAX_LISTED_FILES) -> str:
    """The first few skipped files with their reasons, a line each."""
    lines = [f"  {each.file}: {each.reason}" for each in skipped[:shown]]
    more = len(skipped) - shown
    return "\n".join([*lines, f"  ... and {more:,} more"] if more > 0 else lines)


def _check_unreadable_share(source: Source, skipped: tuple[SkippedFile, ...], max_bad: float) -> None:
    if len(skipped) <= max_bad * len(source) and len(skipped) < len(source):
        return
    raise DataError(
        f"{len(skipped):,} of the {len(source):,} images of '{source.name}' cannot be read, "
        f"more than the {max_bad:.0%} that are skipped without asking: "
        f"repair or remove them.\n{format_skipped(skipped)}"
    )


def _check_no_class_lost(source: Source, dataset: Dataset) -> None:
    """A class whose every file is unreadable has silently lost its images: say it."""
    lost = [name for name, count in zip(dataset.classes, dataset.counts, strict=True) if count == 0]
    if lost:
        raise DataError(
            f"No image of the class '{lost[0]}' of '{source.name}' can be read: "
            f"repair its files or remove the class.\n{format_skipped(dataset.skipped)}"
        )


def _skipped_notes(source: Source, skipped: tuple[SkippedFile, ...]) -> tuple[str, ...]:
    if not skipped:
        return ()
    first = f"{skipped[0].file}: {skipped[0].reason}"
    what = "1 image that cannot be read" if len(skipped) == 1 else f"{len(skipped):,} images that cannot be read"
    return (f"Skipped {what} of {len(source):,} ({first}{'; ...' if len(skipped) > 1 else ''}).",)


def _conversion_notes(facts: ndarray, geometry: Geometry) -> list[str]:
    """What was done with pictures that are not plain, a sentence for each kind."""
    kinds = {
        "rotated": ("stored turned or mirrored", "turned upright, as EXIF says" if geometry.exif else "left so"),
        "animated": ("in several frames or pages", "only the first is used"),
        "transparent": ("partly transparent", "laid on white"),
        "inks": ("in printers' inks (CMYK)", "turned into RGB without a colour profile"),
    }
    counts = {name: int(facts[name].sum()) for name in kinds}
    notes = [
        f"{'1 image is' if counts[name] == 1 else f'{counts[name]:,} images are'} {what}: {done}."
        for name, (what, done) in kinds.items()
        if counts[name]
    ]
    return notes + _depth_notes(facts, geometry)


def _depth_notes(facts: ndarray, geometry: Geometry) -> list[str]:
    """The window of 16-bit images, and whether their own values ask for another."""
    deep = facts[facts["depth"] > 8]
    if not len(deep):
        return []
    low, high = (f"{edge:g}" for edge in geometry.window or FULL_RANGE_16_BIT)
    what = "1 image has" if len(deep) == 1 else f"{len(deep):,} images have"
    note = f"{what} more than 8 bits a value: {low} becomes black and {high} white"
    grey = deep[(deep["channels"] == 1) & (deep["depth"] == 16)]
    if not len(grey):
        return [f"{note}."]
    least, most = int(grey["low"].min()), int(grey["high"].max())
    note += f" (their own values go from {least:,} to {most:,}"
    if geometry.window is None and most < FULL_RANGE_16_BIT[1] / 2:
        note += f", which leaves them dark: --window {least}:{most} shows their full contrast"
    return [f"{note})."]


def _live_notes(store: PixelStore, keep: bool | None) -> list[str]:
    if not isinstance(store.pixels, LivePixels):
        return []
    size = np.prod([float(side) for side in store.pixels.shape]) / 1e9
    why = "as asked" if keep is False else "the disk has no room for them"
    return [
        f"The decoded images would take {size:,.1f} GB and are not kept ({why}): every epoch decodes them again, "
        "which is slower. SIGHTLINE_CACHE names a folder with more room; a smaller --size needs less."
    ]
