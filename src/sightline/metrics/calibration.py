"""What the probabilities themselves are worth: log loss, Brier score, calibration."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from ..types import Interval
from .classification import safe_divide

CALIBRATION_BINS = 15
"""Equal-width confidence bins of ECE and of the reliability diagram."""


@dataclass(frozen=True)
class ReliabilityDiagram:
    """Confidence against accuracy in bins (lo, hi]: what ECE sums up."""

    edges: Float[ndarray, " edges"]
    counts: Int[ndarray, " bins"]
    confidence: Float[ndarray, " bins"]
    """Mean confidence of the bin's images; 0 where the bin is empty."""
    accuracy: Float[ndarray, " bins"]
    """Share of the bin's images answered rightly; 0 where the bin is empty."""

    @property
    def ece(self) -> float:
        """Expected calibration error, sum_b n_b / n |acc_b - conf_b| (Guo 2017, eq. 3)."""
        return float(self.counts @ np.abs(self.accuracy - self.confidence) / self.counts.sum())

    @property
    def mce(self) -> float:
        """Maximum calibration error: the gap of the worst bin that has images (Guo 2017, eq. 4)."""
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
    """Images, mean confidence and accuracy of each confidence bin (lo, hi]."""
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
    """The same in bins of as equal a number of images as N allows, none empty: fewer bins where N is below
    ``bins``.

    Its ``ece`` is the adaptive one (Nguyen and O'Connor 2015): where nearly all confidences are above 0.95, equal
    widths see a single bin, and equal masses what is in it. Images are sorted by confidence and cut by rank, so
    that equal confidences may fall to both sides of an edge.
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
    """Each image's confidence, whether it is right, and the bin of its confidence."""
    confidence = probabilities.max(1).astype(np.float64)
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    return confidence, (probabilities.argmax(1) == labels).astype(np.float64), place


def bootstrap_intervals(labels: ndarray, probabilities: ndarray, level: float, seed: int) -> dict[str, Interval]:
    """Log loss and Brier score with percentile intervals; ECE with as much below as the resamples reach above.

    ECE is biased upwards, its resamples twice as much, so their lower quantile says nothing. The interval
    reaches 0 where a perfectly calibrated classifier of the same confidences would as easily have shown
    such an ECE (consistency resampling, Broecker and Smith 2007).
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
    """Sizes of the chunks of 1000 resamples of n rows (at least 200 beyond 20,000), small enough for the cache."""
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
    """ECE (R,) of draws in which each image is right with the probability its confidence claims."""
    n, eces, claimed = len(confidence), [], np.add.reduceat(confidence, starts)
    single = confidence.astype(np.float32)
    for rows in _resample_chunks(n):
        right = rng.random((rows, n), dtype=np.float32) < single
        eces.append(np.abs(np.add.reduceat(right, starts, axis=1, dtype=np.int64) - claimed).sum(1) / n)
    return np.concatenate(eces)
