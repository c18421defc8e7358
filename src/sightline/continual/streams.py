"""Streams of tasks made of any labelled images: by class, by a change of the pixels, or by a column."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from ..choose import lookup
from ..data import nested_subset, to_tensor
from ..errors import DataError
from ..preprocessing import to_uint8
from ..robustness import CORRUPTIONS, Corruption
from ..runtime import make_generator, permutation
from ..types import Dataset, Pixels

_CLASS_ORDER, _PIXEL_ORDER, _TASK_ORDER, _CORRUPTION = 91, 92, 93, 94  # streams of random numbers

CORRUPTION_BATCH = 256
"""Images that are corrupted at once; fixed, because the random draws depend on it."""


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks that come one after the other.

    Arguments:
        name: what it is called.
        tasks: training and test images of each.
        kind: ``class``, new classes come and any may be asked for; ``task``, the same, but it is known of which task
            an image is; ``domain``, the classes stay and the images change.
        validation: images of each task that are neither trained on nor tested on; perhaps none.
    """

    name: str
    tasks: tuple[tuple[Dataset, Dataset], ...]
    kind: str = "class"
    validation: tuple[Dataset, ...] = ()

    def __post_init__(self) -> None:
        if len(self.tasks) < 2:
            raise DataError(
                f"A stream of {len(self.tasks)} task teaches nothing about forgetting: choose two or more."
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes, in the order in which they come."""
        return tuple(dict.fromkeys(train.classes[k] for train, _ in self.tasks for k in np.unique(train.labels)))


def hold_out(stream: Stream, share: float, seed: int = 0) -> Stream:
    """The stream with ``share`` (0 to 1) of the training images of each class kept for validation."""
    tasks, validation = [], []
    for train, test in stream.tasks:
        kept = nested_subset(train.labels, 1 - share, seed)
        tasks.append((train.subset(kept), test))
        validation.append(train.subset(np.setdiff1d(np.arange(len(train)), kept)))
    return replace(stream, tasks=tuple(tasks), validation=tuple(validation))


def split_by_class(
    train: Dataset, test: Dataset, tasks: int, *, seed: int | None = None, kind: str = "class"
) -> Stream:
    """A stream of ``tasks`` tasks of equally many classes, in the given order or, with ``seed``, a random one.

    Raises DataError where the classes cannot be divided equally.
    """
    count = len(train.classes)
    if tasks < 2 or count % tasks:
        raise DataError(f"{count} classes cannot be divided into {tasks} tasks of equally many: choose a divisor.")
    order = np.arange(count) if seed is None else permutation(count, seed, _CLASS_ORDER)
    parts = []
    for classes in order.reshape(tasks, -1):
        own = [each.subset(np.isin(each.labels, classes)) for each in (train, test)]
        parts.append((own[0], own[1]))
    return Stream(f"{tasks} tasks of {count // tasks} classes", tuple(parts), kind)


@dataclass(frozen=True, eq=False)
class ChangedPixels:
    """The pixels of a store after a function ``(B H W C) -> (B H W C)``, uint8 both."""

    pixels: Pixels
    change: Callable[[UInt8[ndarray, "B H W C"]], UInt8[ndarray, "B H W C"]]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the store."""
        return self.pixels.shape

    def __getitem__(self, rows: Any, /) -> UInt8[ndarray, "B H W C"]:
        """The changed pixels of these rows."""
        return self.change(self.pixels[rows])


def change_pixels(
    train: Dataset, test: Dataset, changes: Sequence[Callable[[ndarray], ndarray]], name: str
) -> Stream:
    """A domain-incremental stream: the same images, changed in another way for each task."""

    def changed(images: Dataset, change: Callable[[ndarray], ndarray]) -> Dataset:
        return replace(images, pixels=ChangedPixels(images.pixels, change))

    return Stream(name, tuple((changed(train, one), changed(test, one)) for one in changes), "domain")


def permute_pixels(train: Dataset, test: Dataset, tasks: int, *, seed: int = 0) -> Stream:
    """Each task has its own order of the pixels, the first that of the images (Goodfellow et al. 2013)."""
    height, width, channels = train.geometry.size[0], train.geometry.size[1], train.geometry.channels

    def shuffle(order: ndarray) -> Callable[[ndarray], ndarray]:
        def change(pixels: ndarray) -> ndarray:
            return pixels.reshape(len(pixels), height * width, channels)[:, order].reshape(pixels.shape)

        return change

    orders = [
        np.arange(height * width),
        *(permutation(height * width, seed, _PIXEL_ORDER, t) for t in range(1, tasks)),
    ]
    return change_pixels(train, test, [shuffle(order) for order in orders], f"{tasks} permutations of the pixels")


def rotate_images(
    train: Dataset, test: Dataset, tasks: int, *, degrees: float = 180.0, seed: int | None = None
) -> Stream:
    """Each task turns the images by another angle, evenly spaced below ``degrees``, the first by none.

    (Lopez-Paz and Ranzato 2017.) Turned counter-clockwise about the centre, black outside, bilinear; with ``seed`` the
    angles after the first come in a random order.
    """
    from scipy.ndimage import rotate

    def turn(angle: float) -> Callable[[ndarray], ndarray]:
        if not angle:
            return lambda pixels: pixels
        return lambda pixels: rotate(pixels, angle, axes=(2, 1), reshape=False, order=1)

    angles = _after_first([degrees * number / tasks for number in range(tasks)], seed)
    return change_pixels(
        train, test, [turn(one) for one in angles], f"{tasks} rotations below {degrees:g} degrees"
    )


def corrupt_images(
    train: Dataset,
    test: Dataset,
    corruptions: Mapping[str, Corruption] = CORRUPTIONS,
    *,
    severity: int = 3,
    seed: int | None = None,
) -> Stream:
    """The first task has the images, each further one all of them under one corruption; held in memory.

    With ``seed`` the corruptions come in a random order, and it is that of their random draws.
    """

    def corrupt(images: Dataset, number: int, corruption: Corruption) -> Dataset:
        parts = []
        for start in range(0, len(images), CORRUPTION_BATCH):
            generator = make_generator(seed or 0, number, start, _CORRUPTION)
            pixels = to_tensor(images[start : start + CORRUPTION_BATCH])
            parts.append(to_uint8(corruption(pixels, severity, generator)))
        return replace(images, pixels=np.concatenate(parts), rows=np.arange(len(images)))

    order = _after_first([None, *corruptions.values()], seed)
    tasks = [
        (train, test) if one is None else (corrupt(train, 2 * number, one), corrupt(test, 2 * number + 1, one))
        for number, one in enumerate(order)
    ]
    return Stream(f"clean, then {len(corruptions)} corruptions of severity {severity}", tuple(tasks), "domain")


def _after_first(values: Sequence[Any], seed: int | None) -> list[Any]:
    """The values, those after the first in a random order where there is a seed."""
    first, *others = values
    return [first, *(others if seed is None else [others[k] for k in permutation(len(others), seed, _TASK_ORDER)])]


def split_by_column(train: Dataset, test: Dataset, column: str, *, seed: int | None = None) -> Stream:
    """A domain-incremental stream of the values of a column, such as site or date, in ascending order.

    With ``seed``, which dates should not have, in a random order.

    Raises DataError where there is no such column, or a single value.
    """
    if column not in train.columns:
        known = ", ".join(sorted(train.columns)) or "none"
        raise DataError(f"The images have no column '{column}'. There are: {known}.")
    values = np.unique(train.columns[column])
    if len(values) < 2:
        raise DataError(f"The column '{column}' has a single value, so there is no stream. Choose another column.")
    if seed is not None:
        values = values[permutation(len(values), seed, _TASK_ORDER)]
    parts = [(train.columns[column] == one, test.columns[column] == one) for one in values]
    for one, part in zip(values, parts, strict=True):
        if not part[1].any():
            raise DataError(
                f"No test image has the {column} '{one}': split the images so that each {column} has some."
            )
    return Stream(f"column {column}", tuple((train.subset(a), test.subset(b)) for a, b in parts), "domain")


StreamMaker = Callable[[Dataset, Dataset, int], Stream]
"""(training images, test images, seed) -> the stream of that seed's order."""


def _bind(make: Callable[..., Stream], **arguments: Any) -> StreamMaker:
    return lambda train, test, seed: make(train, test, seed=seed, **arguments)


STREAMS: Mapping[str, Callable[..., StreamMaker]] = {
    "class": lambda tasks=5: _bind(split_by_class, tasks=tasks),
    "task": lambda tasks=5: _bind(split_by_class, tasks=tasks, kind="task"),
    "permuted": lambda tasks=10: _bind(permute_pixels, tasks=tasks),
    "rotated": lambda tasks=5, degrees=180.0: _bind(rotate_images, tasks=tasks, degrees=degrees),
    "corrupted": lambda *names, severity=3: _bind(
        corrupt_images,
        corruptions={name: lookup(CORRUPTIONS, name, "corruption") for name in names} or CORRUPTIONS,
        severity=severity,
    ),
    "column": lambda name, shuffle=False: (
        lambda train, test, seed: split_by_column(train, test, name, seed=seed if shuffle else None)
    ),
}
"""The words of ``compare --stream``, with arguments after colons: ``class:5``, ``column:site``."""
