"""Compressors one after the other, each fine-tuned before the next, and the search that meets a target."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .. import progress
from ..choose import choose, suggest
from ..classifier import Classifier
from ..errors import ChoiceError, DataError, RecipeError, SightlineError
from ..files import explain_write_errors, write_json, write_text
from ..inference import predict_logits
from ..training import Recipe, SilentRunFolder, resolve
from ..types import Dataset
from .comparison import LATENCY_TOLERANCE, Profile, profile, time_pair
from .compressor import Compressor, FineTuning, Original, fine_tune, with_execution_plan


def parse_steps(
    family: Mapping[str, Callable[..., Compressor]], by: str | Compressor | Sequence[str | Compressor]
) -> list[Compressor]:
    """See ``compression.parse_compressors``."""
    steps: list[Compressor] = []
    for one in [by] if isinstance(by, str) or not isinstance(by, Sequence) else by:
        # int8:heals= is the name of int8:fine_tune= in earlier releases
        words = one.replace(":heals=", ":fine_tune=").split(",") if isinstance(one, str) else [one]
        steps += [choose(family, word, "compressor") for word in words if word != ""]
    if not steps:
        raise ChoiceError(f"Say how to compress: --by {', '.join(family)}, or several joined by commas.")
    names = [step.name for step in steps]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ChoiceError(f"'{twice}' is named twice: name it once, with a larger amount.")
    if late := next((step.name for step in steps[1:] if step.fresh), None):
        raise ChoiceError(f"'{late}' makes a new network, so the steps before it would be lost: name it first.")
    return steps


@dataclass(frozen=True, eq=False)
class PipelineResult:
    """The last classifier of a pipeline, and what each step did."""

    steps: tuple[Compressor, ...]
    classifier: Classifier
    recipe: Recipe
    """The recipe of the last training; of 0 epochs where no step was trained."""
    model: str | None
    """The network's word in the recipe of a step with new weights; None where the network is still the
    original's."""
    facts: tuple[Mapping[str, Any], ...]
    """For each step ``step``, ``notes``, and the values of ``training.json``."""
    folder: Path
    """The work folder of the last training."""


def dry_run(original: Original, steps: Sequence[Compressor]) -> Classifier:
    """Apply every step without fine-tuning: in seconds it shows what is refused and what the result costs."""
    classifier = original.classifier
    for step in steps:
        classifier = step(classifier, original.splits)
    return classifier


def run_pipeline(
    original: Original, steps: Sequence[Compressor], settings: FineTuning, folder: Path
) -> PipelineResult:
    """Apply every step, each fine-tuned before the next; a step that is finished in ``folder`` is read back."""
    classifier, model, last, facts = original.classifier, None, None, []
    for count, step in enumerate(steps, 1):
        digest = hashlib.blake2b("\n".join(map(repr, steps[:count])).encode(), digest_size=6).hexdigest()
        classifier, recipe, found = _run_step(classifier, step, original, settings, folder / digest)
        facts.append(found)
        if step.fresh:
            model = recipe.model
        if last is None or recipe.epochs:
            last = recipe, folder / digest
    assert last is not None
    return PipelineResult(tuple(steps), classifier, last[0], model, tuple(facts), last[1])


def _run_step(
    before: Classifier, step: Compressor, original: Original, settings: FineTuning, folder: Path
) -> tuple[Classifier, Recipe, dict[str, Any]]:
    """Apply one step and fine-tune it: (classifier, the recipe of its training, facts).

    The changed classifier (``begun``), the recipe, the checkpoint and the result (``done``) are written as they
    come, so that an interrupted step continues exactly.
    """
    device, train = before.device, original.splits.train
    if (folder / "done").is_dir():
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        return Classifier.load(folder / "done").to(device), Recipe.from_toml(folder / "recipe.toml"), facts
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if (folder / "begun").is_dir():
        changed = Classifier.load(folder / "begun").to(device)
    else:
        changed = step(before, original.splits)
        changed.save(folder / "begun")
    known = (folder / "recipe.toml").is_file()
    recipe = Recipe.from_toml(folder / "recipe.toml") if known else step.training(original, settings)
    objective = step.objective(original, resolve(recipe).fit_to(train).objective)
    if not known:
        recipe = with_execution_plan(recipe, changed, original.splits, objective)
        write_text(folder / "recipe.toml", recipe.to_toml())
    what = "training a new network" if step.fresh else "fine-tuning"
    passes = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    plan = f"{what} for {passes} on {len(train):,} images (--epochs)" if recipe.epochs else "no training follows"
    progress.notify(f"{step.word()}: {plan}.")
    tuned = fine_tune(
        changed, original.splits, recipe, SilentRunFolder(folder), objective=objective, fresh=step.fresh
    )
    facts = {"step": step.word(), "notes": [*tuned.notes], **tuned.facts}
    write_json(folder / "facts.json", facts)
    tuned.classifier.save(folder / "done")
    return tuned.classifier, recipe, facts


STRENGTHS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Shares to remove that a search tries: 0.05 to 0.95, mildest first."""

TARGET_RATIOS: Mapping[str, Callable[[Profile, Profile, Dataset], float]] = {
    "latency": lambda original, small, images: time_pair(original, small, images[np.arange(1)], 1).ratio.value,
    "size": lambda original, small, _: small.size_mb / original.size_mb,
    "parameters": lambda original, small, _: small.nonzero / original.nonzero,
    "multiply-adds": lambda original, small, _: small.multiply_adds / original.multiply_adds,
}
"""Word of ``--target`` -> ``(original, small, images) -> ratio``: of the time for one image, the file, the nonzero
parameters, the multiply-adds."""


@dataclass(frozen=True)
class Target:
    """Ratios to the original that the small classifier must reach, all of them."""

    ratios: Mapping[str, float]

    @classmethod
    def parse(cls, words: str | Sequence[str]) -> "Target":
        """From words such as ``latency=0.5x``; ChoiceError for an unknown name, RecipeError for another form."""
        ratios = {}
        for word in ",".join([words] if isinstance(words, str) else words).split(","):
            name, equals, text = word.strip().partition("=")
            if equals and name not in TARGET_RATIOS:
                raise ChoiceError(f"There is no target '{name}'. {suggest(name, TARGET_RATIOS)}")
            number = re.fullmatch(r"(\d*\.?\d+)x", text)
            if number is None or not 0 < float(number[1]) < 1:
                raise RecipeError(f"'{word}' is no target: write a share of the original's, such as latency=0.5x.")
            ratios[name] = float(number[1])
        return cls(ratios)

    def is_met(self, reached: Mapping[str, float]) -> bool:
        """Whether all ratios are reached."""
        return all(reached[name] <= ratio for name, ratio in self.ratios.items())

    def __str__(self) -> str:
        return ", ".join(f"{name}={ratio:g}x" for name, ratio in self.ratios.items())


@dataclass(frozen=True, eq=False)
class CompressionCandidate:
    """A pipeline that was run, and what it reached."""

    result: PipelineResult
    ratios: Mapping[str, float]
    """To the original, by target."""
    accuracy_drop: float
    """On validation; 0.01 is a percentage point."""

    def is_within(self, max_accuracy_drop: float) -> bool:
        """Whether the accuracy drop is allowed."""
        return self.accuracy_drop <= max_accuracy_drop + 1e-9  # a difference of two shares is not exact

    def as_json(self) -> dict[str, Any]:
        """Steps, ratios and accuracy drop."""
        steps = [step.word() for step in self.result.steps]
        return {"steps": steps, "reached": dict(self.ratios), "accuracy_drop": self.accuracy_drop}


@dataclass(frozen=True, eq=False)
class TargetSearchResult:
    """The best candidate of a search, and all of them."""

    best: CompressionCandidate
    target: Target
    max_accuracy_drop: float
    candidates: tuple[CompressionCandidate, ...]
    """All that were fine-tuned."""

    @property
    def is_met(self) -> bool:
        """Whether the best one reaches the target within the allowed accuracy drop."""
        return self.target.is_met(self.best.ratios) and self.best.is_within(self.max_accuracy_drop)

    def sentence(self) -> str:
        """The target and what was reached, in words."""
        reached = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in self.best.ratios.items())
        points = 0.0 - self.best.accuracy_drop * 100  # no minus sign before zero
        if self.is_met:
            return (
                f"The target {self.target} is met: {reached}, at {points:+.2f} points of accuracy on validation."
            )
        most = f"{self.max_accuracy_drop * 100:g} point{'' if self.max_accuracy_drop == 0.01 else 's'} of accuracy"
        return (
            f"The target {self.target} is not met within {most} on validation: the best reaches {reached}, at "
            f"{points:+.2f} points."
        )

    def as_json(self) -> dict[str, Any]:
        """The ``target`` of ``compression.json``."""
        return {
            "wanted": dict(self.target.ratios),
            "max_accuracy_drop": self.max_accuracy_drop,
            "met": self.is_met,
            **self.best.as_json(),
            "tried": [one.as_json() for one in self.candidates],
            "sentence": self.sentence(),
        }


class TargetSearch:
    """Finds the mildest strength that meets a target; where that costs too much accuracy, the strongest that does
    not.

    Sizes and speeds are known before fine-tuning, so the mildest strength is found without it, and one fine-tuning
    may do. Measured ratios are saved in ``folder``, so an interrupted search continues on the same path. Accuracy
    is measured on validation images only.
    """

    def __init__(
        self,
        original: Original,
        steps: Sequence[Compressor],
        target: Target,
        max_accuracy_drop: float,
        settings: FineTuning,
        folder: Path,
    ) -> None:
        self.original, self.steps, self.target, self.settings = original, steps, target, settings
        self.max_accuracy_drop, self.folder = max_accuracy_drop, folder
        self.accuracy = validation_accuracy(original.classifier, original.splits.val)
        costs = folder / "costs.json"
        self.measured: dict[str, Any] = json.loads(costs.read_text(encoding="utf-8")) if costs.is_file() else {}
        self.profile: Profile | None = None

    def run(self) -> TargetSearchResult:
        """Fine-tune as few candidates as it takes."""
        if all(step.at_strength(STRENGTHS[0]) is None for step in self.steps):
            only = self._fine_tuned_candidate(self.steps)
            return TargetSearchResult(only, self.target, self.max_accuracy_drop, (only,))
        start = self._mildest_strength()
        tried = [self._fine_tuned_candidate(self._steps_at(start))]
        best = tried[0]
        low, high = 0, start - 1
        while low <= high and not tried[0].is_within(self.max_accuracy_drop):
            middle = (low + high) // 2
            tried.append(self._fine_tuned_candidate(self._steps_at(middle)))
            if tried[-1].is_within(self.max_accuracy_drop):
                best, low = tried[-1], middle + 1
            else:
                high = middle - 1
        if not best.is_within(self.max_accuracy_drop):
            best = min(tried, key=lambda one: one.accuracy_drop)
        return TargetSearchResult(best, self.target, self.max_accuracy_drop, tuple(tried))

    def _steps_at(self, number: int) -> list[Compressor]:
        """The steps at one of the strengths; those without a strength are unchanged."""
        return [step.at_strength(STRENGTHS[number]) or step for step in self.steps]

    def _mildest_strength(self) -> int:
        """Index of the mildest strength that meets the target before fine-tuning, else of the strongest."""
        low, high = 0, len(STRENGTHS)
        with progress.progress_bar("Looking for the strength", math.ceil(math.log2(high + 1))) as advance:
            while low < high:
                middle = (low + high) // 2
                reached = self._dry_run_ratios(middle)
                if reached is not None and "latency" in reached:  # it may take longer when it is timed again
                    reached = {**reached, "latency": reached["latency"] * (1 + LATENCY_TOLERANCE)}
                enough = reached is None or self.target.is_met(reached)
                low, high = (low, middle) if enough else (middle + 1, high)
                advance(note=f"{STRENGTHS[middle]:g}")
        place = min(low, len(STRENGTHS) - 1)
        while place and self._dry_run_ratios(place) is None:
            place -= 1
        return place

    def _dry_run_ratios(self, number: int) -> dict[str, float] | None:
        """Ratios at a strength before fine-tuning; None where a step refuses so large a strength."""
        steps = self._steps_at(number)
        try:
            return self._cached(steps, "dry run", lambda: self._measure_ratios(dry_run(self.original, steps)))
        except SightlineError:
            if not number:
                raise
            return None

    def _fine_tuned_candidate(self, steps: Sequence[Compressor]) -> CompressionCandidate:
        result = run_pipeline(self.original, steps, self.settings, self.folder)
        ratios = self._cached(steps, "fine-tuned", lambda: self._measure_ratios(result.classifier))
        accuracy = validation_accuracy(result.classifier, self.original.splits.val)
        return CompressionCandidate(result, ratios, self.accuracy - accuracy)

    def _cached(
        self, steps: Sequence[Compressor], stage: str, measure: Callable[[], dict[str, float]]
    ) -> dict[str, float]:
        """The ratios of these steps, measured once: times differ from one measurement to the next."""
        key = f"{','.join(step.word() for step in steps)} {stage}"
        if key not in self.measured:
            self.measured[key] = measure()
            write_json(self.folder / "costs.json", self.measured)
        return self.measured[key]

    def _measure_ratios(self, small: Classifier) -> dict[str, float]:
        """Ratios to the original, of what the target names."""
        if self.profile is None:
            self.profile = self._profile(self.original.classifier)
        found = self._profile(small)
        return {
            name: TARGET_RATIOS[name](self.profile, found, self.original.splits.val) for name in self.target.ratios
        }

    def _profile(self, classifier: Classifier) -> Profile:
        with TemporaryDirectory() as folder:
            export = bool({"latency", "size"} & set(self.target.ratios))
            return profile(classifier, Path(folder), "classifier", export=export)


def validation_accuracy(classifier: Classifier, images: Dataset) -> float:
    """Accuracy on validation images; DataError where there are none."""
    if not len(images):
        raise DataError("This run has no validation images to search by: train it with --val-fraction 0.2.")
    logits, labels = predict_logits(classifier, images)
    return float((logits.argmax(1) == labels).double().mean())
