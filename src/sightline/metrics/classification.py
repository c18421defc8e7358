"""Classification metrics with their intervals: overall, averaged over classes, and class by class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from ..errors import DataError
from ..types import Interval
from .confidence import bootstrap_intervals
from .intervals import safe_divide, score_bounds, wilson, z_squared
from .ranking import OneVsRest, one_vs_rest, top_k_accuracy

MAX_DENSE_CLASSES = 100
"""Classes up to which JSON has the whole confusion matrix: that of 1,000 is 7 MB of zeros."""


@dataclass(frozen=True)
class ClassMetrics:
    """One class against all the others."""

    index: int
    n: int
    """Images of this class."""
    predicted: int
    """Images predicted as this class."""
    precision: Interval
    """Share of the images predicted as this class that are of it (n = ``predicted``)."""
    recall: Interval
    """Share of the images of this class that were found."""
    f1: Interval
    """2 P R / (P + R); its n counts the images of this class or predicted as it."""
    roc_auc: Interval | None
    """Probability that an image of this class scores above one of another; None where either is absent."""


def overall_metrics(
    labels: Int[ndarray, " N"],
    probabilities: Float[ndarray, "N K"],
    *,
    level: float = 0.95,
    seed: int = 0,
    ranks: OneVsRest | None = None,
) -> dict[str, Interval]:
    """Every overall metric of N predictions, by scikit-learn's names: ``accuracy``, ``f1_macro``, ``log_loss``.

    Classes without images do not count in ``balanced_accuracy`` and ``roc_auc_ovr``, and count in the macro
    averages only where they were predicted, as in scikit-learn. ``roc_auc_ovr`` is absent where fewer than two
    classes have images. ``ranks`` is ``one_vs_rest`` of the same predictions, to save computing it again. Raises
    DataError as ``check_probabilities``.
    """
    check_probabilities(labels, probabilities)
    matrix = confusion_matrix(labels, probabilities.argmax(1), probabilities.shape[1])
    accuracy = wilson(float(matrix.trace()), len(labels), level=level)
    found = {"accuracy": accuracy, **class_averages(matrix, level)}
    found["f1_micro"] = accuracy  # with one label per image each false positive is also a false negative
    found |= top_k_accuracy(labels, probabilities, level=level)
    area = (ranks or one_vs_rest(labels, probabilities, level=level)).macro_auc
    if area is not None:
        found["roc_auc_ovr"] = area
    return found | bootstrap_intervals(labels, probabilities, level, seed)


def check_probabilities(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> None:
    """Raise DataError for no images, a label outside [0, K), or a probability that is not finite."""
    if not len(labels):
        raise DataError("There are no images to measure on: give a dataset with at least one image.")
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        worst = int(labels.max() if labels.min() >= 0 else labels.min())
        raise DataError(f"Label {worst} is outside the {probabilities.shape[1]} classes: check the labels.")
    if not np.isfinite(probabilities).all():
        bad = int(np.flatnonzero(~np.isfinite(probabilities).all(1))[0])
        raise DataError(
            f"The probabilities of image {bad} are not numbers: the classifier's weights are damaged; train again."
        )


def per_class_metrics(
    labels: Int[ndarray, " N"],
    probabilities: Float[ndarray, "N K"],
    *,
    level: float = 0.95,
    ranks: OneVsRest | None = None,
) -> tuple[ClassMetrics, ...]:
    """Precision, recall, F1 and one-vs-rest AUC of each class, with intervals; 0/0 is 0."""
    check_probabilities(labels, probabilities)
    ranks = ranks or one_vs_rest(labels, probabilities, level=level)
    matrix = confusion_matrix(labels, probabilities.argmax(1), probabilities.shape[1])
    rows, columns, right = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    return tuple(
        ClassMetrics(
            index=k,
            n=int(rows[k]),
            predicted=int(columns[k]),
            precision=wilson(float(right[k]), float(columns[k]), level=level),
            recall=wilson(float(right[k]), float(rows[k]), level=level),
            f1=f1_interval(float(right[k]), float(rows[k] + columns[k] - right[k]), level),
            roc_auc=area,
        )
        for k, area in enumerate(ranks.aucs)
    )


def confusion_matrix(
    labels: Int[ndarray, " N"], predicted: Int[ndarray, " N"], classes: int
) -> Int[ndarray, "K K"]:
    """Images of class i (row) predicted as class j (column)."""
    cells = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2)
    return cells.reshape(classes, classes)


def confusion_as_json(matrix: Int[ndarray, "K K"]) -> dict[str, list[list[int]]]:
    """The confusion matrix as ``confusion``, or, of many classes, its counts above zero as ``confusion_cells``."""
    if len(matrix) <= MAX_DENSE_CLASSES:
        return {"confusion": matrix.tolist()}
    rows, columns = np.nonzero(matrix)
    return {"confusion_cells": np.stack([rows, columns, matrix[rows, columns]], 1).tolist()}


def f1_interval(both: float, either: float, level: float) -> Interval:
    """F1 with Wilson's interval of Jaccard's J = both / either, through F1 = 2 J / (1 + J)."""
    jaccard = wilson(both, either, level=level)
    value, low, high = (2 * j / (1 + j) for j in (jaccard.value, jaccard.low, jaccard.high))
    return Interval(value, low, high, jaccard.n)


def class_averages(matrix: Int[ndarray, "K K"], level: float) -> dict[str, Interval]:
    """Balanced accuracy, macro precision, recall and F1, and F1 weighted by the images of each class."""
    n = int(matrix.sum())
    values = {name: value for name, (value, _) in _averages_with_variance(matrix).items()}
    # One pseudo-image for each class present, correct at the rate of the pooled Wilson centre: without it a rare class
    # whose two images are both correct would have an interval of no width.
    zz = z_squared(level)
    rate = (matrix.trace() + zz / 2) / (n + zz)
    present = matrix.sum(1) > 0
    used = present | (matrix.sum(0) > 0)
    wrong = np.outer(present, used) * (1 - rate) / max(1, used.sum() - 1)
    np.fill_diagonal(wrong, present * rate)
    smooth = matrix + wrong
    found = {}
    for name, (value, variance) in _averages_with_variance(smooth).items():
        size = value * (1 - value) / variance * n / smooth.sum() if variance > 0 else n
        found[name] = Interval(values[name], *score_bounds(values[name], size, level), n)
    return found


def _averages_with_variance(matrix: ndarray) -> dict[str, tuple[float, float]]:
    """Each average over classes and its delta-method variance, from the influence of an image of each cell."""
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


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> float:
    """Agreement of two people about the same things beyond chance: 1 always, 0 as often as by chance (Cohen 1960).

    NaN where both always say the same one thing, or there is nothing.

    >>> round(cohen_kappa(["a", "a", "b", "b"], ["a", "a", "b", "a"]), 2)
    0.5
    """
    names = sorted({*one, *other})
    first, second = ([names.index(word) for word in words] for words in (one, other))
    table = np.zeros((len(names), len(names)))
    np.add.at(table, (first, second), 1)
    if not (n := float(table.sum())):
        return float("nan")
    chance = float(table.sum(0) @ table.sum(1)) / n**2
    return float("nan") if chance == 1 else (float(table.trace()) / n - chance) / (1 - chance)
