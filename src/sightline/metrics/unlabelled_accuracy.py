"""How accurate a classifier is on unlabelled images, and the shares of their classes: estimates, no proofs.

Accuracy cannot be known in general from unlabelled images of another world. Average thresholded confidence (ATC) errs
by about 4 points under corruptions, and by 11 to 20, always too optimistic, where new kinds of thing appear (Garg et
al. 2022): show these numbers next to an audit, never instead of one.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray


@dataclass(frozen=True)
class UnlabelledAccuracy:
    """Estimates of the accuracy on N unlabelled images, each in [0, 1]."""

    atc: float
    """Average thresholded confidence: the share of images above the score that as many held-out images miss as were
    wrong (Garg et al. 2022); the score is the negative entropy where probabilities are known, else the confidence."""
    doc: float
    """Held-out accuracy plus the difference of mean confidences (Guillory et al. 2021)."""
    mean_confidence: float
    """Right only for calibrated probabilities of the same kinds of image; also called CBPE."""


def estimate_accuracy(
    held_out: Float[ndarray, " N"],
    right: Bool[ndarray, " N"],
    unlabelled: Float[ndarray, " M"],
    *,
    entropies: tuple[Float[ndarray, " N"], Float[ndarray, " M"]] | None = None,
) -> UnlabelledAccuracy:
    """Estimate the accuracy on unlabelled images from their confidences and those of labelled held-out images.

    ``right`` says which held-out images were classified correctly. ``entropies`` are those of the probabilities of
    both, by which ATC errs less than by confidence. Raises ValueError if either set is empty.
    """
    if not len(held_out) or not len(unlabelled):
        raise ValueError("an estimate of the accuracy needs held-out and unlabelled images")
    errors = int((~right).sum())
    scores, others = (held_out, unlabelled) if entropies is None else (-entropies[0], -entropies[1])
    threshold = np.inf if errors == len(held_out) else np.sort(scores)[errors]
    doc = right.mean() + unlabelled.mean() - held_out.mean()
    atc = (others >= threshold).mean()
    return UnlabelledAccuracy(float(atc), float(np.clip(doc, 0.0, 1.0)), float(unlabelled.mean()))


def estimate_class_shares(
    confusion: Float[ndarray, "K K"], predicted: Float[ndarray, " K"]
) -> tuple[Float[ndarray, " K"], Float[ndarray, " K"]]:
    """Shares of the true classes behind shares of predictions, if only the class mix has changed (Lipton et al. 2018).

    ``confusion`` holds the joint shares of held-out images by prediction (rows) and truth (columns), ``predicted`` the
    shares of predictions now. Returns the weight of each class, its share now by its share then (at least 0), and
    the shares now. A singular matrix is solved by least squares. A class without held-out images keeps weight 1.
    """
    before = confusion.sum(0)
    weights, *_ = np.linalg.lstsq(confusion, predicted, rcond=None)
    weights = np.where(before > 0, np.maximum(weights, 0.0), 1.0)
    shares = weights * before
    total = shares.sum()
    return weights, shares / total if total > 0 else before / before.sum()


def population_stability_index(
    reference: Float[ndarray, " B"], now: Float[ndarray, " B"], *, smoothing: float = 0.0
) -> float:
    """Sum over bins of (p - q) log(p / q): a size, never an alarm.

    The usual limits 0.1 and 0.25 are folklore: without a change the index is near chi-squared (B - 1) times
    (1/n + 1/m), 0.18 on average with ten bins and 100 images on each side. ``smoothing`` is added to each share.
    """
    p, q = reference + smoothing, now + smoothing
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def energy_distance(first: Float[ndarray, "N D"], second: Float[ndarray, "M D"]) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| over all pairs: 0 only for equal distributions (Szekely and Rizzo 2013)."""
    from scipy.spatial.distance import cdist

    between, within, other = (cdist(a, b).mean() for a, b in ((first, second), (first, first), (second, second)))
    return float(2 * between - within - other)


def joint_confusion(
    labels: Int[ndarray, " N"], predicted: Int[ndarray, " N"], n_classes: int
) -> Float[ndarray, "K K"]:
    """Shares of images by prediction (rows) and truth (columns)."""
    counts = np.zeros((n_classes, n_classes))
    np.add.at(counts, (predicted, labels), 1)
    return counts / max(1, len(labels))
