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
from ..evaluation import LATENCY_BATCH_SIZES
from ..inference import match_labels, predict_logits
from ..metrics import mcnemar, paired_difference, wilson
from ..types import Dataset, Interval
from .profiling import LATENCY_TOLERANCE, LatencyPair, Profile, profile, time_pair

MAX_TIMED_IMAGES = 32
"""Test images that are answered for the clock."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SizeComparison:
    """What was measured of both, on the same images, in one run."""

    original: Profile
    small: Profile
    latencies: Mapping[int, LatencyPair]
    """Batch size -> latency of both, in turn."""
    n: int
    """Test images."""
    accuracies: tuple[Interval, Interval]
    """Of the original and of the small one, with Wilson's intervals."""
    difference: Interval
    """Small less original, image by image."""
    mcnemar_p: float
    """McNemar's: the chance of a difference like that between two that err equally often."""
    agreement: Interval
    """Share of the images both answer alike."""

    @property
    def exported(self) -> bool:
        """Whether the exported files were timed, and not torch."""
        return self.original.file_runner is not None and self.small.file_runner is not None

    @property
    def smaller(self) -> bool:
        """Whether the file that is handed over has fewer bytes."""
        return self.small.size_mb < self.original.size_mb

    @property
    def slower(self) -> bool:
        """Whether it surely takes longer, by more than noise, for one image or for many."""
        return any(one.ratio.low > 1 + LATENCY_TOLERANCE for one in self.latencies.values())

    @property
    def faster(self) -> bool:
        """Whether it surely takes less time for one image or for many, by more than noise, and never more."""
        return any(one.ratio.high < 1 - LATENCY_TOLERANCE for one in self.latencies.values()) and not self.slower

    def sentences(self) -> list[str]:
        """What the numbers say: size, speed, answers, and whether it is worth having."""
        said = [self._size(), self._speed(), self._answers()]
        if not self.exported:
            why = self.original.export_error or self.small.export_error
            said.append(f"Timed by torch, because there is no exported file: {why}")
        return said

    def _size(self) -> str:
        what = "exported file" if self.small.file_mb is not None else "bundle"
        ratio = self.small.size_mb / self.original.size_mb
        sizes = f"{self.small.size_mb:.3g} MB instead of {self.original.size_mb:.3g} MB ({ratio:.2f}x)"
        if self.smaller:
            return f"Smaller: its {what} has {sizes}."
        zeros = self.small.parameters - self.small.nonzero
        why = f" The {zeros:,} zeros among its numbers are stored like any other." if zeros else ""
        return f"Not smaller: its {what} has {sizes}.{why}"

    def _speed(self) -> str:
        times = " and ".join(
            f"{_batch_words(size)} {'takes' if size == 1 else 'take'} {one.ratio.value:.2f} times as long "
            f"({one.ratio.low:.2f} to {one.ratio.high:.2f})"
            for size, one in self.latencies.items()
        )
        if self.slower:
            mixed = any(one.ratio.high < 1 - LATENCY_TOLERANCE for one in self.latencies.values())
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
            f"the original's (95 % interval: {edges}; McNemar p = {self.mcnemar_p:.2g})"
        )
        told = "" if sure else ", which this test cannot tell from none"
        return f"{said}{told}; both answer {self.agreement.value:.2%} of the images alike."

    def as_json(self) -> dict[str, Any]:
        """All of it, flat enough to read."""
        return {
            "n": self.n,
            "original": _side_json(self.original, 0, self),
            "small": _side_json(self.small, 1, self),
            "latency_ratio": {str(size): _interval_json(one.ratio) for size, one in self.latencies.items()},
            "latency_of": "exported file" if self.exported else "torch",
            "accuracy_difference": _interval_json(self.difference),
            "mcnemar_p": self.mcnemar_p,
            "agreement": _interval_json(self.agreement),
            "smaller": self.smaller,
            "faster": self.faster,
            "slower": self.slower,
            "sentences": self.sentences(),
        }


def _batch_words(size: int) -> str:
    return "one image" if size == 1 else f"{size} at once"


def _side_json(one: Profile, side: int, table: SizeComparison) -> dict[str, Any]:
    accuracy = table.accuracies[side]
    latency = [(race.first, race.second)[side] for race in table.latencies.values()]
    return {
        "file_mb": one.file_mb,
        "bundle_mb": one.bundle_mb,
        "parameters": one.parameters,
        "nonzero": one.nonzero,
        "multiply_adds": one.multiply_adds,
        "latency": [vars(each) for each in latency],
        "accuracy": accuracy.value,
        "intervals": {"accuracy": _interval_json(accuracy)},
    }


def _interval_json(one: Interval) -> dict[str, float]:
    return {"value": one.value, "low": one.low, "high": one.high, "n": one.n}


def compare_with_original(original: Classifier, small: Classifier, images: Dataset) -> SizeComparison:
    """Measure both on the same test images, in one run; raises DataError for images that do not fit."""
    labels = match_labels(original, images)
    with (
        TemporaryDirectory() as place,
        progress.progress_bar("Measuring both", 4 + len(LATENCY_BATCH_SIZES)) as advance,
    ):
        one, other = (_predicted_classes(each, images, advance) for each in (original, small))
        first, second = (profile(c, Path(place), name) for c, name in ((original, "original"), (small, "small")))
        advance(2)
        shown = images[np.arange(min(MAX_TIMED_IMAGES, len(images)))]
        races = {}
        for size in LATENCY_BATCH_SIZES:
            races[size] = time_pair(first, second, shown, size)
            advance()
    return _as_comparison(first, second, races, labels, one, other)


def _predicted_classes(classifier: Classifier, images: Dataset, advance: progress.Advance) -> Int[ndarray, " N"]:
    """The class each image is given."""
    found = predict_logits(classifier, images)[0].argmax(1).numpy()
    advance()
    return found


def _as_comparison(
    first: Profile,
    second: Profile,
    races: Mapping[int, LatencyPair],
    labels: Int[ndarray, " N"],
    one: Int[ndarray, " N"],
    other: Int[ndarray, " N"],
) -> SizeComparison:
    before, after, count = one == labels, other == labels, len(labels)
    return SizeComparison(
        original=first,
        small=second,
        latencies=races,
        n=count,
        accuracies=(wilson(float(before.sum()), count), wilson(float(after.sum()), count)),
        difference=paired_difference(after, before),
        mcnemar_p=mcnemar(after, before),
        agreement=wilson(float((one == other).sum()), count),
    )
