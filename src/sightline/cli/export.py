"""The verb export: a classifier as a file for another program."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from .output import OUTPUT_DEFAULTS, OutputOptions, emit, make_table

if TYPE_CHECKING:
    from rich.console import Console


def export(
    run: Path,
    /,
    *,
    out: Path,
    to: str = "onnx",
    data: str | None = None,
    limit: int = 2000,
    overwrite: bool = False,
    options: OutputOptions = OUTPUT_DEFAULTS,
) -> None:
    """Export a classifier to one file; refuses if the predictions of the file differ.

    Parameters
    ----------
    run: Path
        A run or bundle folder.
    out: Path
        The file: model.onnx, model.pt2, or a folder for openvino.
    to: str
        onnx (int8 stays int8), torch (torch.export) or openvino (an optional extra).
    data: str
        Labelled images for the comparison. Default: the validation images of the run.
    limit: int
        Compare about this many images.
    overwrite: bool
        Replace what is at --out.
    """
    from ..formats import export as hand_over

    found = hand_over(run, out, to=to, data=data, limit=limit, overwrite=overwrite)
    emit({"run": str(run), **found.as_json()}, options.json, print_export)


def print_export(console: "Console", value: Mapping[str, Any]) -> None:
    """Accuracy and latency before and after export."""
    what = "int8" if value["int8"] else "float32"
    sample = value["sample"]
    console.print(f"\nCompared on {sample[:1].lower()}{sample[1:]}\n", markup=False)
    rows = [("accuracy", *(f"{value[key]:.2%}" for key in ("accuracy_before", "accuracy")))]
    for before, after in zip(value["latency_before"], value["latency"], strict=True):
        images = "1 image" if after["batch_size"] == 1 else f"{after['batch_size']} images"
        for half, name in (("p50_ms", "median"), ("p95_ms", "95th percentile")):
            rows.append((f"{images}, {name}", *(f"{one[half]:.2f} ms" for one in (before, after))))
    console.print(make_table(("", "in Sightline", "the file"), rows))
    console.print(
        f"\nThe same prediction for {value['agreement']:.2%} of {value['n']:,} images; probabilities differ by at "
        f"most {value['largest_difference']:.1e}. {value['size_mb']:.2f} MB, {what}.",
        markup=False,
    )
    console.print(f"\nThe classifier is in {value['out']}", markup=False)
    if value["to"] == "onnx":
        console.print(f"Then try: sightline predict {quote(value['out'])} IMAGE...", markup=False)
