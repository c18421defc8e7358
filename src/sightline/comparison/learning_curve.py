"""What more images would bring: the run's own recipe on growing shares of its training images."""

import base64
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from .. import progress
from ..data import nested_subset
from ..errors import Interrupted, RecipeError, TrainingError
from ..files import write_json
from ..inference import predict_correct
from ..metrics import paired_difference, wilson
from ..training import Run, SilentRunFolder, train_on_splits
from ..types import Interval

LEARNING_CURVE_SHARES = (0.1, 0.25, 0.5, 1.0)
"""Of the training images."""

LEARNING_CURVE_FILE = "learning_curve.json"
NEGLIGIBLE_GAIN = 0.005
"""A gain that is surely below half a point is none to speak of."""


@dataclass(frozen=True, eq=False)
class LearningCurvePoint:
    """What training on so many images gave."""

    share: float
    images: int
    accuracy: Interval
    """Mean over the seeds, with Wilson's interval for the test images."""
    correct: Float[ndarray, " N"]
    """For each test image, the share of the seeds that answered it rightly."""
    seed_accuracies: tuple[float, ...]
    """Accuracy of each training."""


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """Accuracy on the same test images by the number of training images."""

    points: tuple[LearningCurvePoint, ...]
    gain: Interval
    """Accuracy at the last size less that at the one before, on the same test images."""
    accuracy_at_double: float | None
    """Accuracy at twice the images, where error falls as a power of their number; None where it does not."""

    @property
    def sentence(self) -> str:
        """Whether more images would help, as far as this can tell."""
        before, last = self.points[-2:]
        change = " to ".join(f"{edge * 100:+.1f}" for edge in (self.gain.low, self.gain.high))
        said = (
            f"From {before.images:,} to {last.images:,} training images, accuracy changed by "
            f"{self.gain.value * 100:+.1f} points (95 % interval: {change})"
        )
        if self.gain.low > 0:
            more = (
                f", to about {self.accuracy_at_double:.1%} with twice as many if the trend held"
                if self.accuracy_at_double
                else ""
            )
            return f"{said}: more images of this kind, or longer training, would probably help{more}."
        if self.gain.high < NEGLIGIBLE_GAIN:
            return f"{said}: more images of this kind would hardly help."
        return f"{said}: this test cannot tell whether more images would help."

    def as_json(self) -> dict[str, Any]:
        """The curve and what it says, for the report."""
        return {
            "sizes": [
                {
                    "share": size.share,
                    "images": size.images,
                    "accuracy": size.accuracy.value,
                    "intervals": {"accuracy": size.accuracy.as_json()},
                    "seeds": list(size.seed_accuracies),
                }
                for size in self.points
            ],
            "gain": self.gain.as_json(),
            "doubled": self.accuracy_at_double,
            "sentence": self.sentence,
        }


def learning_curve_run(
    run: Run, *, shares: Sequence[float] = LEARNING_CURVE_SHARES, seeds: int = 1
) -> LearningCurve:
    """Train by the run's recipe on growing, nested, stratified shares of its training images; test each the same.

    Same epochs at every size, so smaller sizes take fewer steps, as they would in a user's hands; same validation
    and test images. The run itself is the last size's first seed. Each training is kept in the run's
    ``learning_curve.json`` when it is done: what is there is not repeated. Raises RecipeError for a run that was
    not trained or shares that do not rise to at least two sizes, Interrupted when stopped.
    """
    _check_shares(run, shares, seeds)
    wanted = [(share, run.recipe.seed + i) for share in shares for i in range(seeds)]
    done = _read_trainings(run)
    own = (1.0, run.recipe.seed)
    if own in wanted:
        done[own] = _SavedTraining(len(run.splits.train), predict_correct(run.classifier, run.splits.test))
    todo = [key for key in wanted if key not in done]
    _announce_trainings(run, todo)
    for number, (share, seed) in enumerate(todo, 1):
        progress.notify(f"Learning curve, training {number} of {len(todo)}: {share:.0%} of the training images.")
        done[share, seed] = _train_on_share(run, share, seed)
        _write_cache(run, done)
    sizes = [_summarise_point(share, [done[key] for key in wanted if key[0] == share]) for share in shares]
    curve = _summarise_curve(sizes)
    _write_cache(run, done, curve)
    return curve


def read_learning_curve(run: Run) -> dict[str, Any] | None:
    """What the report says of a finished curve of this very run; None where there is none."""
    return _read_cache(run).get("curve")


def _check_shares(run: Run, shares: Sequence[float], seeds: int) -> None:
    if not run.recipe.epochs:
        raise RecipeError("This run was not trained (epochs = 0), so it has no learning curve.")
    rising = all(0 < a < b <= 1 for a, b in pairwise(shares))
    if len(shares) < 2 or not rising or seeds < 1:
        raise RecipeError("A learning curve needs at least two rising shares above 0 and up to 1, and a seed.")
    if len({len(nested_subset(run.splits.train.labels, share, 0)) for share in shares}) < len(shares):
        raise RecipeError("There are too few training images for a learning curve: its sizes would be the same.")


def _announce_trainings(run: Run, todo: Sequence[tuple[float, int]]) -> None:
    """Say what it will cost, from what the run's own training took."""
    seconds = float(run.facts.get("seconds") or 0)
    total = sum(share for share, _ in todo) * seconds
    if todo:
        about = f"about {total / 60:.0f} minutes" if total >= 90 else f"about {max(1, round(total))} seconds"
        times = "once" if len(todo) == 1 else f"{len(todo)} times"
        progress.notify(f"A learning curve trains {times}, {about} in all; stop and go on as you like.")


@dataclass(frozen=True, eq=False)
class _SavedTraining:
    """One training, as it is kept."""

    images: int
    correct: Bool[ndarray, " N"]


def _train_on_share(run: Run, share: float, seed: int) -> _SavedTraining:
    """Train on one share; test."""
    train = run.splits.train
    part = train.subset(nested_subset(train.labels, share, seed))
    size = max(2, min(run.recipe.batch_size or 2, len(part)))
    recipe = run.recipe.replace(seed=seed, batch_size=size)
    with (
        tempfile.TemporaryDirectory(prefix=".learning-curve-", dir=run.folder) as folder,
        _explain_errors(len(part)),
    ):
        splits = replace(run.splits, train=part)
        trained = train_on_splits(splits, recipe, SilentRunFolder(Path(folder)), device=run.classifier.device)
    return _SavedTraining(len(part), predict_correct(trained.classifier, run.splits.test))


@contextmanager
def _explain_errors(images: int) -> Iterator[None]:
    """Training's own messages name a folder that is gone by then."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(
            "Stopped; the trainings that are done are kept. Go on with the same command: "
            "sightline evaluate RUN --learning-curve"
        ) from error
    except TrainingError as error:
        reason = str(error).partition(". ")[0]
        raise TrainingError(f"The run's recipe fails on {images:,} training images: {reason}.") from error


def _summarise_point(share: float, trainings: Sequence[_SavedTraining]) -> LearningCurvePoint:
    right = np.mean([one.correct for one in trainings], axis=0)
    accuracy = wilson(float(right.sum()), len(right))
    return LearningCurvePoint(
        share, trainings[0].images, accuracy, right, tuple(float(one.correct.mean()) for one in trainings)
    )


def _summarise_curve(sizes: Sequence[LearningCurvePoint]) -> LearningCurve:
    last, before = sizes[-1], sizes[-2]
    return LearningCurve(
        tuple(sizes), paired_difference(last.correct, before.correct), _extrapolate_to_double(sizes)
    )


def _extrapolate_to_double(sizes: Sequence[LearningCurvePoint]) -> float | None:
    """Accuracy at twice the last size by error = a n^-b, where that fits 3 or more sizes (Hestness et al. 2017).

    It fits where its line, in logarithms, passes within each size's interval; b must be above 0.
    """
    images = np.log([size.images for size in sizes])
    errors = np.array([1 - size.accuracy.value for size in sizes])
    if len(sizes) < 3 or not errors.all():
        return None
    slope, start = np.polyfit(images, np.log(errors), 1)
    fitted = 1 - np.exp(start + slope * images)
    inside = all(size.accuracy.low <= at <= size.accuracy.high for size, at in zip(sizes, fitted, strict=True))
    return float(1 - errors[-1] * 2**slope) if inside and slope < 0 else None


def _cache_key(run: Run) -> str:
    """What a kept training holds for: this recipe on these images."""
    words = run.recipe.to_toml() + run.splits.train.fingerprint
    return hashlib.blake2b(words.encode(), digest_size=16).hexdigest()


def _read_cache(run: Run) -> Mapping[str, Any]:
    """The file, where there is one of this very run."""
    with suppress(OSError, ValueError):
        content = json.loads((run.folder / LEARNING_CURVE_FILE).read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("key") == _cache_key(run):
            return content
    return {}


def _read_trainings(run: Run) -> dict[tuple[float, int], _SavedTraining]:
    """The trainings done before, by share and seed."""
    n, found = len(run.splits.test), {}
    for row in _read_cache(run).get("trainings", ()):
        bits = np.unpackbits(np.frombuffer(base64.b64decode(row["right"]), np.uint8), count=n)
        found[row["share"], row["seed"]] = _SavedTraining(row["images"], bits.astype(bool))
    return found


def _write_cache(
    run: Run, done: Mapping[tuple[float, int], _SavedTraining], curve: LearningCurve | None = None
) -> None:
    rows = [
        {
            "share": share,
            "seed": seed,
            "images": one.images,
            "accuracy": float(one.correct.mean()),
            "right": base64.b64encode(np.packbits(one.correct).tobytes()).decode("ascii"),
        }
        for (share, seed), one in sorted(done.items())
    ]
    summary = {} if curve is None else {"curve": curve.as_json()}
    write_json(run.folder / LEARNING_CURVE_FILE, {"key": _cache_key(run), "trainings": rows} | summary)
