"""The verb learn: new images and new classes for a classifier that exists."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError
from .output import DEFAULTS, Options, Words, emit, evaluate_and_report, make_table

if TYPE_CHECKING:
    from rich.console import Console


def learn(
    run: Path,
    data: str | None = None,
    /,
    *,
    by: Words = (),
    rename: Words = (),
    merge: Words = (),
    remove: Words = (),
    forget: str | None = None,
    new_class: Words = (),
    naive: bool = True,
    full: bool = False,
    memory: int = 2000,
    keep_images: bool | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    options: Options = DEFAULTS,
) -> None:
    """Teach a classifier new images and new classes, and show what it forgets.

    The result is a new run; the old one is not changed. Several ways are tried and shown with training on the new
    images alone; the best on held-out images of old and new classes is kept. Repeat the same command to continue an
    interrupted one.

    Parameters
    ----------
    run: Path
        A finished run. Where its images are gone, exemplars or sums that it keeps stand for them.
    data: str
        New labelled images: of classes it knows, of new classes, or of both.
    by: tuple[str, ...]
        Ways to learn, simplest first; see sightline list strategies. Default: lda and ranpac, at once, then replay.
    rename: tuple[str, ...]
        New names of classes: cat=Cat.
    merge: tuple[str, ...]
        Classes to make one of: kitten,cat=cat.
    remove: tuple[str, ...]
        Classes to take away.
    forget: str
        Images to take out of the data, of the last layer, sums and exemplars, known by their bytes.
    new_class: tuple[str, ...]
        New classes whose names look like known ones, and mean another thing.
    naive: bool
        Also train on the new images alone, to compare with; --no-naive saves its time.
    full: bool
        Also retrain from random weights on everything, to compare with.
    memory: int
        Old images that may be shown again, or kept as exemplars, in all.
    keep_images: bool
        Store exemplars next to the run, so that it can learn more when its images are gone; with --no-keep-images, sums
        over features alone, and only ways that need no old image.
    out: Path
        Folder of the new run. Default: runs/RUN-learned.
    overwrite: bool
        Replace the run that is in --out.
    """
    from ..continual import learn as run_learning

    found = run_learning(
        run, data, by=by, rename=_parse_names(rename, merge), remove=remove, forget=forget,
        new_classes=new_class, naive=naive, full=full, memory=memory, keep_images=keep_images, out=out, seed=seed,
        device=options.device, overwrite=overwrite,
    )  # fmt: skip
    page = evaluate_and_report(found.run)["report"] if len(found.run.splits.test) else None
    emit({"run": str(found.run.folder), **found.as_json(), "report": page}, options.json, print_learning)


def _parse_names(rename: Words, merge: Words) -> dict[str, str]:
    """Old name -> new name, from words such as ``a=b`` and ``a,b=c``; raises RecipeError."""
    names: dict[str, str] = {}
    for flag, words in (("--rename", rename), ("--merge", merge)):
        for word in words:
            old, equals, new = word.rpartition("=")
            parts = [part.strip() for part in (old.split(",") if flag == "--merge" else [old])]
            if not equals or not new.strip() or not all(parts) or (flag == "--merge") != (len(parts) > 1):
                example = "cat=Cat" if flag == "--rename" else "kitten,cat=cat"
                raise RecipeError(f"{flag} {word} cannot be understood: write it as {flag} {example}.")
            names |= dict.fromkeys(parts, new.strip())
    return names


def print_learning(console: "Console", value: Mapping[str, Any]) -> None:
    """All ways as a table, and what was kept."""
    rows, interval = [], "{value:.1%} [{low:.1%}, {high:.1%}]"
    for one in value["outcomes"]:
        mark = "kept" if one["strategy"] == value["chosen"] else ""
        rows.append(
            (
                one["strategy"],
                *(interval.format(**one[name]) if one[name] else "" for name in ("old", "new")),
                "" if one["change"] is None else f"{100 * one['change']['value']:+.1f}",
                f"{one['negative_flips']:,}",
                "" if (validation := one["validation_balanced_accuracy"]) is None else f"{validation:.1%}",
                f"{one['seconds']:.1f}",
                mark,
            )
        )
    columns = ("way", "old classes", "new images", "change", "newly wrong", "validation", "seconds", "")
    console.print("\n[bold]Test images of old classes and of the new data[/bold]\n")
    console.print(make_table(columns, rows))
    for sentence in value["sentences"]:
        console.print(f"\n{sentence}", markup=False)
    console.print(f"\nThe classifier that knows both is in {value['run']}", markup=False)
    console.print(f"Then try: sightline predict {quote(value['run'])} IMAGES", markup=False)
