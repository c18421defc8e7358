"""Confident learning: which labels the predictions of a judge contradict, and how many of these are wrong.

Northcutt, Jiang and Chuang 2021, eq. 1 (the candidates); Patra and Sen 2016 (a mixture with one known component).
"""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

MIN_WRONG_SHARE = 0.15
"""Share of the labels a judge contradicts that must be wrong; below it the estimate is not distinguishable from the
judge's own errors, and nothing is listed."""

MIN_LIST_PRECISION = 0.5
"""Expected share of wrong labels in the list, down to its end."""

TAIL_SHARES = (0.5, 0.25)
"""Upper parts of the margins of wrong labels from which their number is estimated; the smallest estimate counts."""

MIN_TAIL_CANDIDATES = 4
"""Candidates above the median margin of wrong labels below which no number is estimated: these few are listed."""

MAX_OTHER_LABELS = 8
"""Wrong labels that each image is given in turn, to learn what margin a wrong label has."""


def confident_joint(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> Int[ndarray, "K K"]:
    """Images labelled i (row) that count as truly j (column); some images count nowhere."""
    k = probabilities.shape[1]
    truly = _confident_classes(labels, probabilities)
    known = truly >= 0
    return np.bincount(labels[known] * k + truly[known], minlength=k * k).reshape(k, k)


def _confident_classes(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> Int[ndarray, " N"]:
    """The class that each image counts as; -1 for none. No image counts as a class without images."""
    k = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    counts = np.bincount(labels, minlength=k)
    sums = np.bincount(labels, weights=own, minlength=k)
    thresholds = np.divide(sums, counts, out=np.full(k, np.inf), where=counts > 0)
    passing = np.where(probabilities >= thresholds - 1e-12, probabilities, -1.0)
    return np.where(passing.max(1) >= 0, passing.argmax(1), -1)


def rank_issues(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> list[tuple[int, int]]:
    """(image, suggested class) of every issue, the largest margin first."""
    truly = _confident_classes(labels, probabilities)
    margins = _margins(truly, probabilities, labels)
    rows = np.flatnonzero(np.isfinite(margins))
    rows = rows[np.argsort(-margins[rows], kind="stable")]
    return [(int(i), int(truly[i])) for i in rows]


def _margins(
    truly: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"], labels: Int[ndarray, " N"]
) -> Float[ndarray, " N"]:
    """log(p of the class that an image counts as / p of its label); minus infinity where that is no issue."""
    rows = np.arange(len(labels))
    odds = _log(probabilities[rows, truly]) - _log(probabilities[rows, labels])
    return np.where((truly >= 0) & (truly != labels), odds, -np.inf)


def _log(probabilities: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """log(p), at least log(1e-300)."""
    return np.log(np.maximum(probabilities.astype(np.float64), 1e-300))


def count_wrong_labels(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> tuple[int, float]:
    """How many of the ranked issues to list, and how many labels are expected to be wrong.

    No image was trained on, so its prediction hardly depends on its label: giving each image other labels shows the
    margins G of wrong ones. If the n(t) candidates above a margin t were all wrong labels, n(t) / G(t) would be wrong
    in all. The judge's own errors, which have small margins, only add to n(t), so the smallest of these numbers is an
    upper bound of a mixture with one known component (Patra and Sen 2016). The list ends where n(t) exceeds twice
    the wrong labels expected there. Very few candidates above the median of G are listed without more.
    """
    present, packed = np.unique(labels, return_inverse=True)
    truly = _confident_classes(labels, probabilities)
    shifts = np.unique(np.linspace(1, len(present) - 1, MAX_OTHER_LABELS).astype(int))
    wrong = np.sort(
        np.concatenate([_margins(truly, probabilities, present[(packed + one) % len(present)]) for one in shifts])
    )
    margins = _margins(truly, probabilities, labels)
    margins = np.sort(margins[np.isfinite(margins)])[::-1]
    at_least = 1 - np.searchsorted(wrong, margins) / len(wrong)  # G at each candidate
    starts = [wrong[int((1 - share) * len(wrong))] for share in TAIL_SHARES]
    if (few := int((margins >= starts[0]).sum())) < MIN_TAIL_CANDIDATES:
        return few, few / TAIL_SHARES[0]
    expected = min(float((margins >= t).sum() / (wrong >= t).mean()) for t in starts)
    if expected < MIN_WRONG_SHARE * (probabilities.argmax(1) != labels).sum():
        return 0, expected
    precise = np.flatnonzero(expected * at_least >= MIN_LIST_PRECISION * np.arange(1, len(margins) + 1))
    return min(int(precise[-1]) + 1 if len(precise) else 0, round(expected)), expected
