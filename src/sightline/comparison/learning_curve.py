"""What more images would bring: the run's own recipe on growing shares of its training images."""

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from .. import progress
from ..data import nested_subset
from ..errors import RecipeError, TrainingError
from ..files import read_json_object, write_json
from ..inference import predict_correct
from ..metrics import paired_difference, wilson
from ..training import Run, SilentRunFolder, train_on_splits
from ..types import Interval
from .candidates import explain_interruption, pack_bits, unpack_bits

LEARNING_CURVE_SHARES = (0.1, 0.25, 0.5, 1.0)
"""Default shares of the training images."""

LEARNING_CURVE_FILE = "learning_curve.json"

NEGLIGIBLE_GAIN = 0.005
"""Gain in accuracy below which more images are reported as hardly helping."""


@dataclass(frozen=True, eq=False)
class LearningCurvePoint:
    """What training on one number of images gave."""

    share: float
    images: int
    accuracy: Interval
    """Mean over the seeds, with Wilson's interval for the test images."""
    correct: Float[ndarray, " N"]
    """For each test image, the share of the seeds that classified it correctly."""
    seed_accuracies: tuple[float, ...]
    """Accuracy of each training."""

    def as_json(self) -> dict[str, Any]:
        """The point without the single images."""
        return {
            "share": self.share,
            "images": self.images,
            "accuracy": self.accuracy.value,
            "intervals": {"accuracy": self.accuracy.as_json()},
            "seeds": list(self.seed_accuracies),
        }


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """Accuracy on the same test images by the number of training images."""

    points: tuple[LearningCurvePoint, ...]
    gain: Interval
    """Accuracy at the last size minus that at the one before, on the same test images."""
    accuracy_at_double: float | None
    """Accuracy at twice the images by a power law; None where none fits."""

    @classmethod
    def from_points(cls, points: Sequence[LearningCurvePoint]) -> "LearningCurve":
        """The curve through two or more points of rising size.

        The error at twice the last size follows error = a n^-b (Hestness et al. 2017), where three or more points
        are given, the fitted line passes within the interval of each, and b is above 0.
        """
        images = np.log([point.images for point in points])
        errors = np.array([1 - point.accuracy.value for point in points])
        doubled = None
        if len(points) >= 3 and errors.all():
            slope, start = np.polyfit(images, np.log(errors), 1)
            fitted = 1 - np.exp(start + slope * images)
            bounds = [(point.accuracy.low, point.accuracy.high) for point in points]
            if slope < 0 and all(low <= at <= high for (low, high), at in zip(bounds, fitted, strict=True)):
                doubled = float(1 - errors[-1] * 2**slope)
        return cls(tuple(points), paired_difference(points[-1].correct, points[-2].correct), doubled)

    @property
    def sentence(self) -> str:
        """Whether more images would help, as far as the curve can tell."""
        before, last = self.points[-2:]
        bounds = " to ".join(f"{edge * 100:+.1f}" for edge in (self.gain.low, self.gain.high))
        change = (
            f"From {before.images:,} to {last.images:,} training images, accuracy changed by "
            f"{self.gain.value * 100:+.1f} points (95 % interval: {bounds})"
        )
        if self.gain.low > 0:
            doubled = self.accuracy_at_double
            trend = f", to about {doubled:.1%} with twice as many if the trend held" if doubled else ""
            return f"{change}: more images of this kind, or longer training, would probably help{trend}."
        if self.gain.high < NEGLIGIBLE_GAIN:
            return f"{change}: more images of this kind would hardly help."
        return f"{change}: this test cannot tell whether more images would help."

    def as_json(self) -> dict[str, Any]:
        """``curve`` of learning_curve.json."""
        return {
            "sizes": [point.as_json() for point in self.points],
            "gain": self.gain.as_json(),
            "doubled": self.accuracy_at_double,
            "sentence": self.sentence,
        }


def learning_curve_run(
    run: Run, *, shares: Sequence[float] = LEARNING_CURVE_SHARES, seeds: int = 1
) -> LearningCurve:
    """Train by a run's recipe on nested, stratified shares of its training images, and test each on its test
    images.

    Every size is trained for the same number of epochs, so smaller sizes take fewer steps. The run itself is the
    last size's first seed. Finished trainings are saved in the run's ``learning_curve.json`` and not repeated.

    Args:
        run: a trained run with its images.
        shares: at least two, rising, above 0 and at most 1.
        seeds: trainings of each size.

    Raises RecipeError for a run that was not trained or for impossible shares, Interrupted when stopped.
    """
    labels = run.splits.train.labels
    if not run.recipe.epochs:
        raise RecipeError("This run was not trained (epochs = 0), so it has no learning curve.")
    if len(shares) < 2 or not all(0 < a < b <= 1 for a, b in pairwise(shares)) or seeds < 1:
        raise RecipeError("A learning curve needs at least two rising shares above 0 and up to 1, and a seed.")
    if len({len(nested_subset(labels, share, 0)) for share in shares}) < len(shares):
        raise RecipeError("There are too few training images for a learning curve: its sizes would be the same.")
    wanted = [(share, run.recipe.seed + i) for share in shares for i in range(seeds)]
    saved = _SavedTrainings(run)
    own = (1.0, run.recipe.seed)
    if own in wanted:
        saved.correct[own] = len(labels), predict_correct(run.classifier, run.splits.test)
    todo = [key for key in wanted if key not in saved.correct]
    if todo:
        seconds = sum(share for share, _ in todo) * float(run.facts.get("seconds") or 0)
        about = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{max(1, round(seconds))} seconds"
        times = "once" if len(todo) == 1 else f"{len(todo)} times"
        progress.notify(
            f"A learning curve trains {times}, about {about} in all. If stopped, the same command continues."
        )
    for number, (share, seed) in enumerate(todo, 1):
        progress.notify(f"Learning curve, training {number} of {len(todo)}: {share:.0%} of the training images.")
        saved.correct[share, seed] = _train_on_share(run, share, seed)
        saved.write()
    points = []
    for share in shares:
        trainings = [saved.correct[key] for key in wanted if key[0] == share]
        correct = np.mean([one for _, one in trainings], axis=0)
        accuracy = wilson(float(correct.sum()), len(correct))
        accuracies = tuple(float(one.mean()) for _, one in trainings)
        points.append(LearningCurvePoint(share, trainings[0][0], accuracy, correct, accuracies))
    curve = LearningCurve.from_points(points)
    saved.write(curve)
    return curve


def _train_on_share(run: Run, share: float, seed: int) -> tuple[int, Bool[ndarray, " N"]]:
    """Train on a share of the run's training images; their number, and which test images are then correct."""
    train = run.splits.train
    part = train.subset(nested_subset(train.labels, share, seed))
    recipe = run.recipe.replace(seed=seed, batch_size=max(2, min(run.recipe.batch_size or 2, len(part))))
    with (
        tempfile.TemporaryDirectory(prefix=".learning-curve-", dir=run.folder) as folder,
        explain_interruption("the learning curve", "Continue with: sightline evaluate RUN --learning-curve"),
    ):
        splits = replace(run.splits, train=part)
        try:
            trained = train_on_splits(splits, recipe, SilentRunFolder(Path(folder)), device=run.classifier.device)
        except TrainingError as error:  # its remedy is for a run folder that is deleted
            reason = str(error).partition(". ")[0]
            raise TrainingError(f"The run's recipe fails on {len(part):,} training images: {reason}.") from error
    return len(part), predict_correct(trained.classifier, run.splits.test)


class _SavedTrainings:
    """The finished trainings of a run's learning curve, by share and seed: images and which test images are
    correct.

    They hold for one recipe on one set of images; others in the file are ignored.
    """

    def __init__(self, run: Run) -> None:
        self.file = run.folder / LEARNING_CURVE_FILE
        words = run.recipe.to_toml() + run.splits.train.fingerprint
        self.key = hashlib.blake2b(words.encode(), digest_size=16).hexdigest()
        self.correct: dict[tuple[float, int], tuple[int, Bool[ndarray, " N"]]] = {}
        content = read_json_object(self.file)
        if content.get("key") == self.key:
            with suppress(ValueError):
                for row in content.get("trainings", ()):
                    correct = unpack_bits(row["right"], len(run.splits.test))
                    self.correct[row["share"], row["seed"]] = row["images"], correct

    def write(self, curve: LearningCurve | None = None) -> None:
        """Save the trainings and, once all are finished, the curve."""
        rows = [
            {
                "share": share,
                "seed": seed,
                "images": images,
                "accuracy": float(correct.mean()),
                "right": pack_bits(correct),
            }
            for (share, seed), (images, correct) in sorted(self.correct.items(), key=lambda item: item[0])
        ]
        summary = {} if curve is None else {"curve": curve.as_json()}
        write_json(self.file, {"key": self.key, "trainings": rows} | summary)
