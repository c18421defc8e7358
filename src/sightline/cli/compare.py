"""The verb compare: networks and baselines, ranked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from ..errors import RecipeError
from .flags import SharedFlags, recipe_from_flags
from .output import DEFAULTS, Options, Switch, Words, emit, make_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from ..training import Recipe

    Flags = Any  # the dataclass is made at run time, from Recipe
else:
    Flags = Annotated[SharedFlags, Parameter(name="*")]
NO_SHARED_FLAGS = SharedFlags()


def compare(
    data: str,
    /,
    *,
    models: str | None = None,
    baselines: str | None = None,
    features: str = "pixels",
    folds: int = 0,
    seeds: int | None = None,
    stream: str | None = None,
    by: Words = (),
    memory: int = 500,
    online: Switch = False,
    recipe: str | None = None,
    out: Path | None = None,
    flags: Flags = NO_SHARED_FLAGS,
    options: Options = DEFAULTS,
) -> None:
    """Train networks and classical baselines on the same images, and rank them.

    Parameters
    ----------
    data: str
        A folder, archive, table or name, as for train.
    models: str
        Networks, separated by commas: lenet5,resnet20; or heads on published weights: probe,lda,prototypes,finetune;
        or none. Default: for photos the heads and a small network, else two networks that fit the images.
        With --stream one.
    baselines: str
        Classical methods: svm-rbf,knn:3,random-forest@hog; or none. Default: the six quick ones, or for photos two
        on their edges (hog).
    features: str
        Features of the baselines that name none: pixels,hog,lbp+hog. Each is tried.
    folds: int
        Number of folds of a cross-validation. Default: one test split.
    seeds: int
        Number of trainings of each, with different seeds (and folds). Default: 1; with --stream 5.
    stream: str
        Compare ways to learn more on tasks that come one after the other: class:5, task:5, permuted:10, rotated:5,
        corrupted:fog:snow, or column:site.
    by: tuple[str, ...]
        With --stream: these ways; see sightline list strategies. Default: finetune, lda and replay.
    memory: int
        With --stream: old images that may be remembered, in all.
    online: bool
        With --stream: every image is seen once.
    recipe: str
        A recipe.toml that the networks are trained with; flags override it.
    out: Path
        Folder of the comparison. Default: runs/DATA-compare. Finished trainings are not repeated.
    """
    if stream is not None:
        if baselines or folds:
            raise RecipeError("--stream compares ways to learn (--by): leave out --baselines and --folds.")
        from ..continual import compare_on_stream

        learned = compare_on_stream(
            data, stream, by=by, recipe=_name_network(recipe_from_flags(flags, recipe), models),
            seeds=5 if seeds is None else seeds, memory=memory, online=online, out=out, device=options.device,
        )  # fmt: skip
        emit(learned.as_json(), options.json, print_stream)
        return
    if by or online:
        raise RecipeError("--by and --online belong to --stream: name the tasks too, as in --stream class:5.")
    from ..comparison import compare as run_comparison

    named, others = (None if words is None else _split_names(words) for words in (models, baselines))
    asked = recipe_from_flags(flags, recipe).replace(**({} if recipe is None else {"model": None}))
    found = run_comparison(
        data,
        models=named,
        baselines=others,
        features=_split_names(features),
        folds=folds,
        seeds=1 if seeds is None else seeds,
        recipe=asked,
        out=out,
        device=options.device,
    )
    emit(found.as_json(), options.json, print_ranking)


def _name_network(recipe: "Recipe", models: str | None) -> "Recipe":
    """The recipe with the one network of ``--models``; raises RecipeError for several."""
    if models is None:
        return recipe
    names = _split_names(models)
    if len(names) != 1:
        raise RecipeError(
            f"--models {models}: with --stream name one network, which learns by each of --by in turn."
        )
    return recipe.replace(model=names[0])


def _split_names(text: str) -> list[str]:
    return [] if text.strip() == "none" else [word.strip() for word in text.split(",") if word.strip()]


def print_ranking(console: "Console", value: "Mapping[str, Any]") -> None:
    """The ranking as a table, and its conclusions."""
    rows = []
    for row in value["entrants"]:
        difference = ""
        if change := row["difference"]:
            points = (100 * change[name] for name in ("value", "low", "high"))
            difference = "{:+.2f} ({:+.2f} to {:+.2f})".format(*points)
        rows.append(
            (
                str(row["rank"]),
                row["entrant"],
                f"{row['accuracy']:.2%}",
                "{low:.2%} to {high:.2%}".format(**row["intervals"]["accuracy"]),
                difference,
                "" if row["p_holm"] is None else f"{row['p_holm']:.2g}",
                f"{row['train_seconds']:,.1f} s",
                f"{row['ms_per_image']:.2g} ms",
                f"{row['bytes'] / 1e6:,.2f} MB",
            )
        )
    kind = "held-out images" if value["folds"] else "test images"
    console.print(f"\n[bold]Accuracy on {value['n']:,} {kind}[/bold]\n")
    heads = (
        "",
        "entrant",
        "accuracy",
        "95 % interval",
        "minus the first",
        "p (Holm)",
        "trained",
        "per image",
        "size",
    )
    console.print(make_table(heads, rows))
    for failure in value["failures"]:
        console.print(f"\n{failure['entrant']} failed: {failure['error']}", markup=False)
    for sentence in value["sentences"]:
        console.print(f"\n{sentence}", markup=False)
    for row in value["entrants"]:
        for note in row["notes"]:
            console.print(f"\n{row['entrant']}: {note}", markup=False)
    place = Path(value["entrants"][0]["folder"]).parent
    console.print(f"\nThe picture, compare.json and a run of each are in [bold]{escape(str(place))}[/bold]")


def print_stream(console: "Console", value: "Mapping[str, Any]") -> None:
    """The strategies as a table."""
    seeds = "1 seed" if value["seeds"] == 1 else f"{value['seeds']} seeds"
    console.print(f"\n[bold]{escape(value['stream'])}, after the last; {seeds}[/bold]\n")
    rows = [
        (
            row["strategy"],
            _points(row["average_accuracy"], ".1f"),
            _points(row["difference"], "+.1f"),
            *(_points(row[name], "+.1f") for name in ("forgetting", "backward_transfer", "forward_transfer")),
            f"{row['memory_bytes'] / 1e3:,.0f} kB",
            f"{row['seconds']:,.1f}",
        )
        for row in value["strategies"]
    ]
    against = f"minus {value['reference']}"
    heads = ("strategy", "accuracy, %", against, "forgetting", "backward", "forward", "memory", "seconds")
    console.print(make_table(heads, rows))
    console.print(
        "\nMeans over the seeds with 95 % intervals, in points; differences are paired by seed. Backward and forward: "
        "what later tasks did to earlier ones, and earlier ones for later.",
        markup=False,
    )
    console.print(f"\nThe heat map, all numbers and each result are in {value['folder']}", markup=False)


def _points(value: "Mapping[str, float] | None", form: str) -> str:
    if value is None:
        return ""
    middle = f"{100 * value['value']:{form}}"
    if value["low"] is None:
        return middle
    return f"{middle} [{100 * value['low']:{form}}, {100 * value['high']:{form}}]"
