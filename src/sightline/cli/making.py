"""Verbs that make a classifier: demo, train."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import RecipeError
from .flags import RecipeFlags, recipe_of
from .show import Device, Json, emit, picture_path, result

if TYPE_CHECKING:
    from rich.console import Console

    from ..training.recipe import Recipe
    from ..types import Findings

    Flags = Any  # the dataclass is made at run time, from Recipe
else:
    Flags = Annotated[RecipeFlags, Parameter(name="*")]
NO_FLAGS = RecipeFlags()


def demo(*, out: Path | None = None, json: Json = False) -> None:
    """Train, test and report on 1,797 real handwritten digits; nothing to download.

    Parameters
    ----------
    out: Path
        Folder of the run. Default: runs/digits-MODEL.
    """
    from ..training.recipe import Recipe
    from ..training.run import train as run_training

    run = run_training("digits", Recipe(), out=out)
    emit(_finish(run), json, result)


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
    flags: Flags = NO_FLAGS,
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
    from ..training import run as training
    from ..training.team import follows

    if resume is not None:
        if data or recipe or preset or out or overwrite or any(v is not None for v in vars(flags).values()):
            raise RecipeError("--resume goes on with the run exactly as it began: leave out the other flags.")
        emit(_finish(training.resume(resume, device=device)), json, result)
        return
    asked = recipe_of(flags, recipe, preset)
    if dry_run:
        _outlook(data, asked, device, json)
    elif find_lr is not None:
        _rates(data, asked, device, json, find_lr)
    else:
        run = training.train(data or asked.data, asked, out=out, device=device, overwrite=overwrite)
        if not follows():
            emit(_finish(run), json, result)


def _outlook(data: str | None, asked: "Recipe", device: str, json: bool) -> None:
    from ..training.outlook import outlook

    found = outlook(data or asked.data, asked, device=device)
    emit(found.values, json, lambda console, _: _remarks(console, found))


def _rates(data: str | None, asked: "Recipe", device: str, json: bool, picture: Path) -> None:
    from ..files import replacing
    from ..pictures import rates
    from ..training.rates import rates_of

    path = picture_path(picture)
    tried = rates_of(data or asked.data, asked, device=device)
    with replacing(path) as temporary:
        rates(tried.rates, tried.losses, tried.suggestion).save(temporary, format="PNG")
    found = tried.findings()
    emit({**found.values, "picture": str(path)}, json, lambda console, _: _remarks(console, found))


def _remarks(console: "Console", found: "Findings") -> None:
    for remark in found.remarks:
        console.print(remark.text, markup=False)


def _finish(run):
    """What every verb that makes a run does at its end: test it, complete its page."""
    from ..evaluation.examine import examine
    from ..evidence.page import complete

    evaluation = examine(run)
    complete(run.folder)
    return {"run": str(run.folder), **evaluation.as_json(), "report": str(run.folder / "report.html")}
