"""The k-NN accuracy of features: how well they tell classes apart before anything is fitted to them."""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

MAX_NEIGHBOURS = 200
"""Neighbours that vote, at most; a tenth of the images where they are few."""

VOTE_TEMPERATURE = 0.1
"""A neighbour of cosine c votes with the weight exp(c / 0.1)."""

_CHUNK_IMAGES = 2048


def predict_knn(
    known: Float[ndarray, "N D"], labels: Int[ndarray, " N"], features: Float[ndarray, "M D"]
) -> Int[ndarray, " M"]:
    """The class of each row of ``features`` by a weighted vote of the nearest known ones, by cosine.

    (Wu et al. 2018, arXiv 1805.01978, section 3.4: k = min(200, N / 10), temperature 0.1.)
    """
    k = max(1, min(MAX_NEIGHBOURS, len(known) // 10))
    bank = known / np.linalg.norm(known, axis=1, keepdims=True).clip(1e-12)
    asked = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    found, classes = np.empty(len(asked), np.int64), int(labels.max()) + 1
    for start in range(0, len(asked), _CHUNK_IMAGES):
        cosines = asked[start : start + _CHUNK_IMAGES] @ bank.T
        near = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(cosines, near, 1) / VOTE_TEMPERATURE)
        votes = np.zeros((len(near), classes))
        np.add.at(votes, (np.arange(len(near))[:, None], labels[near]), weights)
        found[start : start + len(near)] = votes.argmax(1)
    return found
