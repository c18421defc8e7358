"""Parity: whether a file gives the classifier's answers on labelled images, and at which latency."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray

from .. import metrics
from ..classifier import Classifier
from ..data import to_tensor
from ..errors import RequirementNotMet
from ..evaluation import LATENCY_BATCH_SIZES, LATENCY_SECONDS, MAX_LATENCY_REPEATS, MIN_LATENCY_REPEATS, Latency
from ..exported_model import NetworkOutputs
from ..inference import match_labels
from ..types import Dataset, Interval

MAX_COMPARED_FEATURES = 64
"""Images whose features are compared: one batch shows whether a file computes the same."""


@runtime_checkable
class Runner(Protocol):
    """Anything that answers 8-bit images with probabilities: an exported file, or the classifier itself."""

    def probabilities(self, images: UInt8[ndarray, "N H W C"], /) -> Float[ndarray, "N K"]:
        """The probability of each class for each image."""
        ...


@runtime_checkable
class FeatureRunner(Protocol):
    """A runner that also gives features and energy."""

    def outputs(self, images: UInt8[ndarray, "N H W C"], /) -> NetworkOutputs:
        """All outputs for a batch of images."""
        ...


@dataclass(frozen=True)
class ParityLimits:
    """What a file must reach to be kept."""

    agreement: float
    """Smallest share of images with the same answer."""
    difference: float
    """Largest difference of any probability."""
    feature_difference: float
    """Largest difference of any feature, in standard deviations of all features."""


FLOAT_LIMITS = ParityLimits(0.999, 1e-3, 0.01)
"""For float32: the same sums in another order differ in the last digits."""

INT8_LIMITS = ParityLimits(0.98, 1.0, math.inf)
"""For int8: integer kernels round each result once, the float imitation several times, so a value midway between
two levels may take the other one, and near ties change."""


@dataclass(frozen=True)
class TorchRunner:
    """The classifier itself as a runner."""

    classifier: Classifier

    def probabilities(self, images: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N K"]:
        """The classifier's probabilities."""
        with torch.inference_mode():
            return self.classifier.probabilities(to_tensor(images, self.classifier.device)).cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class Parity:
    """A file compared with the classifier it was made from, on the same images."""

    path: str
    to: str
    int8: bool
    """Whether the file computes in int8."""
    n: int
    """Images compared."""
    sample: str
    """A sentence that names these images."""
    agreement: float
    """Share of images with the same answer."""
    largest_difference: float
    """Of any probability of any image."""
    feature_difference: float
    """Of any feature, in standard deviations of all features; 0 for a file without features."""
    accuracy: Interval
    """The file's."""
    accuracy_before: Interval
    """The classifier's."""
    latency: tuple[Latency, ...]
    """The file's, at each batch size."""
    latency_before: tuple[Latency, ...]
    """The classifier's, in torch."""
    size_mb: float
    """Of the file, in MB (10^6 bytes)."""

    @property
    def limits(self) -> ParityLimits:
        """The limits for its arithmetic."""
        return INT8_LIMITS if self.int8 else FLOAT_LIMITS

    def require(self) -> None:
        """Raise RequirementNotMet where the file gives other answers or other features."""
        limits = self.limits
        if not self.feature_difference <= limits.feature_difference:
            raise RequirementNotMet(
                f"The file gives other features than the classifier: up to {self.feature_difference:.2g} standard "
                f"deviations apart (at most {limits.feature_difference:g}). No file was written: please report the "
                "network, or use another --to."
            )
        if not (self.agreement >= limits.agreement and self.largest_difference <= limits.difference):
            raise RequirementNotMet(
                f"The file gives other answers than the classifier: the same class for {self.agreement:.2%} of "
                f"{self.n:,} images (at least {limits.agreement:.1%}), probabilities up to "
                f"{self.largest_difference:.2g} apart (at most {limits.difference:g}). No file was written: "
                "please report the network, or use another --to."
            )

    def as_json(self) -> dict[str, Any]:
        """The values as one flat JSON object."""
        return {
            "out": self.path,
            "to": self.to,
            "int8": self.int8,
            "n": self.n,
            "sample": self.sample,
            "agreement": self.agreement,
            "largest_difference": self.largest_difference,
            "feature_difference": self.feature_difference,
            "accuracy": self.accuracy.value,
            "accuracy_before": self.accuracy_before.value,
            "intervals": {
                "accuracy": self.accuracy.as_json(),
                "accuracy_before": self.accuracy_before.as_json(),
            },
            "latency": [vars(one) for one in self.latency],
            "latency_before": [vars(one) for one in self.latency_before],
            "size_mb": self.size_mb,
        }


def run_in_batches(runner: Runner, images: Dataset, batch: int = 128) -> Float[ndarray, "N K"]:
    """The probabilities of every image of a dataset, in order."""
    return np.concatenate([runner.probabilities(images[i : i + batch]) for i in range(0, len(images), batch)])


def compare_answers(classifier: Classifier, runner: Runner, images: Dataset) -> dict[str, Any]:
    """Agreement, the largest differences of probabilities and features, and both accuracies, on labelled images."""
    labels = match_labels(classifier, images)
    ours, theirs = run_in_batches(TorchRunner(classifier), images), run_in_batches(runner, images)
    if theirs.shape != ours.shape or not np.isfinite(theirs).all():
        return {"agreement": 0.0, "largest_difference": 1.0, "feature_difference": 0.0} | dict.fromkeys(
            _ACCURACIES, _accuracy_interval(labels, ours)
        )
    return {
        "feature_difference": compare_features(classifier, runner, images[:MAX_COMPARED_FEATURES]),
        "agreement": float((ours.argmax(1) == theirs.argmax(1)).mean()),
        "largest_difference": float(np.abs(ours - theirs).max()),
        "accuracy": _accuracy_interval(labels, theirs),
        "accuracy_before": _accuracy_interval(labels, ours),
    }


def compare_features(classifier: Classifier, runner: Runner, images: UInt8[ndarray, "N H W C"]) -> float:
    """The largest difference of a file's features, in standard deviations of all features; 0 where it has none.

    Not a number counts as infinite.
    """
    theirs = runner.outputs(images).features if isinstance(runner, FeatureRunner) else None
    if theirs is None:
        return 0.0
    with torch.inference_mode():
        ours = classifier.features(to_tensor(images, classifier.device)).float().cpu().numpy()
    scale = float(ours.std()) or 1.0
    return float(np.nan_to_num(np.abs(ours - theirs), nan=np.inf).max()) / scale


_ACCURACIES = ("accuracy", "accuracy_before")


def _accuracy_interval(labels: ndarray, probabilities: ndarray) -> Interval:
    return metrics.wilson(int((probabilities.argmax(1) == labels).sum()), len(labels))


def measure_latencies(
    runners: Mapping[str, Runner], images: UInt8[ndarray, "N H W C"], *, seconds: float = LATENCY_SECONDS
) -> dict[str, tuple[Latency, ...]]:
    """Time each runner on batches of 1 and 32 images, in turn, for about ``seconds`` each.

    ``images`` are repeated as often as a batch needs. Two answers of each are not timed, as a warm-up.
    """
    found: dict[str, list[Latency]] = {name: [] for name in runners}
    for size in LATENCY_BATCH_SIZES:
        batch = np.ascontiguousarray(images[np.arange(size) % len(images)])
        for runner in (*runners.values(),) * 2:
            runner.probabilities(batch)
        times: dict[str, list[float]] = {name: [] for name in runners}
        count, spent = 0, 0.0
        while spent <= 3 * seconds and (
            count < MIN_LATENCY_REPEATS or (spent < seconds and count < MAX_LATENCY_REPEATS)
        ):
            for name, runner in runners.items():
                start = time.perf_counter()
                runner.probabilities(batch)
                times[name].append(time.perf_counter() - start)
            count, spent = count + 1, min(map(sum, times.values()))
        for name, tries in times.items():
            p50, p95 = np.quantile(tries, (0.5, 0.95)) * 1000
            found[name].append(Latency(size, float(p50), float(p95), len(tries)))
    return {name: tuple(each) for name, each in found.items()}
