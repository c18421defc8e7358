"""What a study found: the leaderboard, the importance of each field, the files that say so."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import replacing, write_json
from .journal import facts_of, rank
from .plots import history_picture, importance_picture, slices_picture
from .space import Space

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}

ENOUGH = 4
"""Finished trials before anything is said of importance."""


def rows_of(trials: Sequence["FrozenTrial"], rounds: Sequence[tuple[int, Space]]) -> list[dict[str, Any]]:
    """A row for each trial: finished ones first, best first, then pruned, failed and unfinished ones."""
    shown = [t for t in trials if not facts_of(t).get("surplus")]
    order = list(STATES)
    shown.sort(key=lambda t: (order.index(t.state.name), rank(t)))
    return [_row(place, t, rounds) for place, t in enumerate(shown, 1)]


def _row(place: int, one: "FrozenTrial", rounds: Sequence[tuple[int, Space]]) -> dict[str, Any]:
    facts = facts_of(one)
    return {
        "rank": place if one.state.name == "COMPLETE" else None,
        "trial": one.number,
        "state": STATES[one.state.name],
        "val_accuracy": one.value if one.state.name in ("COMPLETE", "PRUNED") else None,
        "val_loss": facts.get("val_loss"),
        "epochs_done": facts.get("epochs", len(one.intermediate_values)),
        "seconds": facts.get("seconds"),
        "round": sum(start <= one.number for start, _ in rounds) - 1,
        **{name: one.params.get(name) for name in rounds[0][1].ranges},
        "reason": facts.get("reason"),
    }


def importance_of(rows: Sequence[Mapping[str, Any]], space: Space) -> dict[str, float] | None:
    """Share of the spread of accuracy that each field explains by itself, largest first.

    By fANOVA (Hutter et al. 2014), from finished trials; None for fewer than 4 of them, or where all are
    equally good.
    """
    done = [row for row in rows if row["state"] == "finished"]
    if len(done) < ENOUGH or len({row["val_accuracy"] for row in done}) < 2:
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


def write(folder: Path, rows: Sequence[Mapping[str, Any]], space: Space, summary: Mapping[str, Any]) -> None:
    """Write ``leaderboard.csv``, ``tuning.json`` and the three pictures."""
    board = folder / "leaderboard.csv"
    with replacing(board) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_json(folder / "tuning.json", {**summary, "trials": list(rows)})
    pictures = {"history": history_picture(rows), "slices": slices_picture(rows, space)}
    if summary["importance"]:
        pictures["importance"] = importance_picture(summary["importance"])
    for name, picture in pictures.items():
        with replacing(folder / f"{name}.png") as temporary:
            picture.save(temporary)
