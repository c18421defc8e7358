"""Which images are remembered: a sample of fixed size of a stream, equal shares of the classes, or typical ones."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from ..errors import DataError
from ..runtime import permutation


class Reservoir:
    """A uniform sample of ``size`` positions of a stream of unknown length (Vitter 1985, algorithm R).

    Item n (from 1) is stored with probability size / n, in the place of a random one. A sample goes on from the
    ``positions`` it holds after ``seen`` items.
    """

    def __init__(self, size: int, seed: int = 0, *, positions: Sequence[int] = (), seen: int = 0) -> None:
        self.size, self.seen = size, seen
        self.positions = list(positions)
        self._rng = np.random.default_rng([seed, 71, seen])

    def add(self, positions: Sequence[int] | Int[ndarray, " n"]) -> None:
        """Offer the positions of the next items of the stream."""
        for position in np.asarray(positions).tolist():
            self.seen += 1
            if len(self.positions) < self.size:
                self.positions.append(position)
            elif (place := int(self._rng.integers(self.seen))) < self.size:
                self.positions[place] = position


def balanced_sample(labels: Int[ndarray, " N"], size: int, seed: int) -> Int[ndarray, " n"]:
    """Sorted positions of at most ``size`` random images, as equal in number by class as the classes allow.

    What a rare class cannot fill goes to the others. Raises DataError where there are more classes than places.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if not len(labels):
        return np.zeros(0, np.int64)
    if size < len(classes):
        raise DataError(
            f"A memory of {size} images is smaller than one image for each of {len(classes)} classes: give it more."
        )
    shares = equal_shares(counts, size)
    order = permutation(len(labels), seed, 72)
    chosen = [order[labels[order] == name][:share] for name, share in zip(classes, shares, strict=True)]
    return np.sort(np.concatenate(chosen))


def equal_shares(counts: Int[ndarray, " K"], size: int) -> Int[ndarray, " K"]:
    """How many of each class to keep: equal numbers, at most ``counts``, in all at most ``size``."""
    shares = np.zeros(len(counts), np.int64)
    left = min(int(size), int(counts.sum()))
    while left:
        open_classes = np.flatnonzero(shares < counts)
        each = max(1, left // len(open_classes))
        for k in open_classes[: left if each == 1 else None]:
            more = min(each, int(counts[k] - shares[k]), left)
            shares[k] += more
            left -= more
    return shares


def herd(features: Float[ndarray, "N D"], count: int) -> list[int]:
    """Positions of ``count`` images whose mean stays nearest to the mean of all, most important first.

    The features are divided by their length first. Step k takes the image that minimises ``|mu - (sum of the chosen
    + f) / k|`` among those not chosen (Rebuffi et al. 2017, arXiv 1611.07725, algorithm 4).
    """
    f = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    mean, total = f.mean(0), np.zeros(f.shape[1])
    chosen: list[int] = []
    free = np.ones(len(f), bool)
    for k in range(1, min(count, len(f)) + 1):
        distance = np.linalg.norm(mean - (total + f) / k, axis=1)
        distance[~free] = np.inf
        best = int(distance.argmin())
        chosen.append(best)
        free[best] = False
        total += f[best]
    return chosen
