"""Labels and number formats of the page and the card."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MetricLabel:
    """Title and meaning of a metric, and how its values are written."""

    title: str
    means: str
    first: bool = False
    """Whether it is shown at first sight and on a terminal."""
    lower: bool = False
    """Whether lower is better; such metrics are not on the axis of intervals."""
    percent: bool = False
    """Whether it is written as a percentage."""

    def format_terminal(self, value: float) -> str:
        """The value for a terminal.

        >>> METRIC_LABELS["accuracy"].format_terminal(0.98765)
        '98.77%'
        """
        return f"{value:.2%}" if self.percent else format_metric(value)


METRIC_LABELS = {
    "accuracy": MetricLabel("Accuracy", "share of correct predictions", first=True, percent=True),
    "balanced_accuracy": MetricLabel("Balanced accuracy", "mean recall over classes", first=True, percent=True),
    "top_2_accuracy": MetricLabel("Top-2 accuracy", "the true class is among the 2 most probable", percent=True),
    "top_3_accuracy": MetricLabel("Top-3 accuracy", "the true class is among the 3 most probable", percent=True),
    "top_5_accuracy": MetricLabel("Top-5 accuracy", "the true class is among the 5 most probable", percent=True),
    "precision_macro": MetricLabel("Precision, macro", "share of predictions of a class that are correct"),
    "recall_macro": MetricLabel("Recall, macro", "share of the images of a class that it finds"),
    "f1_macro": MetricLabel(
        "F1, macro", "harmonic mean of precision and recall, averaged over classes", first=True
    ),
    "f1_weighted": MetricLabel("F1, weighted", "the same, classes weighted by their images"),
    "f1_micro": MetricLabel("F1, micro", "over all images at once: equals accuracy if each image has one label"),
    "roc_auc_ovr": MetricLabel(
        "AUC, one-vs-rest", "probability that an image of a class scores above one of another class", first=True
    ),
    "log_loss": MetricLabel(
        "Log loss", "mean surprise at the true class, in nats; lower is better", first=True, lower=True
    ),
    "brier": MetricLabel(
        "Brier score", "squared error of the probabilities over all classes, 0 to 2; lower is better", lower=True
    ),
    "ece": MetricLabel(
        "Calibration error (ECE)", "gap between confidence and accuracy; lower is better", first=True, lower=True
    ),
}
"""Metric -> its label, in the order of the page."""


def format_percent(value: float, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage.

    >>> format_percent(0.98765)
    '98.8 %'
    """
    return f"{value * 100:.{digits}f} %"


def format_metric(value: float) -> str:
    """A metric with four decimals.

    >>> format_metric(0.987654)
    '0.9877'
    """
    return f"{value:.4f}"


def format_count(value: Any) -> str:
    """A whole number with separators; any other value as text.

    >>> format_count(12345)
    '12,345'
    """
    return f"{value:,}" if isinstance(value, int) else str(value)


def format_magnitude(value: float) -> str:
    """A large number rounded, with its magnitude as a word.

    >>> [format_magnitude(n) for n in (950, 42_000, 40_800_000, 1.8e9)]
    ['950', '42 thousand', '40.8 million', '1.8 billion']
    """
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:.0f}"


def format_interval(bounds: Mapping[str, Any] | None, write: Callable[[float], str]) -> str:
    """An interval as text, or a dash if there is none.

    >>> format_interval({"low": 0.9, "high": 0.95}, format_percent)
    '90.0 – 95.0 %'
    """
    return f"{write(bounds['low']).removesuffix(' %')} – {write(bounds['high'])}" if bounds else "–"


def format_duration(seconds: float) -> str:
    """A duration as text.

    >>> [format_duration(s) for s in (0.0042, 0.123, 8.31, 75, 4000)]
    ['4.2 ms', '123 ms', '8.3 s', '1 min 15 s', '1 h 6 min']
    """
    if seconds < 1:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
