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
from ..training.calibrate import logits_of
from ..types import Dataset
from .chain import Compressor, Made, Parent, called, carried_out, name_of, rehearsed
from .costs import NOISE, Weighed, race, weigh
from .heal import Healing

STRENGTHS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""How much is taken away: 0.05 to 0.95, mildest first."""


def _stronger_by(field: str) -> Callable[[Any, float], Compressor]:
    return lambda step, strength: replace(step, **{field: strength})


STRONGER: Mapping[str, Callable[[Any, float], Compressor]] = {
    "prune": _stronger_by("amount"),
    "channels": _stronger_by("amount"),
    "lowrank": lambda step, strength: replace(step, energy=None, budget=round(1 - strength, 2)),
}
"""Name of a compressor that has a strength -> the same, so strong."""

RATIOS: Mapping[str, Callable[[Weighed, Weighed, Dataset], float]] = {
    "latency": lambda original, small, images: race(original, small, images[np.arange(1)], 1).ratio.value,
    "size": lambda original, small, _: small.mb / original.mb,
    "parameters": lambda original, small, _: small.nonzero / original.nonzero,
    "multiply-adds": lambda original, small, _: small.multiply_adds / original.multiply_adds,
}
"""What can be aimed at -> the small classifier's over the original's: time for one image, file, numbers, work."""


@dataclass(frozen=True)
class Target:
    """What is wanted of the small classifier, as shares of the original's: all of them."""

    ratios: Mapping[str, float]

    @classmethod
    def of(cls, words: str | Sequence[str]) -> "Target":
        """From ``latency=0.5x`` and the like; ChoiceError for an unknown name, RecipeError for another form."""
        given = [words] if isinstance(words, str) else words
        return cls(dict(_ratio(word) for text in given for word in text.split(",")))

    def met(self, reached: Mapping[str, float]) -> bool:
        """Whether all of it is reached."""
        return all(reached[name] <= ratio for name, ratio in self.ratios.items())

    def __str__(self) -> str:
        return ", ".join(f"{name}={ratio:g}x" for name, ratio in self.ratios.items())


def _ratio(word: str) -> tuple[str, float]:
    name, equals, text = word.strip().partition("=")
    if equals and name not in RATIOS:
        raise ChoiceError(f"There is no target '{name}'. {suggest(name, RATIOS)}")
    number = re.fullmatch(r"(\d*\.?\d+)x", text)
    if number is None or not 0 < float(number[1]) < 1:
        raise RecipeError(f"'{word}' is no target: write a share of the original's, such as latency=0.5x.")
    return name, float(number[1])


@dataclass(frozen=True, eq=False)
class Candidate:
    """A chain that was carried out, and what it came to."""

    made: Made
    reached: Mapping[str, float]
    """Ratios to the original."""
    loss: float
    """Accuracy lost on validation; 0.01 is a point."""

    def within(self, allowance: float) -> bool:
        """Whether it lost no more than that."""
        return self.loss <= allowance + 1e-9  # a difference of two shares is not exact

    def as_json(self) -> dict[str, Any]:
        """What is told of it."""
        steps = [called(step) for step in self.made.steps]
        return {"steps": steps, "reached": dict(self.reached), "accuracy_lost": self.loss}


@dataclass(frozen=True, eq=False)
class Found:
    """What a search came to."""

    best: Candidate
    target: Target
    allowance: float
    tried: tuple[Candidate, ...]
    """All that were healed."""

    @property
    def met(self) -> bool:
        """Whether the target is reached within the allowance."""
        return self.target.met(self.best.reached) and self.best.within(self.allowance)

    def sentence(self) -> str:
        """What was wanted and what was reached."""
        came = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in self.best.reached.items())
        points = 0.0 - self.best.loss * 100  # no minus before nothing
        if self.met:
            return f"The target {self.target} is met: {came}, at {points:+.2f} points of accuracy on validation."
        most = f"{self.allowance * 100:g} point{'' if self.allowance == 0.01 else 's'} of accuracy"
        said = f"The target {self.target} is not met within {most} on validation"
        return f"{said}: the best reaches {came}, at {points:+.2f} points."

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "wanted": dict(self.target.ratios),
            "allowance": self.allowance,
            "met": self.met,
            **self.best.as_json(),
            "tried": [one.as_json() for one in self.tried],
            "sentence": self.sentence(),
        }


class Search:
    """Looks for the mildest strength that meets a target; where that costs too much, the strongest that does not.

    Sizes and speeds are known before healing, so the first is found without it, and one healing may do. What was
    tried is written down: going on takes the same way. Accuracy is asked of validation images only.
    """

    def __init__(
        self,
        parent: Parent,
        steps: Sequence[Compressor],
        target: Target,
        allowance: float,
        healing: Healing,
        place: Path,
    ) -> None:
        self.parent, self.steps, self.target, self.allowance = parent, steps, target, allowance
        self.healing, self.place = healing, place
        self.before = score(parent.classifier, parent.splits.val)
        self.known: dict[str, Any] = _read(place / "costs.json")
        self.original: Weighed | None = None

    def found(self) -> Found:
        """Heal as few candidates as it takes."""
        if not any(name_of(step) in STRONGER for step in self.steps):
            only = self._healed(self.steps)
            return Found(only, self.target, self.allowance, (only,))
        start = self._mildest()
        tried = [self._healed(self._at(start))]
        best = tried[0]
        low, high = 0, start - 1
        while low <= high and not tried[0].within(self.allowance):
            middle = (low + high) // 2
            tried.append(self._healed(self._at(middle)))
            if tried[-1].within(self.allowance):
                best, low = tried[-1], middle + 1
            else:
                high = middle - 1
        if not best.within(self.allowance):
            best = min(tried, key=lambda one: one.loss)
        return Found(best, self.target, self.allowance, tuple(tried))

    def _at(self, number: int) -> list[Compressor]:
        """The steps at one of the strengths."""
        wanted = STRENGTHS[number]
        return [
            STRONGER[name_of(step)](step, wanted) if name_of(step) in STRONGER else step for step in self.steps
        ]

    def _mildest(self) -> int:
        """Place of the mildest strength that meets the target, unhealed; of the strongest one where none does."""
        low, high = 0, len(STRENGTHS)
        with progress.bar("Looking for the strength", math.ceil(math.log2(high + 1))) as advance:
            while low < high:
                middle = (low + high) // 2
                reached = self._costs(middle)
                strong = reached is None or self.target.met({**reached, **_slower(reached)})
                low, high = (low, middle) if strong else (middle + 1, high)
                advance(note=f"{STRENGTHS[middle]:g}")
        place = min(low, len(STRENGTHS) - 1)
        while place and self._costs(place) is None:
            place -= 1
        return place

    def _costs(self, number: int) -> dict[str, float] | None:
        """Ratios of the steps at a strength, unhealed; None where so strong a step is refused."""
        steps = self._at(number)
        try:
            return self._once(steps, "unhealed", lambda: self._ratios(rehearsed(self.parent, steps)))
        except SightlineError:
            if not number:
                raise
            return None

    def _healed(self, steps: Sequence[Compressor]) -> Candidate:
        made = carried_out(self.parent, steps, self.healing, self.place)
        reached = self._once(steps, "healed", lambda: self._ratios(made.classifier))
        return Candidate(made, reached, self.before - score(made.classifier, self.parent.splits.val))

    def _once(
        self, steps: Sequence[Compressor], what: str, measure: Callable[[], dict[str, float]]
    ) -> dict[str, float]:
        """What was measured of these steps: once, because the clock never says the same twice."""
        key = f"{','.join(map(called, steps))} {what}"
        if key not in self.known:
            self.known[key] = measure()
            write_json(self.place / "costs.json", self.known)
        return self.known[key]

    def _ratios(self, small: Classifier) -> dict[str, float]:
        """How a classifier compares with the original in what is aimed at."""
        if self.original is None:
            self.original = self._weighed(self.parent.classifier)
        weighed = self._weighed(small)
        return {name: RATIOS[name](self.original, weighed, self.parent.splits.val) for name in self.target.ratios}

    def _weighed(self, classifier: Classifier) -> Weighed:
        with TemporaryDirectory() as folder:
            export = bool({"latency", "size"} & set(self.target.ratios))
            return weigh(classifier, Path(folder), "classifier", export=export)


def _slower(reached: Mapping[str, float]) -> dict[str, float]:
    """The time as it may be when it is measured again."""
    return {name: ratio * (1 + NOISE) for name, ratio in reached.items() if name == "latency"}


def score(classifier: Classifier, images: Dataset) -> float:
    """Accuracy, as a search asks it of validation images."""
    logits, labels = logits_of(classifier, images)
    return float((logits.argmax(1) == labels).double().mean())


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
