"""Why this answer? One method or all of them, over a batch of images, with the tests of every map."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..choose import choose
from ..classifier import Classifier
from ..errors import ChoiceError
from ..types import Remark
from .attention import AttentionRollout
from .base import EXPLANATION_BATCH_SIZE, Explainer, deterministic_eval, reduce_channels, to_heat_map
from .cam import GradCam, GradCamPlusPlus, choose_cam_layers
from .counterfactual import check_target_classes
from .faithfulness import Faithfulness, measure_faithfulness
from .gradients import IntegratedGradients, Saliency, SmoothGrad
from .neighbours import Gallery, embed_images
from .perturbation import Occlusion, Rise
from .text import AnswerFacts, describe_answer, locate_heat

EXPLAINERS: dict[str, Callable[..., Explainer]] = {
    "gradcam": GradCam,
    "gradcam++": GradCamPlusPlus,
    "integrated-gradients": IntegratedGradients,
    "smoothgrad": SmoothGrad,
    "saliency": Saliency,
    "rollout": AttentionRollout,
    "occlusion": Occlusion,
    "rise": Rise,
}
"""Name -> ``(**arguments) -> explainer``: what ``by=`` chooses from."""

EXPLANATION_NEIGHBOURS = 5
"""Nearest training images that are told."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanation:
    """Why the classifier answers as it does for B images, by one method."""

    by: str
    explainer: Explainer
    targets: Int[Tensor, " B"]
    attribution: Float[Tensor, "B C H W"]
    """Signed, of the raw logit of each target."""
    facts: tuple[AnswerFacts, ...]
    faithfulness: Faithfulness | None
    """None where it was not asked for."""

    @property
    def evidence(self) -> Float[Tensor, "B H W"]:
        """One signed number for each place (a magnitude, where only that speaks)."""
        return reduce_channels(self.explainer, self.attribution)

    @property
    def heat(self) -> Float[Tensor, "B H W"]:
        """Evidence for the target, in [0, 1]."""
        return to_heat_map(self.evidence)

    @property
    def sentences(self) -> tuple[str, ...]:
        """One or two plain sentences about each image."""
        return tuple(describe_answer(facts) for facts in self.facts)

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Warnings about the maps: that they ignore the weights, or say no more than they would elsewhere."""
        return self.faithfulness.remarks(self.by) if self.faithfulness else ()

    def as_json(self) -> list[dict[str, Any]]:
        """A row for each image: facts, sentence, and how far its map can be believed."""
        return [
            {
                **facts.as_json(),
                "sentence": describe_answer(facts),
                "faithfulness": self.faithfulness.row(i) if self.faithfulness else None,
            }
            for i, facts in enumerate(self.facts)
        ]


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
    """Explain the answers for images in [0, 1]: which pixels speak for each target, by default the answer itself.

    ``by`` is a name of EXPLAINERS, with arguments as in ``gradcam:layer=layer2``, or an explainer; None takes the
    first that the network allows. ``labels`` are true classes, if known; a ``gallery`` tells the nearest training
    images. Raises ChoiceError or GradientError, in a sentence, where the method cannot be.
    """
    by = by or default_explainer(classifier, images.shape[1:])
    explainer = choose(EXPLAINERS, by, "explainer")
    likely = predict_calibrated(classifier, images)
    targets = likely.argmax(1) if targets is None else targets.to(images.device)
    check_target_classes(classifier, targets)
    attribution = explainer(classifier, images, targets)
    faithful = (
        measure_faithfulness(classifier, images, targets, explainer, attribution)
        if tested and len(images)
        else None
    )
    name = by if isinstance(by, str) else repr(by)
    found = to_heat_map(reduce_channels(explainer, attribution))
    facts = _collect_facts(classifier, likely, targets, name, found)
    if labels is not None:
        facts = [replace(one, label=label) for one, label in zip(facts, labels, strict=True)]
    if gallery is not None:
        near = _nearest_images(classifier, images, gallery)
        facts = [replace(one, neighbours=rows) for one, rows in zip(facts, near, strict=True)]
    return Explanation(
        by=name,
        explainer=explainer,
        targets=targets,
        attribution=attribution,
        facts=tuple(facts),
        faithfulness=faithful,
    )


def default_explainer(classifier: Classifier, shape: Sequence[int]) -> str:
    """The method for this network and images (C, H, W), by name: gradcam where it has maps, or what it allows."""
    if not classifier.differentiable:
        return "occlusion"
    try:
        choose_cam_layers(classifier, shape)
    except ChoiceError:
        return "integrated-gradients"
    return "gradcam"


def predict_calibrated(classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
    """Calibrated, as it would answer, of as many images as there are; the classifier stays as it is."""
    with deterministic_eval(classifier, noise=True), torch.no_grad():
        return torch.cat([classifier.probabilities(part) for part in images.split(EXPLANATION_BATCH_SIZE)])


def _collect_facts(
    classifier: Classifier,
    likely: Float[Tensor, "B K"],
    targets: Int[Tensor, " B"],
    by: str,
    found: Float[Tensor, "B H W"],
) -> list[AnswerFacts]:
    """What was measured about each answer and its map."""
    facts, names = [], classifier.classes
    for row, target, map_ in zip(likely.double(), targets.tolist(), found, strict=True):
        values, order = row.topk(2)
        place = locate_heat(map_)
        facts.append(
            AnswerFacts(
                answer=names[int(order[0])],
                confidence=float(values[0]),
                runner_up=names[int(order[1])],
                margin=float(values[0] - values[1]),
                target=names[target],
                target_probability=float(row[target]),
                by=by,
                share=place.share,
                place=place.place,
                inside=place.inside,
            )
        )
    return facts


def _nearest_images(
    classifier: Classifier, images: Float[Tensor, "B C H W"], gallery: Gallery
) -> list[tuple[dict[str, Any], ...]]:
    """The nearest training images of each image: position in the gallery, file, label and distance."""
    with deterministic_eval(classifier), torch.no_grad():
        features = torch.cat([embed_images(classifier, part) for part in images.split(EXPLANATION_BATCH_SIZE)])
    near, known = gallery.nearest(features, EXPLANATION_NEIGHBOURS), gallery.dataset
    return [
        tuple(
            {
                "index": int(i),
                "file": str(known.files[i]),
                "label": known.classes[known.labels[i]],
                "distance": float(distance),
            }
            for i, distance in zip(indices, distances, strict=True)
            if i >= 0
        )
        for indices, distances in zip(near.index, near.distance, strict=True)
    ]
