"""Verbs that make a classifier: demo, train."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import RecipeError
from .flags import RecipeFlags, recipe_of
from .show import Device, Json, emit, result

if TYPE_CHECKING:
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
    out: Path | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
    flags: Flags = NO_FLAGS,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train a classifier on labelled images, test it, and write a report.

    Parameters
    ----------
    data: str
        A folder with a folder for each class, {train,val,test} folders of those, a zip or tar of either, a CSV
        table, or a name: digits, shapes.
    recipe: str
        A recipe.toml to start from; flags win over it.
    out: Path
        Folder of the run. Default: runs/DATA-MODEL.
    resume: Path
        Go on with this interrupted run, exactly; takes no other flags.
    overwrite: bool
        Replace the run that is in --out.
    """
    from ..training import run as training

    if resume is not None:
        if data or recipe or out or overwrite or any(value is not None for value in vars(flags).values()):
            raise RecipeError("--resume goes on with the run exactly as it began: leave out the other flags.")
        run = training.resume(resume, device=device)
    else:
        asked = recipe_of(flags, recipe)
        run = training.train(data or asked.data, asked, out=out, device=device, overwrite=overwrite)
    emit(_finish(run), json, result)


def _finish(run):
    """What every verb that makes a run does at its end: test it, complete its page."""
    from ..evaluation.examine import examine
    from ..evidence.page import complete

    evaluation = examine(run)
    complete(run.folder)
    return {"run": str(run.folder), **evaluation.as_json(), "report": str(run.folder / "report.html")}
