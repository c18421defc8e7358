"""Classes against each other: the confusion matrix, and the averages over classes that it holds."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from ..types import Interval
from .intervals import score_bounds, wilson, z_squared


def confusion_matrix(
    labels: Int[ndarray, " N"], predicted: Int[ndarray, " N"], classes: int
) -> Int[ndarray, "K K"]:
    """Images of class i (row) that were given class j (column)."""
    cells = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2)
    return cells.reshape(classes, classes)


def f1_interval(both: float, either: float, level: float) -> Interval:
    """F1 = 2 J / (1 + J) is increasing in Jaccard J = both / either, which is a proportion."""
    jaccard = wilson(both, either, level=level)
    value, low, high = (2 * j / (1 + j) for j in (jaccard.value, jaccard.low, jaccard.high))
    return Interval(value, low, high, jaccard.n)


def class_averages(matrix: Int[ndarray, "K K"], level: float) -> dict[str, Interval]:
    """Balanced accuracy, macro precision, recall and F1, and F1 weighted by the classes' images."""
    n = int(matrix.sum())
    values = {name: value for name, (value, _) in _averages_with_variance(matrix).items()}
    smooth = _smooth_matrix(matrix, level)
    found = {}
    for name, (value, variance) in _averages_with_variance(smooth).items():
        size = value * (1 - value) / variance * n / smooth.sum() if variance > 0 else n
        found[name] = Interval(values[name], *score_bounds(values[name], size, level), n)
    return found


def _smooth_matrix(matrix: Int[ndarray, "K K"], level: float) -> Float[ndarray, "K K"]:
    """The matrix with one imagined image per class present, right as often as the pooled Wilson centre.

    Without it a rare class whose two images were both right would count as known exactly.
    """
    n, zz = matrix.sum(), z_squared(level)
    rate = (matrix.trace() + zz / 2) / (n + zz)
    present = matrix.sum(1) > 0
    used = present | (matrix.sum(0) > 0)
    wrong = np.outer(present, used) * (1 - rate) / max(1, used.sum() - 1)
    np.fill_diagonal(wrong, present * rate)
    return matrix + wrong


def _averages_with_variance(matrix: ndarray) -> dict[str, tuple[float, float]]:
    """Each average over classes and its delta-method variance, from the influence of one image per cell."""
    n, right, rows, columns = matrix.sum(), matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    diagonal = np.eye(len(matrix))
    present, used = (rows > 0).sum(), ((rows > 0) | (columns > 0)).sum()
    recall, precision, f1 = (
        safe_divide(right, rows),
        safe_divide(right, columns),
        safe_divide(2 * right, rows + columns),
    )
    on_recall = (diagonal - recall[:, None]) * safe_divide(n, rows)[:, None]
    on_precision = (diagonal - precision[None, :]) * safe_divide(n, columns)[None, :]
    pull = f1 * safe_divide(n, rows + columns)
    on_f1 = 2 * diagonal * safe_divide(n, rows + columns) - pull[:, None] - pull[None, :]
    weight, on_weighted = rows / n, diagonal * safe_divide(2 * rows, rows + columns)
    on_weighted += (f1 - weight @ f1 - weight * pull)[:, None] - (weight * pull)[None, :]
    sums = {
        "balanced_accuracy": (recall, on_recall, present),
        "precision_macro": (precision, on_precision, used),
        "recall_macro": (recall, on_recall, used),
        "f1_macro": (f1, on_f1, used),
        "f1_weighted": (weight * f1, on_weighted, 1),
    }
    return {
        name: (float(values.sum() / k), float((matrix * influence**2).sum() / (n * k) ** 2))
        for name, (values, influence, k) in sums.items()
    }


def safe_divide(top: Any, bottom: ndarray) -> ndarray:
    """Top / bottom, with 0 where bottom is 0."""
    return np.divide(top, bottom, out=np.zeros(bottom.shape), where=bottom > 0)
