"""Abstention: a threshold on the confidence for a target risk or coverage, and what it guarantees.

Images of lower confidence are predicted as "unknown". The threshold is chosen on validation images and holds for
images like them. Validation images also chose the epoch and the temperature, so their risk is slightly optimistic:
the test images show the actual one.
"""

from dataclasses import dataclass
from math import ceil, log, log2
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from ..errors import DataError, RecipeError
from ..metrics import risk_coverage, wilson
from ..types import Interval

GUARANTEE_CONFIDENCE = 0.95
"""Confidence of the guarantees and intervals here."""


@dataclass(frozen=True, kw_only=True)
class AbstentionThreshold:
    """A threshold, the target it was chosen for, and what holds for images like the validation images."""

    value: float
    """Predictions of lower confidence are "unknown"; 0 accepts all."""
    criterion: Literal["risk", "coverage"]
    target: float
    risk: Interval
    """Share of wrong predictions among the accepted validation images, with Wilson's interval."""
    coverage: Interval
    """Share of the validation images accepted, with the interval of that share among new images."""
    risk_bound: float
    """Upper bound of the risk on new images, exceeded by at most 5 % of validation sets."""
    guaranteed: bool
    """Whether the target is guaranteed at that confidence, or only met on the validation images."""
    min_images: int | None = None
    """Accepted images without an error that a guarantee takes at least; None where more images would not help."""

    @property
    def sentence(self) -> str:
        """The threshold, its result on the validation images, and the guarantee."""
        kept = (
            f"Predictions of confidence {self.value:.4g} or more are accepted: {self.coverage.value:.1%} of the "
        )
        kept += f"validation images, of which {self.risk.value:.2%} are wrong (n = {self.risk.n:,})."
        if self.criterion == "coverage":
            low, high = self.coverage.low, self.coverage.high
            return f"{kept} {low:.1%} to {high:.1%} of new images like them would be accepted (95 %)."
        if self.guaranteed:
            return f"{kept} With 95 % confidence at most {self.target:.2%} of them are wrong on new images."
        more = (
            ""
            if self.min_images is None
            else f"; it takes at least {self.min_images:,} accepted images without an error"
        )
        return (
            f"{kept} This is no guarantee: too few validation images are accepted to guarantee "
            f"{self.target:.2%}{more}. The risk is at most {self.risk_bound:.2%} with 95 % confidence."
        )

    def as_json(self) -> dict[str, Any]:
        """``abstention`` of calibration.json, without the test."""
        return {
            "threshold": self.value,
            "wanted": self.criterion,
            "target": self.target,
            "risk": self.risk.as_json(),
            "coverage": self.coverage.as_json(),
            "risk_bound": self.risk_bound,
            "promised": self.guaranteed,
            "sentence": self.sentence,
        }


def threshold_for_risk(
    confidence: Float[ndarray, " N"], right: Bool[ndarray, " N"], risk: float
) -> AbstentionThreshold:
    """The threshold of largest coverage at which at most a share ``risk`` of the accepted predictions is wrong.

    With a guarantee where N allows: Selection with Guaranteed Risk (Geifman and El-Yaniv 2017, algorithm 1), a
    bisection over the confidences with Clopper and Pearson's bound, its steps sharing 5 %. Otherwise the largest
    coverage whose validation risk is at most ``risk``, and ``guaranteed`` is False.

    Args:
        confidence: probability of the predicted class of N validation images.
        right: whether each prediction is correct.

    Raises RecipeError for a risk outside [0, 1), DataError, naming the lowest risk, where no threshold has it.
    """
    if not 0 <= risk < 1:
        raise RecipeError(f"The risk asked for is {risk}: it must be a share from 0 to below 1, such as 0.01.")
    _check_confidences(confidence, right)
    curve = risk_coverage(confidence, right)
    ends = np.append(np.diff(curve.confidence) != 0, True)  # equal confidences are accepted together
    kept, found = np.flatnonzero(ends) + 1, curve.risk[ends]
    errors = np.rint(found * kept).astype(np.int64)
    place = _find_guaranteed(errors, kept, risk)
    if place is not None:
        bound = _clopper_pearson_upper(int(errors[place]), int(kept[place]), _step_delta(len(kept)))
        return _build_threshold(curve.confidence[ends], kept, errors, place, risk, bound, promised=True)
    met = np.flatnonzero(errors <= risk * kept + 1e-9)
    if not len(met):
        best = int(found.argmin())
        raise DataError(
            f"No threshold on the confidence has a risk of {risk:.2%}: the lowest on the {len(right):,} "
            f"validation images is {found[best]:.2%}, with {kept[best] / len(right):.1%} of them accepted. Ask "
            "for that risk, or train a better classifier."
        )
    place = int(met[-1])
    bound = _clopper_pearson_upper(int(errors[place]), int(kept[place]), 1 - GUARANTEE_CONFIDENCE)
    return _build_threshold(curve.confidence[ends], kept, errors, place, risk, bound, promised=False)


def threshold_for_coverage(
    confidence: Float[ndarray, " N"], right: Bool[ndarray, " N"], coverage: float
) -> AbstentionThreshold:
    """The threshold at which a share ``coverage`` of the images is accepted, rounded up.

    It is the k-th smallest of N confidences, k = floor((N + 1) (1 - coverage)). The coverage of new images is
    Beta(N + 1 - k, k) where no confidences are equal, of a mean of at least ``coverage``. Raises RecipeError for a
    coverage outside (0, 1].
    """
    if not 0 < coverage <= 1:
        raise RecipeError(f"The coverage asked for is {coverage}: it must be above 0 and at most 1, such as 0.9.")
    _check_confidences(confidence, right)
    n = len(right)
    k = int(np.floor((n + 1) * (1 - coverage) + 1e-9))
    value = float(np.sort(confidence)[k - 1]) if k else 0.0
    chosen = confidence >= value
    kept, errors = int(chosen.sum()), int((chosen & ~right).sum())
    low, high = beta_interval(n, k)
    return AbstentionThreshold(
        value=value,
        criterion="coverage",
        target=coverage,
        risk=wilson(errors, kept),
        coverage=Interval(kept / n, low, high, n),
        risk_bound=_clopper_pearson_upper(errors, kept, 1 - GUARANTEE_CONFIDENCE),
        guaranteed=True,
    )


def beta_interval(n: int, k: int, *, level: float = GUARANTEE_CONFIDENCE) -> tuple[float, float]:
    """Interval of the share of new values at or above the k-th smallest of ``n``: quantiles of Beta(n + 1 - k, k).

    Exact for exchangeable values without ties; k = 0 stands for minus infinity.
    """
    if k == 0:
        return 1.0, 1.0
    from scipy.stats import beta

    low, high = beta.ppf([(1 - level) / 2, (1 + level) / 2], n + 1 - k, k)
    return float(low), float(high)


def _check_confidences(confidence: ndarray, right: ndarray) -> None:
    if not len(right):
        raise DataError("There are no validation images to choose a threshold on.")
    if not np.isfinite(confidence).all():
        raise DataError("Some confidences are not numbers: the classifier's weights are damaged; train again.")


def _build_threshold(
    confidences: ndarray, kept: ndarray, errors: ndarray, place: int, risk: float, bound: float, *, promised: bool
) -> AbstentionThreshold:
    n = int(kept[-1])
    needed = _min_images_without_error(risk, len(kept))
    return AbstentionThreshold(
        value=0.0 if place == len(kept) - 1 else float(confidences[place]),
        criterion="risk",
        target=risk,
        risk=wilson(int(errors[place]), int(kept[place])),
        coverage=wilson(int(kept[place]), n),
        risk_bound=bound,
        guaranteed=promised,
        min_images=None if promised or needed is None or needed <= kept[place] else needed,
    )


def _find_guaranteed(errors: ndarray, kept: ndarray, risk: float) -> int | None:
    """The last place whose bound is at most ``risk``, by bisection among those with enough images; None for none.

    All images are tried first. At higher thresholds fewer errors lower the bound and fewer images raise it.
    """
    needed = _min_images_without_error(risk, len(kept))
    if needed is None:
        return None
    places = np.flatnonzero(kept >= needed)
    held, failed, middle = -1, len(places), len(places) - 1
    while failed - held > 1:
        here = places[middle]
        if _clopper_pearson_upper(int(errors[here]), int(kept[here]), _step_delta(len(kept))) <= risk:
            held = middle
        else:
            failed = middle
        middle = (held + failed) // 2
    return None if held < 0 else int(places[held])


def _min_images_without_error(risk: float, places: int) -> int | None:
    """Images without an error that have a bound of at most ``risk``; None where no number has."""
    return ceil(log(_step_delta(places)) / log(1 - risk) - 1e-9) if risk > 0 else None


def _step_delta(places: int) -> float:
    """Error probability of each step of the bisection; all steps together have 5 %."""
    return (1 - GUARANTEE_CONFIDENCE) / (1 + ceil(log2(places + 1)))


def _clopper_pearson_upper(errors: int, n: int, delta: float) -> float:
    """Clopper and Pearson's upper bound of a rate, exceeded with probability at most ``delta``."""
    if errors >= n:
        return 1.0
    from scipy.stats import beta

    return float(beta.ppf(1 - delta, errors + 1, n - errors))
