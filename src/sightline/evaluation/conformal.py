"""Split conformal prediction: sets of classes that contain the true one with a guaranteed probability.

The nonconformity scores of the true classes of n calibration images, exchangeable with new ones, are ranked; a
class is in an image's set where its score is at most that of rank ceil((n + 1) (1 - alpha)). Then

    1 - alpha <= P(the set contains the true class) <= 1 - alpha + 1 / (n + 1)

on the mean over calibration sets and images; the upper bound holds where no scores are equal (Vovk 2005;
Angelopoulos and Bates 2021). Given one calibration set, coverage is Beta(n + 1 - l, l), l = floor((n + 1) alpha).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import floor, inf, isinf
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from ..choose import lookup
from ..errors import BundleError, DataError, RecipeError
from ..metrics import wilson
from ..types import Interval, Prediction

SAVED_ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Error rates whose quantiles a bundle holds."""


def lac(probabilities: Float[ndarray, "N K"]) -> Float[ndarray, "N K"]:
    """LAC, least ambiguous sets: 1 - p. The smallest mean size; empty where no class is probable enough.

    Sadinle, Lei and Wasserman 2019.
    """
    return 1 - probabilities.astype(np.float64)


def aps(probabilities: Float[ndarray, "N K"]) -> Float[ndarray, "N K"]:
    """APS, adaptive prediction sets: the total probability of all more probable classes. Never empty.

    Romano, Sesia and Candes 2020, without their randomisation, so that an image always has the same set; where
    more than 1 - alpha of the predictions are correct, sets of one class already cover more than 1 - alpha.
    """
    p = probabilities.astype(np.float64)
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, 1)
    above = np.concatenate([np.zeros((len(p), 1)), np.cumsum(ranked, 1)[:, :-1]], 1)
    found = np.empty_like(above)
    np.put_along_axis(found, order, above, 1)
    return found


NONCONFORMITY_SCORES: Mapping[str, Callable[[ndarray], ndarray]] = {"lac": lac, "aps": aps}
"""Name -> ``(probabilities (N K)) -> scores (N K)``; a higher score means that the class fits the image less."""


@dataclass(frozen=True, eq=False)
class ConformalSets:
    """A calibrated rule that gives each image a set of classes."""

    by: str
    """A name of ``NONCONFORMITY``."""
    alpha: float
    """Error rate: share of images whose set may miss the true class."""
    quantiles: Float[ndarray, " K"]
    """Largest score in a set, for each class; infinite, so always in the set, where too few images calibrated it.
    """
    n_calibration: Int[ndarray, " K"]
    """Calibration images of each quantile: those of the class, or all of them."""
    per_class: bool
    """Whether the guarantee holds within each class (Mondrian), not only over all of them."""

    def __call__(self, probabilities: Float[ndarray, "N K"]) -> Bool[ndarray, "N K"]:
        """Which classes are in each image's set."""
        return lookup(NONCONFORMITY_SCORES, self.by, "kind of conformal set")(probabilities) <= self.quantiles

    @property
    def unbounded_classes(self) -> Int[ndarray, " k"]:
        """Indices of the classes that are in every set, because too few images calibrated them."""
        return np.flatnonzero(np.isinf(self.quantiles))

    def remark(self, classes: tuple[str, ...]) -> str | None:
        """A sentence about the classes that are in every set; None where there are none."""
        if not len(self.unbounded_classes):
            return None
        least = min_calibration_images(self.alpha)
        if len(self.unbounded_classes) == len(self.quantiles) and not self.per_class:
            return (
                f"{self.n_calibration[0]:,} calibration images are too few for an error rate of {self.alpha:g}: "
                f"it takes {least:,}. Every set contains every class."
            )
        names = ", ".join(repr(classes[k]) for k in self.unbounded_classes[:5]) + (
            " ..." if len(self.unbounded_classes) > 5 else ""
        )
        return (
            f"An error rate of {self.alpha:g} takes {least:,} calibration images of each class, and there are "
            f"fewer of {names}: {'it is' if len(self.unbounded_classes) == 1 else 'they are'} in every set."
        )


def min_calibration_images(alpha: float) -> int:
    """Fewest calibration images whose quantile is finite: 19 for 0.05, 99 for 0.01."""
    n = max(1, floor(1 / alpha) - 2)
    while isinf(conformal_quantile(np.zeros(n), alpha)):
        n += 1
    return n


def conformal_quantile(scores: Float[ndarray, " n"], alpha: float) -> float:
    """The score of rank ceil((n + 1) (1 - alpha)) of ``n``; infinite where that rank is above n."""
    n = len(scores)
    rank = n + 1 - floor((n + 1) * alpha + 1e-9)
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank <= n else inf


def conformalize(
    probabilities: Float[ndarray, "N K"],
    labels: Int[ndarray, " N"],
    alpha: float = 0.1,
    *,
    by: str = "lac",
    per_class: bool = False,
) -> ConformalSets:
    """Calibrate sets that miss the true class of at most a share ``alpha`` of images like these.

    Args:
        probabilities: of N images that were not trained on.
        labels: their classes.
        alpha: error rate, in (0, 1).
        by: a name of ``NONCONFORMITY_SCORES``.
        per_class: calibrate each class alone, so that the guarantee holds within it; takes more images.

    Raises RecipeError for an alpha outside (0, 1), ChoiceError for an unknown ``by``, DataError for no images.
    """
    if not 0 < alpha < 1:
        raise RecipeError(f"The error rate of conformal sets is {alpha}: it must be between 0 and 1, such as 0.1.")
    if not len(labels):
        raise DataError("There are no images to calibrate conformal sets on.")
    scores = lookup(NONCONFORMITY_SCORES, by, "kind of conformal set")(probabilities)[
        np.arange(len(labels)), labels
    ]
    classes = probabilities.shape[1]
    if per_class:
        quantiles = np.array([conformal_quantile(scores[labels == k], alpha) for k in range(classes)])
        return ConformalSets(by, alpha, quantiles, np.bincount(labels, minlength=classes), True)
    return ConformalSets(
        by, alpha, np.full(classes, conformal_quantile(scores, alpha)), np.full(classes, len(labels)), False
    )


@dataclass(frozen=True)
class ConformalSetQuality:
    """Coverage and size of sets on labelled images."""

    coverage: Interval
    """Share of the sets that contain the true class, with Wilson's interval."""
    size: float
    """Mean number of classes in a set."""
    empty: float
    """Share of the sets without a class."""
    single: float
    """Share of the sets with exactly one class."""
    worst_class: float
    """Lowest coverage of a class with images."""

    def as_json(self) -> dict[str, Any]:
        """The numbers."""
        intervals = {"coverage": self.coverage.as_json()}
        return {**vars(self), "coverage": self.coverage.value, "intervals": intervals}


def measure_sets(
    sets: ConformalSets, probabilities: Float[ndarray, "N K"], labels: Int[ndarray, " N"]
) -> ConformalSetQuality:
    """Coverage and sizes of a rule's sets on N labelled images."""
    chosen = sets(probabilities)
    sizes, held = chosen.sum(1), chosen[np.arange(len(labels)), labels]
    present = np.unique(labels)
    return ConformalSetQuality(
        coverage=wilson(float(held.sum()), len(held)),
        size=float(sizes.mean()),
        empty=float((sizes == 0).mean()),
        single=float((sizes == 1).mean()),
        worst_class=min(float(held[labels == k].mean()) for k in present),
    )


# in a bundle


def quantiles_json(probabilities: Float[ndarray, "N K"], labels: Int[ndarray, " N"]) -> dict[str, Any]:
    """``answers.json`` of a bundle: quantiles of each kind at ``SAVED_ALPHAS``, overall and per class."""
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    part: dict[str, Any] = {"images": len(labels), "per_class_images": counts.tolist()}
    for by in NONCONFORMITY_SCORES:
        whole = {a: conformalize(probabilities, labels, a, by=by).quantiles[0] for a in SAVED_ALPHAS}
        apart = {a: conformalize(probabilities, labels, a, by=by, per_class=True).quantiles for a in SAVED_ALPHAS}
        part[by] = {f"{a:g}": _finite_or_none(value) for a, value in whole.items()}
        part[f"{by}-per-class"] = {f"{a:g}": [_finite_or_none(v) for v in values] for a, values in apart.items()}
    return {"conformal": part}


def _finite_or_none(value: float) -> float | None:
    """JSON has no infinity."""
    return None if isinf(value) else float(value)


def load_sets(
    answers: Mapping[str, Any], classes: int, alpha: float, *, by: str = "lac", per_class: bool = False
) -> ConformalSets:
    """The rule of a bundle's ``answers.json``.

    Raises DataError where the bundle was not calibrated, or not for ``alpha``; BundleError where it is damaged.
    """
    if "conformal" not in answers:
        raise DataError(
            "This classifier has no conformal sets yet. Make them with: "
            "sightline evaluate RUN --conformal-alpha 0.1 --save"
        )
    part = answers["conformal"]
    lookup(NONCONFORMITY_SCORES, by, "kind of conformal set")
    try:
        rows = part[f"{by}-per-class" if per_class else by]
        if f"{alpha:g}" not in rows:
            raise DataError(
                f"Sets of error rate {alpha:g} are not in the bundle: choose one of {', '.join(rows)}."
            )
        found = rows[f"{alpha:g}"]
        values = np.array([inf if v is None else float(v) for v in (found if per_class else [found] * classes)])
        images = part["per_class_images"] if per_class else [part["images"]] * classes
        if len(values) != classes or len(images) != classes:
            raise ValueError("it is of another number of classes")
        return ConformalSets(by, alpha, values, np.array(images, np.int64), per_class)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"The answers.json of this classifier cannot be understood: {error}.") from error


def add_sets(
    predictions: Iterable[Prediction], sets: ConformalSets, classes: tuple[str, ...], top: int
) -> Iterator[Prediction]:
    """Predictions of all K classes with their conformal sets, cut to the ``top`` most probable classes."""
    place = {name: k for k, name in enumerate(classes)}
    for one in predictions:
        if one.label is None:
            yield one
            continue
        row = np.zeros((1, len(classes)))
        row[0, [place[name] for name, _ in one.top]] = [p for _, p in one.top]
        chosen = sets(row)[0]
        yield replace(one, among=tuple(name for name, _ in one.top if chosen[place[name]]), top=one.top[:top])
