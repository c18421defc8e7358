"""What the confidences are worth: log loss, Brier score, calibration, and risk over coverage."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from ..types import Interval
from .intervals import safe_divide

CALIBRATION_BINS = 15
"""Equal-width confidence bins of ECE and of the reliability diagram."""


@dataclass(frozen=True)
class ReliabilityDiagram:
    """Confidence against accuracy in bins (low, high]: the terms of the ECE."""

    edges: Float[ndarray, " edges"]
    counts: Int[ndarray, " bins"]
    confidence: Float[ndarray, " bins"]
    """Mean confidence of the bin's images; 0 where the bin is empty."""
    accuracy: Float[ndarray, " bins"]
    """Accuracy on the bin's images; 0 where the bin is empty."""

    @property
    def ece(self) -> float:
        """Expected calibration error, sum_b n_b / n |acc_b - conf_b| (Guo 2017, eq. 3)."""
        return float(self.counts @ np.abs(self.accuracy - self.confidence) / self.counts.sum())

    @property
    def mce(self) -> float:
        """Maximum calibration error: the largest gap of a bin with images (Guo 2017, eq. 4)."""
        return float(np.abs(self.accuracy - self.confidence).max(initial=0.0, where=self.counts > 0))

    def as_json(self) -> dict[str, list[float]]:
        """The four columns as lists."""
        columns = {"edges": self.edges, "counts": self.counts}
        columns |= {"confidence": self.confidence, "accuracy": self.accuracy}
        return {name: column.tolist() for name, column in columns.items()}


def log_losses(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> Float[ndarray, " N"]:
    """-ln p of each image's own class, in nats; p is clipped to [eps, 1 - eps] of its dtype (scikit-learn)."""
    eps = np.finfo(probabilities.dtype).eps
    own = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.clip(own, eps, 1 - eps)).astype(np.float64)


def brier_scores(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> Float[ndarray, " N"]:
    """sum_c (p_c - y_c)^2 of each image, in [0, 2] for any K (Brier 1950).

    scikit-learn's ``brier_score_loss(..., scale_by_half=False)``; for two classes its default is half of this.
    """
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    squares = np.einsum("nk,nk->n", probabilities, probabilities, dtype=np.float64)
    return squares - 2 * own + 1


def reliability(
    labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"], *, bins: int = CALIBRATION_BINS
) -> ReliabilityDiagram:
    """Number of images, mean confidence and accuracy of each confidence bin (low, high]."""
    confidence, right, place = _assign_bins(labels, probabilities, bins)
    counts = np.bincount(place, minlength=bins)
    return ReliabilityDiagram(
        edges=np.linspace(0, 1, bins + 1),
        counts=counts,
        confidence=safe_divide(np.bincount(place, weights=confidence, minlength=bins), counts),
        accuracy=safe_divide(np.bincount(place, weights=right, minlength=bins), counts),
    )


def equal_mass_reliability(
    labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"], *, bins: int = CALIBRATION_BINS
) -> ReliabilityDiagram:
    """The same in bins of equal numbers of images (as far as N allows); fewer bins where N is below ``bins``.

    Its ``ece`` is the adaptive one (Nguyen and O'Connor 2015), which resolves confidences that equal widths put
    into a single bin. Images are sorted by confidence and cut by rank, so equal confidences may fall on both sides
    of an edge.
    """
    confidence = probabilities.max(1).astype(np.float64)
    right = (probabilities.argmax(1) == labels).astype(np.float64)
    order = np.argsort(confidence, kind="stable")
    cuts = np.linspace(0, len(order), min(bins, len(order)) + 1).round().astype(np.int64)
    counts = np.diff(cuts)
    ranked = confidence[order]
    return ReliabilityDiagram(
        edges=np.concatenate([[0.0], (ranked[cuts[1:-1] - 1] + ranked[cuts[1:-1]]) / 2, [1.0]]),
        counts=counts,
        confidence=np.add.reduceat(ranked, cuts[:-1]) / counts,
        accuracy=np.add.reduceat(right[order], cuts[:-1]) / counts,
    )


def _assign_bins(labels: ndarray, probabilities: ndarray, bins: int) -> tuple[ndarray, ndarray, ndarray]:
    """Each image's confidence, whether it is correct, and the bin of its confidence."""
    confidence = probabilities.max(1).astype(np.float64)
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    return confidence, (probabilities.argmax(1) == labels).astype(np.float64), place


def bootstrap_intervals(labels: ndarray, probabilities: ndarray, level: float, seed: int) -> dict[str, Interval]:
    """Log loss and Brier score with percentile bootstrap intervals, and ECE with a symmetric one.

    ECE is biased upwards, and its resamples twice as much, so their lower quantile is no bound: the interval
    reaches as far below the value as the resamples reach above it. It includes 0 where a perfectly calibrated
    classifier of the same confidences shows such an ECE by chance (consistency resampling, Broecker and Smith
    2007).
    """
    n = len(labels)
    scores = {"log_loss": log_losses(labels, probabilities), "brier": brier_scores(labels, probabilities)}
    confidence, right, place = _assign_bins(labels, probabilities, CALIBRATION_BINS)
    order = np.argsort(place)  # images of a bin side by side: a bin's sum is then one slice
    used, starts = np.unique(place[order], return_index=True)
    gaps = np.zeros((n, len(used)))
    gaps[np.arange(n), np.searchsorted(used, place)] = right - confidence
    rng, tails = np.random.default_rng(seed), ((1 - level) / 2, (1 + level) / 2)
    means = _resampled_means(np.column_stack([gaps, *scores.values()]), rng)
    ece = float(np.abs(gaps.mean(0)).sum())
    reach = max(0.0, float(np.quantile(np.abs(means[:, : len(used)]).sum(1), tails[1])) - ece)
    chance = float(np.quantile(_calibrated_eces(confidence[order], starts, rng), tails[1]))
    bottom = 0.0 if ece <= chance else max(0.0, ece - reach)
    found = {}
    for name, score, resampled in zip(scores, scores.values(), means[:, len(used) :].T, strict=True):
        value, (low, high) = float(score.mean()), np.quantile(resampled, tails)
        found[name] = Interval(value, min(value, float(low)), max(value, float(high)), n)
    return found | {"ece": Interval(ece, bottom, min(1.0, ece + reach), n)}


def _resample_chunks(n: int) -> Iterator[int]:
    """Sizes of the chunks of 1000 resamples of n rows (down to 200 for n above 20,000), each small enough for the
    cache.
    """
    left, most = int(np.clip(20_000_000 // n, 200, 1000)), max(1, 32_000 // n)
    while left > 0:
        yield min(left, most)
        left -= most


def _resampled_means(columns: ndarray, rng: np.random.Generator) -> ndarray:
    """Means of the columns (N, M) in resamples of the rows, (R, M)."""
    n, means = len(columns), []
    for rows in _resample_chunks(n):
        drawn = (rng.random((rows, n)) * n).astype(np.intp)  # twice as fast as rng.integers
        drawn += n * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        means.append(weights.astype(np.float64) @ columns / n)
    return np.concatenate(means)


def _calibrated_eces(confidence: ndarray, starts: ndarray, rng: np.random.Generator) -> ndarray:
    """ECE (R,) of draws in which each image is correct with the probability of its confidence."""
    n, eces, claimed = len(confidence), [], np.add.reduceat(confidence, starts)
    single = confidence.astype(np.float32)
    for rows in _resample_chunks(n):
        right = rng.random((rows, n), dtype=np.float32) < single
        eces.append(np.abs(np.add.reduceat(right, starts, axis=1, dtype=np.int64) - claimed).sum(1) / n)
    return np.concatenate(eces)


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Risk among the k most confident predictions, for k = 1 ... N."""

    confidence: Float[ndarray, " N"]
    """Confidence of the k-th image."""
    risk: Float[ndarray, " N"]
    """Share of wrong predictions among the first k; ties take the mean over their orders."""

    @property
    def coverage(self) -> Float[ndarray, " N"]:
        """Share of the images predicted: k / N."""
        return np.arange(1, len(self.risk) + 1) / len(self.risk)

    @property
    def aurc(self) -> float:
        """Area under the curve: the mean risk over all coverages (Geifman, Uziel and El-Yaniv 2019)."""
        return float(self.risk.mean())

    @property
    def best_aurc(self) -> float:
        """The area if every wrong prediction came last; r + (1 - r) ln(1 - r) for many images of error rate r."""
        kept = np.arange(1, len(self.risk) + 1)
        right = round(len(kept) * (1 - float(self.risk[-1])))
        return float((np.maximum(0, kept - right) / kept).mean())

    @property
    def excess_aurc(self) -> float:
        """AURC minus its best value: 0 where every wrong prediction comes last."""
        return self.aurc - self.best_aurc

    def risk_at(self, coverage: float) -> float:
        """The risk at the smallest coverage of at least this share of the images."""
        return float(self.risk[max(1, int(np.ceil(coverage * len(self.risk) - 1e-9))) - 1])

    def as_json(self, points: int = 200) -> dict[str, list[float]]:
        """At most ``points`` points of the curve, evenly spaced in coverage, the last one with all images."""
        n = len(self.risk)
        chosen = np.unique(np.linspace(0, n - 1, min(points, n)).round().astype(np.int64))
        columns = {"coverage": self.coverage, "risk": self.risk, "confidence": self.confidence}
        return {name: column[chosen].round(6).tolist() for name, column in columns.items()}


def risk_coverage(confidence: Float[ndarray, " N"], right: Bool[ndarray, " N"]) -> RiskCoverage:
    """Risk over coverage of N predictions, from their confidence and whether each is correct.

    Errors are spread evenly over equal confidences, so the curve does not depend on the order of the images.
    Raises ValueError where there are none.
    """
    if not len(right):
        raise ValueError("a risk-coverage curve needs at least one image")
    order = np.argsort(-confidence, kind="stable")
    sure = confidence[order].astype(np.float64)
    wrong = np.concatenate([[0], np.cumsum(~right[order])])
    ends = np.concatenate([[0], np.flatnonzero(np.diff(sure)) + 1, [len(sure)]])
    kept = np.arange(1, len(sure) + 1)
    return RiskCoverage(sure, np.interp(kept, ends, wrong[ends]) / kept)
