"""A source becomes a ``Dataset``, decoded and labelled; datasets are surveyed, joined and relabelled."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray

from ..choose import suggest
from ..errors import DataError, ImageError
from ..sources import Source, find
from ..types import UNLABELLED, Dataset, Geometry, Pixels, SkippedFile
from .decode import FULL_RANGE_16_BIT, FULL_RANGE_FLOAT, ImageHeader, read_header, read_values
from .store import open_store

_MAX_LISTED_FILES = 12
FACT_COLUMNS = ("width", "height", "channels", "rotated")
"""Columns of a dataset that come from the image files themselves."""

MAX_UNREADABLE_SHARE = 0.05
"""Share of unreadable files that training skips without asking."""


def load_dataset(
    source: Source | str | Path,
    geometry: Geometry,
    *,
    cache: Path | None = None,
    max_bad: float = MAX_UNREADABLE_SHARE,
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
        fingerprint=_content_fingerprint(store.facts["digest"], source),
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


def _content_fingerprint(digests: ndarray, source: Source) -> str:
    """Hash of the files' bytes, labels and columns: the same wherever the files lie, and whenever they were written."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(digests.astype("<u8").tobytes() + source.labels.astype("<i8").tobytes())
    digest.update("\0".join(source.classes).encode("utf-8", "surrogatepass"))
    for name, column in sorted(source.columns.items()):
        digest.update("\0".join([name, *map(str, column)]).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


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
    for some, what, default in (
        (deep[~deep["floating"]], "more than 8 bits a value", FULL_RANGE_16_BIT),
        (deep[deep["floating"]], "decimal numbers for values", FULL_RANGE_FLOAT),
    ):
        if not len(some):
            continue
        low, high = geometry.window or default
        count = "1 image has" if len(some) == 1 else f"{len(some):,} images have"
        note = f"{count} {what}: {low:g} becomes black and {high:g} white"
        grey = some[some["channels"] == 1]
        if len(grey):
            least, most = float(grey["low"].min()), float(grey["high"].max())
            note += f" (their own values go from {_format_value(least)} to {_format_value(most)}"
            if geometry.window is None and (fault := _describe_misfit(least, most, low, high)):
                note += f", {fault}: --window {least:g}:{most:g} shows their full contrast"
            note += ")"
        notes.append(f"{note}.")
    return notes


def _format_value(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.4g}"


def _describe_misfit(least: float, most: float, low: float, high: float) -> str:
    """What a range from ``low`` to ``high`` loses of values from ``least`` to ``most``; empty where it fits."""
    if least == most:
        return ""
    if least < low or most > high * 1.001:
        return "which go beyond it and are cut off"
    if most < low + (high - low) / 2:
        return "which leaves them dark"
    return "which leaves them nearly alike" if most - least < (high - low) / 5 else ""


# the headers of a sample

SURVEY_IMAGES = 256
"""Images whose headers a survey reads."""
_WINDOW_IMAGES = 64
"""Images whose values are looked at for a range."""
_RARE_VALUES = 0.001
"""Share of the lowest and of the highest values that a range may leave out, where they lie far out."""
_MAX_WIDENING = 4
"""How much wider a range may become to hold all values."""
_USUAL_WINDOWS = (FULL_RANGE_FLOAT, (0.0, 255.0), FULL_RANGE_16_BIT)


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
    window: tuple[float, float] | None = None
    """A range for grey of 32 bits, from the values of up to 64 images; None where there are none or 16-bit ones too."""


def survey(source: Source, *, sample: int = SURVEY_IMAGES) -> Survey:
    """Read the headers of at most ``sample`` images, evenly spread over the source.

    Raises DataError where none of them can be read.
    """
    rows = np.unique(np.linspace(0, len(source) - 1, min(sample, len(source))).astype(np.int64))
    headers: list[ImageHeader] = []
    values: list[ndarray] = []
    reason = ""
    for row in rows:
        try:
            data = source.read(int(row))
            headers.append(read_header(data))
            if (
                headers[-1].depth == 32
                and len(values) < _WINDOW_IMAGES
                and (found := read_values(data)) is not None
            ):
                values.append(found[np.isfinite(found)])
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
        window=_choose_window(values) if all(h.depth in (8, 32) for h in headers) else None,
        **ranges,
    )


def _choose_window(values: list[ndarray]) -> tuple[float, float] | None:
    """One range for all values but the rarest: a usual one where it fits, else their own.

    A few pixels far out (hot ones of a sensor) would leave all others alike.
    """
    pooled = np.concatenate([one.ravel() for one in values]) if values else np.empty(0)
    if not len(pooled):
        return None
    low, high = (float(edge) for edge in np.quantile(pooled, (_RARE_VALUES, 1 - _RARE_VALUES)))
    least, most = float(pooled.min()), float(pooled.max())
    if most - least < _MAX_WIDENING * (high - low):
        low, high = least, most
    for usual in _USUAL_WINDOWS:
        if usual[0] <= low and high <= usual[1] and high - low >= (usual[1] - usual[0]) / 2:
            return usual
    low, high = float(f"{low:.4g}"), float(f"{high:.4g}")
    return (low, high) if low < high else None


# joining and relabelling: views of the stores, no pixel is copied

_MAX_NAMED_CLASSES = 5


@dataclass(frozen=True, eq=False)
class JoinedPixels:
    """The rows of several pixel stores, one store after the other.

    Pickles as its stores, so that other processes open them again.
    """

    parts: tuple[Pixels, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C), N the rows of all stores."""
        return (int(self._starts[-1]), *self.parts[0].shape[1:])

    @property
    def decodes_on_read(self) -> bool:
        """Whether some store decodes files whenever its pixels are read."""
        return any(getattr(part, "decodes_on_read", False) for part in self.parts)

    @cached_property
    def _starts(self) -> Int64[ndarray, " S"]:
        """The first row of each store, and the number of all rows."""
        return np.cumsum([0, *(part.shape[0] for part in self.parts)])

    def __getitem__(self, rows: Any, /) -> UInt8[ndarray, "B H W C"]:
        """The images of these rows: a slice, an index array or a mask."""
        is_index = isinstance(rows, ndarray) and rows.dtype != bool
        wanted = rows if is_index else np.atleast_1d(np.arange(self.shape[0])[rows])
        place = np.searchsorted(self._starts, wanted, side="right") - 1
        pixels = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        for number in np.unique(place):
            here = place == number
            pixels[here] = self.parts[number][wanted[here] - self._starts[number]]
        return pixels


def concat(datasets: Sequence[Dataset]) -> Dataset:
    """One dataset of all images, in order: a view of the stores of the given ones.

    Columns that only some datasets have are empty text for the others' images; numbers that only some have are
    left out. Raises DataError where geometries or classes differ (``relabel`` makes classes equal), or for no
    dataset.
    """
    if not datasets:
        raise DataError("There are no datasets to join: give at least one.")
    first = datasets[0]
    for other in datasets[1:]:
        if other.geometry != first.geometry:
            raise DataError(
                f"Datasets of different geometries cannot be joined ({first.geometry} and {other.geometry}): load "
                "them with the same size, channels and fit."
            )
        if other.classes != first.classes:
            raise DataError(
                f"Datasets of different classes cannot be joined ({_list_classes(first.classes)} and "
                f"{_list_classes(other.classes)}): relabel them to the same classes."
            )
    if len(datasets) == 1:
        return first
    parts = tuple({id(each.pixels): each.pixels for each in datasets}.values())  # a shared store is kept once
    starts = dict(zip(map(id, parts), np.cumsum([0, *(part.shape[0] for part in parts)]), strict=False))
    rows = [each.rows + starts[id(each.pixels)] for each in datasets]
    names = dict.fromkeys(name for each in datasets for name in each.columns)
    columns = {}
    for name in names:  # numbers that only some datasets have are left out, text is empty for the others
        known = [each.columns[name] for each in datasets if name in each.columns]
        if len(known) == len(datasets) or all(column.dtype.kind in "OUS" for column in known):
            filled = [each.columns.get(name, np.full(len(each), "", object)) for each in datasets]
            columns[name] = np.concatenate(filled)
    digest = hashlib.blake2b(digest_size=16)
    for each in datasets:
        digest.update(each.fingerprint.encode() + each.rows.astype("<i8").tobytes())
    return Dataset(
        pixels=parts[0] if len(parts) == 1 else JoinedPixels(parts),
        rows=np.concatenate(rows),
        labels=np.concatenate([each.labels for each in datasets]),
        classes=first.classes,
        files=np.concatenate([each.files for each in datasets]),
        digests=np.concatenate([each.digests for each in datasets]),
        geometry=first.geometry,
        fingerprint=digest.hexdigest(),
        columns=columns,
        skipped=tuple(dict.fromkeys(one for each in datasets for one in each.skipped)),
        notes=tuple(dict.fromkeys(note for each in datasets for note in each.notes)),
    )


def relabel(dataset: Dataset, classes: Sequence[str], *, drop_unknown: bool = False) -> Dataset:
    """The dataset with labels that index ``classes``, matched by name; unlabelled images stay unlabelled.

    Images of other classes are left out with ``drop_unknown``; otherwise they raise DataError.
    """
    index = {name: label for label, name in enumerate(classes)}
    table = np.array([*(index.get(name, -2) for name in dataset.classes), UNLABELLED], np.int64)
    labels = table[dataset.labels]  # the label -1 takes the last entry
    if drop_unknown:
        known = np.flatnonzero(labels != -2)
        dataset, labels = dataset.subset(known), labels[known]
    elif (labels == -2).any():
        unknown = [dataset.classes[label] for label in np.unique(dataset.labels[labels == -2])]
        hint = suggest(unknown[0], classes) if len(classes) <= 20 or len(unknown) == 1 else ""
        raise DataError(
            f"The data has images of classes the classifier was never trained on: {_list_classes(unknown)}. "
            f"Rename or leave out those images, or train on them. {hint}".strip()
        )
    return replace(dataset, labels=labels, classes=tuple(classes))


def strip_labels(dataset: Dataset, classes: Sequence[str] | None = None) -> Dataset:
    """The dataset with every image unlabelled; ``classes`` are those it is to be joined with, default its own."""
    unlabelled = np.full(len(dataset), UNLABELLED, np.int64)
    return replace(dataset, labels=unlabelled, classes=dataset.classes if classes is None else tuple(classes))


def _list_classes(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_MAX_NAMED_CLASSES])
    more = len(names) - _MAX_NAMED_CLASSES
    return f"{shown} and {more} more" if more > 0 else shown
