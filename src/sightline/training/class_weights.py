"""How much the images of each class weigh in the loss: ``images of each class (K) -> weights (K)``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from ..checks import check_number


@dataclass(frozen=True)
class BalancedWeights:
    """N / (K n): every class weighs the same in all; the mean over images is 1, absent classes get 0."""

    def __call__(self, counts: Int[ndarray, " K"]) -> tuple[float, ...]:
        """The weight of each class."""
        return _normalise_weights(counts, counts.astype(float))


@dataclass(frozen=True)
class EffectiveNumberWeights:
    """1 over the effective number of images, (1 - beta^n) / (1 - beta): Cui et al. 2019 (arXiv 1901.05555).

    ``beta`` 0 leaves all classes alike, near 1 it is balanced; 0.999 is usual. The mean over images is 1.
    """

    beta: float = 0.999

    def __post_init__(self) -> None:
        """Raise ValueError outside [0, 1)."""
        check_number("beta", self.beta, 0, below=1)

    def __call__(self, counts: Int[ndarray, " K"]) -> tuple[float, ...]:
        """The weight of each class."""
        return _normalise_weights(counts, (1 - np.power(self.beta, counts)) / (1 - self.beta))


@dataclass(frozen=True)
class UniformWeights:
    """Every image weighs the same."""

    def __call__(self, counts: Int[ndarray, " K"]) -> None:
        """None: no weights."""
        del counts


CLASS_WEIGHTINGS: Mapping[str, Callable[..., BalancedWeights | EffectiveNumberWeights | UniformWeights]] = {
    "none": UniformWeights,
    "balanced": BalancedWeights,
    "effective": EffectiveNumberWeights,
}
"""Name -> the weighting, its argument after a colon: ``effective:0.9999``."""


def _normalise_weights(counts: Int[ndarray, " K"], worth: ndarray) -> tuple[float, ...]:
    """1 / worth, scaled so that the mean over all images is 1; 0 where there are none."""
    weights = np.divide(1.0, worth, out=np.zeros(len(counts)), where=counts > 0)
    return tuple((weights * counts.sum() / (weights * counts).sum()).tolist())
