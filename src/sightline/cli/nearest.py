"""The verb nearest: images of a collection that are most like others."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import ChoiceError
from .output import DEFAULTS, Options, check_picture_path, emit

if TYPE_CHECKING:
    from rich.console import Console


def nearest(
    data: str,
    /,
    *images: str,
    run: Path | None = None,
    count: Annotated[int, Parameter(alias="-k")] = 8,
    limit: int | None = None,
    save: Path | None = None,
    out: Path | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Find the images of a collection that are most like others, and score how well classes are found.

    Images are compared by what a network sees in them: the published one, or the classifier of --run. Features are
    kept, so that a second search takes seconds.

    Parameters
    ----------
    data: str
        A folder, archive, table or name, with labels or without; or an index that --save wrote.
    images: str
        Files, folders or patterns to look for. Default: none, only the score.
    run: Path
        A run or bundle whose features are compared. Default: those of the published network.
    count: int
        How many images to find for each.
    limit: int
        Search about this many images.
    save: Path
        Write the index to this file (photos.safetensors): it is searched without the images.
    out: Path
        A picture of the images and what was found (nearest.png).
    """
    from ..comparison import find_similar

    if out is not None and not images:
        raise ChoiceError("--out draws what was found: name the images to look for, after the data.")
    value = find_similar(
        data,
        images,
        run=run,
        k=count,
        limit=limit,
        save=save,
        out=None if out is None else check_picture_path(out),
        device=options.device,
    )
    emit(value, options.json, print_similar)


def print_similar(console: "Console", value: Mapping[str, Any]) -> None:
    """The images found for each, and the scores."""
    for one in value["queries"]:
        agree = f", {one['votes']} of {len(one['nearest'])} are {one['label']}" if one["label"] else ""
        console.print(f"{one['file']}{agree}:", markup=False)
        for found in one["nearest"]:
            label = f"  {found['label']}" if found["label"] else ""
            console.print(f"  {found['similarity']:.3f}  {found['file']}{label}", markup=False)
    for remark in value["remarks"]:
        console.print(remark, markup=False)
    if score := value["retrieval"]:
        console.print(
            f"Among {score['images']:,} images, by {value['features']}: the nearest other one is of the same class for "
            f"{score['recall']['1']:.1%}, MAP@R is {score['map_at_r']:.3f}.",
            markup=False,
        )
    elif not value["queries"]:
        console.print(f"{value['images']:,} images are ready to search: name some to look for, after the data.")
    for name, sentence in (("index", "The index is"), ("picture", "Look at")):
        if name in value:
            console.print(f"{sentence} {value[name]}", markup=False)
