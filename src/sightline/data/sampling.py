"""Stratified samples: a share of the images of each class."""

import numpy as np
from jaxtyping import Int
from numpy import ndarray


def nested_subset(labels: Int[ndarray, " N"], share: float, seed: int) -> Int[ndarray, " n"]:
    """Sorted indices of ``share`` (0 to 1) of each class, at least one image each.

    The subsets of one seed are nested: a larger share contains every smaller one.
    """
    order = np.random.default_rng([seed, 5]).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = np.maximum(1, np.rint(share * counts))
    return np.sort(order[place < wanted[labels[order]]])
