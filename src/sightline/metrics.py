"""(labels, probabilities) become numbers, each with its interval: numpy only, no network runs here.

Values equal scikit-learn's default calls. Intervals (docs/evaluation.md gives the reasons):

    accuracy, per-class precision and recall    Wilson's score interval
    per-class F1                                Wilson's on Jaccard J, through F1 = 2 J / (1 + J)
    macro averages, AUC                         Wilson's at the effective sample size v (1 - v) / Var(v)
    log loss, ECE                               bootstrap over images, seeded
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from .errors import DataError
from .types import Interval

BINS = 15
"""Equal-width confidence bins of ECE and of the reliability diagram."""


@dataclass(frozen=True)
class ClassMetrics:
    """How one class fares against all the others."""

    index: int
    n: int
    """Images of this class."""
    predicted: int
    """Images given this class."""
    precision: Interval
    """Share of the images given this class that are of it (n = ``predicted``)."""
    recall: Interval
    """Share of the images of this class that were found."""
    f1: Interval
    """2 P R / (P + R); its n counts the images that are, or are called, this class."""
    roc_auc: float | None
    """Chance that an image of this class scores above one of another; None where either is absent."""


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal-width bins (lo, hi]: what ECE sums up."""

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

    def as_json(self) -> dict[str, list[float]]:
        """The four columns as lists."""
        columns = {"edges": self.edges, "counts": self.counts}
        columns |= {"confidence": self.confidence, "accuracy": self.accuracy}
        return {name: column.tolist() for name, column in columns.items()}


def measure(
    labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"], *, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Every overall number of a classifier on N images, by the names users know.

    ``roc_auc_ovr`` is left out where fewer than two classes have images; classes without images
    do not enter ``balanced_accuracy`` and ``roc_auc_ovr``, and enter the macro averages only where
    they were predicted, as in scikit-learn. Raises DataError for no images, labels outside
    [0, K) or probabilities that are not finite.
    """
    check(labels, probabilities)
    matrix = confusion_matrix(labels, probabilities.argmax(1), probabilities.shape[1])
    found = {"accuracy": wilson(float(matrix.trace()), len(labels), level=level)}
    found |= _macro(matrix, level)
    auc = roc_auc_ovr(labels, probabilities, level=level)
    if auc is not None:
        found["roc_auc_ovr"] = auc
    return found | _bootstrapped(labels, probabilities, level, seed)


def check(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> None:
    """Raise DataError where nothing sensible can be measured."""
    if not len(labels):
        raise DataError("There are no images to measure on: give a dataset with at least one image.")
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        worst = int(labels.max() if labels.min() >= 0 else labels.min())
        raise DataError(f"Label {worst} is outside the {probabilities.shape[1]} classes: check the labels.")
    if not np.isfinite(probabilities).all():
        bad = int(np.flatnonzero(~np.isfinite(probabilities).all(1))[0])
        raise DataError(
            f"The classifier's answer for image {bad} is not a number: its weights are damaged; train again."
        )


def wilson(successes: float, n: float, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; 0/0 is 0 in [0, 1] (Wilson 1927).

    >>> print(wilson(178, 180))
    0.9889 [0.9604, 0.9969] (n=180)
    """
    if n <= 0:
        return Interval(0.0, 0.0, 1.0, 0)
    low, high = _score_bounds(successes / n, n, level)
    return Interval(successes / n, low, high, round(n))


def _score_bounds(value: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's bounds of a proportion; ``n`` may be an effective, fractional, sample size."""
    zz = NormalDist().inv_cdf((1 + level) / 2) ** 2
    centre = (value + zz / (2 * n)) / (1 + zz / n)
    half = sqrt(zz * (value * (1 - value) / n + zz / (4 * n * n))) / (1 + zz / n)
    return max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half))


def confusion_matrix(
    labels: Int[ndarray, " N"], predicted: Int[ndarray, " N"], classes: int
) -> Int[ndarray, "K K"]:
    """Images of class i (row) that were given class j (column)."""
    cells = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2)
    return cells.reshape(classes, classes)


def per_class(
    labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"], *, level: float = 0.95
) -> tuple[ClassMetrics, ...]:
    """Precision, recall and F1 of each class with intervals, and its one-vs-rest AUC; 0/0 is 0."""
    check(labels, probabilities)
    matrix = confusion_matrix(labels, probabilities.argmax(1), probabilities.shape[1])
    rows, columns, right = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    areas = [_area(labels == k, probabilities[:, k]) for k in range(len(matrix))]
    return tuple(
        ClassMetrics(
            index=k,
            n=int(rows[k]),
            predicted=int(columns[k]),
            precision=wilson(float(right[k]), float(columns[k]), level=level),
            recall=wilson(float(right[k]), float(rows[k]), level=level),
            f1=_f1(float(right[k]), float(rows[k] + columns[k] - right[k]), level),
            roc_auc=area[0] if area else None,
        )
        for k, area in enumerate(areas)
    )


def _f1(both: float, either: float, level: float) -> Interval:
    """F1 = 2 J / (1 + J) is increasing in Jaccard J = both / either, which is a proportion."""
    jaccard = wilson(both, either, level=level)
    value, low, high = (2 * j / (1 + j) for j in (jaccard.value, jaccard.low, jaccard.high))
    return Interval(value, low, high, jaccard.n)


def _macro(matrix: Int[ndarray, "K K"], level: float) -> dict[str, Interval]:
    """Balanced accuracy and macro precision, recall, F1 of a confusion matrix."""
    n = int(matrix.sum())
    values = {name: value for name, (value, _) in _averages(matrix).items()}
    smooth = _smoothed(matrix, level)
    found = {}
    for name, (value, variance) in _averages(smooth).items():
        size = value * (1 - value) / variance * n / smooth.sum() if variance > 0 else n
        found[name] = Interval(values[name], *_score_bounds(values[name], size, level), n)
    return found


def _smoothed(matrix: Int[ndarray, "K K"], level: float) -> Float[ndarray, "K K"]:
    """The matrix with one imagined image per class present, right as often as the pooled Wilson centre.

    Without it a rare class whose two images were both right would count as known exactly.
    """
    n, zz = matrix.sum(), NormalDist().inv_cdf((1 + level) / 2) ** 2
    rate = (matrix.trace() + zz / 2) / (n + zz)
    present = matrix.sum(1) > 0
    used = present | (matrix.sum(0) > 0)
    wrong = np.outer(present, used) * (1 - rate) / max(1, used.sum() - 1)
    np.fill_diagonal(wrong, present * rate)
    return matrix + wrong


def _averages(matrix: ndarray) -> dict[str, tuple[float, float]]:
    """Each average over classes and its delta-method variance, from the influence of one image per cell."""
    n, right, rows, columns = matrix.sum(), matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    diagonal = np.eye(len(matrix))
    present, used = (rows > 0).sum(), ((rows > 0) | (columns > 0)).sum()
    recall, precision, f1 = (
        _ratio(right, rows),
        _ratio(right, columns),
        _ratio(2 * right, rows + columns),
    )
    on_recall = (diagonal - recall[:, None]) * _ratio(n, rows)[:, None]
    on_precision = (diagonal - precision[None, :]) * _ratio(n, columns)[None, :]
    pull = f1 * _ratio(n, rows + columns)
    on_f1 = 2 * diagonal * _ratio(n, rows + columns) - pull[:, None] - pull[None, :]
    sums = {
        "balanced_accuracy": (recall, on_recall, present),
        "precision_macro": (precision, on_precision, used),
        "recall_macro": (recall, on_recall, used),
        "f1_macro": (f1, on_f1, used),
    }
    return {
        name: (float(values.sum() / k), float((matrix * influence**2).sum() / (n * k) ** 2))
        for name, (values, influence, k) in sums.items()
    }


def _ratio(top: Any, bottom: ndarray) -> ndarray:
    """Top / bottom, with 0 where bottom is 0."""
    return np.divide(top, bottom, out=np.zeros(bottom.shape), where=bottom > 0)


def roc_auc_ovr(
    labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"], *, level: float = 0.95
) -> Interval | None:
    """Mean one-vs-rest area under the ROC curve over the classes present; None for fewer than two.

    Ties count half. The variance is DeLong's (1988), with the covariance between classes.
    """
    present = np.unique(labels)
    if len(present) < 2:
        return None
    n, value, influence = len(labels), 0.0, np.zeros(len(labels))
    for k in present:
        area = _area(labels == k, probabilities[:, k])
        assert area is not None
        value += area[0] / len(present)
        influence += area[1] / len(present)
    variance = float(influence @ influence) / n**2
    value = min(1.0, value)
    size = value * (1 - value) / variance if variance > 0 else 0
    return Interval(value, *_score_bounds(value, size or n, level), n)


def _area(positive: ndarray, scores: ndarray) -> tuple[float, ndarray] | None:
    """Area under the ROC curve and each image's influence on it, in one sort; None without both sides."""
    n, positives = len(scores), int(positive.sum())
    if positives in (0, n):
        return None
    values, group = np.unique(scores, return_inverse=True)
    above = np.bincount(group, weights=positive, minlength=len(values))
    below = np.bincount(group, minlength=len(values)) - above
    beaten = (np.cumsum(below) - below / 2) / (n - positives)  # share of negatives a score beats
    beating = 1 - (np.cumsum(above) - above / 2) / positives  # share of positives that beat it
    area = float(above @ beaten) / positives
    weight = np.where(positive, n / positives, n / (n - positives))
    return area, (np.where(positive, beaten[group], beating[group]) - area) * weight


def log_losses(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> Float[ndarray, " N"]:
    """-ln p of each image's own class, in nats; p is clipped to [eps, 1 - eps] of its dtype (scikit-learn)."""
    eps = np.finfo(probabilities.dtype).eps
    own = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.clip(own, eps, 1 - eps)).astype(np.float64)


def reliability(
    labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"], *, bins: int = BINS
) -> Reliability:
    """Images, mean confidence and accuracy of each confidence bin (lo, hi]."""
    confidence, right, place = _binned(labels, probabilities, bins)
    counts = np.bincount(place, minlength=bins)
    return Reliability(
        edges=np.linspace(0, 1, bins + 1),
        counts=counts,
        confidence=_ratio(np.bincount(place, weights=confidence, minlength=bins), counts),
        accuracy=_ratio(np.bincount(place, weights=right, minlength=bins), counts),
    )


def _binned(labels: ndarray, probabilities: ndarray, bins: int) -> tuple[ndarray, ndarray, ndarray]:
    """Each image's confidence, whether it is right, and the bin of its confidence."""
    confidence = probabilities.max(1).astype(np.float64)
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    return confidence, (probabilities.argmax(1) == labels).astype(np.float64), place


def _bootstrapped(labels: ndarray, probabilities: ndarray, level: float, seed: int) -> dict[str, Interval]:
    """Log loss with its percentile interval; ECE with as much below as the resamples reach above.

    ECE is biased upwards, its resamples twice as much, so their lower quantile says nothing. The interval
    reaches 0 where a perfectly calibrated classifier of the same confidences would as easily have shown
    such an ECE (consistency resampling, Broecker and Smith 2007).
    """
    n, losses = len(labels), log_losses(labels, probabilities)
    confidence, right, place = _binned(labels, probabilities, BINS)
    order = np.argsort(place)  # images of a bin side by side: a bin's sum is then one slice
    used, starts = np.unique(place[order], return_index=True)
    columns = np.zeros((n, len(used) + 1))
    columns[np.arange(n), np.searchsorted(used, place)] = right - confidence
    columns[:, -1] = losses
    rng, tails = np.random.default_rng(seed), ((1 - level) / 2, (1 + level) / 2)
    means = _resampled_means(columns, rng)
    loss, ece = float(losses.mean()), float(np.abs(columns[:, :-1].mean(0)).sum())
    low, high = (float(q) for q in np.quantile(means[:, -1], tails))
    reach = max(0.0, float(np.quantile(np.abs(means[:, :-1]).sum(1), tails[1])) - ece)
    chance = float(np.quantile(_calibrated_eces(confidence[order], starts, rng), tails[1]))
    bottom = 0.0 if ece <= chance else max(0.0, ece - reach)
    return {
        "log_loss": Interval(loss, min(loss, low), max(loss, high), n),
        "ece": Interval(ece, bottom, min(1.0, ece + reach), n),
    }


def _chunks(n: int) -> Iterator[int]:
    """Sizes of the chunks of 1000 resamples of n rows (at least 200 beyond 20,000), bounded in memory."""
    left, most = int(np.clip(20_000_000 // n, 200, 1000)), max(1, 1_000_000 // n)
    while left > 0:
        yield min(left, most)
        left -= most


def _resampled_means(columns: ndarray, rng: np.random.Generator) -> ndarray:
    """Means of the columns (N, M) in resamples of the rows, (R, M)."""
    n, means = len(columns), []
    for rows in _chunks(n):
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        means.append(weights @ columns / n)
    return np.concatenate(means)


def _calibrated_eces(confidence: ndarray, starts: ndarray, rng: np.random.Generator) -> ndarray:
    """ECE (R,) of draws in which each image is right with the probability its confidence claims."""
    n, eces = len(confidence), []
    for rows in _chunks(n):
        gaps = (rng.random((rows, n), dtype=np.float32) < confidence) - confidence
        eces.append(np.abs(np.add.reduceat(gaps, starts, axis=1)).sum(1) / n)
    return np.concatenate(eces)


def seeds_interval(
    values: Sequence[float], *, level: float = 0.95, bounds: tuple[float, float] = (-inf, inf)
) -> Interval:
    """Mean over seeds with Student's t interval, cut to ``bounds``; n is the number of seeds.

    Raises ValueError for fewer than two values: one run says nothing about the spread.
    """
    if len(values) < 2:
        raise ValueError("an interval over seeds needs at least two runs")
    from scipy.stats import t

    mean = fmean(values)
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return Interval(mean, max(bounds[0], mean - half), min(bounds[1], mean + half), len(values))
