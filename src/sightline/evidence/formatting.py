"""Labels, numbers and SVG line charts of the page and the card."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
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


# Line charts

WIDTH, HEIGHT = 480, 290
LEFT, RIGHT, TOP, BOTTOM = 70, 14, 10, 46
"""Margins for ticks and axis labels, in CSS pixels."""

LINE_COLOURS = ("blue", "orange", "green")
"""CSS classes of the lines, in order."""


@dataclass(frozen=True)
class ChartLine:
    """Points from left to right, and optionally an interval at each."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()
    """(low, high) at each point, or none."""


def line_chart(
    lines: Sequence[ChartLine],
    *,
    x: str,
    y: str,
    title: str,
    write_x: Callable[[float], str],
    top: float = 1.0,
    ticks: Sequence[float] | None = None,
) -> str:
    """Shares (0 to `top`) against a quantity from 0, as an ``svg`` element; `ticks` are places on the x axis."""
    right = max(point[0] for line in lines for point in line.points) or 1.0
    ticks = [right * part / 4 for part in range(5)] if ticks is None else ticks

    def at(one: float, share: float) -> tuple[float, float]:
        across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + across * one / right, TOP + down * (1 - min(share / top, 1.0))

    middle, height = LEFT + (WIDTH - LEFT - RIGHT) / 2, TOP + (HEIGHT - TOP - BOTTOM) / 2
    turned = f'transform="translate(11 {height:.0f}) rotate(-90)"'
    parts = [
        _grid(at, ticks, right, top, write_x),
        f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle" class="name">{escape(x)}</text>',
        f'<text {turned} text-anchor="middle" class="name">{escape(y)}</text>',
    ]
    for number, line in enumerate(lines):
        parts.append(_draw_line(line, at, LINE_COLOURS[number % len(LINE_COLOURS)]))
    label = escape(title, quote=True)
    view = f'viewBox="0 0 {WIDTH} {HEIGHT}" class="chart" role="img" aria-label="{label}"'
    return f"<svg {view}><title>{label}</title>{''.join(parts)}</svg>"


def round_up_axis_limit(share: float) -> float:
    """The next larger share whose quarters are round numbers.

    >>> [round_up_axis_limit(one) for one in (0.0511, 0.3, 0.97)]
    [0.08, 0.4, 1.0]
    """
    steps = (one * scale for scale in (0.001, 0.01, 0.1) for one in (2, 4, 8))
    return next((step for step in steps if step >= share), 1.0)


ToPixels = Callable[[float, float], tuple[float, float]]


def _grid(at: ToPixels, ticks: Sequence[float], right: float, top: float, write_x: Callable[[float], str]) -> str:
    """Five horizontal lines with their shares, and the ticks of the x axis."""
    parts = []
    for step in range(5):
        share = top * step / 4
        (x0, y0), (x1, _) = at(0, share), at(right, share)
        said = f"{share * 100:.3g} %"
        parts.append(f'<line x1="{x0:.1f}" x2="{x1:.1f}" y1="{y0:.1f}" y2="{y0:.1f}" class="grid"/>')
        parts.append(f'<text x="{x0 - 6:.1f}" y="{y0 + 4:.1f}" text-anchor="end">{said}</text>')
    for tick in ticks:
        across, bottom = at(tick, 0)
        place = f'x="{across:.1f}" y="{bottom + 17:.1f}" text-anchor="{"end" if tick == right else "middle"}"'
        parts.append(f"<text {place}>{escape(write_x(tick))}</text>")
    return "".join(parts)


def _draw_line(line: ChartLine, at: ToPixels, hue: str) -> str:
    """The interval band, the line and its points."""
    places = [at(*point) for point in line.points]
    parts = []
    if line.band:
        upper = [at(point[0], high) for point, (_, high) in zip(line.points, line.band, strict=True)]
        lower = [at(point[0], low) for point, (low, _) in zip(line.points, line.band, strict=True)]
        parts.append(f'<polygon points="{_svg_points([*upper, *reversed(lower)])}" class="band {hue}"/>')
    parts.append(f'<polyline points="{_svg_points(places)}" class="line {hue}"/>')
    if len(places) <= 20:
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" class="dot {hue}"/>' for px, py in places]
    return "".join(parts)


def _svg_points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
