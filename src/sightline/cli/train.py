"""Verbs that make a classifier: demo, train."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import RecipeError
from .flags import RecipeFlags, recipe_from_flags
from .output import Device, Json, check_picture_path, emit, print_evaluation

if TYPE_CHECKING:
    from rich.console import Console

    from ..training import Recipe
    from ..types import Findings

    Flags = Any  # the dataclass is made at run time, from Recipe
else:
    Flags = Annotated[RecipeFlags, Parameter(name="*")]
NO_RECIPE_FLAGS = RecipeFlags()


def demo(*, out: Path | None = None, json: Json = False) -> None:
    """Train, test and report on 1,797 real handwritten digits; nothing to download.

    Parameters
    ----------
    out: Path
        Folder of the run. Default: runs/digits-MODEL.
    """
    from ..training import Recipe
    from ..training import train as run_training

    run = run_training("digits", Recipe(), out=out)
    emit(_evaluate_and_report(run), json, print_evaluation)


def train(
    data: str | None = None,
    /,
    *,
    recipe: str | None = None,
    preset: str | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    find_lr: Path | None = None,
    flags: Flags = NO_RECIPE_FLAGS,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train a classifier on labelled images, test it, and write a report.

    Parameters
    ----------
    data: str
        A folder with a folder for each class, {train,val,test} folders of those, a zip or tar of either, a table
        (CSV, TSV, JSONL, Parquet), IDX, CIFAR or .npz files, or a name: digits, shapes, mnist, cifar10, ...
    recipe: str
        A recipe.toml to start from; flags win over it.
    preset: str
        A measured recipe to start from: mnist-fast, mnist-best, cifar10-fast, cifar10-best; flags win over it.
    out: Path
        Folder of the run. Default: runs/DATA-MODEL.
    resume: Path
        Go on with this interrupted run, exactly; takes no other flags.
    overwrite: bool
        Replace the run that is in --out.
    dry_run: bool
        Say what training would take: time per epoch, memory and disk. Nothing is trained or kept.
    find_lr: Path
        Try rising learning rates for some steps, say which is promising, and draw the losses to this picture.
    """
    from ..training import is_secondary
    from ..training import run as training

    if resume is not None:
        if data or recipe or preset or out or overwrite or any(v is not None for v in vars(flags).values()):
            raise RecipeError("--resume goes on with the run exactly as it began: leave out the other flags.")
        emit(_evaluate_and_report(training.resume(resume, device=device)), json, print_evaluation)
        return
    asked = recipe_from_flags(flags, recipe, preset)
    if dry_run:
        _print_cost_estimate(data, asked, device, json)
    elif find_lr is not None:
        _print_lr_range_test(data, asked, device, json, find_lr)
    else:
        run = training.train(data or asked.data, asked, out=out, device=device, overwrite=overwrite)
        if not is_secondary():
            emit(_evaluate_and_report(run), json, print_evaluation)


def _print_cost_estimate(data: str | None, asked: "Recipe", device: str, json: bool) -> None:
    from ..training import estimate_cost

    found = estimate_cost(data or asked.data, asked, device=device)
    emit(found.values, json, lambda console, _: _print_remarks(console, found))


def _print_lr_range_test(data: str | None, asked: "Recipe", device: str, json: bool, picture: Path) -> None:
    from ..files import atomic_replace
    from ..pictures import plot_lr_finder
    from ..training import find_lr

    path = check_picture_path(picture)
    tried = find_lr(data or asked.data, asked, device=device)
    with atomic_replace(path) as temporary:
        plot_lr_finder(tried.lrs, tried.losses, tried.suggestion).save(temporary, format="PNG")
    found = tried.findings()
    emit({**found.values, "picture": str(path)}, json, lambda console, _: _print_remarks(console, found))


def _print_remarks(console: "Console", found: "Findings") -> None:
    for remark in found.remarks:
        console.print(remark.text, markup=False)


def _evaluate_and_report(run):
    """What every verb that makes a run does at its end: test it, complete its page."""
    from ..evaluation import evaluate_run
    from ..evidence import write_report

    evaluation = evaluate_run(run)
    write_report(run.folder)
    return {"run": str(run.folder), **evaluation.as_json(), "report": str(run.folder / "report.html")}
