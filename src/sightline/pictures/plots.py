"""Curves, matrices and diagrams, drawn by matplotlib."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from .style import PALETTE, house_style, make_panels, render_figure, shorten_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from PIL.Image import Image


@house_style()
def plot_history(history: Sequence[Mapping[str, Any]]) -> "Image":
    """Loss, accuracy and learning rate over the epochs, from the rows of ``history.csv``.

    Values may be numbers or text; an empty or absent one leaves a gap. A dot marks the epoch of highest validation
    accuracy (of lowest loss among equals), whose weights are kept.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = make_panels(3, (11.4, 3.1))
    epochs = [float(row["epoch"]) for row in history]
    marker = "o" if len(epochs) < 3 else None
    for panel, what in ((axes[0], "loss"), (axes[1], "accuracy")):
        for part, style in _HISTORY_STYLES.items():
            values = _numeric_column(history, f"{part}_{what}")
            if np.isfinite(values).any():
                panel.plot(epochs, values, marker=marker, markersize=4, **style)
        panel.set_title(what.capitalize())
    axes[2].plot(epochs, _numeric_column(history, "lr"), color=PALETTE["faint"], marker=marker, markersize=4)
    axes[2].set_title("Learning rate")
    axes[2].set_ylim(bottom=0)
    accuracy, loss = _numeric_column(history, "val_accuracy"), _numeric_column(history, "val_loss")
    if np.isfinite(accuracy).any():
        best = np.lexsort((np.nan_to_num(loss, nan=np.inf), -np.nan_to_num(accuracy, nan=-np.inf)))[0]
        spot = (epochs[best], accuracy[best])
        axes[1].plot(*spot, "o", color=PALETTE["orange"], markersize=6, label=f"best, epoch {spot[0]:g}")
    for panel in axes:
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
    for panel in axes[:2]:
        if panel.lines:
            panel.legend()
    return render_figure(figure)


_HISTORY_STYLES: dict[str, Any] = {
    "train": {"label": "training", "color": PALETTE["blue"], "linestyle": "--"},
    "val": {"label": "validation", "color": PALETTE["orange"], "linestyle": "-"},
}


def _numeric_column(history: Sequence[Mapping[str, Any]], name: str) -> ndarray:
    values = (row.get(name) for row in history)
    return np.array([float("nan" if value in (None, "") else value) for value in values], dtype=np.float64)


@house_style()
def plot_confusion_matrix(
    matrix: Int[ndarray, "K K"] | Sequence[Sequence[int]], classes: Sequence[str]
) -> "Image":
    """Share of each class (row) predicted as each class (column), as shades; counts where they fit.

    Shades follow the square root of the share, so that rare confusions are visible.
    """
    counts = np.asarray(matrix)
    k, rows = len(counts), counts.sum(1, keepdims=True)
    shares = np.sqrt(np.divide(counts, rows, out=np.zeros(counts.shape), where=rows > 0))
    side = float(np.clip(1.6 + 0.42 * k, 3.4, 11))
    figure, (panel,) = make_panels(1, (side + 0.9, side))
    panel.imshow(shares, cmap=_shades(), vmin=0, vmax=1, aspect="equal")
    if k <= 24:
        for (i, j), count in np.ndenumerate(counts):
            colour = PALETTE["paper"] if shares[i, j] > 0.6 else PALETTE["ink"]
            text = f"{count:,}" if count else "·"
            panel.text(j, i, text, ha="center", va="center", color=colour if count else PALETTE["line"])
    step = -(-k // 40)
    names = [shorten_label(name) for name in classes]
    panel.set_xticks(range(0, k, step), names[::step], rotation=90 if k > 5 else 0)
    panel.set_yticks(range(0, k, step), names[::step])
    panel.tick_params(length=0)
    panel.set_xlabel("predicted")
    panel.set_ylabel("true")
    return render_figure(figure)


@house_style()
def plot_task_accuracy(matrices: Mapping[str, Float[ndarray, "T T"]]) -> "Image":
    """A heat map for each name: accuracy, 0 to 1, on the test images of each task (column) after each task (row)."""
    names, tasks = list(matrices), len(next(iter(matrices.values())))
    side = float(np.clip(0.36 * tasks, 2.0, 4.2))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, panels = make_panels(rows * columns, (columns * (side + 0.45), rows * (side + 0.75)), rows=rows)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for place, (name, panel) in enumerate(zip(names, panels, strict=False)):
        matrix = matrices[name]
        panel.imshow(matrix, cmap=_shades(), vmin=0, vmax=1, aspect="equal")
        if tasks <= 10:
            for (i, j), value in np.ndenumerate(matrix):
                colour = PALETTE["paper"] if value > 0.6 else PALETTE["ink"]
                panel.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=7)
        panel.set_title(f"{name}: {100 * matrix[-1].mean():.1f} %")
        ticks = range(0, tasks, -(-tasks // 10))
        panel.set_xticks(ticks, [f"{k + 1}" for k in ticks])
        panel.set_yticks(ticks, [f"{k + 1}" for k in ticks])
        panel.tick_params(length=0)
        panel.set_xlabel("test images of task" if place >= len(names) - columns else "")
        panel.set_ylabel("after task" if not place % columns else "")
    return render_figure(figure)


def _shades() -> "LinearSegmentedColormap":
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("house", [PALETTE["paper"], "#9cc7e0", PALETTE["blue"], "#00395c"])


@house_style()
def plot_reliability(
    edges: Sequence[float] | ndarray,
    counts: Sequence[int] | ndarray,
    confidence: Sequence[float] | ndarray,
    accuracy: Sequence[float] | ndarray,
) -> "Image":
    """Accuracy of each confidence bin against the diagonal of perfect calibration, with the images per bin.

    The arguments are the columns of ``metrics.reliability``.
    """
    figure, axes = make_panels(2, (4.6, 4.6), rows=2, heights=(3.2, 1))
    used = np.asarray(counts) > 0
    left, width = np.asarray(edges)[:-1], np.diff(edges)
    above, below = axes
    above.plot([0, 1], [0, 1], color=PALETTE["faint"], linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    above.bar(
        left[used],
        np.asarray(accuracy)[used],
        width[used] * 0.92,
        align="edge",
        color=PALETTE["blue"],
        alpha=0.35,
        label="accuracy",
    )
    spots = (np.asarray(confidence)[used], np.asarray(accuracy)[used])
    above.plot(*spots, "o", color=PALETTE["blue"], markersize=5, label="at mean confidence")
    above.legend(loc="upper left", frameon=True, framealpha=0.85, edgecolor="none")
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    below.bar(left, np.asarray(counts), width * 0.92, align="edge", color=PALETTE["faint"], alpha=0.6)
    below.set(xlim=(0, 1), xlabel="confidence", ylabel="images")
    for panel in axes:
        panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
    return render_figure(figure)


@house_style()
def plot_roc(macro: Mapping[str, Any], classes: Sequence[Mapping[str, Any]]) -> "Image":
    """ROC curves: the mean in bold, those of the classes beneath it, the worst three by name.

    ``macro`` and ``classes`` are ``roc`` of ``report.json``: ``fpr``, ``tpr``, ``auc`` and, worst first,
    ``class``. A second panel enlarges the upper left corner where the mean curve turns inside it.
    """
    side = _zoom_corner(macro)
    figure, axes = make_panels(2 if side else 1, (9.4 if side else 4.9, 4.6))
    shown = classes if len(classes) > 2 else ()  # of two classes, each curve mirrors the other
    for panel in axes:
        panel.plot([0, 1], [0, 1], color=PALETTE["line"], linewidth=1, linestyle=(0, (4, 3)))
        for row in shown[len(_WORST_CLASS_STYLES) :]:
            panel.plot(row["fpr"], row["tpr"], color=PALETTE["line"], linewidth=1)
        for row, style in zip(shown, _WORST_CLASS_STYLES, strict=False):
            panel.plot(
                row["fpr"], row["tpr"], linewidth=1.3, label=_auc_label(str(row["class"]), row["auc"]), **style
            )
        panel.plot(
            macro["fpr"],
            macro["tpr"],
            color=PALETTE["blue"],
            linewidth=2.4,
            label=_auc_label("mean", macro["auc"]),
        )
        panel.set(xlabel="false positive rate", aspect="equal")
        panel.grid(color=PALETTE["line"], linewidth=0.5)
    axes[0].set(xlim=(-0.01, 1), ylim=(0, 1.01), ylabel="true positive rate")
    axes[0].legend(loc="lower right", title="AUC, the worst by name" if shown else "AUC", title_fontsize=8)
    if side:
        axes[1].set(xlim=(-side / 100, side), ylim=(1 - side, 1 + side / 100), title="Its upper left corner")
    return render_figure(figure)


_WORST_CLASS_STYLES: tuple[dict[str, Any], ...] = (
    {"color": PALETTE["orange"]},
    {"color": PALETTE["green"], "linestyle": (0, (5, 2))},
    {"color": PALETTE["faint"], "linestyle": (0, (1, 1.5))},
)


def _auc_label(name: str, area: float) -> str:
    return f"{shorten_label(name)} {area:.4f}"


def _zoom_corner(macro: Mapping[str, Any]) -> float | None:
    """Side of the upper left corner that holds the turn of the curve, with a margin; None above 0.4."""
    turn = np.maximum(np.asarray(macro["fpr"]), 1 - np.asarray(macro["tpr"])).min()
    return next((side for side in (0.02, 0.05, 0.1, 0.2, 0.4) if 2.5 * turn <= side), None)


@house_style()
def plot_learning_curve(sizes: Sequence[Mapping[str, Any]]) -> "Image":
    """Accuracy by the number of training images, with intervals and, for several seeds, each training.

    ``sizes`` is ``curve`` of ``learning_curve.json``.
    """
    figure, (panel,) = make_panels(1, (4.8, 3.4))
    images = [size["images"] for size in sizes]
    middle = [size["accuracy"] for size in sizes]
    reach = _error_bars(sizes)
    panel.errorbar(images, middle, reach, color=PALETTE["blue"], marker="o", markersize=5, capsize=3)
    for size in sizes:
        if len(size["seeds"]) > 1:
            panel.plot([size["images"]] * len(size["seeds"]), size["seeds"], "_", color=PALETTE["faint"])
    panel.set_xscale("log")
    panel.set_xticks(images, [f"{count:,}" for count in images])
    panel.minorticks_off()
    panel.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")
    panel.set(xlabel="training images", ylabel="accuracy on other images")
    panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
    return render_figure(figure)


def _error_bars(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Distances from the accuracy to its lower and its upper bound, for each row."""
    bounds = [row["intervals"]["accuracy"] for row in rows]
    return [[abs(bound["value"] - bound[edge]) for bound in bounds] for edge in ("low", "high")]


@house_style()
def plot_candidates(rows: Sequence[Mapping[str, Any]]) -> "Image":
    """Accuracy of each candidate with its interval, best first, and its latency; rows of ``compare.json``."""
    figure, (panel,) = make_panels(1, (7.2, 1.3 + 0.34 * len(rows)))
    for kind, style in _CANDIDATE_STYLES.items():
        places = [place for place, row in enumerate(rows) if row["kind"] == kind]
        middle = [rows[place]["intervals"]["accuracy"]["value"] for place in places]
        reach = _error_bars([rows[place] for place in places])
        if places:
            panel.errorbar(
                middle, places, xerr=reach, linestyle="none", markersize=5, capsize=3, label=kind, **style
            )
    for place, row in enumerate(rows):
        where = {"transform": panel.get_yaxis_transform(), "va": "center", "color": PALETTE["faint"]}
        panel.text(1.02, place, f"{row['ms_per_image']:.2g} ms an image", fontsize=8, **where)
    panel.set_yticks(range(len(rows)), [shorten_label(row["entrant"], 32) for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.tick_params(left=False)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")
    panel.set_xlabel("accuracy, with 95 % intervals")
    panel.grid(axis="x", color=PALETTE["line"], linewidth=0.7)
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(_CANDIDATE_STYLES))
    return render_figure(figure)


_CANDIDATE_STYLES: Mapping[str, dict[str, Any]] = {
    "network": {"color": PALETTE["blue"], "marker": "o"},
    "baseline": {"color": PALETTE["orange"], "marker": "s"},
}


def plot_lr_finder(tried: Sequence[float], losses: Sequence[float], suggestion: float) -> "Image":
    """Smoothed training loss over the learning rate, with the suggested rate marked."""
    figure, (panel,) = make_panels(1, (5.6, 3.2))
    panel.plot(tried, losses, color=PALETTE["blue"])
    panel.axvline(suggestion, color=PALETTE["orange"], linestyle="--", label=f"{suggestion:g}")
    panel.set_xscale("log")
    panel.set_xlabel("learning rate")
    panel.set_title("Loss during the learning rate range test")
    panel.legend()
    return render_figure(figure)


@house_style()
def plot_risk_coverage(
    curve: Mapping[str, Sequence[float]], *, error: float, threshold: tuple[float, float] | None = None
) -> "Image":
    """Risk over coverage, with a perfect and a random order of the confidences.

    ``curve`` is ``RiskCoverage.as_json()``, ``error`` the risk at coverage 1, ``threshold`` the (coverage, risk)
    of a chosen threshold.
    """
    figure, (panel,) = make_panels(1, (5.2, 3.5))
    coverage, risk = curve["coverage"], curve["risk"]
    panel.axhline(error, color=PALETTE["faint"], linewidth=1, linestyle=(0, (4, 3)), label="abstaining at random")
    ideal = [max(0.0, 1 - (1 - error) / share) for share in coverage]
    panel.plot(
        coverage,
        ideal,
        color=PALETTE["green"],
        linewidth=1.2,
        linestyle=":",
        label="abstaining on every error first",
    )
    panel.plot(coverage, risk, color=PALETTE["blue"], label="this classifier")
    if threshold is not None:
        panel.plot(*threshold, "o", color=PALETTE["orange"], markersize=7, label="the threshold, on test images")
    top = max(error, *risk, 0.002) if error else max(*risk, 0.002)
    panel.set(xlim=(0, 1.01), ylim=(0, 1.35 * min(top, max(2.5 * error, 0.002))))
    panel.set(xlabel="coverage: share of the images predicted", ylabel="risk: share of these predicted wrongly")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")
    panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
    panel.legend(loc="upper left", frameon=True, framealpha=0.85, edgecolor="none")
    return render_figure(figure)


@house_style()
def plot_groups(
    rows: Sequence[Mapping[str, Any]], column: str, *, after: Sequence[Mapping[str, Any]] = ()
) -> "Image":
    """Accuracy of each group with its interval; small groups are hollow.

    ``rows`` are ``GroupReport.as_json()["groups"]``, of which 30 are drawn; ``after`` the same of another
    classifier.
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
    """Dots with whiskers: bars from 0 would hide the differences."""
    for row, place in zip(rows, places, strict=True):
        value, bounds = row["accuracy"], row["intervals"]["accuracy"]
        reach = [[value - bounds["low"]], [bounds["high"] - value]]
        face = PALETTE["paper"] if row["small"] else colour
        first = label if place == places[0] else None
        panel.errorbar(
            value, place, xerr=reach, color=colour, marker="o", markersize=6, capsize=3, mfc=face, label=first
        )
