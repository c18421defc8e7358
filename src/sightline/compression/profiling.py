"""What a classifier costs: its files, its numbers, its work, and its time, beside another's in one run."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import nn

from .. import runtime
from ..classifier import Classifier
from ..errors import SightlineError
from ..evaluation import Latency
from ..formats import Runner, TorchRunner, open_exported, write_exported
from ..models import count_multiply_adds, learnt_tensors
from ..types import Interval

LATENCY_TOLERANCE = 0.03
"""What times may differ by from one measurement to the next, and nobody feels: less is no difference."""

TIMING_SECONDS, MIN_TIMING_ROUNDS, MAX_TIMING_ROUNDS = 1.0, 10, 200
"""Two classifiers answer in turn until each has taken about this time, so many times at least and at most."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Profile:
    """A classifier with what it costs, ready to be timed."""

    bundle_mb: float
    """Of all files of its bundle, in MB (10^6 bytes)."""
    file_mb: float | None
    """Of the exported ONNX file; None where it cannot be exported."""
    export_error: str
    """Why it cannot be exported."""
    parameters: int
    """Numbers that are learnt and stored: float ones, and those that int8 keeps."""
    nonzero: int
    """Of these, the ones that are not zero."""
    multiply_adds: int
    """For one image; those with a zero count, because they are carried out."""
    file_runner: Runner | None
    """The exported file."""
    torch_runner: Runner
    """The classifier, answering by torch where it is."""

    @property
    def size_mb(self) -> float:
        """Of the exported file, or of the bundle where there is none."""
        return self.bundle_mb if self.file_mb is None else self.file_mb


def profile(classifier: Classifier, place: Path, name: str, *, export: bool = True) -> Profile:
    """Save and ``export`` a classifier below ``place``, and count. What cannot be exported says why."""
    bundle = classifier.eval().save(place / name)
    why, size, exported = "", None, None
    if export:
        try:
            file = write_exported(classifier, place / f"{name}.onnx")
            exported, size = open_exported(file), file.stat().st_size / 1e6
        except SightlineError as error:
            why = str(error)
    every, left = count_weights(classifier.network)
    geometry = classifier.geometry
    return Profile(
        bundle_mb=sum(file.stat().st_size for file in bundle.iterdir()) / 1e6,
        file_mb=size,
        export_error=why,
        parameters=every,
        nonzero=left,
        multiply_adds=count_multiply_adds(classifier.network, geometry.channels, geometry.size),
        file_runner=exported,
        torch_runner=TorchRunner(classifier),
    )


def count_weights(network: nn.Module) -> tuple[int, int]:
    """How many numbers a network has learnt, and how many of them are not zero."""
    tensors = learnt_tensors(network)
    return sum(t.numel() for t in tensors), sum(int(t.count_nonzero()) for t in tensors)


@dataclass(frozen=True)
class LatencyPair:
    """Two classifiers that answered the same images in turn."""

    first: Latency
    second: Latency
    ratio: Interval
    """Time of the second over time of the first: the median over the rounds, and its 95 % interval."""


def time_pair(first: Profile, second: Profile, images: UInt8[ndarray, "N H W C"], size: int) -> LatencyPair:
    """Time both on ``size`` images in turn, so that noise hits both: exported files where both have one."""
    some = np.ascontiguousarray(images[np.arange(size) % len(images)])
    one, other = first.file_runner, second.file_runner
    if one is None or other is None:
        one, other = first.torch_runner, second.torch_runner
    trials = {"first": partial(_run_once, one, some), "second": partial(_run_once, other, some)}
    slowest = max(max(times) for times in runtime.time_interleaved(trials, 1).values())
    times = runtime.time_interleaved(
        trials, int(np.clip(TIMING_SECONDS / max(slowest, 1e-9), MIN_TIMING_ROUNDS, MAX_TIMING_ROUNDS))
    )
    before, after = (np.asarray(times[name]) for name in ("first", "second"))
    return LatencyPair(_latency_of(before, size), _latency_of(after, size), median_interval(after / before))


def _run_once(runner: Runner, images: UInt8[ndarray, "N H W C"]) -> None:
    runner.probabilities(images)


def _latency_of(seconds: Float[ndarray, " R"], size: int) -> Latency:
    p50, p95 = np.quantile(seconds, (0.5, 0.95)) * 1000
    return Latency(size, float(p50), float(p95), len(seconds))


def median_interval(values: Float[ndarray, " R"]) -> Interval:
    """The median with an interval of at least 95 % that assumes no distribution: order statistics, binomial.

    Fewer than 6 values have no such interval: it spans all of them.
    """
    from scipy.stats import binom

    ordered, count = np.sort(values), len(values)
    place = max(1, int(binom.ppf(0.025, count, 0.5)))
    low, high = float(ordered[place - 1]), float(ordered[count - place])
    return Interval(float(np.median(ordered)), low, high, count)
