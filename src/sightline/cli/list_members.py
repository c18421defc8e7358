"""The verbs runs and list: runs in a folder, members of each family."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SightlineError
from .output import OUTPUT_DEFAULTS, OutputOptions, emit, make_table


def runs(folder: Path = Path("runs"), /, *, options: OutputOptions = OUTPUT_DEFAULTS) -> None:
    """List the runs in a folder, newest first."""
    from ..evidence import read_report
    from ..training import RunFolder

    found = []
    for file in folder.glob("*/recipe.toml"):
        row: dict[str, Any] = dict.fromkeys(("data", "model", "epochs", "accuracy", "n"))
        row |= {"run": str(file.parent), "started": file.stat().st_mtime, "state": "damaged"}
        found.append(row)
        try:
            recipe, facts = RunFolder(file.parent).read_recipe(), RunFolder(file.parent).read_facts()
            tested = read_report(file.parent).get("evaluation") or {}
        except (SightlineError, ValueError, KeyError):
            continue  # one damaged run must not hide the others
        row |= {
            "data": recipe.data,
            "model": recipe.model,
            "epochs": facts.get("epochs"),
            "accuracy": tested.get("accuracy"),
            "n": tested.get("n"),
            "state": "tested" if tested else "trained" if facts else "unfinished",
        }
    found.sort(key=lambda row: row["started"], reverse=True)
    columns = ("run", "data", "model", "epochs", "accuracy", "state")
    emit(
        {"runs": found},
        options.json,
        lambda console, value: console.print(
            make_table(columns, [[_format_cell(row[name]) for name in columns] for row in value["runs"]])
            if value["runs"]
            else f"There are no runs in '{folder}'. Make one with: sightline demo"
        ),
    )


def list_members(family: str = "", /, *, options: OutputOptions = OUTPUT_DEFAULTS) -> None:
    """List the choices: models, baselines, features, augmentations, losses, optimizers, presets, data, ...

    Parameters
    ----------
    family: str
        One of these words; without it, all of them.
    """
    from .. import training
    from ..adaptation import ADAPTERS
    from ..attacks import ATTACKS
    from ..augmentation import AUGMENTATIONS
    from ..baselines import BASELINES, FEATURES
    from ..choose import lookup
    from ..compression import COMPRESSORS
    from ..continual import STRATEGIES
    from ..ensembles import COMBINERS
    from ..evaluation import OOD_SCORES
    from ..explanation import EXPLAINERS
    from ..formats import FORMATS
    from ..layers import INITIALISATIONS
    from ..models import describe_networks
    from ..preprocessing import CHANNEL_STATISTICS, NORMALISATIONS, PIXEL_FILTERS
    from ..robustness import CORRUPTIONS
    from ..sources import BUILTIN_DATASETS, PUBLISHED_DATASETS
    from ..tuning import SEARCHES

    known = {
        name: f"Known mean {mean} and std {std}." if mean else "No normalisation: pixels in [0, 1]."
        for name, (mean, std) in CHANNEL_STATISTICS.items()
    }
    families: Mapping[str, Any] = {
        "models": lambda: [
            vars(line) | {"best_sizes": list(line.best_sizes or ()) or None} for line in describe_networks()
        ],
        "augmentations": lambda: _member_lines(AUGMENTATIONS),
        "losses": lambda: _member_lines(training.OBJECTIVES),
        "samplings": lambda: _member_lines(training.SAMPLINGS),
        "semi-supervised": lambda: _member_lines(training.SEMI_SUPERVISED_METHODS),
        "self-supervised": lambda: _member_lines(training.SELF_SUPERVISED_METHODS),
        "domain-terms": lambda: _member_lines(training.DOMAIN_TERMS),
        "attacks": lambda: _member_lines(ATTACKS),
        "optimizers": lambda: _member_lines(training.OPTIMIZERS),
        "initialisations": lambda: _member_lines(INITIALISATIONS),
        "schedules": lambda: _member_lines(training.SCHEDULES),
        "searches": lambda: _member_lines(SEARCHES),
        "freezings": lambda: _member_lines(training.FREEZE_SCHEDULES),
        "mitigations": lambda: _member_lines(training.MITIGATIONS),
        "scores": lambda: _member_lines(OOD_SCORES),
        "explainers": lambda: _member_lines(EXPLAINERS),
        "combinations": lambda: _member_lines(COMBINERS),
        "filters": lambda: _member_lines(PIXEL_FILTERS),
        "corruptions": lambda: _member_lines(CORRUPTIONS),
        "normalisations": lambda: [
            {"name": row["name"], "what": known.get(str(row["name"]), row["what"])}
            for row in _member_lines(NORMALISATIONS)
        ],
        "presets": lambda: _member_lines(training.PRESETS),
        "baselines": lambda: _member_lines(BASELINES),
        "features": lambda: _member_lines(FEATURES),
        "data": lambda: [
            *_member_lines(BUILTIN_DATASETS),
            *({"name": n, "what": each.description} for n, each in PUBLISHED_DATASETS.items()),
        ],
        "compressors": lambda: _member_lines(COMPRESSORS),
        "strategies": lambda: _member_lines(STRATEGIES),
        "adapters": lambda: _member_lines(ADAPTERS),
        "formats": lambda: [{"name": name, "what": each.summary} for name, each in FORMATS.items()],
    }
    chosen = {family: lookup(families, family, "family")} if family else families
    emit({name: make() for name, make in chosen.items()}, options.json, print_families)


def _member_lines(family: Mapping[str, Any]) -> list[dict[str, object]]:
    return [
        {"name": name, "what": (member.__doc__ or "").strip().partition("\n")[0].replace("``", "")}
        for name, member in family.items()
    ]


def print_families(console: Any, families: Mapping[str, Any]) -> None:
    """Each family as a table."""
    for name, rows in families.items():
        columns = list(rows[0]) if rows else ["name"]
        console.print(f"[bold]{name}[/bold]")
        console.print(make_table(columns, [[_format_cell(row[c]) for c in columns] for row in rows]))
        console.print()


def _format_cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return " to ".join(str(part) for part in value)
    if isinstance(value, tuple):
        return " x ".join(str(part) for part in value)
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
