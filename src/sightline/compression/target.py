"""How strong compression must be to reach a size or a speed, and how strong it may be to stay accurate."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from .fine_tuning import FineTuning
from .pipeline import Compressor, Original, PipelineResult, compressor_name, dry_run, format_step, run_pipeline
from .profiling import LATENCY_TOLERANCE, Profile, profile, time_pair

STRENGTHS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""How much is taken away: 0.05 to 0.95, mildest first."""


def _strength_setter(field: str) -> Callable[[Any, float], Compressor]:
    return lambda step, strength: replace(step, **{field: strength})


STRENGTH_SETTERS: Mapping[str, Callable[[Any, float], Compressor]] = {
    "prune": _strength_setter("amount"),
    "channels": _strength_setter("amount"),
    "lowrank": lambda step, strength: replace(step, energy=None, budget=round(1 - strength, 2)),
}
"""Name of a compressor that has a strength -> the same, so strong."""

TARGET_RATIOS: Mapping[str, Callable[[Profile, Profile, Dataset], float]] = {
    "latency": lambda original, small, images: time_pair(original, small, images[np.arange(1)], 1).ratio.value,
    "size": lambda original, small, _: small.size_mb / original.size_mb,
    "parameters": lambda original, small, _: small.nonzero / original.nonzero,
    "multiply-adds": lambda original, small, _: small.multiply_adds / original.multiply_adds,
}
"""What can be aimed at -> the small classifier's over the original's: time for one image, file, numbers, work."""


@dataclass(frozen=True)
class Target:
    """What is wanted of the small classifier, as shares of the original's: all of them."""

    ratios: Mapping[str, float]

    @classmethod
    def parse(cls, words: str | Sequence[str]) -> "Target":
        """From ``latency=0.5x`` and the like; ChoiceError for an unknown name, RecipeError for another form."""
        given = [words] if isinstance(words, str) else words
        return cls(dict(_parse_ratio(word) for text in given for word in text.split(",")))

    def is_met(self, reached: Mapping[str, float]) -> bool:
        """Whether all of it is reached."""
        return all(reached[name] <= ratio for name, ratio in self.ratios.items())

    def __str__(self) -> str:
        return ", ".join(f"{name}={ratio:g}x" for name, ratio in self.ratios.items())


def _parse_ratio(word: str) -> tuple[str, float]:
    name, equals, text = word.strip().partition("=")
    if equals and name not in TARGET_RATIOS:
        raise ChoiceError(f"There is no target '{name}'. {suggest(name, TARGET_RATIOS)}")
    number = re.fullmatch(r"(\d*\.?\d+)x", text)
    if number is None or not 0 < float(number[1]) < 1:
        raise RecipeError(f"'{word}' is no target: write a share of the original's, such as latency=0.5x.")
    return name, float(number[1])


@dataclass(frozen=True, eq=False)
class CompressionCandidate:
    """A chain that was carried out, and what it came to."""

    result: PipelineResult
    ratios: Mapping[str, float]
    """Ratios to the original."""
    accuracy_drop: float
    """Accuracy lost on validation; 0.01 is a point."""

    def is_within(self, allowance: float) -> bool:
        """Whether it lost no more than that."""
        return self.accuracy_drop <= allowance + 1e-9  # a difference of two shares is not exact

    def as_json(self) -> dict[str, Any]:
        """What is told of it."""
        steps = [format_step(step) for step in self.result.steps]
        return {"steps": steps, "reached": dict(self.ratios), "accuracy_lost": self.accuracy_drop}


@dataclass(frozen=True, eq=False)
class TargetSearchResult:
    """What a search came to."""

    best: CompressionCandidate
    target: Target
    allowance: float
    candidates: tuple[CompressionCandidate, ...]
    """All that were healed."""

    @property
    def is_met(self) -> bool:
        """Whether the target is reached within the allowance."""
        return self.target.is_met(self.best.ratios) and self.best.is_within(self.allowance)

    def sentence(self) -> str:
        """What was wanted and what was reached."""
        came = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in self.best.ratios.items())
        points = 0.0 - self.best.accuracy_drop * 100  # no minus before nothing
        if self.is_met:
            return f"The target {self.target} is met: {came}, at {points:+.2f} points of accuracy on validation."
        most = f"{self.allowance * 100:g} point{'' if self.allowance == 0.01 else 's'} of accuracy"
        said = f"The target {self.target} is not met within {most} on validation"
        return f"{said}: the best reaches {came}, at {points:+.2f} points."

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "wanted": dict(self.target.ratios),
            "allowance": self.allowance,
            "met": self.is_met,
            **self.best.as_json(),
            "tried": [one.as_json() for one in self.candidates],
            "sentence": self.sentence(),
        }


class TargetSearch:
    """Looks for the mildest strength that meets a target; where that costs too much, the strongest that does not.

    Sizes and speeds are known before healing, so the first is found without it, and one healing may do. What was
    tried is written down: going on takes the same way. Accuracy is asked of validation images only.
    """

    def __init__(
        self,
        parent: Original,
        steps: Sequence[Compressor],
        target: Target,
        allowance: float,
        healing: FineTuning,
        place: Path,
    ) -> None:
        self.parent, self.steps, self.target, self.allowance = parent, steps, target, allowance
        self.healing, self.place = healing, place
        self.before = validation_accuracy(parent.classifier, parent.splits.val)
        self.known: dict[str, Any] = _read_json(place / "costs.json")
        self.original: Profile | None = None

    def run(self) -> TargetSearchResult:
        """Heal as few candidates as it takes."""
        if not any(compressor_name(step) in STRENGTH_SETTERS for step in self.steps):
            only = self._fine_tuned_candidate(self.steps)
            return TargetSearchResult(only, self.target, self.allowance, (only,))
        start = self._mildest_strength()
        tried = [self._fine_tuned_candidate(self._steps_at(start))]
        best = tried[0]
        low, high = 0, start - 1
        while low <= high and not tried[0].is_within(self.allowance):
            middle = (low + high) // 2
            tried.append(self._fine_tuned_candidate(self._steps_at(middle)))
            if tried[-1].is_within(self.allowance):
                best, low = tried[-1], middle + 1
            else:
                high = middle - 1
        if not best.is_within(self.allowance):
            best = min(tried, key=lambda one: one.accuracy_drop)
        return TargetSearchResult(best, self.target, self.allowance, tuple(tried))

    def _steps_at(self, number: int) -> list[Compressor]:
        """The steps at one of the strengths."""
        wanted = STRENGTHS[number]
        return [
            STRENGTH_SETTERS[compressor_name(step)](step, wanted)
            if compressor_name(step) in STRENGTH_SETTERS
            else step
            for step in self.steps
        ]

    def _mildest_strength(self) -> int:
        """Place of the mildest strength that meets the target, unhealed; of the strongest one where none does."""
        low, high = 0, len(STRENGTHS)
        with progress.progress_bar("Looking for the strength", math.ceil(math.log2(high + 1))) as advance:
            while low < high:
                middle = (low + high) // 2
                reached = self._dry_run_ratios(middle)
                strong = reached is None or self.target.is_met({**reached, **_with_latency_tolerance(reached)})
                low, high = (low, middle) if strong else (middle + 1, high)
                advance(note=f"{STRENGTHS[middle]:g}")
        place = min(low, len(STRENGTHS) - 1)
        while place and self._dry_run_ratios(place) is None:
            place -= 1
        return place

    def _dry_run_ratios(self, number: int) -> dict[str, float] | None:
        """Ratios of the steps at a strength, unhealed; None where so strong a step is refused."""
        steps = self._steps_at(number)
        try:
            return self._cached(steps, "unhealed", lambda: self._measure_ratios(dry_run(self.parent, steps)))
        except SightlineError:
            if not number:
                raise
            return None

    def _fine_tuned_candidate(self, steps: Sequence[Compressor]) -> CompressionCandidate:
        made = run_pipeline(self.parent, steps, self.healing, self.place)
        reached = self._cached(steps, "healed", lambda: self._measure_ratios(made.classifier))
        return CompressionCandidate(
            made, reached, self.before - validation_accuracy(made.classifier, self.parent.splits.val)
        )

    def _cached(
        self, steps: Sequence[Compressor], what: str, measure: Callable[[], dict[str, float]]
    ) -> dict[str, float]:
        """What was measured of these steps: once, because the clock never says the same twice."""
        key = f"{','.join(map(format_step, steps))} {what}"
        if key not in self.known:
            self.known[key] = measure()
            write_json(self.place / "costs.json", self.known)
        return self.known[key]

    def _measure_ratios(self, small: Classifier) -> dict[str, float]:
        """How a classifier compares with the original in what is aimed at."""
        if self.original is None:
            self.original = self._profile(self.parent.classifier)
        weighed = self._profile(small)
        return {
            name: TARGET_RATIOS[name](self.original, weighed, self.parent.splits.val)
            for name in self.target.ratios
        }

    def _profile(self, classifier: Classifier) -> Profile:
        with TemporaryDirectory() as folder:
            export = bool({"latency", "size"} & set(self.target.ratios))
            return profile(classifier, Path(folder), "classifier", export=export)


def _with_latency_tolerance(reached: Mapping[str, float]) -> dict[str, float]:
    """The time as it may be when it is measured again."""
    return {name: ratio * (1 + LATENCY_TOLERANCE) for name, ratio in reached.items() if name == "latency"}


def validation_accuracy(classifier: Classifier, images: Dataset) -> float:
    """Accuracy, as a search asks it of validation images."""
    logits, labels = predict_logits(classifier, images)
    return float((logits.argmax(1) == labels).double().mean())


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
