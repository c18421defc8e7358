"""Requirements such as ``accuracy=0.98 ece=0.02``, checked against the measurements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..choose import suggest
from ..errors import ChoiceError, RecipeError
from .formatting import METRIC_LABELS, format_metric


@dataclass(frozen=True)
class Verdict:
    """One requirement and whether it is met."""

    metric: str
    wanted: float
    lower: bool
    """Whether lower is better."""
    value: float | None
    """None if it was not measured."""
    low: float | None = None
    high: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether the measured value meets the requirement."""
        if self.value is None:
            return False
        return self.value <= self.wanted if self.lower else self.value >= self.wanted

    @property
    def is_conclusive(self) -> bool:
        """Whether the whole interval lies on one side of the required value."""
        if self.low is None or self.high is None:
            return True
        good = (self.high <= self.wanted, self.low > self.wanted)
        return any(good) if self.lower else self.low >= self.wanted or self.high < self.wanted

    @property
    def sentence(self) -> str:
        """The verdict as a sentence.

        >>> Verdict("accuracy", 0.98, False, 0.985, 0.978, 0.99).sentence
        'accuracy is 0.9850, required at least 0.98: met, but the interval (0.9780 to 0.9900) includes 0.98'
        """
        requirement = f"required {'at most' if self.lower else 'at least'} {self.wanted:g}"
        if self.value is None:
            return f"{self.metric} was not measured, {requirement}: missed"
        text = f"{self.metric} is {format_metric(self.value)}, {requirement}: {'met' if self.is_met else 'missed'}"
        if not self.is_conclusive and self.low is not None and self.high is not None:
            interval = f"{format_metric(self.low)} to {format_metric(self.high)}"
            text += f", but the interval ({interval}) includes {self.wanted:g}"
        return text

    def as_json(self) -> dict[str, Any]:
        """The verdict as JSON."""
        return {**vars(self), "met": self.is_met, "sure": self.is_conclusive, "sentence": self.sentence}


def parse_requirements(words: Sequence[str], known: Mapping[str, bool] | None = None) -> dict[str, float]:
    """Requirements from ``name=number`` words. Raises RecipeError or ChoiceError for bad ones."""
    names = REQUIRABLE_METRICS if known is None else known
    required = {}
    for word in words:
        name, equals, text = word.partition("=")
        try:
            wanted = float(text)
        except ValueError:
            wanted = float("nan")
        if not equals or wanted != wanted:  # noqa: PLR0124
            raise RecipeError(
                f"'{word}' is not a requirement: write a metric and a number, such as accuracy=0.98."
            )
        if name not in names:
            raise ChoiceError(f"There is no metric '{name}' to require. {suggest(name, names)}")
        required[name] = wanted
    return required


def check_requirements(
    required: Mapping[str, float], measured: Mapping[str, Any], extras: Mapping[str, Any]
) -> list[Verdict]:
    """A verdict on each requirement, from the evaluation and the results of other verbs."""
    bounds = measured.get("intervals") or {}
    found: dict[str, tuple[float | None, float | None, float | None]] = {  # value, low, high
        name: (measured[name], (bounds.get(name) or {}).get("low"), (bounds.get(name) or {}).get("high"))
        for name in METRIC_LABELS
        if isinstance(measured.get(name), float | int)
    }
    attacks = list((extras.get("robustness") or {}).get("attacks", {}).values())
    if attacks:  # the strongest of several attacks counts
        last = min((one["points"][-1] for one in attacks), key=lambda point: point["accuracy"])
        bounds = last["intervals"]["accuracy"]
        found["robust_accuracy"] = (last["accuracy"], bounds["low"], bounds["high"])
    if error := (extras.get("corruptions") or {}).get("mean_corruption_error"):
        found["mean_corruption_error"] = (error["value"], error["low"], error["high"])
    worst = [
        (row["accuracy"], row["intervals"]["accuracy"]["low"], row["intervals"]["accuracy"]["high"])
        for column in (extras.get("groups") or {}).values()
        for row in column["groups"]
        if row["group"] == column["worst_group"]
    ]
    if worst:
        found["worst_group_accuracy"] = min(worst)
    efficiency = measured.get("efficiency") or {}
    if "latency_ms" in efficiency:
        found["latency_ms"] = (efficiency["latency_ms"], None, None)
    return [
        Verdict(name, wanted, REQUIRABLE_METRICS[name], *found.get(name, (None, None, None)))
        for name, wanted in required.items()
    ]


REQUIRABLE_METRICS: Mapping[str, bool] = {
    **{name: metric.lower for name, metric in METRIC_LABELS.items()},
    "robust_accuracy": False,
    "mean_corruption_error": True,
    "worst_group_accuracy": False,
    "latency_ms": True,
}
"""Metric that can be required -> whether lower is better."""
