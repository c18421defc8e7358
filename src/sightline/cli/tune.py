"""The verb that searches for a recipe: tune."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from .flags import RecipeFlags, recipe_from_flags
from .output import Device, Json, emit, make_table, print_evaluation

if TYPE_CHECKING:
    from rich.console import Console

    from ..training import Recipe, Run

    Flags = Any  # the dataclass is made at run time, from Recipe
else:
    Flags = Annotated[RecipeFlags, Parameter(name="*")]
NO_TUNE_FLAGS = RecipeFlags()
SpaceWords = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]

MAX_PRINTED_TRIALS = 10
"""Rows of the leaderboard that are printed; leaderboard.csv has all."""


def tune(
    data: str | None = None,
    /,
    *,
    over: SpaceWords = (),
    by: str | None = None,
    trials: int | None = None,
    refine: int = 0,
    workers: int = 1,
    storage: str | None = None,
    recipe: str | None = None,
    preset: str | None = None,
    out: Path | None = None,
    flags: Flags = NO_TUNE_FLAGS,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Search for the recipe that does best on validation, then train and test the winner.

    Give the same command again to go on with a study that was stopped. --budget is the time of the whole search.

    Parameters
    ----------
    data: str
        Labelled images, as `sightline train` takes them.
    over: tuple[str, ...]
        What to search: lr=1e-4..1e-1 (a range; logarithms where its ends differ tenfold, or :log, :lin),
        batch_size=32,64,128 (a choice), model.dropout=0..0.5 (an argument of the network). A grid takes 5 points
        of a range, or as many as are said: lr=1e-4..1e-1:4.
    by: str
        grid, random, tpe (the default), hyperband or median (tpe, and poor trials are stopped early).
    trials: int
        Trials, of each round. Default: 20; all of a grid.
    refine: int
        Rounds that follow, each with every range half as wide, round the best trial so far.
    workers: int
        Trials trained at the same time, in processes of one thread each.
    storage: str
        A database several machines share, as SQLAlchemy names it: postgresql://user@host/name. Default: a file in
        the study's folder.
    recipe: str
        A recipe.toml every trial starts from; flags win over it.
    preset: str
        A measured recipe to start from, as for train; or a space: table3.
    out: Path
        Folder of the study. Default: runs/DATA-tune.
    """
    from ..tuning import tune as search

    base, words, usual = _recipe_and_space(flags, recipe, preset, over)
    limits = {"trials": trials, "budget": vars(flags)["budget"], "zoom_rounds": refine, "workers": workers}
    place: dict[str, Any] = {"storage": storage, "out": out, "device": device}
    tuned = search(data or base.data, base, words, by=by or usual, **limits, **place)
    value = {"study": str(tuned.folder), "best": dict(tuned.best), "importance": tuned.importance}
    tested = None if tuned.winner is None else _evaluate_winner(tuned.winner)
    emit(value | {"trials": [dict(row) for row in tuned.rows], "winner": tested}, json, _print_study)


def _recipe_and_space(
    flags: object, recipe: str | None, preset: str | None, over: tuple[str, ...]
) -> tuple["Recipe", Mapping[str, Any] | tuple[str, ...], str]:
    """The recipe to start from, the space and the usual search; ranges that are given replace a preset's."""
    from ..choose import lookup
    from ..training import PRESETS
    from ..tuning import SPACES

    if preset:
        lookup({**PRESETS, **SPACES}, preset, "preset")
    if preset is None or preset not in SPACES:
        return recipe_from_flags(flags, recipe, preset), over, "tpe"
    space = SPACES[preset]
    given = {name: value for name, value in vars(flags).items() if value is not None}
    base = space.recipe.replace(**given) if recipe is None else recipe_from_flags(flags, recipe).replace(**given)
    return base, space.override(over), space.by


def _evaluate_winner(run: "Run") -> dict[str, Any]:
    """The winner's result on the test images, which are looked at once."""
    from ..evaluation import evaluate_run
    from ..evidence import read_report, write_report

    if not (run.folder / "report.json").is_file():
        evaluate_run(run)
    write_report(run.folder)
    return {
        "run": str(run.folder),
        **read_report(run.folder)["evaluation"],
        "report": str(run.folder / "report.html"),
    }


def _print_study(console: "Console", value: Mapping[str, Any]) -> None:
    """The best trials as a table, what mattered, and the winner's test."""
    from ..tuning import format_values

    names = list(value["trials"][0])
    fields = names[names.index("round") + 1 : names.index("reason")]
    facts = ("trial", "state", "epochs_done")
    rows = [
        (
            _format_accuracy(row["val_accuracy"]),
            *(row[name] for name in facts),
            format_values({n: row[n] for n in fields}),
        )
        for row in value["trials"][:MAX_PRINTED_TRIALS]
    ]
    console.print(make_table(("validation accuracy", "trial", "state", "epochs", "values"), rows))
    if value["importance"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in value["importance"].items())
        console.print(f"\nWhat mattered: {shares} of the spread of accuracy.", markup=False)
    console.print(f"\nAll trials and pictures are in [bold]{escape(value['study'])}[/bold]")
    if value["winner"]:
        print_evaluation(console, value["winner"])


def _format_accuracy(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
