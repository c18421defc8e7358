"""How many more images would help: the head on growing parts of its training images, on kept features: seconds."""

import time
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from ..choose import choose
from ..data import nested_subset
from ..features import embed_cached
from ..files import write_json
from ..training import HEAD_METHODS, HeadMethod, Run, prepare_features
from ..types import Interval
from .episodes import interval_over_draws
from .learning_curve import LEARNING_CURVE_FILE, NEGLIGIBLE_GAIN

HEAD_CURVE_DRAWS = 8
"""Draws of which images are learned from and which are left out."""

MIN_CURVE_DRAWS = 4
"""Fewer say too little of the noise."""

LEFT_OUT_SHARE = 0.2
"""Share of each class that a draw leaves out to judge by."""

MAX_SIZES = 4
"""Sizes of the training part, each half of the next."""

MIN_IMAGES_A_CLASS = 5
MAX_HEAD_CURVE_IMAGES = 5000
"""More images take minutes instead of seconds."""

_EXPONENTS = np.linspace(0.1, 2.0, 39)
_SAMPLES = 1000


@dataclass(frozen=True, eq=False)
class HeadCurve:
    """The head's accuracy by the number of images a class, and what a power law says of twice as many."""

    images: tuple[int, ...]
    """Training images of each size."""
    rates: Float[ndarray, "R S"]
    """Accuracy on the images left out, of each draw (rows) at each size."""
    more: int
    """Images of a class that would double them."""
    now: Interval
    """Accuracy with all the images."""
    then: Interval
    """Accuracy with ``more`` images of each class."""
    gain: Interval
    """``then`` minus ``now``."""

    @property
    def sentence(self) -> str:
        """What more images would bring, as far as the curve can tell."""
        about = f"{self.more} more images a class would bring about {self.then.value:.1%}"
        bounds = f"95 % interval {self.then.low:.1%} to {self.then.high:.1%}"
        change = f"{about} instead of {self.now.value:.1%} ({bounds}), by the learning curve of the head"
        if self.gain.high < NEGLIGIBLE_GAIN:
            return f"{change}: more images of this kind would hardly help."
        if self.gain.low < NEGLIGIBLE_GAIN / 5:
            return f"{change}: that is within its noise, so it cannot tell whether more images would help."
        return f"{change}: more images of this kind would probably help."

    def as_json(self) -> dict[str, Any]:
        """``curve`` of learning_curve.json."""
        sizes = []
        for count, rates in zip(self.images, self.rates.T, strict=True):
            one = interval_over_draws(rates)
            row = {"images": count, "accuracy": one.value, "intervals": {"accuracy": one.as_json()}}
            sizes.append(row | {"seeds": rates.tolist()})
        more = {"more_images_a_class": self.more, "then": self.then.as_json(), "gain": self.gain.as_json()}
        return {"by": "head", "sizes": sizes, "now": self.now.as_json(), **more, "sentence": self.sentence}


def head_curve_run(run: Run, *, seconds: float = inf) -> HeadCurve | None:
    """The curve of a run whose last layer was computed, on its training and validation images, also saved in the run.

    ``seconds`` is the time it may take, by a first fit that is timed: where it is short, fewer draws are made, and none
    below ``MIN_CURVE_DRAWS``. None too where the head saw a part of the images, where fine-tuning changed the features,
    which have then seen these images, where a class has fewer than 5 images, or where all have more than 5,000; and for
    lda, whose error follows no power law while images are hardly more than features.
    """
    facts, splits = run.facts, run.splits
    if (
        "head" not in facts
        or facts["head"].get("train_images") != facts["head"].get("all_train_images")
        or seconds <= 0
        or (facts.get("fine_tuning") or {}).get("kept")
        or (run.recipe.method or "").startswith("lda")
    ):
        return None
    parts = [part.labelled for part in (splits.train, splits.val)]
    labels, classes = np.concatenate([part.labels for part in parts]), len(splits.train.classes)
    counts = np.bincount(labels, minlength=classes)
    if counts.min() < MIN_IMAGES_A_CLASS or len(labels) > MAX_HEAD_CURVE_IMAGES:
        return None
    features = np.concatenate([embed_cached(run.classifier, part, quiet=True) for part in parts])
    head: Any = choose(HEAD_METHODS, run.recipe.method or "", "method")
    assert head is not None
    if (penalty := facts["head"].get("penalty")) is not None:
        head = replace(head, penalty=penalty)
    features, draws = prepare_features(run.classifier, features), HEAD_CURVE_DRAWS
    if seconds < inf:
        began = time.monotonic()
        head.fit(features, labels, classes, seed=0)
        each = 2 * (time.monotonic() - began)  # a draw's sizes halve: together less than twice the largest
        draws = min(draws, int(seconds / max(each, 1e-9)))
    if draws < MIN_CURVE_DRAWS:
        return None
    curve = measure_head_curve(head, features, labels, classes, draws=draws)
    write_json(run.folder / LEARNING_CURVE_FILE, {"curve": curve.as_json()})
    return curve


def measure_head_curve(
    head: HeadMethod,
    features: Float[ndarray, "N D"],
    labels: Int[ndarray, " N"],
    n_classes: int,
    *,
    seed: int = 0,
    draws: int = HEAD_CURVE_DRAWS,
) -> HeadCurve:
    """Fit ``head`` to nested parts of the images, in draws that leave a fifth of each class out, and extrapolate.

    The error follows a + b n^-c (Hestness et al. 2017; Rosenfeld et al. 2020, arXiv 1909.12673), a and b at least 0,
    c in [0.1, 2]. Its interval is that of refitted samples of the mean errors: their covariance over draws, times
    1/draws + 1/4 because draws share images (Nadeau and Bengio 2003), and the chance of the images left out.
    """
    counts = np.bincount(labels, minlength=n_classes)
    least = int(counts.min() - max(1, round(LEFT_OUT_SHARE * counts.min())))
    shares = [0.5**step for step in range(MAX_SIZES) if least * 0.5**step >= 1][::-1]
    rates = np.zeros((draws, len(shares)))
    images = np.zeros(len(shares))
    for draw in range(draws):
        left_out = nested_subset(labels, LEFT_OUT_SHARE, seed + draw)
        rest = np.setdiff1d(np.arange(len(labels)), left_out)
        for size, share in enumerate(shares):
            shown = rest[nested_subset(labels[rest], share, seed + draw)]
            fitted = head.fit(features[shown], labels[shown], n_classes, seed=seed)
            answers = (features[left_out] @ fitted.weight.numpy().T + fitted.bias.numpy()).argmax(1)
            rates[draw, size] = (answers == labels[left_out]).mean()
            images[size] = len(shown)
    more = round(len(labels) / n_classes)
    errors = 1 - rates
    smoothed = (errors[:, -1].mean() * len(labels) + 1) / (len(labels) + 2)
    chance = smoothed * (1 - smoothed) / len(labels)
    covariance = np.cov(errors.T) * (1 / draws + LEFT_OUT_SHARE / (1 - LEFT_OUT_SHARE)) + chance
    rng = np.random.default_rng(seed)
    samples = rng.multivariate_normal(errors.mean(0), covariance, _SAMPLES, method="eigh").clip(0, 1)
    spread = np.sqrt(np.diagonal(covariance))
    wanted = len(labels) * np.array([1.0, 2.0])
    now, then = extrapolate(images, errors.mean(0)[None], spread, wanted)[0]
    found = extrapolate(images, samples, spread, wanted)
    return HeadCurve(
        tuple(int(count) for count in images),
        rates,
        more,
        _interval(1 - now, 1 - found[:, 0], len(labels)),
        _interval(1 - then, 1 - found[:, 1], len(labels)),
        _interval(now - then, found[:, 0] - found[:, 1], len(labels)),
    )


def _interval(value: float, samples: Float[ndarray, " n"], n: int) -> Interval:
    low, high = np.quantile(samples, [0.025, 0.975])
    return Interval(float(value), float(min(low, value)), float(max(high, value)), n)


def extrapolate(
    images: Float[ndarray, " S"],
    errors: Float[ndarray, "E S"],
    spread: Float[ndarray, " S"],
    wanted: Float[ndarray, " W"],
) -> Float[ndarray, "E W"]:
    """The errors at ``wanted`` images by a + b n^-c, fitted to each row by least squares weighted by ``spread``."""
    weight = 1 / spread**2
    best, result = np.full(len(errors), np.inf), np.zeros((len(errors), len(wanted)))
    for exponent in _EXPONENTS:
        basis = (images / images[-1]) ** -exponent
        ahead = (wanted / images[-1]) ** -exponent
        mean_basis, mean = (basis * weight).sum() / weight.sum(), (errors * weight).sum(1) / weight.sum()
        centred = basis - mean_basis
        slope = ((errors * weight) @ centred / (weight * centred**2).sum()).clip(0)
        floor = mean - slope * mean_basis
        through = (errors * weight) @ basis / (weight * basis**2).sum()  # where a would be below 0
        slope, floor = np.where(floor < 0, through, slope), floor.clip(0)
        loss = ((errors - floor[:, None] - slope[:, None] * basis) ** 2 * weight).sum(1)
        better = loss < best
        best = np.where(better, loss, best)
        result = np.where(better[:, None], floor[:, None] + slope[:, None] * ahead, result)
    return result
