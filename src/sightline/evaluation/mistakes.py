"""Where a classifier goes wrong: the pairs of classes it confuses, and its most confident errors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from .measure import Evaluation


@dataclass(frozen=True)
class Confusion:
    """One kind of mistake: images of ``label`` answered as ``predicted``."""

    label: str
    predicted: str
    count: int
    share: float
    """Of the images of ``label``."""


def confused_pairs(confusion: Int[ndarray, "K K"], classes: Sequence[str], *, top: int = 10) -> list[Confusion]:
    """The ``top`` most frequent kinds of mistake, most frequent first; fewer where fewer were made."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[: min(top, np.count_nonzero(wrong))]
    totals = confusion.sum(1)
    pairs = [divmod(int(cell), len(confusion)) for cell in order]
    return [Confusion(classes[i], classes[j], int(wrong[i, j]), float(wrong[i, j] / totals[i])) for i, j in pairs]


def worst_mistakes(evaluation: Evaluation, *, top: int = 24) -> Int[ndarray, " M"]:
    """Indices of the wrongly answered images, most confident first, at most ``top``."""
    wrong = np.flatnonzero(~evaluation.correct)
    return wrong[np.argsort(-evaluation.confidence[wrong], kind="stable")][:top]
