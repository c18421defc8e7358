"""Disjoint parts of a dataset, as given or drawn, so that nothing leaks: three, or folds."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped
from numpy import ndarray

from ..choose import suggest
from ..errors import DataError, RecipeError
from ..types import Dataset, Splits
from .duplicates import find_near_duplicates

SPLIT_NAMES = ("train", "val", "test")
GROUP_COLUMN = "group"
"""The column whose values stay on one side, where no other is named."""
MAX_NEAR_DUPLICATE_IMAGES = 20_000
"""Splits of at most this many images look for near duplicates too: it takes seconds where there are more."""
_FREE, _VAL, _TEST = 0, 1, 2


def split(
    dataset: Dataset,
    *,
    val: float = 0.1,
    test: float = 0.15,
    seed: int = 0,
    group: str | None = None,
    near: bool | None = None,
) -> Splits:
    """Train, validation and test parts: the given ones, and what is missing drawn from train.

    ``val`` and ``test`` are shares of the training images, used only for a part that was not given. Drawn
    parts are seeded, stratified by class, and made of whole ``units``; a column ``group`` (or the one
    named) goes before stratification. Every class of three or more units is in every part. Given parts
    are never changed. Raises RecipeError for impossible shares or an unknown column, DataError where
    there is nothing to train on, too few groups, or a group in two given parts.
    """
    given = dataset.columns.get("split")
    parts = np.zeros(len(dataset), np.int64) if given is None else _split_codes(given)
    groups = _group_codes(dataset, group)
    pool = np.flatnonzero(parts == 0)
    if not len(pool):
        raise DataError("The data have no training images: add a 'train' part, or give no parts at all.")
    if groups is not None and given is not None:
        _check_groups_undivided(dataset, groups, dataset.columns[group or GROUP_COLUMN], parts)
    want = {part: share for part, share in ((_TEST, test), (_VAL, val)) if not (parts == part).any()}
    _check_shares(want)
    notes = _leak_notes(dataset, parts) if given is not None else []
    if want:
        drawing = dataset.subset(pool)
        unit = find_leak_groups(drawing, group=group, near=near)
        parts[pool] = drawn = _draw_splits(drawing, unit, want, seed, grouped=groups is not None)
        notes += _draw_notes(dataset, pool, drawn, want, seed, given is not None)
        if groups is not None:
            notes.append(_group_note(drawing, drawn, group or GROUP_COLUMN))
    train, validation, testing = (dataset.subset(np.flatnonzero(parts == part)) for part in range(3))
    return Splits(train, validation, testing, tuple(notes))


class Fold(NamedTuple):
    """One of k ways to part a dataset."""

    train: Dataset
    held_out: Dataset


def make_folds(
    dataset: Dataset, k: int, *, seed: int = 0, group: str | None = None, near: bool | None = None
) -> list[Fold]:
    """Cross-validation: every image is held out exactly once of k times.

    Folds are seeded, stratified by class and made of whole ``units``. Without groups every class is spread
    over them as evenly as its units allow. Raises RecipeError for fewer than two folds, DataError for more
    folds than a class has distinct images, or than there are groups.
    """
    if k < 2:
        raise RecipeError(f"{k} folds were asked for: it takes at least 2.")
    groups = _group_codes(dataset, group)
    unit = find_leak_groups(dataset, group=group, near=near)
    if groups is not None:
        _check_enough_groups(int(unit.max()) + 1, k, f"{k} folds", group or GROUP_COLUMN)
        number = _deal_greedily(dataset, unit, np.full(k, 1 / k), seed)
    else:
        number = _deal_in_turn(dataset, unit, k, seed)
    return [Fold(dataset.subset(number != each), dataset.subset(number == each)) for each in range(k)]


def find_leak_groups(
    dataset: Dataset, *, group: str | None = None, near: bool | None = None
) -> Int64[ndarray, " N"]:
    """Number of the unit each image belongs to: what must stay on one side of a split.

    One unit are exact duplicates (whatever their labels say), near duplicates, images of one group, and
    what these join together. ``near`` None looks for near duplicates among at most 20,000 images.
    """
    ties = [dataset.digests]
    if near or (near is None and len(dataset) <= MAX_NEAR_DUPLICATE_IMAGES):
        ties.append(find_near_duplicates(dataset))
    if (groups := _group_codes(dataset, group)) is not None:
        ties.append(groups)
    return (
        _connected_components(ties)
        if len(ties) > 1
        else np.unique(ties[0], return_inverse=True)[1].astype(np.int64)
    )


def _connected_components(ties: list[Shaped[ndarray, " N"]]) -> Int64[ndarray, " N"]:
    """The number of the connected whole each image is in, where equal values of any tie connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    images = np.arange(len(ties[0]))
    ends, nodes = [], len(images)
    for tie in ties:
        values, code = np.unique(tie, return_inverse=True)
        ends.append(nodes + code)
        nodes += len(values)
    rows, columns = np.tile(images, len(ties)), np.concatenate(ends)
    graph = coo_array((np.ones(len(rows), np.bool_), (rows, columns)), shape=(nodes, nodes))
    found = connected_components(graph, directed=False)[1][: len(images)]
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def _group_codes(dataset: Dataset, group: str | None) -> Int64[ndarray, " N"] | None:
    """The group of each image as a number; an image without one is a group of its own."""
    if group is not None and group not in dataset.columns:
        raise RecipeError(f"There is no column '{group}' to keep together.{suggest(group, dataset.columns)}")
    column = dataset.columns.get(group or GROUP_COLUMN)
    if column is None:
        return None
    words = column.astype(str)
    code = np.unique(words, return_inverse=True)[1].astype(np.int64)
    blank = words == ""
    code[blank] = len(dataset) + np.arange(int(blank.sum()))
    return code


def _split_codes(given: Shaped[ndarray, " N"]) -> Int64[ndarray, " N"]:
    return np.select([given == "val", given == "test"], [_VAL, _TEST], _FREE).astype(np.int64)


def _check_shares(want: dict[int, float]) -> None:
    for part, share in want.items():
        if not 0 < share < 1:
            raise RecipeError(
                f"The {SPLIT_NAMES[part]} share is {share}: it must be above 0 and below 1, for example 0.1."
            )
    if sum(want.values()) >= 1:
        raise RecipeError("The val and test shares add up to 1 or more: nothing is left to train on.")


def _check_groups_undivided(dataset: Dataset, groups: ndarray, names: ndarray, parts: ndarray) -> None:
    """Refuse given parts that share a group: the result would be better than the truth."""
    order = np.lexsort((parts, groups))
    torn = np.flatnonzero((np.diff(groups[order]) == 0) & (np.diff(parts[order]) != 0))
    if len(torn):
        one, two = order[torn[0]], order[torn[0] + 1]
        others = len(np.unique(groups[order[torn]])) - 1
        more = "" if not others else f" (and {others:,} more {'group' if others == 1 else 'groups'})"
        raise DataError(
            f"The group '{names[one]}' is in two given parts{more}: '{dataset.files[one]}' is in "
            f"{SPLIT_NAMES[parts[one]]} and '{dataset.files[two]}' in {SPLIT_NAMES[parts[two]]}, so the result would flatter. "
            "Correct the split column, or leave it out and have the parts drawn."
        )


def _check_enough_groups(count: int, least: int, what: str, group: str) -> None:
    if count < least:
        groups = "is 1 group" if count == 1 else f"are {count:,} groups"
        raise DataError(
            f"There {groups} in the column '{group}', too few for {what}: no group may be on two sides. "
            f"Add groups, or rename the column if its images may be parted."
        )


# drawing


def _draw_splits(
    pool: Dataset, unit: Int64[ndarray, " N"], want: dict[int, float], seed: int, *, grouped: bool
) -> Int64[ndarray, " N"]:
    """The part of each image of the pool, drawn in whole units."""
    if not grouped:
        return _draw_stratified(pool, unit, want, seed)
    _check_enough_groups(
        int(unit.max()) + 1, len(want) + 1, " and ".join(["train", *(SPLIT_NAMES[p] for p in want)]), GROUP_COLUMN
    )
    shares = np.zeros(3)
    for part, share in want.items():
        shares[part] = share
    shares[_FREE] = 1 - shares.sum()
    return _deal_greedily(pool, unit, shares, seed)


def _draw_stratified(
    pool: Dataset, unit: Int64[ndarray, " N"], want: dict[int, float], seed: int
) -> Int64[ndarray, " N"]:
    sizes, _, bounds, order = _shuffle_units(pool, unit, seed)
    parts = np.zeros(len(sizes), np.int64)
    for members in np.split(order, bounds):
        _draw_class(members, sizes, parts, want)
    return parts[unit]


def _shuffle_units(pool: Dataset, unit: ndarray, seed: int) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """Size and class of each unit, and the units in a drawn order class by class, with where classes end."""
    sizes = np.bincount(unit)
    label = np.empty(len(sizes), np.int64)
    label[unit[::-1]] = pool.labels[::-1]  # a unit counts for the class of its first image
    order = np.random.default_rng([seed, 2]).permutation(len(sizes))
    order = order[np.argsort(label[order], kind="stable")]
    return sizes, label, np.cumsum(np.bincount(label, minlength=len(pool.classes)))[:-1], order


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


def _deal_in_turn(dataset: Dataset, unit: ndarray, k: int, seed: int) -> Int64[ndarray, " N"]:
    """The fold of each image: units are dealt in turn, class by class, large ones first."""
    sizes, label, _, order = _shuffle_units(dataset, unit, seed)
    counts = np.bincount(label, minlength=len(dataset.classes))
    rarest = int(counts.argmin())
    if counts[rarest] < k:
        raise DataError(
            f"The class '{dataset.classes[rarest]}' has {counts[rarest]:,} distinct images, too few for {k} "
            "folds: ask for fewer folds, or add images."
        )
    order = order[np.lexsort((-sizes[order], label[order]))]
    number = np.empty(len(sizes), np.int64)
    number[order] = np.arange(len(sizes)) % k
    return number[unit]


def _deal_greedily(dataset: Dataset, unit: ndarray, shares: ndarray, seed: int) -> Int64[ndarray, " N"]:
    """The part of each image where units hold several classes: dealt greedily, the largest first.

    A unit goes where, of the classes it has, the least is there already, by the share that part should
    have (as scikit-learn's StratifiedGroupKFold does for equal shares).
    """
    size = len(dataset.classes)
    table = np.bincount(unit * size + dataset.labels, minlength=(unit.max() + 1) * size).reshape(-1, size)
    pieces = table / np.maximum(1, dataset.counts)  # share of each class that a unit holds
    order = np.random.default_rng([seed, 2]).permutation(len(pieces))
    order = order[np.argsort(-pieces[order].max(1), kind="stable")]
    wanted = np.flatnonzero(shares > 0)
    part, filled = np.empty(len(pieces), np.int64), np.zeros((len(wanted), size))
    for each in order:
        piece = pieces[each]
        place = int((((filled + piece) / shares[wanted, None]) @ piece).argmin())
        filled[place] += piece
        part[each] = wanted[place]
    _fill_missing_classes(part, table, wanted)
    return part[unit]


def _fill_missing_classes(part: ndarray, table: ndarray, wanted: ndarray) -> None:
    """Give a part that lacks a class the smallest unit with it from the part that has most of them to spare."""
    total = table.sum(1)
    for label in range(table.shape[1]):
        has = table[:, label] > 0
        for place in wanted:
            held = np.bincount(part[has], minlength=wanted.max() + 1)
            donor = int(held.argmax())
            if held[place] or held[donor] < 2:
                continue
            spare = np.flatnonzero(has & (part == donor))
            part[spare[total[spare].argmin()]] = place


# what is said


@dataclass(frozen=True)
class Leak:
    """Images of one given part that are also in another."""

    held_out: str
    other: str
    indices: Int64[ndarray, " n"]
    """Which images of the held-out part, as positions in the dataset."""


def find_leaks(dataset: Dataset, same: Shaped[ndarray, " N"] | None = None) -> list[Leak]:
    """Pictures that are in two of the given parts; empty where none were given.

    The same are images of equal value in ``same`` (``find_near_duplicates``, for example): exact copies by default.
    """
    given = dataset.columns.get("split")
    if given is None:
        return []
    same = dataset.digests if same is None else same
    parts, found = _split_codes(given), []
    for held_out, other in ((_TEST, _FREE), (_VAL, _FREE), (_TEST, _VAL)):
        here, there = np.flatnonzero(parts == held_out), parts == other
        twice = here[np.isin(same[here], same[there])]
        if len(twice):
            found.append(Leak(SPLIT_NAMES[held_out], SPLIT_NAMES[other], twice))
    return found


def _leak_notes(dataset: Dataset, parts: ndarray) -> list[str]:
    return [
        f"{len(leak.indices):,} of the {int((parts == SPLIT_NAMES.index(leak.held_out)).sum()):,} given {leak.held_out} "
        f"images are exact copies of {leak.other} images ('{dataset.files[leak.indices[0]]}' is one): "
        "they were left where they are, and flatter the result."
        for leak in find_leaks(dataset)
    ]


def _draw_notes(
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
                f"Too few distinct images to be in the {SPLIT_NAMES[part]} part: {names}"
                f"{', ...' if len(missing) > 5 else ''}."
            )
    return notes


def _group_note(pool: Dataset, drawn: ndarray, group: str) -> str:
    """What keeping groups whole did to the shares of the classes."""
    whole = pool.counts / len(pool)
    parts = np.unique(drawn)
    shares = np.stack([np.bincount(pool.labels[drawn == part], minlength=len(whole)) for part in parts])
    shares = shares / shares.sum(1, keepdims=True)
    part, label = np.unravel_index(np.abs(shares - whole).argmax(), shares.shape)
    return (
        f"Images of one group (column '{group}') were kept in one part, which goes before equal shares of the "
        f"classes: '{pool.classes[label]}' is {whole[label]:.1%} of the images and {shares[part, label]:.1%} of "
        f"{SPLIT_NAMES[parts[part]]}, and no class differs more."
    )
