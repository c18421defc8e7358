"""Stratified samples: a share of the images of each class."""

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from ..sources import stratified_subset

_NESTED_STREAM = 5  # of the random numbers of one seed


def nested_subset(labels: Int[ndarray, " N"], share: float, seed: int) -> Int[ndarray, " n"]:
    """Sorted indices of ``share`` (0 to 1) of each class, at least one image each.

    The subsets of one seed are nested: a larger share contains every smaller one.
    """
    order = np.random.default_rng([seed, _NESTED_STREAM]).permutation(len(labels))
    return stratified_subset(labels, order, share=share)
