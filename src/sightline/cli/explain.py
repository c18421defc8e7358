"""The verb that asks why: explain."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ChoiceError
from .output import Device, Json, emit, make_table

if TYPE_CHECKING:
    from rich.console import Console


def explain(
    run: Path,
    /,
    *images: str,
    by: str | None = None,
    target: str | None = None,
    layer: str | None = None,
    counterfactual: str | None = None,
    visualise: str | None = None,
    out: Path | None = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Why this answer: what in the image speaks for it, and what would change it.

    Parameters
    ----------
    run: Path
        A run or bundle folder.
    images: str
        Files, folders or patterns; any size and mode, brought to what the classifier sees.
    by: str
        gradcam, gradcam++, integrated-gradients, smoothgrad, saliency, rollout, occlusion, rise, or all of them.
        Default: gradcam where the network allows it.
    target: str
        The class to explain. Default: the answer itself.
    layer: str
        The layer whose map gradcam shows, or whose units are visualised. Default: chosen.
    counterfactual: str
        Show what would make each image this class: a small change, and the nearest real image.
    visualise: str
        Show what this class (or all) wants to see, or with --layer these units of it: 0,1,2. Needs no images.
    out: Path
        The picture. Default: in the folder explanations of the run.
    """
    from ..explanation import counterfactual_run, explain_run, visualise_run

    _check_flags(images, by, target, counterfactual, visualise)
    if visualise is not None:
        value = visualise_run(run, visualise, layer=layer, out=out, device=device)
    elif counterfactual is not None:
        value = counterfactual_run(run, images, counterfactual, out=out, device=device)
    else:
        value = explain_run(run, images, by=by, target=target, layer=layer, out=out, device=device)
    emit(value, json, _print_explanations)


def _check_flags(
    images: tuple[str, ...], by: str | None, target: str | None, counterfactual: str | None, visualise: str | None
) -> None:
    """Raise ChoiceError for flags that mean nothing together."""
    if visualise is None and not images:
        raise ChoiceError("Say which images to explain: files, folders or patterns, after the run.")
    if visualise is not None and (images or counterfactual):
        raise ChoiceError("--visualise makes its own images: leave out the images and --counterfactual.")
    if (visualise or counterfactual) and (by or target):
        raise ChoiceError(
            "--by and --target belong to maps: leave them out with --counterfactual and --visualise."
        )


def _print_explanations(console: "Console", value: Mapping[str, Any]) -> None:
    for one in value["images"]:
        for sentence in _image_sentences(one):
            console.print(f"{one.get('file', '')}: {sentence}", markup=False)
    if scores := value.get("faithfulness"):
        rows = [
            (by, *(f"{one[name]:.2f}" for name in ("deletion_area", "insertion_area")), _format_similarity(one))
            for by, one in scores.items()
        ]
        console.print()
        console.print(
            make_table(("", "deletion (low is good)", "insertion (high)", "with shuffled weights (0)"), rows)
        )
    for remark in value["remarks"]:
        console.print(f"\n{remark['text']}", markup=False)
    console.print(f"\nLook at {value['picture']}", markup=False)


def _image_sentences(one: Mapping[str, Any]) -> list[str]:
    if "wanted" in one:
        return []
    return [one["sentence"]] if "sentence" in one else [next(iter(one["by"].values()))["sentence"]]


def _format_similarity(one: Mapping[str, Any]) -> str:
    found = one["similarity_shuffled"]
    return "-" if found is None else f"{found:.2f}"
