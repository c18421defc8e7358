"""The verb pretrain: a backbone from images whose labels are not read."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from .output import DEFAULTS, Options, emit, make_table, owns_process

if TYPE_CHECKING:
    from rich.console import Console

BACKBONES = {
    "pretrained": "pre-trained, without labels",
    "untrained": "untrained",
    "supervised": "trained on the labels, for a quarter of the time",
    "embedded": "embedded (ImageNet)",
}
"""What the table of backbones calls them."""


def pretrain(
    data: str | None = None,
    /,
    *,
    by: str = "simclr",
    model: str | None = None,
    size: int | None = None,
    epochs: int | None = None,
    budget: str = "10m",
    batch_size: int | None = None,
    lr: float | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    options: Options = DEFAULTS,
) -> None:
    """Pre-train a backbone on images without labels, for train --weights RUN.

    Worth trying with ten thousand images or more, of a kind that ImageNet has no likeness of; photos are better served
    by the embedded weights, which train starts from.

    Parameters
    ----------
    data: str
        A folder or archive of images, of any layout. Labels are not read; where there are some, they hold out test
        images and measure the features.
    by: str
        simclr (simclr:temperature=0.2) or byol (byol:decay=0.996).
    model: str
        Network, as for train. Default: lenet5 for small grey images, else resnet20.
    size: int
        Working size in pixels. Chosen from the median short side.
    epochs: int
        Passes over the images. Chosen to fit the budget.
    budget: str
        Time where epochs are not given: 10m, 2h. Published runs take hours on a GPU.
    batch_size: int
        Images per step, each in two views. 256, or fewer where there are few.
    lr: float
        Peak learning rate. Chosen for the batch size.
    out: Path
        Folder of the run. Default: runs/DATA-BY.
    resume: Path
        Continue this interrupted pre-training, with the same result.
    overwrite: bool
        Replace the run that is in --out.
    """
    from .. import progress, runtime
    from ..adaptation import pretrain as run_pretraining
    from ..training import Recipe

    given = {"model": model, "size": size, "epochs": epochs, "batch_size": batch_size, "lr": lr}
    recipe = Recipe(
        seed=seed, budget=budget, **{name: value for name, value in given.items() if value is not None}
    )
    began = runtime.process_began() if owns_process.get() else None
    with progress.heartbeat():
        found = run_pretraining(
            data, recipe, by=by, out=out, resume=resume, device=options.device, overwrite=overwrite, began=began
        )
    emit({"run": str(found.folder), **found.as_json()}, options.json, print_pretraining)


def print_pretraining(console: "Console", value: Mapping[str, Any]) -> None:
    """The k-NN accuracies, and how to go on."""
    if found := value["knn"]:
        n = found["pretrained"]["n"]
        rows = [
            (title, f"{found[name]['value']:.1%}", "{low:.1%} to {high:.1%}".format(**found[name]))
            for name, title in BACKBONES.items()
        ]
        console.print(f"\n[bold]k-NN accuracy of the features on {n:,} test images[/bold]\n")
        console.print(make_table(("", "", "95 % interval"), rows))
    for sentence in value["sentences"]:
        console.print(f"\n{sentence}", markup=False)
    console.print(
        f"\nPre-trained on {value['images']:,} images in {value['epochs']} epochs. It knows no classes. Then: "
        f"sightline train DATA --weights {quote(value['run'])}",
        markup=False,
    )
