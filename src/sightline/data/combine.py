"""Datasets joined, and relabelled to the classes of a classifier: views of stores, no pixel is copied."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray

from ..choose import suggest
from ..errors import DataError
from ..types import UNLABELLED, Dataset, Pixels

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
    columns = {name: column for name in names if (column := _join_column(datasets, name)) is not None}
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


def _join_column(datasets: Sequence[Dataset], name: str) -> ndarray | None:
    """The values of a column for all images; None for numbers that only some datasets have."""
    found = [each.columns.get(name) for each in datasets]
    if any(column is not None and column.dtype.kind not in "OUS" for column in found):
        return None if any(column is None for column in found) else np.concatenate(found)
    blank = [np.full(len(each), "", object) for each in datasets]
    return np.concatenate(
        [empty if column is None else column for column, empty in zip(found, blank, strict=True)]
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
