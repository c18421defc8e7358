"""Classifiers against each other on the same images or folds: differences with intervals, tests, correction."""

from collections.abc import Sequence
from math import inf, sqrt
from statistics import fmean, variance

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

from ..types import Interval


def bootstrap_difference(
    after: Shaped[ndarray, " N"],
    before: Shaped[ndarray, " M"],
    *,
    level: float = 0.95,
    rounds: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of ``after - before`` over the same N images, with its paired bootstrap interval (percentiles).

    Scores are in [0, 1]: right or not, or the share of seeds that were. Images are drawn again as pairs. As in
    ``paired_difference``, half an image is first added to each of the four cells of the table of agreement:
    without it two classifiers that never disagreed would be called equal for certain.
    Raises ValueError where the lengths differ or there are no images.
    """
    if len(after) != len(before) or not len(after):
        raise ValueError("a paired difference needs the same images on both sides, at least one")
    change = after.astype(float) - before.astype(float)
    values, cell = np.unique(np.concatenate([change, [-1.0, 0.0, 1.0]]), return_inverse=True)
    weights = np.bincount(cell, weights=np.concatenate([np.ones(len(change)), [0.5, 1.0, 0.5]]))
    total = len(change) + 2
    drawn = np.random.default_rng(seed).multinomial(total, weights / total, size=rounds)
    means = drawn @ values / total
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    value = float(change.mean())
    return Interval(value, min(value, float(low)), max(value, float(high)), len(change))


def mcnemar(one: Bool[ndarray, " N"], other: Bool[ndarray, " M"]) -> float:
    """The exact p-value that two classifiers err equally often, from the images only one of them has right.

    Of those the number in favour of one is binomial with chance 1/2 (McNemar 1947, exact form, two-sided).
    """
    if len(one) != len(other):
        raise ValueError("McNemar's test needs the same images on both sides")
    first, second = int((one & ~other).sum()), int((other & ~one).sum())
    if not first + second:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(first, first + second, 0.5).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """The p-values corrected for their number, in the same order (Holm 1979): the smallest times m, the next times
    m - 1, ..., never below an earlier one, never above 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, least = [0.0] * len(p), 0.0
    for place, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = least
    return corrected


def nadeau_bengio_interval(
    values: Sequence[float], ratio: float, *, level: float = 0.95, bounds: tuple[float, float] = (-inf, inf)
) -> Interval:
    """Mean over folds (of all repetitions) with an interval that knows that their training images overlap.

    The variance of the mean is (1 / J + ratio) s^2, t with J - 1 degrees of freedom; ``ratio`` is test images over
    training images of a fold, 1 / (k - 1) for k folds (Nadeau and Bengio 2003; for repeated folds Bouckaert and
    Frank 2004). s^2 / J alone would take folds for independent. Raises ValueError for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("an interval over folds needs at least two of them")
    from scipy.stats import t

    mean, count = fmean(values), len(values)
    half = float(t.ppf((1 + level) / 2, count - 1)) * sqrt((1 / count + ratio) * variance(values))
    return Interval(mean, max(bounds[0], mean - half), min(bounds[1], mean + half), count)
