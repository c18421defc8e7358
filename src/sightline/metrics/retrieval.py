"""How well features find images of the same class: recall@k, R-precision and MAP@R."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

RECALL_AT = (1, 2, 4, 8)
"""The k of recall@k that are reported."""

_CHUNK_DISTANCES = 2**23
"""Distances at a time: 64 MB."""


@dataclass(frozen=True)
class RetrievalScores:
    """Means over the queries, each in [0, 1]. A query is never found by itself."""

    recall: dict[int, float]
    """k -> share of queries with an image of their class among the k nearest."""
    r_precision: float
    """Share of a query's class among the R nearest, R the number of other images of its class."""
    map_at_r: float
    """Mean over the R nearest of the precision at the place of each that is of the query's class, 0 at the others
    (Musgrave et al. 2020, arXiv 2003.08505, section 3.2)."""
    queries: int
    """Images that have another of their class; the others ask for what is not there."""

    def as_json(self) -> dict[str, Any]:
        """The scores by name."""
        return {**asdict(self), "recall": {str(k): value for k, value in self.recall.items()}}


def score_retrieval(
    features: Float[ndarray, "N D"], labels: Int[ndarray, " N"], *, at: tuple[int, ...] = RECALL_AT
) -> RetrievalScores:
    """Find every image's nearest among the others, by Euclidean distance, and score their classes.

    Of equally near images the first counts as nearer. For the order by cosine give features of unit length. Raises
    ValueError where no class has two images.
    """
    same = np.bincount(labels)[labels] - 1
    queries = np.flatnonzero(same > 0)
    if not len(queries):
        raise ValueError("no class has two images: retrieval looks for other images of a class")
    depth = min(len(labels) - 1, max(int(same.max()), *at))
    squared = np.square(features, dtype=np.float64).sum(1)
    hits_at, precise, average = np.zeros(len(at)), 0.0, 0.0
    chunk = max(1, _CHUNK_DISTANCES // len(labels))
    for start in range(0, len(queries), chunk):
        rows = queries[start : start + chunk]
        distance = squared[rows, None] - 2 * (features[rows] @ features.T).astype(np.float64) + squared
        distance[np.arange(len(rows)), rows] = np.inf
        if depth < len(labels) - 1:
            cut = np.partition(distance, depth - 1, axis=1)[:, depth - 1 : depth]
            distance[distance > cut] = np.inf  # those at the cut stay, so that equals are ordered by their index
        nearest = np.argsort(distance, axis=1, kind="stable")[:, :depth]
        hit = labels[nearest] == labels[rows][:, None]
        hits_at += [hit[:, :k].any(1).sum() for k in at]
        counted = hit & (np.arange(depth) < same[rows][:, None])
        precision = np.cumsum(counted, 1) / np.arange(1, depth + 1)
        precise += (counted.sum(1) / same[rows]).sum()
        average += ((precision * counted).sum(1) / same[rows]).sum()
    recall = dict(zip(at, (hits_at / len(queries)).tolist(), strict=True))
    return RetrievalScores(recall, float(precise / len(queries)), float(average / len(queries)), len(queries))
