"""The splits of a run: drawn as its recipe says, or found again by the bytes of images that were copied or moved."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from .. import progress
from ..data import MAX_NEAR_DUPLICATE_IMAGES, split
from ..errors import DataError
from ..sources import absolute_place
from ..types import UNLABELLED, Dataset, Splits
from .recipe import Recipe, parse_duration
from .run_folder import RunFolder


def restore_splits(
    run: RunFolder, dataset: Dataset, fingerprint: str, *, classes: Sequence[str] | None = None, max_missing: float
) -> Splits:
    """The splits of a run, its images found among those of ``dataset`` by the hashes in its ``split.csv``.

    An old run knows names only. Labels and, by ``classes``, their order are those of the run; so is ``fingerprint``.
    Notes say what is new, lies in another class, or is missing. Raises DataError where more than the fraction
    ``max_missing`` of a split is not there.
    """
    rows = run.read_split()
    if not rows:
        raise DataError(
            f"The images changed since '{run.path}' was trained, and it has no split.csv to find them by."
        )
    found = _find_images(rows, dataset)
    if classes is None:
        order = {name: place for place, name in enumerate(dataset.classes)}
        own = {row["label"] for row in rows} - {""}
        classes = sorted(own, key=lambda name: (order.get(name, len(order)), name))
    code = {name: label for label, name in enumerate(classes)}
    labels = np.array([code.get(row["label"], UNLABELLED) for row in rows], np.int64)
    if "digest" not in rows[0]:  # old runs wrote a class for unlabelled images
        labels[(found >= 0) & ~dataset.is_labelled[found]] = UNLABELLED
    notes = _describe_changes(run, dataset, rows, found)
    parts = []
    for name in ("train", "val", "test"):
        members = np.array([row["split"] == name for row in rows])
        lost, kept = np.flatnonzero(members & (found < 0)), members & (found >= 0)
        if len(lost):
            gone = "is" if len(lost) == 1 else "are"
            text = f"{len(lost):,} of the {int(members.sum()):,} {name} images {gone} not there any more"
            if len(lost) > max_missing * members.sum():
                remedy = f"name the images to test on: sightline evaluate {run.path} DATA"
                raise DataError(
                    f"The images changed since '{run.path}' began: {text} (the first is '{rows[lost[0]]['file']}'). "
                    f"Restore the old images, or {remedy if max_missing else 'train again.'}"
                )
            notes.append(f"{text}: '{run.path}' goes on with the others.")
        part = replace(dataset.subset(found[kept]), labels=labels[kept], classes=tuple(classes))
        parts.append(replace(part, fingerprint=fingerprint))
    return Splits(*parts, notes=tuple(notes))


def _find_images(rows: Sequence[dict[str, str]], dataset: Dataset) -> Int64[ndarray, " R"]:
    """The position in the dataset of each row of a ``split.csv``; -1 where it is not there.

    Of several copies the one of the same name is taken, then one that no other row has, then any.
    """
    hashed = "digest" in rows[0]
    keys = [f"{key:016x}" for key in dataset.digests.tolist()] if hashed else list(map(str, dataset.files))
    wanted = [(row["digest" if hashed else "file"], row["file"]) for row in rows]
    same = {(key, str(file)): i for i, (key, file) in enumerate(zip(keys, dataset.files, strict=True))}
    found = np.array([same.get(pair, -1) for pair in wanted], np.int64)
    spare: dict[str, list[int]] = {}
    for i in np.setdiff1d(np.arange(len(keys)), found)[::-1].tolist():
        spare.setdefault(keys[i], []).append(i)
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    for row in np.flatnonzero(found < 0).tolist():
        copies = spare.get(wanted[row][0])
        found[row] = copies.pop() if copies else first.get(wanted[row][0], -1)
    return found


def _describe_changes(
    run: RunFolder, dataset: Dataset, rows: Sequence[dict[str, str]], found: ndarray
) -> list[str]:
    """What differs between the images of a run and those that are there now, but for missing ones."""
    notes = []
    if "digest" not in rows[0]:
        notes.append(
            f"'{run.path}' is of an older version, which kept no hashes: its images are known by their names."
        )
    if new := len(dataset) - len(np.unique(found[found >= 0])):
        what = "1 image is" if new == 1 else f"{new:,} images are"
        notes.append(f"{what} not among those that '{run.path}' was made of: left out.")
    names = np.asarray([*dataset.classes, ""])[dataset.labels]
    moved = sum(row["label"] != names[i] for row, i in zip(rows, found, strict=True) if i >= 0)
    if moved:
        what = "1 image has" if moved == 1 else f"{moved:,} images have"
        notes.append(f"{what} another label now: the run's own labels are used.")
    return notes


def locate_images(run: RunFolder, recipe: Recipe, data: str | Path | None, command: str) -> Recipe:
    """The recipe with ``data`` as the place of its images; DataError, naming the command, where they are gone."""
    if data is not None:
        return recipe.replace(data=absolute_place(str(data)))
    if recipe.data is not None and Path(recipe.data).is_absolute() and not Path(recipe.data).exists():
        raise DataError(
            f"The images of '{run.path}' are not at '{recipe.data}' any more: name where they lie now, {command}"
        )
    return recipe


def split_to_train(dataset: Dataset, recipe: Recipe) -> tuple[Splits, tuple[str, ...]]:
    """The splits and notes; raises DataError where there is nothing to train or validate on, or to learn a class."""
    splits, notes = split_by_recipe(dataset, recipe)
    train = splits.train.labelled
    if unseen := [name for name, count in zip(train.classes, train.counts, strict=True) if not count]:
        raise DataError(
            f"No image is left to learn {', '.join(map(repr, unseen[:5]))} from, in '{recipe.data}': they could "
            "not be read, or are copies of images of another class. Add images, or remove the class."
        )
    return splits, notes


NEAR_SEARCH_RATE, NEAR_SEARCH_SHARE = 5_000, 0.1
"""Images among which near duplicates are found in a second, about, and the share of the budget for that search."""


def split_by_recipe(dataset: Dataset, recipe: Recipe) -> tuple[Splits, tuple[str, ...]]:
    """The splits and notes; raises DataError where there are too few images to train and validate on."""
    seconds, notes = len(dataset) / NEAR_SEARCH_RATE, dataset.notes
    near = seconds <= max(1.0, NEAR_SEARCH_SHARE * parse_duration(recipe.budget))
    if near and len(dataset) > MAX_NEAR_DUPLICATE_IMAGES:
        progress.notify(f"Looking for near duplicates among {len(dataset):,} images.")
    elif not near:
        notes += (
            f"Near duplicates were not looked for: with {len(dataset):,} images that would take about {seconds:,.0f} s "
            f"of the budget of {recipe.budget}. `sightline check` looks for them.",
        )
    splits = split(
        dataset,
        val=recipe.val_fraction,
        test=recipe.test_fraction,
        seed=recipe.data_seed,
        group=recipe.group,
        near=near,
    )
    if not len(splits.train.labelled) or (recipe.val_fraction != 0 and not len(splits.val)):
        raise DataError(f"'{recipe.data}' has too few images to train and validate on. Add images.")
    return splits, (*notes, *splits.notes)
