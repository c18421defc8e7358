"""Every number of a set of answers: over all images, and class by class."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from ..errors import DataError
from ..types import Interval
from .calibration import bootstrap_intervals
from .classification import class_averages, confusion_matrix, f1_interval
from .intervals import wilson
from .ranking import OneVsRest, one_vs_rest, top_k


@dataclass(frozen=True)
class ClassMetrics:
    """How one class fares against all the others."""

    index: int
    n: int
    """Images of this class."""
    predicted: int
    """Images given this class."""
    precision: Interval
    """Share of the images given this class that are of it (n = ``predicted``)."""
    recall: Interval
    """Share of the images of this class that were found."""
    f1: Interval
    """2 P R / (P + R); its n counts the images that are, or are called, this class."""
    roc_auc: Interval | None
    """Chance that an image of this class scores above one of another; None where either is absent."""


def overall_metrics(
    labels: Int[ndarray, " N"],
    probabilities: Float[ndarray, "N K"],
    *,
    level: float = 0.95,
    seed: int = 0,
    ranks: OneVsRest | None = None,
) -> dict[str, Interval]:
    """Every overall number of a classifier on N images, by the names users know.

    ``roc_auc_ovr`` is left out where fewer than two classes have images; classes without images
    do not enter ``balanced_accuracy`` and ``roc_auc_ovr``, and enter the macro averages only where
    they were predicted, as in scikit-learn. ``ranks`` is ``one_vs_rest`` of the same, where it is at hand.
    Raises DataError for no images, labels outside [0, K) or probabilities that are not finite.
    """
    check_probabilities(labels, probabilities)
    matrix = confusion_matrix(labels, probabilities.argmax(1), probabilities.shape[1])
    accuracy = wilson(float(matrix.trace()), len(labels), level=level)
    found = {"accuracy": accuracy, **class_averages(matrix, level)}
    found["f1_micro"] = (
        accuracy  # with one label an image, wrong positives and wrong negatives are the same errors
    )
    found |= top_k(labels, probabilities, level=level)
    area = (ranks or one_vs_rest(labels, probabilities, level=level)).macro_auc
    if area is not None:
        found["roc_auc_ovr"] = area
    return found | bootstrap_intervals(labels, probabilities, level, seed)


def check_probabilities(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> None:
    """Raise DataError where nothing sensible can be measured."""
    if not len(labels):
        raise DataError("There are no images to measure on: give a dataset with at least one image.")
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        worst = int(labels.max() if labels.min() >= 0 else labels.min())
        raise DataError(f"Label {worst} is outside the {probabilities.shape[1]} classes: check the labels.")
    if not np.isfinite(probabilities).all():
        bad = int(np.flatnonzero(~np.isfinite(probabilities).all(1))[0])
        raise DataError(
            f"The classifier's answer for image {bad} is not a number: its weights are damaged; train again."
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
