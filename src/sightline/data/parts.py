"""Three disjoint parts of a dataset: as given, or drawn so that nothing leaks."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Shaped
from numpy import ndarray

from ..errors import DataError, RecipeError
from ..types import Dataset, Splits

PARTS = ("train", "val", "test")
_FREE, _VAL, _TEST = 0, 1, 2


def split(dataset: Dataset, *, val: float = 0.1, test: float = 0.15, seed: int = 0) -> Splits:
    """Train, validation and test parts: the given ones, and what is missing drawn from train.

    ``val`` and ``test`` are shares of the training images, used only for a part that was not
    given. Drawn parts are stratified by class and seeded; exact duplicates stay on one side, and
    every class of three or more distinct images is in every part. Given parts are never changed.
    Raises RecipeError for impossible shares, DataError where there is nothing to train on.
    """
    given = dataset.columns.get("split")
    parts = np.zeros(len(dataset), np.int64) if given is None else _numbers(given)
    pool = np.flatnonzero(parts == 0)
    if not len(pool):
        raise DataError("The data have no training images: add a 'train' part, or give no parts at all.")
    want = {part: share for part, share in ((_TEST, test), (_VAL, val)) if not (parts == part).any()}
    _check_shares(want)
    notes = _leaks(dataset, parts) if given is not None else []
    if want:
        drawn = _draw(dataset.subset(pool), want, seed)
        parts[pool] = drawn
        notes += _said(dataset, pool, drawn, want, seed, given is not None)
    train, validation, testing = (dataset.subset(np.flatnonzero(parts == part)) for part in range(3))
    return Splits(train, validation, testing, tuple(notes))


def units(dataset: Dataset) -> Int64[ndarray, " N"]:
    """Number of the unit each image belongs to: what must stay on one side of a split.

    Exact duplicates are one unit, whatever their labels say.
    """
    return np.unique(dataset.digests, return_inverse=True)[1].astype(np.int64)


def _numbers(given: Shaped[ndarray, " N"]) -> Int64[ndarray, " N"]:
    return np.select([given == "val", given == "test"], [_VAL, _TEST], _FREE).astype(np.int64)


def _check_shares(want: dict[int, float]) -> None:
    for part, share in want.items():
        if not 0 < share < 1:
            raise RecipeError(
                f"The {PARTS[part]} share is {share}: it must be above 0 and below 1, for example 0.1."
            )
    if sum(want.values()) >= 1:
        raise RecipeError("The val and test shares add up to 1 or more: nothing is left to train on.")


def _draw(pool: Dataset, want: dict[int, float], seed: int) -> Int64[ndarray, " N"]:
    """The part of each image of the pool, drawn class by class in whole units."""
    unit = units(pool)
    count = int(unit.max()) + 1
    sizes = np.bincount(unit)
    label = np.empty(count, np.int64)
    label[unit[::-1]] = pool.labels[::-1]  # a unit counts for the class of its first image
    parts = np.zeros(count, np.int64)
    order = np.random.default_rng([seed, 2]).permutation(count)
    order = order[np.argsort(label[order], kind="stable")]
    bounds = np.cumsum(np.bincount(label, minlength=len(pool.classes)))[:-1]
    for members in np.split(order, bounds):
        _draw_class(members, sizes, parts, want)
    return parts[unit]


def _draw_class(members: Int64[ndarray, " n"], sizes: ndarray, parts: ndarray, want: dict[int, float]) -> None:
    """Give the wanted shares of one class's units to their parts; at least one unit each where it has enough."""
    total, start = int(sizes[members].sum()), 0
    for position, (part, share) in enumerate(want.items()):
        after = len(want) - position  # units that must be left: one for each later part, one for train
        room = len(members) - start - after
        if room < 1:
            continue
        filled = np.cumsum(sizes[members[start:]])
        taken = int(np.searchsorted(filled, max(1.0, round(share * total)))) + 1
        if taken > 1 and filled[taken - 1] > round(share * total):  # the last unit is a pile of duplicates
            taken -= 1
        taken = min(taken, room)
        parts[members[start : start + taken]] = part
        start += taken


@dataclass(frozen=True)
class Leak:
    """Images of one given part that are also, byte for byte, in another."""

    held_out: str
    other: str
    indices: Int64[ndarray, " n"]
    """Which images of the held-out part, as positions in the dataset."""


def leaks(dataset: Dataset) -> list[Leak]:
    """Exact duplicates between the given parts; empty where none were given."""
    given = dataset.columns.get("split")
    if given is None:
        return []
    parts, found = _numbers(given), []
    for held_out, other in ((_TEST, _FREE), (_VAL, _FREE), (_TEST, _VAL)):
        here, there = np.flatnonzero(parts == held_out), parts == other
        twice = here[np.isin(dataset.digests[here], dataset.digests[there])]
        if len(twice):
            found.append(Leak(PARTS[held_out], PARTS[other], twice))
    return found


def _leaks(dataset: Dataset, parts: ndarray) -> list[str]:
    return [
        f"{len(leak.indices):,} of the {int((parts == PARTS.index(leak.held_out)).sum()):,} given {leak.held_out} "
        f"images are exact copies of {leak.other} images ('{dataset.files[leak.indices[0]]}' is one): "
        "they were left where they are, and flatter the result."
        for leak in leaks(dataset)
    ]


def _said(
    dataset: Dataset, pool: ndarray, drawn: ndarray, want: dict[int, float], seed: int, given: bool
) -> list[str]:
    """What was drawn, and which classes were too small for it."""
    notes = []
    for part, share in want.items():
        count, name = int((drawn == part).sum()), {_TEST: "test", _VAL: "validation"}[part]
        kind = "training images" if given else "images"
        notes.append(
            f"No {name} part was given: {count:,} of {len(pool):,} {kind} ({share:.0%} of each class, "
            f"seed {seed}) were set aside for {'testing' if part == _TEST else 'validation'}."
        )
        if not count:
            raise DataError(
                f"There are too few images to set some aside for {name}: every class has fewer than "
                f"{len(want) + 1} distinct ones. Add images."
            )
    labels = dataset.labels[pool]
    for part in want:
        missing = np.setdiff1d(labels, labels[drawn == part])
        if len(missing):
            names = ", ".join(f"'{dataset.classes[label]}'" for label in missing[:5])
            notes.append(
                f"Too few distinct images to be in the {PARTS[part]} part: {names}"
                f"{', ...' if len(missing) > 5 else ''}."
            )
    return notes
