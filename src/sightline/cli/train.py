"""The verbs demo and train."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .. import progress
from ..errors import RecipeError
from ..files import atomic_replace
from .flags import RecipeFlags, recipe_from_flags
from .output import (
    DEFAULTS,
    OUTPUT_DEFAULTS,
    Options,
    OutputOptions,
    Switch,
    check_picture_path,
    emit,
    evaluate_and_report,
    make_table,
    owns_process,
    print_evaluation,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ..training import Run
    from ..types import Findings

    Flags = Any  # the dataclass is made at run time, from Recipe
else:
    Flags = Annotated[RecipeFlags, Parameter(name="*")]
NO_RECIPE_FLAGS = RecipeFlags()


def demo(*, out: Path | None = None, options: OutputOptions = OUTPUT_DEFAULTS) -> None:
    """Train, test and report on 1,797 real handwritten digits; downloads nothing.

    Parameters
    ----------
    out: Path
        Folder of the run. Default: runs/digits-MODEL.
    """
    from ..training import Recipe
    from ..training import train as run_training

    with progress.heartbeat():
        value = evaluate_and_report(run_training("digits", Recipe(), out=out))
    emit(value, options.json, print_evaluation)


def train(
    data: str | None = None,
    /,
    *,
    recipe: str | None = None,
    preset: str | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    take_best: Switch = False,
    overwrite: bool = False,
    dry_run: bool = False,
    find_lr: Path | None = None,
    flags: Flags = NO_RECIPE_FLAGS,
    options: Options = DEFAULTS,
) -> None:
    """Train a classifier on labelled images, test it, and write a report.

    Parameters
    ----------
    data: str
        A folder with a folder for each class, {train,val,test} folders of those, a zip or tar of either, a table
        (CSV, TSV, JSONL, Parquet), IDX, CIFAR or .npz files, or a name: digits, glyphs, mnist, cifar10, ...
    recipe: str
        A recipe.toml to start from; flags override it.
    preset: str
        A measured recipe to start from: mnist-fast, mnist-best, cifar10-fast, cifar10-best; flags override it.
    out: Path
        Folder of the run. Default: runs/DATA-MODEL.
    resume: Path
        Continue this interrupted run, with the same result. DATA, if given, is where its images lie now.
    take_best: bool
        With --resume: train no further, keep the best epoch so far, test it and report.
    overwrite: bool
        Replace the run that is in --out.
    dry_run: bool
        Estimate the cost of training: time per epoch, memory and disk. Trains and saves nothing.
    find_lr: Path
        Learning-rate range test: train some steps at rising rates, suggest a rate, plot the losses to this file.
    """
    from .. import runtime
    from ..training import check_run_folder, estimate_cost
    from ..training import find_lr as run_range_test
    from ..training import resume as resume_training
    from ..training import train as run_training

    def show(console: "Console", found: "Findings") -> None:
        for remark in found.remarks:
            console.print(remark.text, markup=False)

    if resume is not None:
        if recipe or preset or out or overwrite or any(v is not None for v in vars(flags).values()):
            raise RecipeError("--resume continues the run with its own settings: leave out the other flags.")
        with progress.heartbeat():
            value = evaluate_and_compare(resume_training(resume, data, device=options.device, take_best=take_best))
        if value:
            emit(value, options.json, print_training)
        return
    if take_best:
        raise RecipeError("--take-best ends an interrupted run: name it with --resume RUN.")
    asked = recipe_from_flags(flags, recipe, preset)
    data = data or asked.data
    if dry_run:
        check_run_folder(out, overwrite=overwrite)
        found = estimate_cost(data, asked, device=options.device)
        emit(found.values, options.json, lambda console, _: show(console, found))
    elif find_lr is not None:
        from ..pictures import plot_lr_finder

        path, tried = check_picture_path(find_lr), run_range_test(data, asked, device=options.device)
        with atomic_replace(path) as temporary:
            plot_lr_finder(tried.lrs, tried.losses, tried.suggestion).save(temporary, format="PNG")
        found = tried.findings()
        emit({**found.values, "picture": str(path)}, options.json, lambda console, _: show(console, found))
    else:
        began = runtime.process_began() if owns_process.get() else None
        with progress.heartbeat():
            run = run_training(data, asked, out=out, device=options.device, overwrite=overwrite, began=began)
            value = evaluate_and_compare(run)
        if value:
            emit(value, options.json, print_training)


def evaluate_and_compare(run: "Run") -> dict[str, Any]:
    """The evaluation of a run; after semi-supervised training with what classical methods make of the same labels.

    Empty in a process of a group of which another one speaks.
    """
    from ..training import is_secondary

    if is_secondary():
        return {}
    value = evaluate_and_report(run)
    if value["n"] and run.recipe.semi_supervised not in (None, "none"):
        from ..baselines import measure_few_label_baselines

        progress.notify("Measuring what classical methods make of the same labels.")
        found = measure_few_label_baselines(run.splits, seed=run.recipe.seed)
        value["labels_alone"] = {name: interval.as_json() for name, interval in found.items()}
    return value


def print_training(console: "Console", value: Mapping[str, Any]) -> None:
    """The evaluation, and what classical methods make of the same labels where that was measured."""
    if rows := value.get("labels_alone"):
        cells = [
            (name, f"{one['value']:.2%}", f"{one['low']:.2%} to {one['high']:.2%}") for name, one in rows.items()
        ]
        console.print("\n[bold]To compare with, from the same labels[/bold]\n")
        console.print(make_table(("", "test accuracy", "95 % interval"), cells))
    print_evaluation(console, value)
