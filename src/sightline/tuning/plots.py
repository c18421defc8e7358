"""Pictures of a tuning, in the house look: how it went, what mattered, and accuracy over each field."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..pictures import PALETTE, house_style, make_panels, render_figure
from .space import Categorical, Dimension, NumericRange, SearchSpace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

_MARKS: Mapping[str, dict[str, Any]] = {
    "finished": {"marker": "o", "color": PALETTE["blue"], "label": "finished"},
    "pruned": {"marker": "x", "color": PALETTE["faint"], "label": "stopped early"},
}

MAX_PANELS_PER_ROW = 6
"""Panels side by side before a picture gets a second row."""


@house_style()
def history_picture(rows: Sequence[Mapping[str, Any]]) -> "Image":
    """Validation accuracy of each trial in the order they were begun, and the best so far."""
    figure, (panel,) = make_panels(1, (7.2, 3.4))
    rows = sorted(rows, key=lambda row: row["trial"])
    _draw_trials(panel, rows, [row["trial"] for row in rows])
    done = [row for row in rows if row["state"] == "finished"]
    if done:
        best = np.maximum.accumulate([row["val_accuracy"] for row in done])
        panel.step(
            [row["trial"] for row in done], best, where="post", color=PALETTE["orange"], label="best so far"
        )
    failed = [row["trial"] for row in rows if row["state"] == "failed"]
    if failed:
        panel.plot(
            failed,
            [0.02] * len(failed),
            "v",
            color=PALETTE["orange"],
            markersize=5,
            transform=panel.get_xaxis_transform(),
            label="failed",
        )
    _integer_ticks(panel)
    panel.set(xlabel="trial", ylabel="validation accuracy")
    _percent_ticks(panel)
    if panel.get_legend_handles_labels()[0]:
        panel.legend()
    return render_figure(figure)


@house_style()
def importance_picture(importance: Mapping[str, float]) -> "Image":
    """Share of the spread of accuracy that each field explains by itself."""
    figure, (panel,) = make_panels(1, (5.6, 1.1 + 0.34 * len(importance)))
    names = list(importance)[::-1]
    panel.barh(names, [importance[name] for name in names], color=PALETTE["blue"], alpha=0.75)
    for place, name in enumerate(names):
        panel.text(importance[name], place, f" {importance[name]:.0%}", va="center", color=PALETTE["faint"])
    panel.set(xlim=(0, 1.1), xlabel="share of the spread of validation accuracy")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.tick_params(left=False)
    return render_figure(figure)


@house_style()
def slices_picture(rows: Sequence[Mapping[str, Any]], space: SearchSpace) -> "Image":
    """Validation accuracy over the values of each field."""
    count = len(space.ranges)
    down = -(-count // MAX_PANELS_PER_ROW)
    across = -(-count // down)
    figure, axes = make_panels(across * down, (max(3.6, 2.6 * across), 3.2 * down), rows=down)
    for panel, (name, each) in zip(axes, space.ranges.items(), strict=False):
        shown = [row for row in rows if row[name] is not None and row["val_accuracy"] is not None]
        _draw_trials(panel, shown, [_axis_position(each, row[name]) for row in shown])
        _scale_axis(panel, each)
        panel.set_title(name)
        _percent_ticks(panel)
    for panel in axes[:count:across]:
        panel.set_ylabel("validation accuracy")
    for panel in axes[count:]:
        panel.set_axis_off()
    return render_figure(figure)


def _draw_trials(panel: "Axes", rows: Sequence[Mapping[str, Any]], places: Sequence[float]) -> None:
    for state, style in _MARKS.items():
        spots = [(x, row["val_accuracy"]) for x, row in zip(places, rows, strict=True) if row["state"] == state]
        if spots:
            panel.scatter(*zip(*spots, strict=True), s=22, alpha=0.8, **style)


def _axis_position(each: Dimension, value: Any) -> float:
    return each.values.index(value) if isinstance(each, Categorical) else value


def _scale_axis(panel: "Axes", each: Dimension) -> None:
    if isinstance(each, Categorical):
        names = [str(value).replace("$", r"\$") for value in each.values]
        long = max(map(len, names)) > 6
        panel.set_xticks(range(len(names)), names, rotation=30 if long else 0, ha="right" if long else "center")
        panel.set_xlim(-0.5, len(names) - 0.5)
    elif each.log:
        _log_ticks(panel, each)
    elif each.is_integer:
        _integer_ticks(panel)


def _log_ticks(panel: "Axes", each: NumericRange) -> None:
    """The searched range in logarithms, with as few numbers under it as one can read side by side."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    panel.set_xscale("log")
    span = each.high / each.low
    panel.set_xlim(each.low * span**-0.06, each.high * span**0.06)
    decades = LogLocator(subs=(1.0,) if span >= 100 else (1.0, 2.0, 5.0), numticks=5)
    panel.xaxis.set_major_locator(decades if span >= 10 else MaxNLocator(4))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _integer_ticks(panel: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _percent_ticks(panel: "Axes") -> None:
    panel.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")
    panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
