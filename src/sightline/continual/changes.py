"""What ``learn`` is asked to do, and the lesson it makes: old and new images with the classes of afterwards."""

import copy
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from ..choose import suggest
from ..classifier import Classifier
from ..data import load_dataset, split
from ..errors import DataError
from ..sources import JOINED_SUFFIX, USUAL_LABELS, LabelRule, find, read_places
from ..training import Recipe, Run
from ..types import UNLABELLED, Dataset, Splits
from .lesson import Lesson
from .memory import Sums, read_forgotten
from .strategy import grow, regroup_head

HELD_OUT_SHARES = (0.15, 0.15)
"""Shares of new images for validation and test, where they come without splits of their own."""

MIN_ALIKE = 0.85
"""Similarity (``difflib``) from which two class names are taken for one: one letter of seven."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to be learned or forgotten: see ``continual.learn``."""

    new_data: Path | str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    remove: Sequence[str] = ()
    forget: Path | str | None = None
    new_classes: Sequence[str] = ()
    """New classes whose names look like those of known ones, and are not."""
    keep_images: bool | None = None
    held_out: tuple[float, float] = HELD_OUT_SHARES
    """Shares of new images for validation and test, where they come without these splits."""

    @property
    def concerns_images(self) -> bool:
        """Whether there is anything to learn, forget or call by another name."""
        return self.new_data is not None or bool(self.rename or self.remove) or self.forget is not None


def make_lesson(
    original: Run, sums: Sums | None, changes: Changes, *, memory: int, seed: int
) -> tuple[Lesson, tuple[str, ...], frozenset[str]]:
    """Old and new images with the classes of afterwards, and the classifier made ready for them.

    Returns also notes, and the hashes of the files that are forgotten.
    """
    classifier, splits, rename = original.classifier, original.splits, changes.rename
    for name in rename:
        if name not in classifier.classes:
            raise DataError(f"There is no class '{name}' to rename or merge. {suggest(name, classifier.classes)}")
    for name, new_name in rename.items():
        if new_name in classifier.classes and new_name not in rename:
            raise DataError(
                f"There is a class '{new_name}' already: to make one class of both, write --merge "
                f"{name},{new_name}={new_name}."
            )
    renamed = [rename.get(name, name) for name in classifier.classes]
    for name in changes.remove:
        if name not in renamed:
            raise DataError(f"There is no class '{name}' to remove. {suggest(name, renamed)}")
    kept = tuple(name for name in dict.fromkeys(renamed) if name not in changes.remove)
    rule = find_label_rule(original.recipe, changes.new_data)
    new, notes = (
        (None, ()) if changes.new_data is None else load_new_images(changes, classifier, kept, seed, rule=rule)
    )
    classes = tuple(dict.fromkeys((*kept, *(() if new is None else new.train.classes))))
    if len(classes) < 2:
        raise DataError(f"Only the class '{', '.join(classes)}' would be left: a classifier needs two.")
    gone, hashes = frozenset[int](), frozenset[str]()
    if changes.forget is not None:
        images, hashes = read_forgotten(changes.forget, classifier)
        gone = frozenset(images.digests.tolist())
        known = [part.digests for part in (splits.train, splits.val, splits.test)]
        found = sum(
            int(np.isin(one, [*gone]).sum()) for one in (*known, *([] if sums is None else [sums.digests]))
        )
        if not found:
            raise DataError(f"None of the images of '{changes.forget}' are among those of '{original.folder}'.")
        sums = None if sums is None else sums.forget(classifier, images)
        notes = (*notes, f"{found:,} images of '{changes.forget}' are taken out of the data.")
    sums = None if sums is None else sums.regroup(rename, changes.remove)
    old = _adapt(splits, renamed, classes, gone)
    empty = old.train.subset(np.zeros(0, np.int64))
    fresh = Splits(empty, empty, empty)
    if new is not None:
        fresh = _adapt(new, new.train.classes, classes, gone)
    counts = old.train.counts + fresh.train.counts
    if sums is not None:
        counts = counts + sums.statistics.expand(classes).counts
    if bare := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise DataError(
            f"No training image of '{bare[0]}' would be left: remove the class too (--remove {bare[0]}), or add images."
        )
    groups = [[row for row, name in enumerate(renamed) if name == one] for one in kept]
    previous = regroup_head(classifier, kept, groups)
    before = copy.deepcopy(classifier)
    before.classes = tuple(renamed)
    lesson = Lesson(
        old=old,
        new=fresh,
        classifier=grow(previous, classes),
        previous=previous,
        before=before,
        old_classes=tuple(range(len(kept))),
        recipe=original.recipe,
        memory_size=memory,
        sums=sums,
        seed=seed,
    )
    return lesson, tuple(notes), hashes


def _adapt(splits: Splits, names: Sequence[str], classes: Sequence[str], gone: frozenset[int]) -> Splits:
    """The images with the labels of ``classes``; classes now called ``names``; others, and those gone, are left out."""
    index = {name: label for label, name in enumerate(classes)}
    table = np.array([*(index.get(name, -2) for name in names), UNLABELLED], np.int64)

    def adapt(images: Dataset) -> Dataset:
        labels = table[images.labels]
        kept = np.flatnonzero((labels != -2) & ~np.isin(images.digests, np.array([*gone], np.uint64)))
        return replace(images.subset(kept), labels=labels[kept], classes=tuple(classes))

    return Splits(adapt(splits.train), adapt(splits.val), adapt(splits.test))


def find_label_rule(recipe: Recipe, data: Path | str | None) -> LabelRule:
    """The label rule of the run's images where it fits the new ones, else usual names."""
    joined = recipe.data is not None and recipe.data.endswith(JOINED_SUFFIX)
    rule = read_places(Path(recipe.data))[0][0][1] if joined and recipe.data else recipe.label_rule
    if rule.given and data is not None:
        with suppress(DataError):
            find(data, several=False, rule=rule)
            return rule
    return USUAL_LABELS


def load_new_images(
    changes: Changes, classifier: Classifier, known: Sequence[str], seed: int, *, rule: LabelRule = USUAL_LABELS
) -> tuple[Splits, tuple[str, ...]]:
    """New images, their labels by ``rule``, split as they say or by ``HELD_OUT_SHARES``; and notes.

    Raises DataError for a class whose name looks like one of ``known``, unless it is among the ``new_classes``.
    """
    data = changes.new_data
    assert data is not None
    images = load_dataset(find(data, several=False, rule=rule), classifier.geometry)
    if missing := [name for name in changes.new_classes if name not in images.classes]:
        raise DataError(
            f"'{data}' has no class '{missing[0]}' (--new-class). {suggest(missing[0], images.classes)}"
        )
    for name in images.classes:
        if name in known or name in changes.new_classes:
            continue
        if (meant := next((one for one in known if looks_alike(name, one)), None)) is not None:
            raise DataError(
                f"'{data}' has a class '{name}', and the classifier knows '{meant}': rename the folder or label to "
                f"'{meant}', or, if it is another thing, add --new-class '{name}'."
            )
    notes = [*images.notes]
    if rare := [name for name, count in zip(images.classes, images.counts, strict=True) if count < 3]:
        notes.append(
            f"There are fewer than 3 new images of {', '.join(rare[:5])}: they are learned, but how well cannot be "
            "measured."
        )
    if images.counts.max() < 3:  # nothing can be held out
        empty = images.subset(np.zeros(0, np.int64))
        return Splits(images, empty, empty), tuple(notes)
    val, test = changes.held_out
    parts = split(images, val=val, test=test, seed=seed)
    return parts, (*notes, *parts.notes)


def looks_alike(name: str, other: str) -> bool:
    """Whether two class names are likely meant to be one: but for capitals, spaces and signs, or a slip of the pen.

    Names with other numbers are different.

    >>> looks_alike("Card board", "cardboard"), looks_alike("plastics", "plastic"), looks_alike("class 1", "class 2")
    (True, True, False)
    """
    one, two = ("".join(letter for letter in text.casefold() if letter.isalnum()) for text in (name, other))
    if one == two:
        return True
    if min(len(one), len(two)) < 4 or re.findall("[0-9]+", one) != re.findall("[0-9]+", two):
        return False
    return SequenceMatcher(None, one, two).ratio() >= MIN_ALIKE
