"""What people said becomes images to learn from and images to judge with, which never meet.

Images that belong together stay together: of one subject, of one source within a minute, or near duplicates. A hash of
the first of them chooses their split, so that it stays the same when more come. What was drawn at random judges, with
all that belongs to it, and never trains.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from ..data import find_near_duplicates
from ..files import write_csv
from ..journal import Journal, draw_number
from ..types import Dataset, Geometry
from .opinions import SettledLabel, settle_labels

HELD_OUT_SHARE, VALIDATION_SHARE = 0.15, 0.15
"""Shares of the groups of corrections that judge, and that choose between ways to learn."""

BURST_SECONDS = 60.0
"""Seconds within which images of one source belong together."""


@dataclass(frozen=True, eq=False)
class FieldImages:
    """Images of a service with labels that people gave; N of them, at a working size."""

    images: Dataset
    """With the columns ``prediction`` (the id) and ``group``."""
    split: ndarray
    """"train", "val", "held out" or "audit" of each (array of str)."""
    paths: tuple[Path, ...]
    contradictory: int
    """Images left out because people contradict each other."""

    @property
    def learned(self) -> Bool[ndarray, " N"]:
        """Which images are learned from, or choose between ways to learn."""
        return np.isin(self.split, ["train", "val"])

    def part(self, name: str) -> Dataset:
        """The images of one split."""
        return self.images.subset(np.flatnonzero(self.split == name))

    def fingerprint(self, base: Path) -> str:
        """A hash of what is learned from which run: the same images with the same labels have the same one."""
        rows = [
            f"{self.paths[i].name} {self.images.classes[self.images.labels[i]]} {self.split[i]}"
            for i in np.flatnonzero(self.learned)
        ]
        return hashlib.sha256("\n".join([str(base), *sorted(rows)]).encode()).hexdigest()[:16]

    def judges(self) -> str:
        """A hash of the images that judge."""
        rows = [self.paths[i].name for i in np.flatnonzero(~self.learned)]
        return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()[:16]

    def write_table(self, path: Path) -> None:
        """Write the images that are learned from as a table that ``sources.find`` reads."""
        rows: list[list[object]] = [["path", "label", "split", "group"]]
        for i in np.flatnonzero(self.learned):
            label = self.images.classes[self.images.labels[i]]
            rows.append([self.paths[i].resolve(), label, self.split[i], self.images.columns["group"][i]])
        write_csv(path, rows)


def collect_field_images(journal: Journal, geometry: Geometry) -> FieldImages | None:
    """All kept images with a label that people agree on, split; None where there are none."""
    settled = settle_labels(journal.reviews())
    known = [one for one in settled if one.label is not None and journal.image_path(one.row) is not None]
    contradictory = sum(one.contradictory for one in settled)
    if not known:
        return None
    known.sort(key=lambda one: one.row.id)
    rows = [replace(one.row, correction=one.label) for one in known]
    images = journal.load_images(rows, geometry)
    by_id = {one.row.id: one for one in known}
    known = [by_id[id] for id in images.columns["prediction"]]  # what cannot be read is left out
    group = group_images(known, find_near_duplicates(images))
    split = split_groups(known, group)
    untaught = (split == "val") & ~np.isin(images.labels, images.labels[split == "train"])
    split[(split == "val") & np.isin(group, group[untaught])] = (
        "train"  # a class must be learned before it can choose
    )
    leaders = np.array([known[i].row.id for i in group], object)
    images = replace(images, columns={**images.columns, "group": leaders})
    paths = tuple(path for one in known if (path := journal.image_path(one.row)) is not None)
    return FieldImages(images, split, paths, contradictory)


def group_images(known: Sequence[SettledLabel], near: Int[ndarray, " N"]) -> Int[ndarray, " N"]:
    """The first image of the group of each: one subject, one source within a minute, or near duplicates.

    ``near`` is the position of the image that each is a near duplicate of. Images are sorted by time.
    """
    leader = list(range(len(known)))

    def find(i: int) -> int:
        while leader[i] != i:
            i = leader[i]
        return i

    def join(i: int, j: int) -> None:
        one, other = sorted((find(i), find(j)))
        leader[other] = one

    subjects: dict[str, int] = {}
    sources: dict[str, int] = {}
    for i, one in enumerate(known):
        join(i, int(near[i]))
        if one.row.subject:
            join(i, subjects.setdefault(one.row.subject, i))
        if one.row.source:
            last = sources.get(one.row.source)
            if last is not None and one.row.at - known[last].row.at < BURST_SECONDS:
                join(i, last)
            sources[one.row.source] = i
    return np.array([find(i) for i in range(len(known))])


def split_groups(known: Sequence[SettledLabel], group: Int[ndarray, " N"]) -> ndarray:
    """The split of each image: train, val, held out or audit. A group is in one of them, or in the last two."""
    judging = {int(group[i]) for i, one in enumerate(known) if one.audited}
    found = []
    for one, leader in zip(known, group.tolist(), strict=True):
        number = draw_number(f"split {known[leader].row.id}")
        if one.audited:
            found.append("audit")
        elif leader in judging or number < HELD_OUT_SHARE:
            found.append("held out")
        else:
            found.append("val" if number < HELD_OUT_SHARE + VALIDATION_SHARE else "train")
    return np.array(found, object)
