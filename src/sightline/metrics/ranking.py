"""How well scores rank: ROC curves and AUC, one class against the rest; top-k accuracy; OOD detection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from ..types import Interval
from .intervals import score_bounds, wilson, z_squared

ROC_GRID_STEPS = 500
"""Steps per axis to which saved ROC curves are rounded: finer than the pixels of a plot."""

TOP_K = (2, 3, 5)
"""The k of top-k accuracy; each applies where there are more than k classes."""


@dataclass(frozen=True, eq=False)
class RocCurve:
    """True positive rate against false positive rate, from (0, 0) to (1, 1)."""

    false_positive: Float[ndarray, " points"]
    true_positive: Float[ndarray, " points"]

    @property
    def area(self) -> float:
        """Area under the line through the points."""
        return float(np.trapezoid(self.true_positive, self.false_positive))

    def simplify(self) -> "RocCurve":
        """The curve with its corners on a grid of ``ROC_GRID_STEPS`` steps, each at most half a step away."""
        return RocCurve(
            *_drop_collinear(*(np.rint(axis * ROC_GRID_STEPS) / ROC_GRID_STEPS for axis in self._axes))
        )

    @classmethod
    def mean(cls, curves: Sequence["RocCurve"]) -> "RocCurve":
        """Mean height over the curves, just before and at each step of the grid they are rounded to."""
        steps = np.arange(ROC_GRID_STEPS + 1) / ROC_GRID_STEPS
        sides = (steps - 1e-9, steps)  # a curve may rise straight up at a step
        heights = [np.mean([np.interp(x, *curve._axes) for curve in curves], axis=0) for x in sides]
        heights[0][0] = 0.0
        return cls(*_drop_collinear(np.repeat(steps, 2), np.stack(heights, 1).ravel().round(9)))

    @property
    def _axes(self) -> tuple[ndarray, ndarray]:
        return self.false_positive, self.true_positive

    def as_json(self) -> dict[str, list[float]]:
        """The two columns as lists."""
        return {"fpr": self.false_positive.round(4).tolist(), "tpr": self.true_positive.round(4).tolist()}


@dataclass(frozen=True, eq=False)
class OneVsRest:
    """Each class against all the others; None for a class without images or with all of them."""

    aucs: tuple[Interval | None, ...]
    """Area under each class's ROC curve, with DeLong's interval."""
    curves: tuple[RocCurve | None, ...]
    """Each rounded to the grid."""
    macro_auc: Interval | None
    """Mean of the areas; None where fewer than two classes are present."""
    macro_curve: RocCurve | None
    """Mean true positive rate of the curves at each false positive rate."""


@dataclass(frozen=True, eq=False)
class _ClassAUC:
    """One class against the rest, from one sort."""

    value: float
    influence: Float[ndarray, " N"]
    """Influence of each image: the variance of the value is sum(influence^2) / N^2."""
    smooth_value: float
    smooth_variance: float
    """With one pseudo-image on each side: see ``_smooth_auc``."""
    few: int
    """Images on the smaller side."""
    curve: RocCurve


def one_vs_rest(
    labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"], *, level: float = 0.95
) -> OneVsRest:
    """ROC curve and area of each class against the rest, and their means over the classes present.

    Ties count half. Variances are DeLong's (1988), for the mean with the covariance between classes, after one
    pseudo-image is added to each side: without it a few images ranked perfectly would have an interval of no
    width.
    """
    n = len(labels)
    value, influence, smooth, extra, few = 0.0, np.zeros(n), 0.0, 0.0, []
    areas: list[Interval | None] = []
    curves: list[RocCurve | None] = []
    columns = (  # contiguous in memory: a strided column is slow to read
        column
        for first in range(0, probabilities.shape[1], 64)
        for column in np.ascontiguousarray(probabilities[:, first : first + 64].T)
    )
    for k, scores in enumerate(columns):
        area = _class_auc(labels == k, scores, level)
        areas.append(
            area and _auc_interval(area.value, area.smooth_value, area.smooth_variance, area.few, n, level)
        )
        curves.append(area and area.curve)
        if area:
            value, smooth = value + area.value, smooth + area.smooth_value
            influence += area.influence
            extra += max(0.0, area.smooth_variance - float(area.influence @ area.influence) / n**2)
            few.append(area.few)
    if len(few) < 2:
        return OneVsRest(tuple(areas), tuple(curves), None, None)
    present = len(few)
    # the classes' curves are dependent: of K of them, K - 1 are free
    variance = float(influence @ influence) / (n * present) ** 2 + extra / (present * (present - 1))
    macro = _auc_interval(value / present, smooth / present, variance, sum(few) / present, n, level)
    return OneVsRest(tuple(areas), tuple(curves), macro, RocCurve.mean([curve for curve in curves if curve]))


def _auc_interval(value: float, smooth: float, variance: float, few: float, n: int, level: float) -> Interval:
    """Wilson's interval at the effective sample size, minus the share of the pseudo-images in it."""
    size = smooth * (1 - smooth) / variance * few / (few + 1)
    value = min(1.0, value)
    return Interval(value, *score_bounds(value, size, level), n)


def _class_auc(positive: Bool[ndarray, " N"], scores: Float[ndarray, " N"], level: float) -> _ClassAUC | None:
    """Area under the ROC curve, each image's influence on it, and the curve; None without both sides."""
    n, positives = len(scores), int(positive.sum())
    if positives in (0, n):
        return None
    negatives = n - positives
    own, others = scores[positive], scores[~positive]
    ranked, below = np.sort(own), np.sort(others)
    beaten = _mid_ranks(below, own) / negatives  # share of negatives below each positive
    beating = 1 - _mid_ranks(ranked, others) / positives  # share of positives above each negative
    area = float(beaten.mean())
    smooth, variance = _smooth_auc(
        area, [(positives, float(beaten @ beaten)), (negatives, float(beating @ beating))], level
    )
    influence = np.empty(n)
    influence[positive] = (beaten - area) * (n / positives)
    influence[~positive] = (beating - area) * (n / negatives)
    return _ClassAUC(
        area, influence, smooth, variance, min(positives, negatives), _exact_curve(ranked, below).simplify()
    )


def _mid_ranks(ranked: ndarray, scores: ndarray) -> Float[ndarray, " M"]:
    """How many of ``ranked`` (sorted) each score exceeds; ties count half."""
    return (np.searchsorted(ranked, scores) + np.searchsorted(ranked, scores, side="right")) / 2


def _exact_curve(own: ndarray, others: ndarray) -> RocCurve:
    """The exact ROC curve of two sorted sides: it can turn only at the scores of the class itself."""
    at = np.unique(own)[::-1]
    axes = []
    for side in (others, own):
        reached = [len(side) - np.searchsorted(side, at, side=edge) for edge in ("right", "left")]
        axes.append(np.concatenate([[0], np.stack(reached, 1).ravel(), [len(side)]]) / len(side))
    return RocCurve(*_drop_collinear(*axes))


def _smooth_auc(area: float, sides: list[tuple[int, float]], level: float) -> tuple[float, float]:
    """Area and DeLong variance with one pseudo-image on each side, given (images, sum of squared shares).

    The pseudo-image is above all of the other side with the probability of Wilson's centre of the area, else
    below.
    """
    zz, values, variance = z_squared(level), {}, 0.0
    for count, squares in sides:
        rate = (area * count + zz / 2) / (count + zz)
        mean, square = (area * count + rate) / (count + 1), (squares + rate) / (count + 1)
        values[count], variance = mean, variance + (square - mean * mean) / (count + 1)
    return values[min(values)], variance


def roc_curve(positive: Bool[ndarray, " N"], scores: Float[ndarray, " N"]) -> RocCurve:
    """The corners of the exact ROC curve. Raises ValueError where one side has no images."""
    if positive.all() or not positive.any():
        raise ValueError("a ROC curve needs images of the class and others")
    return _exact_curve(np.sort(scores[positive]), np.sort(scores[~positive]))


def _drop_collinear(x: ndarray, y: ndarray) -> tuple[ndarray, ndarray]:
    """The points at which a rising line turns, without repeated ones and those on a straight line."""
    moved = np.append(True, (np.diff(x) != 0) | (np.diff(y) != 0))
    x, y = x[moved], y[moved]
    if len(x) < 3:
        return x, y
    turn = np.diff(x)[:-1] * np.diff(y)[1:] - np.diff(y)[:-1] * np.diff(x)[1:]
    kept = np.concatenate([[True], np.abs(turn) > 1e-12, [True]])
    return x[kept], y[kept]


def top_k_accuracy(
    labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"], *, level: float = 0.95
) -> dict[str, Interval]:
    """``top_<k>_accuracy`` for each k of ``TOP_K`` below K, with Wilson's interval.

    Of equally probable classes the earlier one ranks first, as in the prediction itself.
    """
    own = probabilities[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    rank = ((probabilities > own) | ((probabilities == own) & earlier)).sum(1)
    ks = [k for k in TOP_K if k < probabilities.shape[1]]
    return {f"top_{k}_accuracy": wilson(float((rank < k).sum()), len(labels), level=level) for k in ks}


@dataclass(frozen=True)
class OODMetrics:
    """How well a score separates in-distribution images (the positive side, of high scores) from outliers."""

    auroc: Interval
    """Probability that an in-distribution image scores above an outlier, ties counting half; DeLong's interval."""
    fpr95: Interval
    """Share of outliers above the highest threshold that keeps 95 % of the in-distribution images; Wilson's
    interval.
    """
    threshold: float
    """That threshold: scores of at least this are accepted."""

    def as_json(self) -> dict[str, Any]:
        """The numbers, and which side is positive."""
        named = {"auroc": self.auroc, "fpr95": self.fpr95}
        return {
            "positive": "in-distribution",
            **{name: one.value for name, one in named.items()},
            "intervals": {name: one.as_json() for name, one in named.items()},
            "threshold": self.threshold,
        }


def ood_metrics(inside: Float[ndarray, " N"], outside: Float[ndarray, " M"]) -> OODMetrics:
    """AUROC and FPR at 95 % TPR of the scores of N in-distribution images and M outliers.

    Raises ValueError where one side has no images or a score is not a number.
    """
    scores = np.concatenate([inside, outside]).astype(np.float64)
    if not (len(inside) and len(outside)) or np.isnan(scores).any():
        raise ValueError("OOD metrics need scores of both sides, all of them numbers")
    labels = np.repeat([1, 0], [len(inside), len(outside)])
    area = one_vs_rest(labels, np.stack([-scores, scores], 1)).aucs[1]
    assert area is not None  # both sides have images
    lost = int(np.floor(0.05 * len(inside) + 1e-9))
    threshold = float(np.sort(inside.astype(np.float64))[lost])
    passed = float((outside.astype(np.float64) >= threshold).sum())
    return OODMetrics(area, wilson(passed, len(outside)), threshold)
