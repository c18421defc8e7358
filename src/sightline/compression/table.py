"""The original and the small classifier side by side, measured in one run, and what that says in plain words."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from .. import progress
from ..classifier import Classifier
from ..evaluation.efficiency import BATCHES
from ..evaluation.measure import labels_of
from ..metrics import mcnemar, paired_difference, wilson
from ..training.calibrate import logits_of
from ..types import Dataset, Interval
from .costs import NOISE, Race, Weighed, race, weigh

SHOWN = 32
"""Test images that are answered for the clock."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """What was measured of both, on the same images, in one run."""

    original: Weighed
    small: Weighed
    races: Mapping[int, Race]
    """Batch size -> latency of both, in turn."""
    n: int
    """Test images."""
    accuracies: tuple[Interval, Interval]
    """Of the original and of the small one, with Wilson's intervals."""
    difference: Interval
    """Small less original, image by image."""
    p: float
    """McNemar's: the chance of a difference like that between two that err equally often."""
    agreement: Interval
    """Share of the images both answer alike."""

    @property
    def exported(self) -> bool:
        """Whether the exported files were timed, and not torch."""
        return self.original.exported is not None and self.small.exported is not None

    @property
    def smaller(self) -> bool:
        """Whether the file that is handed over has fewer bytes."""
        return self.small.mb < self.original.mb

    @property
    def slower(self) -> bool:
        """Whether it surely takes longer, by more than noise, for one image or for many."""
        return any(one.ratio.low > 1 + NOISE for one in self.races.values())

    @property
    def faster(self) -> bool:
        """Whether it surely takes less time for one image or for many, by more than noise, and never more."""
        return any(one.ratio.high < 1 - NOISE for one in self.races.values()) and not self.slower

    def sentences(self) -> list[str]:
        """What the numbers say: size, speed, answers, and whether it is worth having."""
        said = [self._size(), self._speed(), self._answers()]
        if not self.exported:
            why = self.original.why or self.small.why
            said.append(f"Timed by torch, because there is no exported file: {why}")
        return said

    def _size(self) -> str:
        what = "exported file" if self.small.file_mb is not None else "bundle"
        ratio = self.small.mb / self.original.mb
        sizes = f"{self.small.mb:.3g} MB instead of {self.original.mb:.3g} MB ({ratio:.2f}x)"
        if self.smaller:
            return f"Smaller: its {what} has {sizes}."
        zeros = self.small.parameters - self.small.nonzero
        why = f" The {zeros:,} zeros among its numbers are stored like any other." if zeros else ""
        return f"Not smaller: its {what} has {sizes}.{why}"

    def _speed(self) -> str:
        times = " and ".join(
            f"{_many(size)} {'takes' if size == 1 else 'take'} {one.ratio.value:.2f} times as long "
            f"({one.ratio.low:.2f} to {one.ratio.high:.2f})"
            for size, one in self.races.items()
        )
        if self.slower:
            mixed = any(one.ratio.high < 1 - NOISE for one in self.races.values())
            lead = "Slower in part" if mixed else "Slower than the original, so it is no gain in speed here"
        else:
            lead = "Faster" if self.faster else "Not faster, as far as can be told here"
        return f"{lead}: {times}."

    def _answers(self) -> str:
        points = self.difference.value * 100
        edges = f"{self.difference.low * 100:+.2f} to {self.difference.high * 100:+.2f}"
        sure = self.difference.low > 0 or self.difference.high < 0
        said = (
            f"Its accuracy on {self.n:,} test images is {self.accuracies[1].value:.2%}, {points:+.2f} points from "
            f"the original's (95 % interval: {edges}; McNemar p = {self.p:.2g})"
        )
        told = "" if sure else ", which this test cannot tell from none"
        return f"{said}{told}; both answer {self.agreement.value:.2%} of the images alike."

    def as_json(self) -> dict[str, Any]:
        """All of it, flat enough to read."""
        return {
            "n": self.n,
            "original": _column(self.original, 0, self),
            "small": _column(self.small, 1, self),
            "latency_ratio": {str(size): _bounds(one.ratio) for size, one in self.races.items()},
            "latency_of": "exported file" if self.exported else "torch",
            "accuracy_difference": _bounds(self.difference),
            "mcnemar_p": self.p,
            "agreement": _bounds(self.agreement),
            "smaller": self.smaller,
            "faster": self.faster,
            "slower": self.slower,
            "sentences": self.sentences(),
        }


def _many(size: int) -> str:
    return "one image" if size == 1 else f"{size} at once"


def _column(one: Weighed, side: int, table: Table) -> dict[str, Any]:
    accuracy = table.accuracies[side]
    latency = [(race.first, race.second)[side] for race in table.races.values()]
    return {
        "file_mb": one.file_mb,
        "bundle_mb": one.bundle_mb,
        "parameters": one.parameters,
        "nonzero": one.nonzero,
        "multiply_adds": one.multiply_adds,
        "latency": [vars(each) for each in latency],
        "accuracy": accuracy.value,
        "intervals": {"accuracy": _bounds(accuracy)},
    }


def _bounds(one: Interval) -> dict[str, float]:
    return {"value": one.value, "low": one.low, "high": one.high, "n": one.n}


def measured(original: Classifier, small: Classifier, images: Dataset) -> Table:
    """Measure both on the same test images, in one run; raises DataError for images that do not fit."""
    labels = labels_of(original, images)
    with TemporaryDirectory() as place, progress.bar("Measuring both", 4 + len(BATCHES)) as advance:
        one, other = (_answers(each, images, advance) for each in (original, small))
        first, second = (weigh(c, Path(place), name) for c, name in ((original, "original"), (small, "small")))
        advance(2)
        shown = images[np.arange(min(SHOWN, len(images)))]
        races = {}
        for size in BATCHES:
            races[size] = race(first, second, shown, size)
            advance()
    return _table(first, second, races, labels, one, other)


def _answers(classifier: Classifier, images: Dataset, advance: progress.Advance) -> Int[ndarray, " N"]:
    """The class each image is given."""
    found = logits_of(classifier, images)[0].argmax(1).numpy()
    advance()
    return found


def _table(
    first: Weighed,
    second: Weighed,
    races: Mapping[int, Race],
    labels: Int[ndarray, " N"],
    one: Int[ndarray, " N"],
    other: Int[ndarray, " N"],
) -> Table:
    before, after, count = one == labels, other == labels, len(labels)
    return Table(
        original=first,
        small=second,
        races=races,
        n=count,
        accuracies=(wilson(float(before.sum()), count), wilson(float(after.sum()), count)),
        difference=paired_difference(after, before),
        p=mcnemar(after, before),
        agreement=wilson(float((one == other).sum()), count),
    )
