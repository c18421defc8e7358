"""Why this answer? One explainer over a batch of images, with the tests of every map and the facts in words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..classifier import Classifier, frozen_eval
from ..types import Remark
from .base import EXPLANATION_BATCH_SIZE, Explainer, reduce_channels, to_heat_map
from .counterfactual import Gallery, check_target_classes
from .faithfulness import Faithfulness, measure_faithfulness

EXPLANATION_NEIGHBOURS = 5
"""Nearest training images that an explanation names."""

MAX_FOCUSED_SHARE = 0.35
"""Share of the image that holds half of the evidence, above which the evidence counts as spread out."""

NINTHS = (
    *("upper left", "upper middle", "upper right"),
    *("left side", "centre", "right side"),
    *("lower left", "lower middle", "lower right"),
)
"""Names of the ninths of an image, row by row."""


@dataclass(frozen=True)
class HeatLocation:
    """Where the evidence for a target lies."""

    share: float
    """The smallest share of the image that holds half of the evidence; 1 where there is none."""
    place: str
    """Ninth of the image that holds most of it: upper left, centre, ...; "" where there is none."""
    inside: float
    """Share of all evidence in that ninth."""


def locate_heat(heat: Float[Tensor, "H W"]) -> HeatLocation:
    """The smallest area with half of the heat, and the ninth of the image with most of it."""
    total = float(heat.sum())
    if total <= 0:
        return HeatLocation(1.0, "", 0.0)
    ordered = heat.flatten().sort(descending=True).values.cumsum(0)
    count = int((ordered < total / 2).sum()) + 1
    height, width = heat.shape
    rows, columns = (torch.arange(side, device=heat.device) * 3 // side for side in (height, width))
    ninth = torch.zeros(9, device=heat.device).index_add(
        0, (rows[:, None] * 3 + columns).flatten(), heat.flatten()
    )
    best = int(ninth.argmax())
    return HeatLocation(count / heat.numel(), NINTHS[best], float(ninth[best]) / total)


@dataclass(frozen=True, kw_only=True)
class AnswerFacts:
    """What was measured about the answer to one image and its map."""

    answer: str
    confidence: float
    """Calibrated probability of the answer."""
    runner_up: str
    margin: float
    """Probability of the answer minus that of the runner-up."""
    target: str
    """The class that was explained."""
    target_probability: float
    by: str
    share: float
    """The smallest share of the image that holds half of the evidence for the target."""
    place: str
    """Ninth of the image that holds most of it."""
    inside: float
    """Share of the evidence in that ninth."""
    label: str | None = None
    """The true class, where known."""
    neighbours: tuple[Mapping[str, Any], ...] = ()
    """Nearest training images: ``file``, ``label``, ``distance``."""

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self) | {"neighbours": [dict(one) for one in self.neighbours]}


def describe_answer(facts: AnswerFacts) -> str:
    """One or two sentences made of measured facts."""
    said = f"'{facts.answer}' with {format_probability(facts.confidence)}"
    if facts.margin < 0.2:
        said += f", hardly more than '{facts.runner_up}' ({format_probability(facts.confidence - facts.margin)})"
    else:
        said += f", {round(facts.margin * 100)} points ahead of '{facts.runner_up}'"
    if facts.label is not None and facts.label != facts.answer:
        said += f"; it is labelled '{facts.label}'"
    if facts.target != facts.answer:
        said += f". Asked about '{facts.target}' ({format_probability(facts.target_probability)})"
    if not facts.place:
        said += f": {facts.by} finds no evidence for it in the image."
    elif facts.share > MAX_FOCUSED_SHARE:
        area = format_probability(facts.share)
        said += f": the evidence is spread out, half of it over {area} of the image ({facts.by})."
    else:
        said += (
            f": half of the evidence lies on {format_probability(facts.share)} of the image, the largest part in the "
            f"{facts.place} ({facts.by})."
        )
    if not facts.neighbours:
        return said
    first, count = facts.neighbours[0], len(facts.neighbours)
    said += f" The nearest training image is '{first['label']}' ({first['file']})"
    if count == 1:
        return f"{said}."
    agreeing = sum(one["label"] == facts.answer for one in facts.neighbours)
    among = "all" if agreeing == count else "none" if not agreeing else f"{agreeing}"
    return f"{said}; {among} of the {count} nearest {'is' if agreeing == 1 else 'are'} '{facts.answer}'."


def format_probability(share: float) -> str:
    """0.982 as "98 %"; with more digits near 0 and 1, never rounded to 0 or 100 %."""
    if share < 0.0001:
        return "under 0.01 %" if share else "0 %"
    if share > 0.9999:
        return "over 99.99 %" if share < 1 else "100 %"
    if 0.01 <= share <= 0.99:
        return f"{share * 100:.0f} %"
    return f"{share * 100:.2g} %" if share < 0.01 else f"{share * 100:.4g} %"


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanation:
    """The maps of B images by one explainer, with their tests and the facts about each answer."""

    by: str
    explainer: Explainer
    targets: Int[Tensor, " B"]
    attribution: Float[Tensor, "B C H W"]
    """Signed attribution of the raw logit of each target."""
    facts: tuple[AnswerFacts, ...]
    faithfulness: Faithfulness | None
    """Tests of the maps; None if not asked for."""

    @property
    def evidence(self) -> Float[Tensor, "B H W"]:
        """The evidence of each place: signed, or a magnitude where only that speaks."""
        return reduce_channels(self.explainer, self.attribution)

    @property
    def heat(self) -> Float[Tensor, "B H W"]:
        """Evidence for the target, in [0, 1]."""
        return to_heat_map(self.evidence)

    @property
    def sentences(self) -> tuple[str, ...]:
        """One or two sentences about each image."""
        return tuple(describe_answer(facts) for facts in self.facts)

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Warnings about the maps."""
        return self.faithfulness.remarks(self.by) if self.faithfulness else ()

    def as_json(self) -> list[dict[str, Any]]:
        """A row per image: facts, sentence, and the tests of its map."""
        return [
            {
                **facts.as_json(),
                "sentence": describe_answer(facts),
                "faithfulness": self.faithfulness.row(i) if self.faithfulness else None,
            }
            for i, facts in enumerate(self.facts)
        ]


def explain_with(
    classifier: Classifier,
    images: Float[Tensor, "B C H W"],
    explainer: Explainer,
    *,
    name: str,
    targets: Int[Tensor, " B"] | None = None,
    labels: Sequence[str] | None = None,
    gallery: Gallery | None = None,
    tested: bool = True,
) -> Explanation:
    """Explain the answers to images by one explainer, which sentences call ``name``; see ``explain``."""
    probable = predict_calibrated(classifier, images)
    targets = probable.argmax(1) if targets is None else targets.to(images.device)
    check_target_classes(classifier, targets)
    attribution = explainer(classifier, images, targets)
    faithful = (
        measure_faithfulness(classifier, images, targets, explainer, attribution)
        if tested and len(images)
        else None
    )
    nearest: Sequence[tuple[dict[str, Any], ...]] = [()] * len(images)
    if gallery is not None:
        with frozen_eval(classifier, weight_noise=False), torch.no_grad():
            batches = images.split(EXPLANATION_BATCH_SIZE)
            features = torch.cat([classifier.features(some).float() for some in batches])
        nearest = gallery.describe_nearest(features, EXPLANATION_NEIGHBOURS)
    facts, names = [], classifier.classes
    for i, heat in enumerate(to_heat_map(reduce_channels(explainer, attribution))):
        row, target, location = probable[i].double(), int(targets[i]), locate_heat(heat)
        values, order = row.topk(2)
        facts.append(
            AnswerFacts(
                answer=names[int(order[0])],
                confidence=float(values[0]),
                runner_up=names[int(order[1])],
                margin=float(values[0] - values[1]),
                target=names[target],
                target_probability=float(row[target]),
                by=name,
                share=location.share,
                place=location.place,
                inside=location.inside,
                label=None if labels is None else labels[i],
                neighbours=nearest[i],
            )
        )
    return Explanation(
        by=name,
        explainer=explainer,
        targets=targets,
        attribution=attribution,
        facts=tuple(facts),
        faithfulness=faithful,
    )


def predict_calibrated(classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
    """Calibrated probabilities, as the classifier would answer; it is unchanged afterwards."""
    with frozen_eval(classifier), torch.no_grad():
        return torch.cat([classifier.probabilities(some) for some in images.split(EXPLANATION_BATCH_SIZE)])
