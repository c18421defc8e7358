"""Intervals: Wilson's for whatever behaves like a proportion, Student's t over seeds, paired differences."""

from collections.abc import Sequence
from math import inf, sqrt
from statistics import NormalDist, fmean, stdev

from jaxtyping import Shaped
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
    """Wilson's bounds of a proportion; ``n`` may be an effective, fractional, sample size."""
    zz = z_squared(level)
    centre = (value + zz / (2 * n)) / (1 + zz / n)
    half = sqrt(zz * (value * (1 - value) / n + zz / (4 * n * n))) / (1 + zz / n)
    return max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half))


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


def paired_difference(
    after: Shaped[ndarray, " N"], before: Shaped[ndarray, " M"], *, level: float = 0.95
) -> Interval:
    """Mean of ``after - before`` over the same N images, each score in [0, 1] (right or not, or a share of seeds).

    For answers that are right or wrong this is Agresti and Min's (2005) interval: Wald's, after half an image is
    added to each of the four cells of the table of agreement. Raises ValueError where the lengths differ.
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
