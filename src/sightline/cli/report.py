"""The verb report: all results of a run on one page."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError, RequirementNotMet
from .output import DEFAULTS, Options, Words, emit

if TYPE_CHECKING:
    from rich.console import Console


def report(
    run: Path,
    /,
    *,
    collect: bool = False,
    budget: str = "10m",
    group: Words = (),
    compare_with: Path | None = None,
    require: Words = (),
    options: Options = DEFAULTS,
) -> None:
    """Write one page with all results that are saved in a run.

    Parameters
    ----------
    run: Path
        A run folder.
    collect: bool
        First measure what is missing: confidence, explanations, corruptions, an attack.
    budget: str
        Time limit of --collect: attacks and corruptions use as many images as fit.
    group: Words
        With --collect: a column of the data; accuracy by its values is measured too.
    compare_with: Path
        A folder made by `sightline compare`; its ranking goes on the page.
    require: Words
        Requirements, such as accuracy=0.98 ece=0.02; exit code 3 if one is missed.
    """
    from ..evidence import (
        attach_comparison,
        check_run,
        measure_missing_evidence,
        parse_requirements,
        write_report,
    )
    from ..training import RunFolder

    RunFolder(run).read_recipe()  # refuses a folder that is not a run
    required = parse_requirements(require)
    if group and not collect:
        raise RecipeError("--group needs --collect: add it, or use `sightline evaluate RUN --group`.")
    if compare_with is not None:
        attach_comparison(run, compare_with)
    value: dict[str, Any] = {"run": str(run)}
    if collect:
        value["collected"] = measure_missing_evidence(run, budget=budget, columns=group, device=options.device)
    verdicts = check_run(run, required)
    value["report"] = str(write_report(run, verdicts))
    if required:
        value["verdicts"] = [one.as_json() for one in verdicts]
    emit(value, options.json, print_report)
    if missed := [one.metric for one in verdicts if not one.is_met]:
        raise RequirementNotMet(f"'{run}' misses these requirements: {', '.join(missed)}.")


def print_report(console: "Console", value: Mapping[str, Any]) -> None:
    """Outcomes of measurements, verdicts, and the path of the page."""
    for name, outcome in value.get("collected", {}).items():
        console.print(f"{name}: {outcome}", markup=False)
    for verdict in value.get("verdicts", ()):
        console.print(verdict["sentence"], markup=False)
    console.print(value["report"], markup=False)
