"""Names and numbers as people read them, for the page and the card."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """How a metric is spoken of."""

    title: str
    means: str
    percent: bool = True
    """Shown as a percentage, and on the axis of intervals."""


METRICS = {
    "accuracy": Metric("Accuracy", "share of images answered rightly"),
    "balanced_accuracy": Metric("Balanced accuracy", "mean share found, every class counting the same"),
    "precision_macro": Metric("Precision, macro", "when it names a class, how often that is right"),
    "recall_macro": Metric("Recall, macro", "of the images of a class, how many it finds"),
    "f1_macro": Metric("F1, macro", "harmonic mean of precision and recall, averaged over classes"),
    "roc_auc_ovr": Metric("AUC, one-vs-rest", "chance that an image of a class scores above one of another"),
    "log_loss": Metric("Log loss", "mean surprise at the true class, in nats; lower is better", percent=False),
    "ece": Metric("Calibration error (ECE)", "gap between confidence and accuracy; lower is better"),
}
"""The names users know, in the order they are shown."""


def share(value: float, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage.

    >>> share(0.98765)
    '98.8 %'
    """
    return f"{value * 100:.{digits}f} %"


def number(value: float) -> str:
    """A metric with four decimals.

    >>> number(0.987654)
    '0.9877'
    """
    return f"{value:.4f}"


def count(value: Any) -> str:
    """A whole number with separators; anything else as it is.

    >>> count(12345)
    '12,345'
    """
    return f"{value:,}" if isinstance(value, int) else str(value)


def spelled(bounds: Mapping[str, float] | None, write: Callable[[float], str]) -> str:
    """An interval in words, or a dash where there is none.

    >>> spelled({"low": 0.9, "high": 0.95}, share)
    '90.0 – 95.0 %'
    """
    return f"{write(bounds['low']).removesuffix(' %')} – {write(bounds['high'])}" if bounds else "–"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> [duration(s) for s in (0.0042, 8.31, 75, 4000)]
    ['4.2 ms', '8.3 s', '1 min 15 s', '1 h 6 min']
    """
    if seconds < 1:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
