"""The verb that gathers: report."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import RecipeError, RequirementNotMet
from .output import Device, Json, emit

if TYPE_CHECKING:
    from rich.console import Console

MetricWords = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]


def report(
    run: Path,
    /,
    *,
    collect: bool = False,
    budget: str = "10m",
    group: MetricWords = (),
    beside: Path | None = None,
    require: MetricWords = (),
    device: Device = "auto",
    json: Json = False,
) -> None:
    """One page with all the evidence that is saved in a run.

    Parameters
    ----------
    run: Path
        A run folder.
    collect: bool
        First measure what is missing: confidence, explanations, bad pictures, an attack.
    budget: str
        Time that --collect may take: attacks and bad pictures get as many images as fit.
    group: Words
        With --collect: a column of the data whose values are compared.
    beside: Path
        A folder that `sightline compare` made: its table goes on the page.
    require: Words
        What it must reach, such as accuracy=0.98 ece=0.02; exit code 3 where it does not.
    """
    from ..evidence import attach_comparison, check_run, parse_requirements, write_report
    from ..training import RunFolder

    RunFolder(run).read_recipe()  # a page is not put into just any folder
    wishes = parse_requirements(require)
    if group and not collect:
        raise RecipeError(
            "--group needs --collect, which measures: add it, or use `sightline evaluate RUN --group`."
        )
    if beside is not None:
        attach_comparison(run, beside)
    value: dict[str, Any] = {"run": str(run)}
    if collect:
        value["collected"] = _measure_missing(run, budget, group, device)
    verdicts = check_run(run, wishes)
    value["report"] = str(write_report(run, verdicts))
    if wishes:
        value["verdicts"] = [one.as_json() for one in verdicts]
    emit(value, json, _print_report)
    if missed := [one.metric for one in verdicts if not one.is_met]:
        raise RequirementNotMet(f"'{run}' is not what was required of it: {', '.join(missed)}.")


def _measure_missing(run: Path, budget: str, group: tuple[str, ...], device: str) -> dict[str, str]:
    from ..evidence import measure_missing_evidence

    return measure_missing_evidence(run, budget=budget, columns=group, device=device)


def _print_report(console: "Console", value: Mapping[str, Any]) -> None:
    for name, came in value.get("collected", {}).items():
        console.print(f"{name}: {came}", markup=False)
    for verdict in value.get("verdicts", ()):
        console.print(verdict["sentence"], markup=False)
    console.print(value["report"], markup=False)
