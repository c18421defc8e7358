"""Pictures of how sure and for whom, in the house look: risk over coverage, and groups side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..pictures import PALETTE, house_style, make_panels, render_figure, shorten_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image


@house_style()
def plot_risk_coverage(
    curve: Mapping[str, Sequence[float]], *, error: float, chosen: tuple[float, float] | None = None
) -> "Image":
    """Error among the answers kept, over the share of images that are answered; the threshold, if any, as a dot.

    ``curve`` is ``RiskCoverage.as_json()``, ``error`` the risk when all are answered, ``chosen`` a (coverage,
    risk).
    """
    figure, (panel,) = make_panels(1, (5.2, 3.5))
    coverage, risk = curve["coverage"], curve["risk"]
    panel.axhline(error, color=PALETTE["faint"], linewidth=1, linestyle=(0, (4, 3)), label="declining at random")
    ideal = [max(0.0, 1 - (1 - error) / share) for share in coverage]
    panel.plot(
        coverage, ideal, color=PALETTE["green"], linewidth=1.2, linestyle=":", label="every error declined first"
    )
    panel.plot(coverage, risk, color=PALETTE["blue"], label="this classifier")
    if chosen is not None:
        panel.plot(*chosen, "o", color=PALETTE["orange"], markersize=7, label="the threshold, on test images")
    top = max(error, *risk, 0.002) if error else max(*risk, 0.002)
    panel.set(xlim=(0, 1.01), ylim=(0, 1.35 * min(top, max(2.5 * error, 0.002))))
    panel.set(xlabel="share of the images that is answered", ylabel="wrong among the answers")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")
    panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
    panel.legend(loc="upper left", frameon=True, framealpha=0.85, edgecolor="none")
    return render_figure(figure)


@house_style()
def plot_groups(
    rows: Sequence[Mapping[str, Any]], column: str, *, after: Sequence[Mapping[str, Any]] = ()
) -> "Image":
    """Accuracy of each group with its interval; small groups hollow. ``after``: the same of another classifier,
    beside.

    Rows are ``GroupReport.as_json()["groups"]``; at most 30 are drawn.
    """
    rows = rows[:30]
    others = {row["group"]: row for row in after}
    figure, (panel,) = make_panels(1, (6.4, 1.3 + (0.46 if others else 0.32) * len(rows)))
    shift = 0.18 if others else 0.0
    _draw_bars(
        panel, rows, [place + shift for place in range(len(rows))], PALETTE["blue"], "before" if others else ""
    )
    if others:
        same = [others[row["group"]] for row in rows]
        _draw_bars(panel, same, [place - shift for place in range(len(rows))], PALETTE["green"], "after")
        panel.legend(loc="lower left", frameon=True, framealpha=0.85, edgecolor="none")
    names = [f"{shorten_label(row['group'])}  ({row['n']:,}{', few' if row['small'] else ''})" for row in rows]
    panel.set_yticks(range(len(rows)), names)
    panel.invert_yaxis()
    panel.tick_params(left=False)
    lows = [row["intervals"]["accuracy"]["low"] for row in [*rows, *others.values()]]
    panel.set_xlim(max(0.0, min(lows) - 0.05), 1.0)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")
    panel.set_xlabel(f"accuracy by {shorten_label(column)}, with 95 % intervals")
    panel.grid(axis="x", color=PALETTE["line"], linewidth=0.7)
    return render_figure(figure)


def _draw_bars(
    panel: "Axes", rows: Sequence[Mapping[str, Any]], places: Sequence[float], colour: str, label: str
) -> None:
    """Dots with whiskers: a bar from 0 would hide what differs."""
    for row, place in zip(rows, places, strict=True):
        value, bounds = row["accuracy"], row["intervals"]["accuracy"]
        reach = [[value - bounds["low"]], [bounds["high"] - value]]
        face = PALETTE["paper"] if row["small"] else colour
        first = label if place == places[0] else None
        panel.errorbar(
            value, place, xerr=reach, color=colour, marker="o", markersize=6, capsize=3, mfc=face, label=first
        )
