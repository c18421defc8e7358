"""Verbs that list: runs, and the members of each family."""

import json as json_module
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SightlineError
from .show import Json, emit, table


def runs(folder: Path = Path("runs"), /, *, json: Json = False) -> None:
    """The runs in a folder, newest first."""
    found = [_summary(path.parent) for path in folder.glob("*/recipe.toml")]
    found.sort(key=lambda row: row["started"], reverse=True)
    columns = ("run", "data", "model", "epochs", "accuracy", "state")
    emit(
        {"runs": found},
        json,
        lambda console, value: console.print(
            table(columns, [[_cell(row[name]) for name in columns] for row in value["runs"]])
            if value["runs"]
            else f"There are no runs in '{folder}'. Make one with: sightline demo"
        ),
    )


def members(family: str = "", /, *, json: Json = False) -> None:
    """What can be chosen: models, baselines, features, augmentations, losses, optimizers, presets, data, ...

    Parameters
    ----------
    family: str
        One of these words; without it, all of them.
    """
    from ..choose import lookup

    families = _families()
    chosen = {family: lookup(families, family, "family")} if family else families
    emit({name: make() for name, make in chosen.items()}, json, _print_families)


def _families() -> Mapping[str, Any]:
    """Each family's members with a line about each."""
    from ..attacks import ATTACKS
    from ..augmentation import AUGMENTATIONS
    from ..baselines import CLASSIFIERS, FEATURES
    from ..compression import COMPRESSORS
    from ..ensembles import COMBINATIONS
    from ..evaluation.outliers import SCORES
    from ..explanation import EXPLAINERS
    from ..formats import FORMATS
    from ..models import INITIALISATIONS, describe
    from ..preprocessing import FILTERS, NORMALISATIONS, STATISTICS
    from ..robustness.corruptions import CORRUPTIONS
    from ..sources.builtin import BUILTIN
    from ..sources.published import PUBLISHED
    from ..training.freezing import FREEZINGS
    from ..training.mitigation import MITIGATIONS
    from ..training.objectives import OBJECTIVES
    from ..training.optimizers import OPTIMIZERS
    from ..training.presets import PRESETS
    from ..training.schedules import SCHEDULES
    from ..tuning import SEARCHES

    return {
        "models": lambda: [
            vars(line) | {"best_sizes": list(line.best_sizes or ()) or None} for line in describe()
        ],
        "augmentations": lambda: _lines(AUGMENTATIONS),
        "losses": lambda: _lines(OBJECTIVES),
        "attacks": lambda: _lines(ATTACKS),
        "optimizers": lambda: _lines(OPTIMIZERS),
        "initialisations": lambda: _lines(INITIALISATIONS),
        "schedules": lambda: _lines(SCHEDULES),
        "searches": lambda: _lines(SEARCHES),
        "freezings": lambda: _lines(FREEZINGS),
        "mitigations": lambda: _lines(MITIGATIONS),
        "scores": lambda: _lines(SCORES),
        "explainers": lambda: _lines(EXPLAINERS),
        "combinations": lambda: _lines(COMBINATIONS),
        "filters": lambda: _lines(FILTERS),
        "corruptions": lambda: _lines(CORRUPTIONS),
        "normalisations": lambda: _normalisations(NORMALISATIONS, STATISTICS),
        "presets": lambda: _lines(PRESETS),
        "baselines": lambda: _lines(CLASSIFIERS),
        "features": lambda: _lines(FEATURES),
        "data": lambda: [*_lines(BUILTIN), *({"name": n, "what": each.what} for n, each in PUBLISHED.items())],
        "compressors": lambda: _lines(COMPRESSORS),
        "formats": lambda: [{"name": name, "what": each.summary} for name, each in FORMATS.items()],
    }


def _lines(family: Mapping[str, Any]) -> list[dict[str, object]]:
    return [
        {"name": name, "what": (member.__doc__ or "").strip().partition("\n")[0].replace("``", "")}
        for name, member in family.items()
    ]


def _normalisations(family: Mapping[str, Any], known: Mapping[str, Any]) -> list[dict[str, object]]:
    rows = {row["name"]: row for row in _lines(family)}
    for name, (mean, std) in known.items():
        rows[name]["what"] = f"Known mean {mean} and std {std}." if mean else "Pixels as they are, in [0, 1]."
    return [*rows.values()]


def _print_families(console: Any, families: Mapping[str, Any]) -> None:
    for name, rows in families.items():
        columns = list(rows[0]) if rows else ["name"]
        console.print(f"[bold]{name}[/bold]")
        console.print(table(columns, [[_cell(row[c]) for c in columns] for row in rows]))
        console.print()


def _summary(folder: Path) -> dict[str, Any]:
    """One line about a run, from its files."""
    from ..training.folder import RunFolder

    row: dict[str, Any] = dict.fromkeys(("data", "model", "epochs", "accuracy", "n"))
    row |= {"run": str(folder), "started": (folder / "recipe.toml").stat().st_mtime}
    report = folder / "report.json"
    try:
        recipe, facts = RunFolder(folder).recipe(), RunFolder(folder).facts()
        tested = json_module.loads(report.read_text(encoding="utf-8"))["test"] if report.is_file() else {}
    except (SightlineError, ValueError, KeyError):
        return row | {"state": "damaged"}  # one bad run must not hide the others
    return row | {
        "data": recipe.data,
        "model": recipe.model,
        "epochs": facts.get("epochs"),
        "accuracy": tested.get("accuracy"),
        "n": tested.get("n"),
        "state": "tested" if tested else "trained" if facts else "unfinished",
    }


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return " to ".join(str(part) for part in value)
    if isinstance(value, tuple):
        return " x ".join(str(part) for part in value)
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
