"""Line charts as SVG, in the colours of the page in light and dark mode, with an accessible title."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

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
