"""Trials of a study and their attempts; the leaderboard, the importance of each field, and the plots."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import atomic_replace, write_csv, write_json
from ..pictures import PALETTE, house_style, make_panels, render_figure
from .space import Categorical, Dimension, SearchSpace, current_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna.trial import FrozenTrial
    from PIL.Image import Image

TRIAL_STATES = {
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}

MIN_IMPORTANCE_TRIALS = 4
"""Minimum finished trials to compute the importance of fields."""


def trial_indices(trials: Sequence["FrozenTrial"]) -> dict[int, int]:
    """Index of the trial that each attempt belongs to, by the number of the attempt in the database.

    Indices count from 0 in the order of the first attempts. A later attempt, after a crash, has a new number but
    the same index. Surplus trials, which two machines began at the same moment, have none.
    """
    found: dict[int, int] = {}
    count = 0
    for one in trials:
        if trial_facts(one).get("surplus"):
            continue
        if earlier := one.user_attrs.get("earlier_attempts"):
            found[one.number] = found[earlier[0]]
        else:
            found[one.number] = count
            count += 1
    return found


def latest_attempts(trials: Sequence["FrozenTrial"]) -> list["FrozenTrial"]:
    """The last attempt at each trial."""
    repeated = {number for one in trials for number in one.user_attrs.get("earlier_attempts", ())}
    return [one for one in trials if one.number not in repeated]


def is_lost(one: "FrozenTrial") -> bool:
    """Whether an attempt failed because its process died or was stopped, not because training failed."""
    facts = trial_facts(one)
    return one.state.name == "FAIL" and ("reason" not in facts or "same_as" in facts)


def count_deaths(one: "FrozenTrial", trials: Sequence["FrozenTrial"]) -> int:
    """Attempts at a trial, the last ones, whose process died at the epoch that this attempt reached."""
    attempts = {*one.user_attrs.get("earlier_attempts", ()), one.number}
    reached = [
        len(each.intermediate_values)
        for each in trials
        if each.number in attempts and "interrupted" not in each.user_attrs
    ]
    return reached.count(len(one.intermediate_values))


def trial_values(one: "FrozenTrial") -> dict[str, Any]:
    """The values of a trial, by the fields of a recipe."""
    return {current_name(name): value for name, value in one.params.items()}


def trial_facts(one: "FrozenTrial") -> Mapping[str, Any]:
    """The facts recorded at the end of a trial; empty before."""
    return one.user_attrs.get("facts", {})


def trial_sort_key(one: "FrozenTrial") -> tuple[float, float, int]:
    """Sorts finished trials, best first: accuracy, then loss, then number."""
    return -(one.value or 0.0), trial_facts(one).get("val_loss", float("inf")), one.number


def training_seconds(trials: Sequence["FrozenTrial"], now: datetime) -> float:
    """Seconds in which at least one trial was trained: trials that run at the same time count once.

    Attempts that died are left out: nothing says when they ended.
    """
    spans = sorted(
        (begun, one.datetime_complete or now)
        for one in trials
        if one.state.name != "WAITING"
        and (one.state.name != "FAIL" or trial_facts(one))
        and (begun := one.datetime_start)
    )
    total, reached = 0.0, datetime.min
    for begun, ended in spans:
        total += max(0.0, (ended - max(begun, reached)).total_seconds())
        reached = max(reached, ended)
    return total


def is_budget_spent(trials: Sequence["FrozenTrial"], budget: float) -> bool:
    """Whether another trial, of median duration, would end after the budget (seconds)."""
    trained = (one for one in trials if one.state.name in ("COMPLETE", "PRUNED"))
    spans = [(one.datetime_start, one.datetime_complete) for one in trained if not trial_facts(one).get("reason")]
    took = [(ended - begun).total_seconds() for begun, ended in spans if begun and ended]
    return bool(took) and training_seconds(trials, datetime.now()) + median(took) > budget


def leaderboard_rows(
    trials: Sequence["FrozenTrial"], rounds: Sequence[tuple[int, SearchSpace]]
) -> list[dict[str, Any]]:
    """A row per trial, of its last attempt: finished trials first, best first, then pruned, failed and others."""
    indices, order = trial_indices(trials), list(TRIAL_STATES)
    shown = [one for one in latest_attempts(trials) if one.number in indices]
    shown.sort(key=lambda one: (order.index(one.state.name), trial_sort_key(one)))
    rows = []
    for place, one in enumerate(shown, 1):
        facts, values, index = trial_facts(one), trial_values(one), indices[one.number]
        reason = facts.get("reason")
        if is_lost(one):
            reason = (
                f"Its process died {count_deaths(one, trials)} times at the same epoch; memory may be too small."
            )
        rows.append(
            {
                "rank": place if one.state.name == "COMPLETE" else None,
                "trial": index,
                "state": TRIAL_STATES[one.state.name],
                "val_accuracy": one.value if one.state.name in ("COMPLETE", "PRUNED") else None,
                "val_loss": facts.get("val_loss"),
                "epochs_done": facts.get("epochs", len(one.intermediate_values)),
                "seconds": facts.get("seconds"),
                "round": sum(start <= index for start, _ in rounds) - 1,
                **{name: values.get(name) for name in rounds[0][1].ranges},
                "reason": reason,
            }
        )
    return rows


def field_importance(rows: Sequence[Mapping[str, Any]], space: SearchSpace) -> dict[str, float] | None:
    """Share of the variance of accuracy that each field explains alone, largest first.

    By fANOVA (Hutter et al. 2014), from finished trials; None with fewer than 4 of them, or if all have the same
    accuracy.
    """
    done = [row for row in rows if row["state"] == "finished"]
    if len(done) < MIN_IMPORTANCE_TRIALS or len({row["val_accuracy"] for row in done}) < 2:
        return None
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    study = optuna.create_study(direction="maximize")
    kinds = {name: each.distribution() for name, each in space.ranges.items()}
    for row in done:
        values = {name: row[name] for name in kinds}
        study.add_trial(create_trial(params=values, distributions=kinds, value=row["val_accuracy"]))
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: round(float(share), 4) for name, share in found.items()}


def write_leaderboard(
    folder: Path, rows: Sequence[Mapping[str, Any]], space: SearchSpace, summary: Mapping[str, Any]
) -> None:
    """Write ``leaderboard.csv``, ``tuning.json`` and the three pictures."""
    write_csv(
        folder / "leaderboard.csv", [list(rows[0]), *([row.get(name, "") for name in rows[0]] for row in rows)]
    )
    write_json(folder / "tuning.json", {**summary, "trials": list(rows)})
    pictures = {"history": history_picture(rows), "slices": slices_picture(rows, space)}
    if summary["importance"]:
        pictures["importance"] = importance_picture(summary["importance"])
    for name, picture in pictures.items():
        with atomic_replace(folder / f"{name}.png") as temporary:
            picture.save(temporary)


_MARKS: Mapping[str, dict[str, Any]] = {
    "finished": {"marker": "o", "color": PALETTE["blue"], "label": "finished"},
    "pruned": {"marker": "x", "color": PALETTE["faint"], "label": "stopped early"},
}

MAX_PANELS_PER_ROW = 6
"""Panels of a row; more get a second row."""


@house_style()
def history_picture(rows: Sequence[Mapping[str, Any]]) -> "Image":
    """Validation accuracy of each trial in order of their start, and the best so far."""
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
    """Share of the variance of accuracy that each field explains alone."""
    figure, (panel,) = make_panels(1, (5.6, 1.1 + 0.34 * len(importance)))
    names = list(importance)[::-1]
    panel.barh(names, [importance[name] for name in names], color=PALETTE["blue"], alpha=0.75)
    for place, name in enumerate(names):
        panel.text(importance[name], place, f" {importance[name]:.0%}", va="center", color=PALETTE["faint"])
    panel.set(xlim=(0, 1.1), xlabel="share of the variance of validation accuracy")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.tick_params(left=False)
    return render_figure(figure)


@house_style()
def slices_picture(rows: Sequence[Mapping[str, Any]], space: SearchSpace) -> "Image":
    """Validation accuracy against the values of each field."""
    count = len(space.ranges)
    down = -(-count // MAX_PANELS_PER_ROW)
    across = -(-count // down)
    figure, axes = make_panels(across * down, (max(3.6, 2.6 * across), 3.2 * down), rows=down)
    for panel, (name, each) in zip(axes, space.ranges.items(), strict=False):
        shown = [row for row in rows if row[name] is not None and row["val_accuracy"] is not None]
        _draw_trials(
            panel,
            shown,
            [each.values.index(row[name]) if isinstance(each, Categorical) else row[name] for row in shown],
        )
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


def _scale_axis(panel: "Axes", each: Dimension) -> None:
    """Ticks of the searched dimension: names, whole numbers, or a few numbers on a log axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if isinstance(each, Categorical):
        names = [str(value).replace("$", r"\$") for value in each.values]
        long = max(map(len, names)) > 6
        panel.set_xticks(range(len(names)), names, rotation=30 if long else 0, ha="right" if long else "center")
        panel.set_xlim(-0.5, len(names) - 0.5)
    elif each.log:
        panel.set_xscale("log")
        span = each.high / each.low
        panel.set_xlim(each.low * span**-0.06, each.high * span**0.06)
        decades = LogLocator(subs=(1.0,) if span >= 100 else (1.0, 2.0, 5.0), numticks=5)
        panel.xaxis.set_major_locator(decades if span >= 10 else MaxNLocator(4))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
    elif each.is_integer:
        _integer_ticks(panel)


def _integer_ticks(panel: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _percent_ticks(panel: "Axes") -> None:
    panel.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")
    panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
