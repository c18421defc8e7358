"""Images by meaning: the nearest by their features, those that look alike, and those unlike all others."""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

OUTLIER_NEIGHBOURS = 5
"""Nearest images whose mean similarity says how usual an image is."""

OUTLIER_DEVIATIONS = 6.0
"""Robust standard deviations below the median similarity from which an image is an outlier."""

MIN_LOOKALIKE_SIMILARITY = 0.95
"""Cosine of the features of two images from which they look alike."""

_CHUNK_IMAGES = 2048


def nearest_images(features: Float[ndarray, "N D"], k: int) -> tuple[Int[ndarray, "N k"], Float[ndarray, "N k"]]:
    """The k nearest other images of each, the nearest first, and the cosines of their features."""
    count = len(features)
    k = min(k, count - 1)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    found, cosines = np.zeros((count, k), np.int64), np.zeros((count, k), np.float32)
    for start in range(0, count if k else 0, _CHUNK_IMAGES):
        here = np.arange(start, min(start + _CHUNK_IMAGES, count))
        similar = unit[here] @ unit.T
        similar[np.arange(len(here)), here] = -np.inf
        best = np.argpartition(-similar, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(similar, best, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        found[here], cosines[here] = np.take_along_axis(best, order, 1), np.take_along_axis(values, order, 1)
    return found, cosines


def find_outliers(features: Float[ndarray, "N D"]) -> tuple[Int[ndarray, " n"], Float[ndarray, " N"]]:
    """Images unlike all others, the strangest first; and the mean similarity of every image to its nearest ones.

    The deviation is 1.4826 times the median absolute one. Features are centred: what all images share says nothing.
    """
    if len(features) < 4 * OUTLIER_NEIGHBOURS:
        return np.zeros(0, np.int64), np.ones(len(features), np.float32)
    usual = nearest_images(features - features.mean(0), OUTLIER_NEIGHBOURS)[1].mean(1)
    middle = np.median(usual)
    deviation = 1.4826 * np.median(np.abs(usual - middle))
    rows = np.flatnonzero(usual < middle - OUTLIER_DEVIATIONS * max(float(deviation), 1e-6))
    return rows[np.argsort(usual[rows], kind="stable")], usual


def find_lookalikes(features: Float[ndarray, "N D"]) -> tuple[Int[ndarray, "p 2"], Float[ndarray, " p"]]:
    """Pairs of images that show nearly the same, the most alike first, and their cosines: each image's nearest."""
    near, cosines = nearest_images(features, 1)
    if not near.size:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    rows = np.flatnonzero(cosines[:, 0] >= MIN_LOOKALIKE_SIMILARITY)
    pairs, first = np.unique(np.sort(np.stack([rows, near[rows, 0]], 1), 1), axis=0, return_index=True)
    alike = cosines[rows[first], 0]
    order = np.argsort(-alike, kind="stable")
    return pairs[order], alike[order]
