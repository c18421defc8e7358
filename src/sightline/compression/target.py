"""Targets: the mildest compression that reaches a size or a speed, and the strongest that keeps the accuracy."""

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
from ..choose import suggest
from ..classifier import Classifier
from ..errors import ChoiceError, RecipeError, SightlineError
from ..files import write_json
from ..inference import predict_logits
from ..types import Dataset
from .comparison import LATENCY_TOLERANCE, Profile, profile, time_pair
from .compressor import Compressor, Original
from .fine_tuning import FineTuning
from .pipeline import PipelineResult, dry_run, run_pipeline

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
    """Accuracy on validation images."""
    logits, labels = predict_logits(classifier, images)
    return float((logits.argmax(1) == labels).double().mean())
