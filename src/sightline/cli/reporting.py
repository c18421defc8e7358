"""The verb that gathers: report."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import RecipeError, Refused
from .show import Device, Json, emit

if TYPE_CHECKING:
    from rich.console import Console

Words = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]


def report(
    run: Path,
    /,
    *,
    collect: bool = False,
    budget: str = "10m",
    group: Words = (),
    beside: Path | None = None,
    require: Words = (),
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
    from ..evidence.page import complete, judge, put_beside
    from ..evidence.verdict import requirements
    from ..training.folder import RunFolder

    RunFolder(run).recipe()  # a page is not put into just any folder
    wishes = requirements(require)
    if group and not collect:
        raise RecipeError(
            "--group needs --collect, which measures: add it, or use `sightline evaluate RUN --group`."
        )
    if beside is not None:
        put_beside(run, beside)
    value: dict[str, Any] = {"run": str(run)}
    if collect:
        value["collected"] = _gathered(run, budget, group, device)
    verdicts = judge(run, wishes)
    value["report"] = str(complete(run, verdicts))
    if wishes:
        value["verdicts"] = [one.as_json() for one in verdicts]
    emit(value, json, _print)
    if missed := [one.metric for one in verdicts if not one.met]:
        raise Refused(f"'{run}' is not what was required of it: {', '.join(missed)}.")


def _gathered(run: Path, budget: str, group: tuple[str, ...], device: str) -> dict[str, str]:
    from ..evidence.gather import gather

    return gather(run, budget=budget, columns=group, device=device)


def _print(console: "Console", value: Mapping[str, Any]) -> None:
    for name, came in value.get("collected", {}).items():
        console.print(f"{name}: {came}", markup=False)
    for verdict in value.get("verdicts", ()):
        console.print(verdict["sentence"], markup=False)
    console.print(value["report"], markup=False)
