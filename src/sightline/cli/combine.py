"""The verb combine: one classifier from several."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import DEFAULTS, Options, emit, make_table

if TYPE_CHECKING:
    from rich.console import Console


def combine(
    *runs: Path,
    out: Path,
    by: str = "mean",
    overwrite: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Make one classifier from several, and compare it with them.

    Parameters
    ----------
    runs: Path
        Run or bundle folders: classifiers with the same classes and geometry.
    out: Path
        Folder of the combined classifier.
    by: str
        Method: mean (of the predictions), soup (mean of the weights, for runs that started from the same
        --weights), or greedy-soup.
    overwrite: bool
        Replace the classifier that is in --out.
    """
    from ..ensembles import combine_runs

    found = combine_runs(runs, by, out=out, device=options.device, overwrite=overwrite)
    value = {**found.values, "remarks": [remark.text for remark in found.remarks]}
    emit(value, options.json, print_combination)


def print_combination(console: "Console", value: Mapping[str, Any]) -> None:
    """The combined classifier and its members as a table."""
    if rows := value.get("rows"):
        shown = [_table_row(f"{value['by']} of {len(value['kept'])}", value, None)]
        shown += [_table_row(row["member"], row, row["difference"]) for row in rows]
        columns = ("", "accuracy", "95 % interval", "log loss", "gain over it", "95 % interval")
        console.print(make_table(columns, shown))
    for remark in value["remarks"]:
        console.print(f"\n{remark}", markup=False)
    console.print(f"\nThe classifier is in {value['run']}", markup=False)


def _table_row(name: str, row: Mapping[str, Any], difference: Mapping[str, float] | None) -> tuple[str, ...]:
    edges = row["intervals"]["accuracy"]
    cells = (
        name,
        f"{row['accuracy']:.2%}",
        f"{edges['low']:.2%} to {edges['high']:.2%}",
        f"{row['log_loss']:.4f}",
    )
    if difference is None:
        return (*cells, "", "")
    points = {edge: f"{value * 100:+.2f}" for edge, value in difference.items()}
    return (*cells, points["value"], f"{points['low']} to {points['high']}")
