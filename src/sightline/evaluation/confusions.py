"""The classes that a classifier confuses, with examples, and its most confident mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from .model_evaluation import Evaluation


@dataclass(frozen=True)
class Confusion:
    """Images of ``label`` predicted as ``predicted``."""

    label: str
    predicted: str
    count: int
    share: float
    """Their share of the images of ``label``."""


@dataclass(frozen=True, eq=False)
class ConfusablePair:
    """Two classes confused with each other, the more frequent direction first."""

    directions: tuple[Confusion, Confusion]
    examples: tuple[Int[ndarray, " P"], Int[ndarray, " Q"]]
    """Indices of the images of each direction, most confident first."""

    @property
    def count(self) -> int:
        """Mistakes between the two classes, in both directions."""
        return sum(one.count for one in self.directions)


def top_confusions(confusion: Int[ndarray, "K K"], classes: Sequence[str], *, top: int = 10) -> list[Confusion]:
    """The ``top`` most frequent (label, predicted) mistakes, most frequent first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    return [_build_confusion(confusion, classes, i, j) for i, j in _largest_cells(wrong, top)]


def confusable_pairs(evaluation: Evaluation, *, top: int = 6, examples: int = 3) -> list[ConfusablePair]:
    """The ``top`` pairs of classes most often confused with each other, with examples of each direction."""
    matrix, names = evaluation.confusion, evaluation.classes
    found = []
    for i, j in _largest_cells(np.triu(matrix + matrix.T, 1), top):
        ways = ((i, j), (j, i)) if matrix[i, j] >= matrix[j, i] else ((j, i), (i, j))
        one, other = (_build_confusion(matrix, names, *way) for way in ways)
        these, those = (most_confident(evaluation, *way, examples) for way in ways)
        found.append(ConfusablePair((one, other), (these, those)))
    return found


def _largest_cells(counts: Int[ndarray, "K K"], top: int) -> list[tuple[int, int]]:
    """(row, column) of the largest counts above zero, largest first, the earlier among equals."""
    order = np.argsort(-counts, axis=None, kind="stable")[: min(top, np.count_nonzero(counts))]
    return [(int(cell) // len(counts), int(cell) % len(counts)) for cell in order]


def _build_confusion(matrix: Int[ndarray, "K K"], classes: Sequence[str], label: int, predicted: int) -> Confusion:
    count, total = int(matrix[label, predicted]), int(matrix[label].sum())
    return Confusion(classes[label], classes[predicted], count, count / total if total else 0.0)


def most_confident(evaluation: Evaluation, label: int, predicted: int, top: int) -> Int[ndarray, " M"]:
    """Indices of images of ``label`` predicted as ``predicted``, most confident first, at most ``top``."""
    taken = np.flatnonzero((evaluation.labels == label) & (evaluation.predicted == predicted))
    return taken[np.argsort(-evaluation.confidence[taken], kind="stable")][:top]


def worst_mistakes(evaluation: Evaluation, *, top: int = 24) -> Int[ndarray, " M"]:
    """Indices of the misclassified images, most confident first, at most ``top``."""
    wrong = np.flatnonzero(~evaluation.correct)
    return wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][:top]
