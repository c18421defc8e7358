"""The verb tune: a search for the best recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from .flags import RecipeFlags, recipe_from_flags
from .output import DEFAULTS, Options, Words, emit, make_table, print_evaluation

if TYPE_CHECKING:
    from rich.console import Console

    from ..training import Recipe

    Flags = Any  # the dataclass is made at run time, from Recipe
else:
    Flags = Annotated[RecipeFlags, Parameter(name="*")]
NO_TUNE_FLAGS = RecipeFlags()

MAX_PRINTED_TRIALS = 10
"""Rows of the leaderboard that are printed; leaderboard.csv has all."""


def tune(
    data: str | None = None,
    /,
    *,
    search_space: Words = (),
    by: str | None = None,
    trials: int | None = None,
    zoom_rounds: int = 0,
    workers: int = 1,
    storage: str | None = None,
    recipe: str | None = None,
    preset: str | None = None,
    out: Path | None = None,
    flags: Flags = NO_TUNE_FLAGS,
    options: Options = DEFAULTS,
) -> None:
    """Search for the recipe with the best validation accuracy, then train and test the winner.

    Repeat the same command to continue an interrupted study. --budget is the time of the whole search.

    Parameters
    ----------
    data: str
        Labelled images, as for `sightline train`.
    search_space: tuple[str, ...]
        What to search: lr=1e-4..1e-1 (a range; on a log scale if its ends differ tenfold, or with :log, :lin),
        batch_size=32,64,128 (a choice), model.dropout=0..0.5 (an argument of the network). A grid takes 5 points
        of a range, or the number after it: lr=1e-4..1e-1:4.
    by: str
        Search method: grid, random, tpe (default), hyperband or median (tpe that stops poor trials early).
    trials: int
        Trials of each round. Default: 20; of a grid, all.
    zoom_rounds: int
        Further rounds, each with every range half as wide, around the best trial so far.
    workers: int
        Trials trained at the same time, in processes of one thread each.
    storage: str
        SQLAlchemy URL of a database that several machines share: postgresql://user@host/name. Default: a file in
        the folder of the study.
    recipe: str
        A recipe.toml that every trial starts from; flags override it.
    preset: str
        A measured recipe to start from, as for train; or a search space: table3.
    out: Path
        Folder of the study. Default: runs/DATA-tune.
    """
    from ..evaluation import evaluate_run
    from ..evidence import read_report, write_report
    from ..tuning import tune as search

    base, space, method = recipe_and_space(flags, recipe, preset, search_space)
    limits = {"trials": trials, "budget": vars(flags)["budget"], "zoom_rounds": zoom_rounds, "workers": workers}
    place: dict[str, Any] = {"storage": storage, "out": out, "device": options.device}
    tuned = search(data or base.data, base, space, by=by or method, **limits, **place)
    value = {"study": str(tuned.folder), "best": dict(tuned.best), "importance": tuned.importance}
    tested = None
    if (winner := tuned.winner) is not None:
        if not (winner.folder / "report.json").is_file():  # the test images are used once
            evaluate_run(winner)
        page = write_report(winner.folder)
        tested = {"run": str(winner.folder), **read_report(winner.folder)["evaluation"], "report": str(page)}
    emit(value | {"trials": [dict(row) for row in tuned.rows], "winner": tested}, options.json, print_study)


def recipe_and_space(
    flags: object, recipe: str | None, preset: str | None, words: tuple[str, ...]
) -> tuple["Recipe", Mapping[str, Any] | tuple[str, ...], str]:
    """The recipe to start from, the search space and its usual method; given ranges replace those of a preset."""
    from ..choose import lookup
    from ..training import PRESETS
    from ..tuning import SPACES

    if preset:
        lookup({**PRESETS, **SPACES}, preset, "preset")
    if preset is None or preset not in SPACES:
        return recipe_from_flags(flags, recipe, preset), words, "tpe"
    space = SPACES[preset]
    given = {name: value for name, value in vars(flags).items() if value is not None}
    base = space.recipe.replace(**given) if recipe is None else recipe_from_flags(flags, recipe).replace(**given)
    return base, space.override(words), space.by


def print_study(console: "Console", value: Mapping[str, Any]) -> None:
    """The best trials as a table, the importance of fields, and the test of the winner."""
    from ..tuning import format_values

    names = list(value["trials"][0])
    fields = names[names.index("round") + 1 : names.index("reason")]
    rows = [
        (
            "-" if row["val_accuracy"] is None else f"{row['val_accuracy']:.2%}",
            *(row[name] for name in ("trial", "state", "epochs_done")),
            format_values({n: row[n] for n in fields}),
        )
        for row in value["trials"][:MAX_PRINTED_TRIALS]
    ]
    console.print(make_table(("validation accuracy", "trial", "state", "epochs", "values"), rows))
    if value["importance"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in value["importance"].items())
        console.print(f"\nImportance, as shares of the variance of accuracy: {shares}.", markup=False)
    console.print(f"\nAll trials and pictures are in [bold]{escape(value['study'])}[/bold]")
    if value["winner"]:
        print_evaluation(console, value["winner"])
