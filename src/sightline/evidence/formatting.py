"""Names and numbers as people read them, for the page and the card."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MetricLabel:
    """How a metric is spoken of."""

    title: str
    means: str
    first: bool = False
    """Among the few that are shown at first sight, and on a terminal."""
    lower: bool = False
    """Better the lower it is, and not on the axis of intervals."""
    percent: bool = False
    """Said as a percentage."""

    def format_terminal(self, value: float) -> str:
        """The value for a terminal.

        >>> METRICS["accuracy"].write(0.98765)
        '98.77%'
        """
        return f"{value:.2%}" if self.percent else format_metric(value)


METRIC_LABELS = {
    "accuracy": MetricLabel("Accuracy", "share of images answered rightly", first=True, percent=True),
    "balanced_accuracy": MetricLabel(
        "Balanced accuracy", "mean share found, every class counting the same", first=True, percent=True
    ),
    "top_2_accuracy": MetricLabel("Top-2 accuracy", "the true class is among the 2 likeliest", percent=True),
    "top_3_accuracy": MetricLabel("Top-3 accuracy", "the true class is among the 3 likeliest", percent=True),
    "top_5_accuracy": MetricLabel("Top-5 accuracy", "the true class is among the 5 likeliest", percent=True),
    "precision_macro": MetricLabel("Precision, macro", "when it names a class, how often that is right"),
    "recall_macro": MetricLabel("Recall, macro", "of the images of a class, how many it finds"),
    "f1_macro": MetricLabel(
        "F1, macro", "harmonic mean of precision and recall, averaged over classes", first=True
    ),
    "f1_weighted": MetricLabel("F1, weighted", "the same, each class weighing as many as its images"),
    "f1_micro": MetricLabel("F1, micro", "over all images at once: with one answer an image, the accuracy"),
    "roc_auc_ovr": MetricLabel(
        "AUC, one-vs-rest", "chance that an image of a class scores above one of another", first=True
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
"""The names users know, in the order they are shown."""


def format_percent(value: float, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage.

    >>> share(0.98765)
    '98.8 %'
    """
    return f"{value * 100:.{digits}f} %"


def format_metric(value: float) -> str:
    """A metric with four decimals.

    >>> number(0.987654)
    '0.9877'
    """
    return f"{value:.4f}"


def format_count(value: Any) -> str:
    """A whole number with separators; anything else as it is.

    >>> count(12345)
    '12,345'
    """
    return f"{value:,}" if isinstance(value, int) else str(value)


def format_magnitude(value: float) -> str:
    """A large number in few letters.

    >>> [short(n) for n in (950, 42_000, 40_800_000, 1.8e9)]
    ['950', '42 thousand', '40.8 million', '1.8 billion']
    """
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:.0f}"


def format_interval(bounds: Mapping[str, Any] | None, write: Callable[[float], str]) -> str:
    """An interval in words, or a dash where there is none.

    >>> spelled({"low": 0.9, "high": 0.95}, share)
    '90.0 – 95.0 %'
    """
    return f"{write(bounds['low']).removesuffix(' %')} – {write(bounds['high'])}" if bounds else "–"


def format_duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> [duration(s) for s in (0.0042, 0.123, 8.31, 75, 4000)]
    ['4.2 ms', '123 ms', '8.3 s', '1 min 15 s', '1 h 6 min']
    """
    if seconds < 1:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
