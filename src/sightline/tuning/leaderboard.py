"""What a study found: the leaderboard, the importance of each field, the files that say so."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_replace, write_json
from .plots import history_picture, importance_picture, slices_picture
from .space import SearchSpace
from .study_store import trial_facts, trial_sort_key

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

TRIAL_STATES = {
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}

MIN_IMPORTANCE_TRIALS = 4
"""Finished trials before anything is said of importance."""


def leaderboard_rows(
    trials: Sequence["FrozenTrial"], rounds: Sequence[tuple[int, SearchSpace]]
) -> list[dict[str, Any]]:
    """A row for each trial: finished ones first, best first, then pruned, failed and unfinished ones."""
    shown = [t for t in trials if not trial_facts(t).get("surplus")]
    order = list(TRIAL_STATES)
    shown.sort(key=lambda t: (order.index(t.state.name), trial_sort_key(t)))
    return [_leaderboard_row(place, t, rounds) for place, t in enumerate(shown, 1)]


def _leaderboard_row(place: int, one: "FrozenTrial", rounds: Sequence[tuple[int, SearchSpace]]) -> dict[str, Any]:
    facts = trial_facts(one)
    return {
        "rank": place if one.state.name == "COMPLETE" else None,
        "trial": one.number,
        "state": TRIAL_STATES[one.state.name],
        "val_accuracy": one.value if one.state.name in ("COMPLETE", "PRUNED") else None,
        "val_loss": facts.get("val_loss"),
        "epochs_done": facts.get("epochs", len(one.intermediate_values)),
        "seconds": facts.get("seconds"),
        "round": sum(start <= one.number for start, _ in rounds) - 1,
        **{name: one.params.get(name) for name in rounds[0][1].ranges},
        "reason": facts.get("reason"),
    }


def field_importance(rows: Sequence[Mapping[str, Any]], space: SearchSpace) -> dict[str, float] | None:
    """Share of the spread of accuracy that each field explains by itself, largest first.

    By fANOVA (Hutter et al. 2014), from finished trials; None for fewer than 4 of them, or where all are
    equally good.
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
    board = folder / "leaderboard.csv"
    with atomic_replace(board) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_json(folder / "tuning.json", {**summary, "trials": list(rows)})
    pictures = {"history": history_picture(rows), "slices": slices_picture(rows, space)}
    if summary["importance"]:
        pictures["importance"] = importance_picture(summary["importance"])
    for name, picture in pictures.items():
        with atomic_replace(folder / f"{name}.png") as temporary:
            picture.save(temporary)
