"""Intervals and tests: one proportion, several seeds or folds, two classifiers on the same images."""

from collections.abc import Sequence
from math import inf, sqrt
from statistics import NormalDist, fmean, stdev, variance
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

from ..types import Interval


def z_squared(level: float) -> float:
    """z^2 of a two-sided interval of this level: 3.84 at 0.95."""
    return NormalDist().inv_cdf((1 + level) / 2) ** 2


def wilson(successes: float, n: float, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; 0/0 is 0 in [0, 1] (Wilson 1927).

    >>> print(wilson(178, 180))
    0.9889 [0.9604, 0.9969] (n=180)
    """
    if n <= 0:
        return Interval(0.0, 0.0, 1.0, 0)
    low, high = score_bounds(successes / n, n, level)
    return Interval(successes / n, low, high, round(n))


def score_bounds(value: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's bounds of a proportion; ``n`` may be an effective (fractional) sample size."""
    zz = z_squared(level)
    centre = (value + zz / (2 * n)) / (1 + zz / n)
    half = sqrt(zz * (value * (1 - value) / n + zz / (4 * n * n))) / (1 + zz / n)
    return max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half))


def seeds_interval(
    values: Sequence[float], *, level: float = 0.95, bounds: tuple[float, float] = (-inf, inf)
) -> Interval:
    """Mean over seeds with Student's t interval, clipped to ``bounds``; n is the number of seeds.

    Raises ValueError for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("an interval over seeds needs at least two runs")
    from scipy.stats import t

    mean = fmean(values)
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return Interval(mean, max(bounds[0], mean - half), min(bounds[1], mean + half), len(values))


def paired_difference(
    after: Shaped[ndarray, " N"], before: Shaped[ndarray, " M"], *, level: float = 0.95
) -> Interval:
    """Mean of ``after - before`` over the same N images.

    ``after`` and ``before`` are 0 or 1, or the share of seeds that were correct. For 0 and 1 this is Agresti and
    Min's (2005) interval: Wald's, after half an image is added to each of the four cells of the table of
    agreement. Raises ValueError where the lengths differ or there are no images.
    """
    if len(after) != len(before) or not len(after):
        raise ValueError("a paired difference needs the same images on both sides, at least one")
    change = after.astype(float) - before.astype(float)
    n, total = len(change) + 2, float(change.sum())
    variance = (float(change @ change) + 1 - total * total / n) / n**2
    half = sqrt(z_squared(level) * variance)
    value = total / len(change)
    return Interval(
        value, max(-1.0, min(value, total / n - half)), min(1.0, max(value, total / n + half)), len(change)
    )


def bootstrap_difference(
    after: Shaped[ndarray, " N"],
    before: Shaped[ndarray, " M"],
    *,
    level: float = 0.95,
    rounds: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of ``after - before`` over the same N images, with its paired bootstrap interval (percentiles).

    ``after`` and ``before`` are 0 or 1, or the share of seeds that were correct; images are resampled as pairs. As
    in ``paired_difference``, half an image is first added to each of the four cells of the table of agreement:
    without it two classifiers that never disagree would have an interval of no width. Raises ValueError where the
    lengths differ or there are no images.
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
    """Exact two-sided p-value of the hypothesis that two classifiers are equally accurate (McNemar 1947).

    ``one`` and ``other`` say whether each classified the same N images correctly. Of the images that only one of
    them has correct, the number in favour of one is binomial with probability 1/2 under the hypothesis.
    """
    if len(one) != len(other):
        raise ValueError("McNemar's test needs the same images on both sides")
    first, second = int((one & ~other).sum()), int((other & ~one).sum())
    if not first + second:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(first, first + second, 0.5).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """The m p-values corrected for multiple testing, in the same order (Holm 1979).

    The smallest is multiplied by m, the next by m - 1, ...; none is below an earlier one or above 1.

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
    """Mean over J folds (of all repetitions) with an interval that allows for their overlapping training images.

    The variance of the mean is (1 / J + ratio) s^2, with Student's t of J - 1 degrees of freedom; ``ratio`` is
    test images over training images of a fold, 1 / (k - 1) for k folds (Nadeau and Bengio 2003; for repeated folds
    Bouckaert and Frank 2004). s^2 / J alone would treat folds as independent. The interval is clipped to
    ``bounds``. Raises ValueError for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("an interval over folds needs at least two of them")
    from scipy.stats import t

    mean, count = fmean(values), len(values)
    half = float(t.ppf((1 + level) / 2, count - 1)) * sqrt((1 / count + ratio) * variance(values))
    return Interval(mean, max(bounds[0], mean - half), min(bounds[1], mean + half), count)


def safe_divide(top: Any, bottom: ndarray) -> ndarray:
    """``top / bottom``, with 0 where bottom is 0."""
    return np.divide(top, bottom, out=np.zeros(bottom.shape), where=bottom > 0)
