"""The verb compress: a smaller classifier, compared with the original."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from .output import DEFAULTS, Options, Words, emit, evaluate_and_report, make_table

if TYPE_CHECKING:
    from rich.console import Console


def compress(
    run: Path,
    data: str | None = None,
    /,
    *,
    by: str,
    out: Path,
    target: Words = (),
    max_accuracy_drop: float = 0.01,
    unlabelled: str | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    overwrite: bool = False,
    seed: int = 0,
    options: Options = DEFAULTS,
) -> None:
    """Make a smaller classifier, fine-tune it, and compare it with the original in one run.

    Repeat the same command to continue an interrupted compression.

    Parameters
    ----------
    run: Path
        A run folder; or a bundle, with images.
    data: str
        Other images to fine-tune and test on. Default: the run's own.
    by: str
        prune, channels, lowrank, int8, distil, with arguments after colons; several, in order, with commas:
        channels:0.4,int8. See sightline list compressors.
    out: Path
        Folder of the smaller classifier's run.
    target: tuple[str, ...]
        Ratios to the original: latency=0.5x, size=0.1x, multiply-adds=0.5x, parameters=0.2x. The strength of the
        compressors is searched for. Exit code 3 where the target is not met.
    max_accuracy_drop: float
        With --target: validation accuracy that may be lost; 0.01 is one percentage point.
    unlabelled: str
        With --by distil: a folder or archive of other photos, of any layout. The new network learns the original's
        answers to them too.
    epochs: int
        Epochs of each fine-tuning (default: a quarter of the original's), or of a distilled network's training
        (default: as many as the original's).
    lr: float
        Peak learning rate. Default: a fifth of the original's.
    overwrite: bool
        Replace the run that is in --out.
    """
    from ..compression import FineTuning
    from ..compression import compress as run_compression

    settings = FineTuning(epochs=epochs, lr=lr, seed=seed)
    found = run_compression(
        run, data, by=by, out=out, target=target, max_accuracy_drop=max_accuracy_drop, settings=settings,
        unlabelled=unlabelled, device=options.device, overwrite=overwrite,
    )  # fmt: skip
    page = evaluate_and_report(found.run)["report"]
    value = {"run": str(found.run.folder), **found.as_json(), "report": page}
    emit(value, options.json, print_compression)
    found.require_target()


def print_compression(console: "Console", value: Mapping[str, Any]) -> None:
    """The original and the small classifier as a table."""
    from ..evidence import compression_rows

    console.print(f"\n[bold]{value['n']:,} test images, both in one run[/bold]\n")
    console.print(make_table(("", "original", "small", ""), compression_rows(value)))
    for sentence in (*value["sentences"], *value["notes"]):
        console.print(f"\n{sentence}", markup=False)
    if value["target"]:
        console.print(f"\n{value['target']['sentence']}", markup=False)
    console.print(f"\nThe smaller classifier is in {value['run']}", markup=False)
    console.print(f"Then try: sightline export {quote(value['run'])} --out model.onnx", markup=False)
