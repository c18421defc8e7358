"""Pictures of a tuning, in the house look: how it went, what mattered, and accuracy over each field."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..pictures import PALETTE, drawn, house_look, panels
from .space import Among, Between, Range, Space

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

_MARKS: Mapping[str, dict[str, Any]] = {
    "finished": {"marker": "o", "color": PALETTE["blue"], "label": "finished"},
    "pruned": {"marker": "x", "color": PALETTE["faint"], "label": "stopped early"},
}

MOST = 6
"""Panels side by side before a picture gets a second row."""


@house_look()
def history_picture(rows: Sequence[Mapping[str, Any]]) -> "Image":
    """Validation accuracy of each trial in the order they were begun, and the best so far."""
    figure, (panel,) = panels(1, (7.2, 3.4))
    rows = sorted(rows, key=lambda row: row["trial"])
    _points(panel, rows, [row["trial"] for row in rows])
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
    _whole_ticks(panel)
    panel.set(xlabel="trial", ylabel="validation accuracy")
    _accuracies(panel)
    if panel.get_legend_handles_labels()[0]:
        panel.legend()
    return drawn(figure)


@house_look()
def importance_picture(importance: Mapping[str, float]) -> "Image":
    """Share of the spread of accuracy that each field explains by itself."""
    figure, (panel,) = panels(1, (5.6, 1.1 + 0.34 * len(importance)))
    names = list(importance)[::-1]
    panel.barh(names, [importance[name] for name in names], color=PALETTE["blue"], alpha=0.75)
    for place, name in enumerate(names):
        panel.text(importance[name], place, f" {importance[name]:.0%}", va="center", color=PALETTE["faint"])
    panel.set(xlim=(0, 1.1), xlabel="share of the spread of validation accuracy")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.tick_params(left=False)
    return drawn(figure)


@house_look()
def slices_picture(rows: Sequence[Mapping[str, Any]], space: Space) -> "Image":
    """Validation accuracy over the values of each field."""
    count = len(space.ranges)
    down = -(-count // MOST)
    across = -(-count // down)
    figure, axes = panels(across * down, (max(3.6, 2.6 * across), 3.2 * down), rows=down)
    for panel, (name, each) in zip(axes, space.ranges.items(), strict=False):
        shown = [row for row in rows if row[name] is not None and row["val_accuracy"] is not None]
        _points(panel, shown, [_place(each, row[name]) for row in shown])
        _scale(panel, each)
        panel.set_title(name)
        _accuracies(panel)
    for panel in axes[:count:across]:
        panel.set_ylabel("validation accuracy")
    for panel in axes[count:]:
        panel.set_axis_off()
    return drawn(figure)


def _points(panel: "Axes", rows: Sequence[Mapping[str, Any]], places: Sequence[float]) -> None:
    for state, style in _MARKS.items():
        spots = [(x, row["val_accuracy"]) for x, row in zip(places, rows, strict=True) if row["state"] == state]
        if spots:
            panel.scatter(*zip(*spots, strict=True), s=22, alpha=0.8, **style)


def _place(each: Range, value: Any) -> float:
    return each.values.index(value) if isinstance(each, Among) else value


def _scale(panel: "Axes", each: Range) -> None:
    if isinstance(each, Among):
        names = [str(value).replace("$", r"\$") for value in each.values]
        long = max(map(len, names)) > 6
        panel.set_xticks(range(len(names)), names, rotation=30 if long else 0, ha="right" if long else "center")
        panel.set_xlim(-0.5, len(names) - 0.5)
    elif each.log:
        _log_ticks(panel, each)
    elif each.whole:
        _whole_ticks(panel)


def _log_ticks(panel: "Axes", each: Between) -> None:
    """The searched range in logarithms, with as few numbers under it as one can read side by side."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    panel.set_xscale("log")
    span = each.high / each.low
    panel.set_xlim(each.low * span**-0.06, each.high * span**0.06)
    decades = LogLocator(subs=(1.0,) if span >= 100 else (1.0, 2.0, 5.0), numticks=5)
    panel.xaxis.set_major_locator(decades if span >= 10 else MaxNLocator(4))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _whole_ticks(panel: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _accuracies(panel: "Axes") -> None:
    panel.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")
    panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
