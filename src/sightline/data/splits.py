"""Disjoint splits of a dataset that never share a picture: train, val and test, or folds; and stratified samples."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64, Shaped
from numpy import ndarray

from ..choose import suggest
from ..errors import DataError, RecipeError
from ..sources import stratified_subset
from ..types import Dataset, Splits

SPLIT_NAMES = ("train", "val", "test")
GROUP_COLUMN = "group"
"""The column whose values are never divided between splits, unless another column is named."""
MAX_NEAR_DUPLICATE_IMAGES = 20_000
"""Images up to which splitting looks for near duplicates by default; beyond that the search takes seconds."""
DEFAULT_VAL_SHARE = 0.1
_TRAIN, _VAL, _TEST, _LEFT_OUT = range(4)


def split(
    dataset: Dataset,
    *,
    val: float | None = None,
    test: float = 0.15,
    seed: int = 0,
    group: str | None = None,
    near: bool | None = None,
) -> Splits:
    """The dataset's own splits, with the missing ones drawn from its training images.

    Args:
        val, test: shares of the training images (0: none, val None: 0.1) for the splits that the data does not give.
        seed: seed of the draw, which is stratified by class and never divides a leak group (``find_leak_groups``).
        group: column whose values stay together, before stratification; default ``group`` where there is one.
        near: whether to look for near duplicates, which then stay together; default for at most 20,000 images.

    Every class with three or more leak groups is in every split. Given splits are not changed. Unlabelled images
    are in train alone, and in no split where they copy an image that is held out. Raises RecipeError for
    impossible shares or an unknown column, DataError without training images, for too few groups, or for a divided
    group.
    """
    given = dataset.columns.get("split")
    codes = np.full(len(dataset), _TRAIN) if given is None else _split_codes(given)
    groups = _group_codes(dataset, group)
    if not ((codes == _TRAIN) & dataset.is_labelled).any():
        raise DataError("The data has no training images: add a 'train' split, or give no splits at all.")
    if groups is not None and given is not None:
        names, order = dataset.columns[group or GROUP_COLUMN], np.lexsort((codes, groups))
        divided = np.flatnonzero((np.diff(groups[order]) == 0) & (np.diff(codes[order]) != 0))
        if len(divided):
            one, two = order[divided[0]], order[divided[0] + 1]
            others = len(np.unique(groups[order[divided]])) - 1
            more = "" if not others else f" (and {others:,} more {'group' if others == 1 else 'groups'})"
            raise DataError(
                f"The group '{names[one]}' is in two given splits{more}: '{dataset.files[one]}' is in "
                f"{SPLIT_NAMES[codes[one]]} and '{dataset.files[two]}' in {SPLIT_NAMES[codes[two]]}, so test accuracy "
                "would be too optimistic. Fix the split column, or remove it and let Sightline split."
            )
    many = len(dataset) > MAX_NEAR_DUPLICATE_IMAGES
    near = not many if near is None else near
    from .duplicates import find_near_duplicates  # here: it imports torch

    leader = find_near_duplicates(dataset) if near and (many or given is not None) else None
    notes = [*_describe_given_leaks(dataset, leader)]
    hidden = ~dataset.is_labelled & (codes != _TRAIN)
    if hidden.any():
        notes.append(f"Left out {int(hidden.sum()):,} unlabelled images of the given val and test splits.")
        codes[hidden] = _LEFT_OUT
    val = DEFAULT_VAL_SHARE if val is None else val
    shares = {code: share for code, share in ((_TEST, test), (_VAL, val)) if not (codes == code).any()}
    for code, share in shares.items():
        if not 0 <= share < 1:
            raise RecipeError(f"The {SPLIT_NAMES[code]} share is {share}: it must be at least 0 and below 1.")
    if sum(shares.values()) >= 1:
        raise RecipeError("The val and test shares add up to 1 or more: nothing is left to train on.")
    shares = {code: share for code, share in shares.items() if share}
    if shares:
        train = np.flatnonzero(codes == _TRAIN)
        images = dataset.subset(train)
        same = leader[train] if many and leader is not None else None
        unit, own = find_leak_groups(images, group=group, near=near, same=same), images.is_labelled
        pool, pool_unit = images.subset(own), np.unique(unit[own], return_inverse=True)[1]
        if groups is None:
            drawn = _draw_stratified(pool, pool_unit, shares, seed)
        else:
            what = " and ".join(["train", *(SPLIT_NAMES[code] for code in shares)])
            _check_enough_groups(int(pool_unit.max()) + 1, len(shares) + 1, what, group or GROUP_COLUMN)
            wanted = np.array([1 - sum(shares.values()), shares.get(_VAL, 0), shares.get(_TEST, 0)])
            drawn = _deal_greedily(pool, pool_unit, wanted, seed)
        codes[train[own]] = drawn
        kept = None if groups is None else group or GROUP_COLUMN
        notes += _describe_draw(pool, drawn, shares, seed, given=given is not None, group=kept)
        copies = ~own & np.isin(unit, unit[own][drawn != _TRAIN])
        if copies.any():
            notes.append(f"Left out {int(copies.sum()):,} unlabelled images that copy a held-out image.")
            codes[train[copies]] = _LEFT_OUT
    return Splits(*(dataset.subset(np.flatnonzero(codes == code)) for code in range(3)), notes=tuple(notes))


def _describe_given_leaks(dataset: Dataset, leader: Int64[ndarray, " N"] | None) -> Iterator[str]:
    """A sentence for each given split that holds pictures of another."""
    for what, leaks in (
        ("are exact copies of", find_leaks(dataset)),
        ("nearly repeat", find_near_leaks(dataset, leader)),
    ):
        for leak in leaks:
            total = int((_split_codes(dataset.columns["split"]) == SPLIT_NAMES.index(leak.held_out)).sum())
            yield (
                f"{len(leak.indices):,} of the {total:,} given {leak.held_out} images {what} {leak.other} images (for "
                f"example '{dataset.files[leak.indices[0]]}'): they stay where they are and make the result too "
                "optimistic."
            )


class Fold(NamedTuple):
    """One of the k partitions of cross-validation."""

    train: Dataset
    held_out: Dataset


def make_folds(
    dataset: Dataset, k: int, *, seed: int = 0, group: str | None = None, near: bool | None = None
) -> list[Fold]:
    """The k folds of cross-validation: every labelled image is held out exactly once.

    Folds are seeded, stratified by class and never divide a leak group. Without groups every class is spread over
    the folds as evenly as its leak groups allow. Unlabelled images are in train, unless they copy a held-out
    image. Raises RecipeError for fewer than two folds, DataError for more folds than a class has distinct images,
    or than there are groups.
    """
    if k < 2:
        raise RecipeError(f"The number of folds is {k}: it must be at least 2.")
    unit = find_leak_groups(dataset, group=group, near=near)
    own = dataset.is_labelled
    pool, pool_unit = dataset.subset(own), np.unique(unit[own], return_inverse=True)[1]
    if _group_codes(dataset, group) is not None:
        _check_enough_groups(int(pool_unit.max()) + 1, k, f"{k} folds", group or GROUP_COLUMN)
        dealt = _deal_greedily(pool, pool_unit, np.full(k, 1 / k), seed)
    else:
        dealt = _deal_in_turn(pool, pool_unit, k, seed)
    of_unit = np.full(int(unit.max()) + 1, -1)
    of_unit[unit[own]] = dealt
    fold = of_unit[unit]  # of unlabelled images too
    return [Fold(dataset.subset(fold != each), dataset.subset((fold == each) & own)) for each in range(k)]


def find_leak_groups(
    dataset: Dataset,
    *,
    group: str | None = None,
    near: bool | None = None,
    same: Shaped[ndarray, " N"] | None = None,
) -> Int64[ndarray, " N"]:
    """The number of each image's leak group: images that must be on one side of a split.

    Exact duplicates (also with different labels), near duplicates and images of one ``group`` are connected, and so is
    what these connect in turn. ``near`` None looks for near duplicates among at most 20,000 images; ``same`` has
    equal values for those that are known.
    """
    if same is None and (near or (near is None and len(dataset) <= MAX_NEAR_DUPLICATE_IMAGES)):
        from .duplicates import find_near_duplicates  # here: it imports torch

        same = find_near_duplicates(dataset)
    ties: list[Shaped[ndarray, " N"]] = [dataset.digests] if same is None else [dataset.digests, same]
    if (groups := _group_codes(dataset, group)) is not None:
        ties.append(groups)
    if len(ties) == 1:
        return np.unique(ties[0], return_inverse=True)[1].astype(np.int64)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    images = np.arange(len(dataset))
    ends, nodes = [], len(images)
    for tie in ties:  # a node for each image and for each value of a tie
        values, code = np.unique(tie, return_inverse=True)
        ends.append(nodes + code)
        nodes += len(values)
    rows, columns = np.tile(images, len(ties)), np.concatenate(ends)
    graph = coo_array((np.ones(len(rows), np.bool_), (rows, columns)), shape=(nodes, nodes))
    component = connected_components(graph, directed=False)[1][: len(images)]
    return np.unique(component, return_inverse=True)[1].astype(np.int64)


def _group_codes(dataset: Dataset, group: str | None) -> Int64[ndarray, " N"] | None:
    """The group of each image as a number; an image without one is a group of its own."""
    if group is not None and group not in dataset.columns:
        raise RecipeError(f"There is no column '{group}' to keep together. {suggest(group, dataset.columns)}")
    column = dataset.columns.get(group or GROUP_COLUMN)
    if column is None:
        return None
    words = column.astype(str)
    code = np.unique(words, return_inverse=True)[1].astype(np.int64)
    blank = words == ""
    code[blank] = len(dataset) + np.arange(int(blank.sum()))
    return code


def _split_codes(given: Shaped[ndarray, " N"]) -> Int64[ndarray, " N"]:
    return np.select([given == "val", given == "test"], [_VAL, _TEST], _TRAIN).astype(np.int64)


def _check_enough_groups(count: int, least: int, what: str, group: str) -> None:
    if count < least:
        groups = "is 1 group" if count == 1 else f"are {count:,} groups"
        raise DataError(
            f"There {groups} in the column '{group}', too few for {what}: a group is never divided. "
            "Add groups, or rename the column if its images may be divided."
        )


# drawing


def _draw_stratified(
    pool: Dataset, unit: Int64[ndarray, " N"], shares: dict[int, float], seed: int
) -> Int64[ndarray, " N"]:
    """The split of each image: the wanted share of each class's units, at least one unit where it has enough."""
    sizes, _, bounds, order = _shuffle_units(pool, unit, seed)
    codes = np.full(len(sizes), _TRAIN)
    for members in np.split(order, bounds):  # of one class
        total, start = int(sizes[members].sum()), 0
        for position, (code, share) in enumerate(shares.items()):
            after = len(shares) - position  # units to leave: one for each later split, one for train
            room = len(members) - start - after
            if room < 1:
                continue
            filled = np.cumsum(sizes[members[start:]])
            taken = int(np.searchsorted(filled, max(1.0, round(share * total)))) + 1
            if taken > 1 and filled[taken - 1] > round(share * total):  # the last unit is a pile of duplicates
                taken -= 1
            taken = min(taken, room)
            codes[members[start : start + taken]] = code
            start += taken
    return codes[unit]


def _shuffle_units(pool: Dataset, unit: ndarray, seed: int) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """Size and class of each unit; the units shuffled, class by class, and where each class ends in that order."""
    sizes = np.bincount(unit)
    label = np.empty(len(sizes), np.int64)
    label[unit[::-1]] = pool.labels[::-1]  # a unit counts for the class of its first image
    order = np.random.default_rng([seed, 2]).permutation(len(sizes))
    order = order[np.argsort(label[order], kind="stable")]
    return sizes, label, np.cumsum(np.bincount(label, minlength=len(pool.classes)))[:-1], order


def _deal_in_turn(dataset: Dataset, unit: ndarray, k: int, seed: int) -> Int64[ndarray, " N"]:
    """The fold of each image: units are dealt in turn, class by class, large ones first."""
    sizes, label, _, order = _shuffle_units(dataset, unit, seed)
    counts = np.bincount(label, minlength=len(dataset.classes))
    rarest = int(counts.argmin())
    if counts[rarest] < k:
        raise DataError(
            f"The class '{dataset.classes[rarest]}' has {counts[rarest]:,} distinct images, too few for {k} "
            "folds: use fewer folds, or add images."
        )
    order = order[np.lexsort((-sizes[order], label[order]))]
    number = np.empty(len(sizes), np.int64)
    number[order] = np.arange(len(sizes)) % k
    return number[unit]


def _deal_greedily(dataset: Dataset, unit: ndarray, shares: ndarray, seed: int) -> Int64[ndarray, " N"]:
    """The split or fold of each image where a unit may hold several classes: the largest unit is dealt first.

    A unit goes where its classes are furthest below the share that the split should have (as scikit-learn's
    StratifiedGroupKFold does for equal shares).
    """
    size = len(dataset.classes)
    table = np.bincount(unit * size + dataset.labels, minlength=(unit.max() + 1) * size).reshape(-1, size)
    pieces = table / np.maximum(1, dataset.counts)  # share of each class that a unit holds
    order = np.random.default_rng([seed, 2]).permutation(len(pieces))
    order = order[np.argsort(-pieces[order].max(1), kind="stable")]
    wanted = np.flatnonzero(shares > 0)
    code, filled = np.empty(len(pieces), np.int64), np.zeros((len(wanted), size))
    for each in order:
        piece = pieces[each]
        place = int((((filled + piece) / shares[wanted, None]) @ piece).argmin())
        filled[place] += piece
        code[each] = wanted[place]
    _fill_missing_classes(code, table, wanted)
    return code[unit]


def _fill_missing_classes(code: ndarray, table: ndarray, wanted: ndarray) -> None:
    """Give a split that lacks a class the smallest unit with it, from the split that has most such units."""
    total = table.sum(1)
    for label in range(table.shape[1]):
        has = table[:, label] > 0
        for place in wanted:
            held = np.bincount(code[has], minlength=wanted.max() + 1)
            donor = int(held.argmax())
            if held[place] or held[donor] < 2:
                continue
            spare = np.flatnonzero(has & (code == donor))
            code[spare[total[spare].argmin()]] = place


def _describe_draw(
    pool: Dataset, drawn: ndarray, shares: dict[int, float], seed: int, *, given: bool, group: str | None
) -> list[str]:
    """How many images were drawn, which classes had too few, and how far groups moved the shares of classes.

    Raises DataError for a split without images.
    """
    notes = []
    for code, share in shares.items():
        count, name = int((drawn == code).sum()), {_TEST: "test", _VAL: "validation"}[code]
        kind = "training images" if given else "images"
        notes.append(
            f"The data has no {name} split: {count:,} of {len(pool):,} {kind} ({share:.0%} of each class, "
            f"seed {seed}) were drawn for {'testing' if code == _TEST else 'validation'}."
        )
        if not count:
            raise DataError(
                f"There are too few images to draw a {name} split: every class has fewer than "
                f"{len(shares) + 1} distinct ones. Add images, or draw none with --{SPLIT_NAMES[code]}-fraction 0."
            )
    for code in shares:
        missing = np.setdiff1d(pool.labels, pool.labels[drawn == code])
        if len(missing):
            names = ", ".join(f"'{pool.classes[label]}'" for label in missing[:5])
            notes.append(
                f"Classes with too few distinct images to be in the {SPLIT_NAMES[code]} split: {names}"
                f"{', ...' if len(missing) > 5 else ''}."
            )
    if group is None:
        return notes
    whole = pool.counts / len(pool)
    codes = np.unique(drawn)
    table = np.stack([np.bincount(pool.labels[drawn == code], minlength=len(whole)) for code in codes])
    table = table / table.sum(1, keepdims=True)
    code, label = np.unravel_index(np.abs(table - whole).argmax(), table.shape)
    notes.append(
        f"Images of one group (column '{group}') stay in one split, which takes precedence over equal class "
        f"shares: '{pool.classes[label]}' is {whole[label]:.1%} of the images and {table[code, label]:.1%} of "
        f"{SPLIT_NAMES[codes[code]]}, and no class differs more."
    )
    return notes


@dataclass(frozen=True)
class Leak:
    """Images of one given split that are also in another."""

    held_out: str
    other: str
    indices: Int64[ndarray, " n"]
    """The images of the held-out split, as positions in the dataset."""


def find_leaks(dataset: Dataset, same: Shaped[ndarray, " N"] | None = None) -> list[Leak]:
    """Pictures that are in two of the given splits; empty where the data gives no splits.

    Images of equal value in ``same`` (N,), such as those of ``find_near_duplicates``, are the same picture;
    default exact copies. Unlabelled images count: an unlabelled training image may copy a test image.
    """
    given = dataset.columns.get("split")
    if given is None:
        return []
    same = dataset.digests if same is None else same
    codes, found = _split_codes(given), []
    for held_out, other in ((_TEST, _TRAIN), (_VAL, _TRAIN), (_TEST, _VAL)):
        here, there = np.flatnonzero(codes == held_out), codes == other
        twice = here[np.isin(same[here], same[there])]
        if len(twice):
            found.append(Leak(SPLIT_NAMES[held_out], SPLIT_NAMES[other], twice))
    return found


def find_near_leaks(dataset: Dataset, leader: Int64[ndarray, " N"] | None) -> list[Leak]:
    """Near duplicates of another given split that are no exact copies; none where they were not looked for."""
    if leader is None:
        return []
    exact = {(leak.held_out, leak.other): leak.indices for leak in find_leaks(dataset)}
    found = [
        replace(leak, indices=np.setdiff1d(leak.indices, exact.get((leak.held_out, leak.other), [])))
        for leak in find_leaks(dataset, leader)
    ]
    return [leak for leak in found if len(leak.indices)]


# samples

_NESTED_STREAM = 5  # of the random numbers of one seed


def nested_subset(labels: Int[ndarray, " N"], share: float, seed: int) -> Int[ndarray, " n"]:
    """Sorted indices of ``share`` (0 to 1) of each class, at least one image each.

    The subsets of one seed are nested: a larger share contains every smaller one.
    """
    order = np.random.default_rng([seed, _NESTED_STREAM]).permutation(len(labels))
    return stratified_subset(labels, order, share=share)
