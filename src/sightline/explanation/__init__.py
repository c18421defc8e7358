"""Why this answer? Attribution maps and their tests, counterfactuals, feature visualisation, nearest images."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from ..choose import choose
from ..classifier import Classifier
from ..errors import ChoiceError
from ..training import Run
from .activation_maps import AttentionRollout, GradCam, GradCamPlusPlus, check_cam_layer, choose_cam_layers
from .attribution import IntegratedGradients, Occlusion, Rise, Saliency, SmoothGrad
from .base import Explainer, reduce_channels, to_heat_map
from .counterfactual import Counterfactuals, Gallery, Neighbours, build_gallery, find_counterfactuals
from .explaining import counterfactual_run, draw_explanations, explain_files, explain_test_answers, visualise_run
from .explanation import Explanation, explain_with
from .faithfulness import (
    Faithfulness,
    FaithfulnessCurves,
    compare_with_shuffled,
    measure_curves,
    measure_faithfulness,
    rank_correlation,
)
from .feature_visualisation import FeatureVisualisation, visualise_features
from .figures import overlay_heat

EXPLAINERS: Mapping[str, Callable[..., Explainer]] = {
    "gradcam": GradCam,
    "gradcam++": GradCamPlusPlus,
    "integrated-gradients": IntegratedGradients,
    "smoothgrad": SmoothGrad,
    "saliency": Saliency,
    "rollout": AttentionRollout,
    "occlusion": Occlusion,
    "rise": Rise,
}
"""Name -> the explainer; its own arguments follow after colons: ``gradcam:layer=layer2``."""


def explain(
    classifier: Classifier,
    images: Float[Tensor, "B C H W"],
    *,
    by: str | Explainer | None = None,
    targets: Int[Tensor, " B"] | None = None,
    labels: Sequence[str] | None = None,
    gallery: Gallery | None = None,
    tested: bool = True,
) -> Explanation:
    """Explain the answers to images in [0, 1]: what each pixel does to the logit of the target.

    Args:
        by: a name of EXPLAINERS with arguments, such as "gradcam:layer=layer2", or an explainer. Default:
            gradcam where the network has maps, else what works.
        targets: the classes to explain. Default: the answers.
        labels: the true classes, where known.
        gallery: training images of which the nearest are named.
        tested: whether the maps are tested.

    Raises ChoiceError or GradientError where the classifier does not fit the method.
    """
    by = by or default_explainer(classifier, images.shape[1:])
    explainer = choose(EXPLAINERS, by, "explainer")
    name = by if isinstance(by, str) else repr(by)
    return explain_with(
        classifier, images, explainer, name=name, targets=targets, labels=labels, gallery=gallery, tested=tested
    )


def default_explainer(classifier: Classifier, shape: Sequence[int]) -> str:
    """The explainer for images (C, H, W) by name: gradcam where the network has maps, else one that works."""
    if not classifier.differentiable:
        return "occlusion"
    try:
        choose_cam_layers(classifier, shape)
    except ChoiceError:
        return "integrated-gradients"
    return "gradcam"


def explain_run(
    run: Path,
    words: Sequence[str],
    *,
    by: str | None = None,
    target: str | None = None,
    layer: str | None = None,
    out: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Explain the answers to image files and draw them.

    Args:
        run: a run or bundle folder.
        words: files, folders and patterns.
        by: a name of EXPLAINERS with arguments, or ``all``. Default: what fits the network.
        target: the class to explain. Default: the answer.
        layer: the layer of an explainer that has one.
        out: the picture. Default: in the run folder, with ``explain.json`` beside it.

    Returns the results, JSON-ready. Raises SightlineError for a class, layer, method or file that cannot be used.
    """

    def choose_methods(classifier: Classifier, shape: Sequence[int]) -> dict[str, Explainer]:
        layered = []
        for name in EXPLAINERS:
            explainer: Any = choose(EXPLAINERS, name, "explainer")
            if "layer" in {field.name for field in dataclasses.fields(explainer)}:
                layered.append(name)
        chosen = by
        if layer is not None:
            if by not in (None, "all", *layered):
                raise ChoiceError(f"--layer is for {' and '.join(layered)}, not for '{by}'.")
            chosen = by or layered[0]
            if classifier.differentiable:
                check_cam_layer(classifier, layer, shape)
        names = [*EXPLAINERS] if chosen == "all" else [chosen or default_explainer(classifier, shape)]
        methods = [f"{name}:layer={layer}" if layer and name in layered else name for name in names]
        return {name: choose(EXPLAINERS, name, "explainer") for name in methods}

    return explain_files(run, words, choose_methods, target=target, out=out, device=device)


def explain_answers_run(run: Run, *, by: str | None = None, right: int = 6, wrong: int = 6) -> dict[str, Any]:
    """Explain answers to the run's own test images: the most confident mistakes, and random correct answers.

    Draws ``explanations/answers.png`` and writes ``answers.json`` into the run; returns its content, with each
    picture and its heat as data URLs. Raises DataError where the run has no test images.
    """
    geometry = run.classifier.geometry
    by = by or default_explainer(run.classifier, (geometry.channels, *geometry.size))
    return explain_test_answers(run, choose(EXPLAINERS, by, "explainer"), by, right=right, wrong=wrong)
