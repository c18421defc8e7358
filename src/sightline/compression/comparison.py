"""The original and the small classifier, measured on the same images in one run, and what the numbers say."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import nn

from .. import progress, runtime
from ..classifier import Classifier
from ..errors import SightlineError
from ..evaluation import LATENCY_BATCH_SIZES, Latency
from ..formats import Runner, TorchRunner, open_exported, write_exported
from ..inference import match_labels, predict_logits
from ..metrics import mcnemar, paired_difference, wilson
from ..models import count_multiply_adds, learnt_tensors
from ..types import Dataset, Interval

LATENCY_TOLERANCE = 0.03
"""Relative difference of two latencies below which they are called equal: timings vary this much."""

SIZE_TOLERANCE = 0.005
"""Relative difference of two sizes below which they are called equal: two files of the same tensors differ in names."""

TIMING_SECONDS, MIN_TIMING_ROUNDS, MAX_TIMING_ROUNDS = 1.0, 10, 200
"""Seconds that each of two classifiers is timed for, in turn, and the limits of the number of rounds."""

MAX_TIMED_IMAGES = 32
"""Test images used for timing."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Profile:
    """The size of a classifier, ready to be timed."""

    bundle_mb: float
    """All files of the bundle, in MB (10^6 bytes)."""
    file_mb: float | None
    """The exported ONNX file, in MB; None where it cannot be exported."""
    export_error: str
    """Why it cannot be exported."""
    parameters: int
    """Numbers that are learnt and stored, the codes of int8 weights among them."""
    nonzero: int
    """The parameters that are not zero."""
    multiply_adds: int
    """For one image, products with a zero weight included."""
    file_runner: Runner | None
    """The exported file."""
    torch_runner: Runner
    """The classifier in torch, on its own device."""

    @property
    def size_mb(self) -> float:
        """The exported file in MB, or the bundle where there is none."""
        return self.bundle_mb if self.file_mb is None else self.file_mb


def profile(classifier: Classifier, folder: Path, name: str, *, export: bool = True) -> Profile:
    """Save (and ``export``) a classifier in ``folder``, and measure its size; a failed export is no error."""
    bundle = classifier.eval().save(folder / name)
    export_error, size, runner = "", None, None
    if export:
        try:
            file = write_exported(classifier, folder / f"{name}.onnx")
            runner, size = open_exported(file), file.stat().st_size / 1e6
        except SightlineError as error:
            export_error = str(error)
    parameters, nonzero = count_weights(classifier.network)
    geometry = classifier.geometry
    return Profile(
        bundle_mb=sum(file.stat().st_size for file in bundle.iterdir()) / 1e6,
        file_mb=size,
        export_error=export_error,
        parameters=parameters,
        nonzero=nonzero,
        multiply_adds=count_multiply_adds(classifier.network, geometry.channels, geometry.size),
        file_runner=runner,
        torch_runner=TorchRunner(classifier),
    )


def count_weights(network: nn.Module) -> tuple[int, int]:
    """The number of learnt parameters, and of those that are not zero."""
    tensors = learnt_tensors(network)
    return sum(t.numel() for t in tensors), sum(int(t.count_nonzero()) for t in tensors)


@dataclass(frozen=True)
class LatencyPair:
    """The latencies of two classifiers, timed in turn on the same images."""

    first: Latency
    second: Latency
    ratio: Interval
    """Time of the second over time of the first: the median over the rounds with its 95 % interval."""


def time_pair(first: Profile, second: Profile, images: UInt8[ndarray, "N H W C"], size: int) -> LatencyPair:
    """Time both in turn on batches of ``size`` images: their exported files, or torch where one has no file."""
    batch = np.ascontiguousarray(images[np.arange(size) % len(images)])
    one, other = first.file_runner, second.file_runner
    if one is None or other is None:
        one, other = first.torch_runner, second.torch_runner
    trials = {"first": partial(one.probabilities, batch), "second": partial(other.probabilities, batch)}
    slowest = max(max(times) for times in runtime.time_interleaved(trials, 1).values())
    rounds = int(np.clip(TIMING_SECONDS / max(slowest, 1e-9), MIN_TIMING_ROUNDS, MAX_TIMING_ROUNDS))
    times = runtime.time_interleaved(trials, rounds)
    before, after = (np.asarray(times[name]) for name in ("first", "second"))
    latencies = []
    for seconds in (before, after):
        p50, p95 = np.quantile(seconds, (0.5, 0.95)) * 1000
        latencies.append(Latency(size, float(p50), float(p95), len(seconds)))
    return LatencyPair(latencies[0], latencies[1], median_interval(after / before))


def median_interval(values: Float[ndarray, " R"]) -> Interval:
    """The median with an interval of at least 95 % by order statistics (binomial), which assumes no distribution.

    Fewer than 6 values have no such interval: it spans all of them.
    """
    from scipy.stats import binom

    ordered, count = np.sort(values), len(values)
    place = max(1, int(binom.ppf(0.025, count, 0.5)))
    low, high = float(ordered[place - 1]), float(ordered[count - place])
    return Interval(float(np.median(ordered)), low, high, count)


@dataclass(frozen=True, eq=False, kw_only=True)
class SizeComparison:
    """Size, speed and accuracy of the original and the small classifier, on the same images in one run."""

    original: Profile
    small: Profile
    latencies: Mapping[int, LatencyPair]
    """By batch size."""
    n: int
    """Test images."""
    accuracies: tuple[Interval, Interval]
    """Of the original and of the small classifier, with Wilson intervals."""
    difference: Interval
    """Accuracy of the small classifier minus the original's, paired by image."""
    mcnemar_p: float
    """McNemar's p: the probability of such a difference between two classifiers with the same error rate."""
    agreement: Interval
    """Share of the images with the same answer of both."""

    @property
    def exported(self) -> bool:
        """Whether exported files were timed, not torch."""
        return self.original.file_runner is not None and self.small.file_runner is not None

    @property
    def smaller(self) -> bool:
        """Whether the file (or bundle) has fewer bytes, by more than the tolerance."""
        return self.small.size_mb < (1 - SIZE_TOLERANCE) * self.original.size_mb

    @property
    def slower(self) -> bool:
        """Whether the ratio's interval is above the tolerance at any batch size."""
        return any(one.ratio.low > 1 + LATENCY_TOLERANCE for one in self.latencies.values())

    @property
    def faster(self) -> bool:
        """Whether the ratio's interval is below the tolerance at any batch size, and above it at none."""
        return any(one.ratio.high < 1 - LATENCY_TOLERANCE for one in self.latencies.values()) and not self.slower

    def sentences(self) -> list[str]:
        """Size, speed and accuracy in words."""
        small, original, one = self.small, self.original, self.difference
        what = "exported file" if small.file_mb is not None else "bundle"
        ratio = small.size_mb / original.size_mb
        sizes = f"{small.size_mb:.3g} MB instead of {original.size_mb:.3g} MB ({ratio:.2f}x)"
        if abs(ratio - 1) <= SIZE_TOLERANCE:
            sizes = f"{small.size_mb:.3g} MB, as much as the original's"
        size = f"{'Smaller' if self.smaller else 'Not smaller'}: its {what} has {sizes}."
        if not self.smaller and (zeros := small.parameters - small.nonzero):
            size += f" The {zeros:,} zeros among its parameters take as much space as other numbers."
        times = " and ".join(
            f"{'one image takes' if count == 1 else f'a batch of {count} takes'} {pair.ratio.value:.2f} times as "
            f"long ({pair.ratio.low:.2f} to {pair.ratio.high:.2f})"
            for count, pair in self.latencies.items()
        )
        speed = "Faster" if self.faster else "No measurable gain in speed"
        if self.slower:
            mixed = any(pair.ratio.high < 1 - LATENCY_TOLERANCE for pair in self.latencies.values())
            speed = "Slower for some batch sizes" if mixed else "Slower than the original on this machine"
        doubt = "" if one.low > 0 or one.high < 0 else ", which is not significant"
        accuracy = (
            f"Its accuracy on {self.n:,} test images is {self.accuracies[1].value:.2%}, {one.value * 100:+.2f} "
            f"points compared with the original (95 % interval: {one.low * 100:+.2f} to {one.high * 100:+.2f}; "
            f"McNemar p = {self.mcnemar_p:.2g}){doubt}; both give the same answer for "
            f"{self.agreement.value:.2%} of the images."
        )
        found = [size, f"{speed}: {times}.", accuracy]
        if not self.exported:
            reason = original.export_error or small.export_error
            found.append(f"Timed in torch, because there is no exported file: {reason}")
        return found

    def as_json(self) -> dict[str, Any]:
        """The measurements of ``compression.json``."""
        return {
            "n": self.n,
            "original": self._side_json(0),
            "small": self._side_json(1),
            "latency_ratio": {str(size): one.ratio.as_json() for size, one in self.latencies.items()},
            "latency_of": "exported file" if self.exported else "torch",
            "accuracy_difference": self.difference.as_json(),
            "mcnemar_p": self.mcnemar_p,
            "agreement": self.agreement.as_json(),
            "smaller": self.smaller,
            "faster": self.faster,
            "slower": self.slower,
            "sentences": self.sentences(),
        }

    def _side_json(self, side: int) -> dict[str, Any]:
        one, accuracy = (self.original, self.small)[side], self.accuracies[side]
        return {
            "file_mb": one.file_mb,
            "bundle_mb": one.bundle_mb,
            "parameters": one.parameters,
            "nonzero": one.nonzero,
            "multiply_adds": one.multiply_adds,
            "latency": [vars((pair.first, pair.second)[side]) for pair in self.latencies.values()],
            "accuracy": accuracy.value,
            "intervals": {"accuracy": accuracy.as_json()},
        }


def compare_with_original(original: Classifier, small: Classifier, images: Dataset) -> SizeComparison:
    """Measure both classifiers on the same test images in one run; raises DataError for images that do not fit."""
    labels, count = match_labels(original, images), len(images)
    bar = progress.progress_bar("Measuring both", 4 + len(LATENCY_BATCH_SIZES))
    with TemporaryDirectory() as folder, bar as advance:
        answers = []
        for classifier in (original, small):
            answers.append(predict_logits(classifier, images)[0].argmax(1).numpy())
            advance()
        first, second = (
            profile(one, Path(folder), name) for one, name in ((original, "original"), (small, "small"))
        )
        advance(2)
        timed = images[np.arange(min(MAX_TIMED_IMAGES, count))]
        latencies = {}
        for size in LATENCY_BATCH_SIZES:
            latencies[size] = time_pair(first, second, timed, size)
            advance()
    before, after = (each == labels for each in answers)
    return SizeComparison(
        original=first,
        small=second,
        latencies=latencies,
        n=count,
        accuracies=(wilson(float(before.sum()), count), wilson(float(after.sum()), count)),
        difference=paired_difference(after, before),
        mcnemar_p=mcnemar(after, before),
        agreement=wilson(float((answers[0] == answers[1]).sum()), count),
    )
