"""The verb explain: saliency maps, counterfactuals, feature visualisation."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ChoiceError
from .output import DEFAULTS, Options, emit, make_table

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
    options: Options = DEFAULTS,
) -> None:
    """Explain predictions: the pixels that support them, and the changes that would alter them.

    Parameters
    ----------
    run: Path
        A run or bundle folder.
    images: str
        Files, folders or patterns, of any size and colour mode.
    by: str
        Method: gradcam, gradcam++, integrated-gradients, smoothgrad, saliency, rollout, occlusion, rise, or all.
        Default: gradcam if the network allows it.
    target: str
        The class to explain. Default: the predicted class.
    layer: str
        The layer for gradcam, or whose units are visualised. Default: automatic.
    counterfactual: str
        Show what would change the prediction to this class: a small change, and the nearest training image.
    visualise: str
        Show images that maximise this class (or all), or with --layer its units: 0,1,2. Takes no images.
    out: Path
        The picture. Default: in the explanations folder of the run.
    """
    from ..explanation import counterfactual_run, explain_run, visualise_run

    if visualise is None and not images:
        raise ChoiceError("Name the images to explain, after the run: files, folders or patterns.")
    if visualise is not None and (images or counterfactual):
        raise ChoiceError("--visualise creates its own images: leave out the images and --counterfactual.")
    if (visualise or counterfactual) and (by or target):
        raise ChoiceError(
            "--by and --target apply to saliency maps: leave them out with --counterfactual and --visualise."
        )
    if visualise is not None:
        value = visualise_run(run, visualise, layer=layer, out=out, device=options.device)
    elif counterfactual is not None:
        value = counterfactual_run(run, images, counterfactual, out=out, device=options.device)
    else:
        value = explain_run(run, images, by=by, target=target, layer=layer, out=out, device=options.device)
    emit(value, options.json, print_explanations)


def print_explanations(console: "Console", value: Mapping[str, Any]) -> None:
    """A sentence for each image, and the faithfulness of the maps."""
    for one in value["images"]:
        if "wanted" not in one:  # a visualisation has no sentence
            sentence = one["sentence"] if "sentence" in one else next(iter(one["by"].values()))["sentence"]
            console.print(f"{one.get('file', '')}: {sentence}", markup=False)
    if scores := value.get("faithfulness"):
        names = ("deletion_area", "insertion_area", "similarity_shuffled")
        rows = [
            (by, *("-" if one[name] is None else f"{one[name]:.2f}" for name in names))
            for by, one in scores.items()
        ]
        console.print()
        console.print(
            make_table(
                ("", "deletion (lower is better)", "insertion (higher)", "similarity, shuffled weights"), rows
            )
        )
    for remark in value["remarks"]:
        console.print(f"\n{remark['text']}", markup=False)
    console.print(f"\nLook at {value['picture']}", markup=False)
