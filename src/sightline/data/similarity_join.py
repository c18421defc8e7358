"""Every pair of vectors within a distance of each other: an exact similarity join.

A k-d tree divides the vectors, turned onto their principal axes, into leaves. A vector that lies farther from a leaf's
bounding box than the distance is farther than that from each vector in it, so it is left out without a product;
all others are compared by a matrix product a leaf. So no pair is lost, however many vectors there are and wherever they
lie: that decides only how many are left out.
"""

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray

from .. import progress, runtime

MAX_LEAF_VECTORS = 512
"""Vectors of a leaf, at most: fewer make smaller boxes, more make faster products."""
_BOX_AXES = slice(0, 4), slice(4, 16)
"""Principal axes along which vectors are compared with a box, first and then; the tree divides along all of them."""
_COLUMNS = 1024
"""Vectors that a leaf is compared with at a time: the products fit a core's cache."""
_ROUNDING = 1e-5
"""Of squared distances of unit vectors in float32."""


def find_close_pairs(vectors: Float32[ndarray, "n f"], distance: float, *, most: int) -> Int64[ndarray, "p 2"]:
    """The pairs of vectors, of length 1 or less, whose product is above that of unit vectors ``distance`` apart.

    Each pair once, the smaller position first, on all cores. Of a vector that is close to more than ``most`` others the
    ``most`` closest of those behind it in the tree are kept: N alike vectors make no N^2 pairs.
    """
    count, bound, reach = len(vectors), 1 - distance**2 / 2, distance**2 + _ROUNDING
    if count < 2:
        return np.empty((0, 2), np.int64)
    sample = vectors[:: max(1, count // 20_000)].astype(np.float64)
    turn = np.ascontiguousarray(np.linalg.eigh(np.cov(sample.T))[1][:, ::-1], np.float32)
    points = vectors @ turn
    order, starts = _divide(points[:, : _BOX_AXES[-1].stop])
    points, ends = points[order], np.append(starts[1:], count)
    axes = points[:, : _BOX_AXES[-1].stop].T.copy()
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)

    def compare(leaf: int) -> tuple[ndarray, ndarray]:
        """The pairs of a leaf's vectors with those of later positions, as positions in the tree."""
        gaps = _squared_gaps(low[leaf, :, None], high[leaf, :, None], low[leaf:].T, high[leaf:].T)
        near = leaf + np.flatnonzero(gaps <= reach)
        others = np.concatenate([np.arange(starts[k], ends[k]) for k in near])
        gaps = np.zeros(len(others), np.float32)
        for part in _BOX_AXES:
            some = axes[part].take(others, 1)
            gaps += _squared_gaps(low[leaf, part, None], high[leaf, part, None], some, some)
            others, gaps = others[gaps <= reach], gaps[gaps <= reach]
        own, first = torch.from_numpy(points[starts[leaf] : ends[leaf]]), starts[leaf]
        room = torch.empty(len(own) * _COLUMNS)  # memory that is new for each product costs more than the product
        ones = twos = np.empty(0, np.int64)
        products, enough = np.empty(0, np.float32), most * len(own)
        least = np.full((len(own), 1), bound, np.float32)
        for start in range(0, len(others), _COLUMNS):
            columns = others[start : start + _COLUMNS]
            place = room[: len(own) * len(columns)].view(len(own), -1)
            found = torch.mm(own, torch.from_numpy(points.take(columns, 0)).T, out=place).numpy()
            hits = np.flatnonzero(found > least)
            one, two = first + hits // len(columns), columns[hits % len(columns)]
            later = two > one
            ones, twos = np.append(ones, one[later]), np.append(twos, two[later])
            products = np.append(products, found.ravel()[hits[later]])
            if len(ones) > enough:  # from now on a row that is full takes only what is closer than all it has
                kept = _keep_largest(ones, products, most)
                ones, twos, products = ones[kept], twos[kept], products[kept]
                rows, counts = np.unique(ones - first, return_counts=True)
                least[rows[counts == most], 0] = products[np.cumsum(counts)[counts == most] - 1]
                enough = len(ones) + most * len(own)
        kept = _keep_largest(ones, products, most)
        return order[ones[kept]], order[twos[kept]]

    parts = []
    with runtime.single_threaded_pool() as pool:
        for done, part in enumerate(pool.map(compare, range(len(starts)))):
            progress.break_silence(f"Searching close pairs: {done:,} of {len(starts):,} parts")
            parts.append(np.stack(part, 1))
    return np.sort(np.concatenate(parts), axis=1)


def _divide(points: Float32[ndarray, "n a"]) -> tuple[Int64[ndarray, " n"], Int64[ndarray, " l"]]:
    """The order of the points in a k-d tree divided at medians, and where each leaf starts in it."""
    order, starts, parts = np.arange(len(points)), [], [(0, len(points))]
    while parts:
        start, end = parts.pop()
        if end - start <= MAX_LEAF_VECTORS:
            starts.append(start)
            continue
        part, middle = order[start:end], (end - start) // 2
        widest = points[part[:: max(1, len(part) // 1000)]].std(0).argmax()
        order[start:end] = part[np.argpartition(points[part, widest], middle)]
        parts += [(start + middle, end), (start, start + middle)]
    return order, np.array(starts)


def _squared_gaps(low: ndarray, high: ndarray, lows: ndarray, highs: ndarray) -> Float32[ndarray, " m"]:
    """Squared distances between one box and each of others (axes, m), given by their corners; 0 where they meet."""
    gaps = np.maximum(lows - high, low - highs)
    np.maximum(gaps, 0, out=gaps)
    return np.einsum("ij,ij->j", gaps, gaps)


def _keep_largest(rows: ndarray, values: ndarray, most: int) -> Int64[ndarray, " k"]:
    """Positions of the ``most`` largest values of each row, or of all where a row has fewer, in order of the rows."""
    order = np.lexsort((-values, rows))
    ranked = rows[order]
    return order[np.arange(len(rows)) - np.searchsorted(ranked, ranked) < most]
