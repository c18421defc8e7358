"""Losses that compare images: features of one class close together, those of different classes apart.

Contrastive, triplet and supervised contrastive losses compare the images of a batch with one another, beside
cross-entropy or alone; CosFace and ArcFace compare each image with a direction for each class, by an angle. All work on
features of unit length.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..batches import Batch
from ..checks import check_number, check_positive
from ..classifier import Classifier
from ..layers import get_head
from .losses import CrossEntropy, LogitLoss, Objective

MIN_SQUARED_DISTANCE = 1e-12
"""Floor of squared distances under a square root, whose slope at 0 is infinite."""

MAX_COSINE = 1 - 1e-7
"""Largest cosine whose angle is taken: the slope of the arc cosine at 1 is infinite."""


def contrastive_loss(
    features: Float[Tensor, "B D"], labels: Int[Tensor, " B"], margin: float = 1.0
) -> Float[Tensor, ""]:
    """Mean over the pairs: d^2 / 2 for two images of one class, max(0, margin - d)^2 / 2 for others.

    d is the distance of the features at unit length (Hadsell et al. 2006, equation 4). A batch of one image gives 0.
    """
    first, second = torch.triu_indices(len(labels), len(labels), 1, device=labels.device)
    if not len(first):
        return features.sum() * 0
    distance = _distances(F.normalize(features.float(), dim=1))[first, second]
    alike = labels[first] == labels[second]
    return torch.where(alike, distance.square(), F.relu(margin - distance).square()).mean() / 2


def triplet_loss(
    features: Float[Tensor, "B D"], labels: Int[Tensor, " B"], margin: float | None = 0.2
) -> Float[Tensor, ""]:
    """Mean over images of how much further the hardest image of their class is than the hardest of another.

    The hardest of its class is the furthest, the hardest of another the nearest (Hermans et al. 2017, arXiv 1703.07737,
    equation 5): max(0, d+ - d- + margin), or log(1 + exp(d+ - d-)) where ``margin`` is None. Images without another
    of their class, or without one of another class, are left out; a batch of only such images gives 0.
    """
    same, other = _pairs(labels)
    usable = same.any(1) & other.any(1)
    if not bool(usable.any()):
        return features.sum() * 0
    distance = _distances(F.normalize(features.float(), dim=1))
    furthest = distance.masked_fill(~same, -math.inf).amax(1)[usable]
    nearest = distance.masked_fill(~other, math.inf).amin(1)[usable]
    gap = furthest - nearest
    return (F.softplus(gap) if margin is None else F.relu(gap + margin)).mean()


def supervised_contrastive_loss(
    features: Float[Tensor, "B D"], labels: Int[Tensor, " B"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """-log of the softmax share of each image of the same class among all other images, by cosine / temperature.

    Mean over the images of the same class, then over the images that have one (Khosla et al. 2020, arXiv 2004.11362,
    equation 2). A batch without two images of a class gives 0.
    """
    same, other = _pairs(labels)
    usable = same.any(1)
    if not bool(usable.any()):
        return features.sum() * 0
    unit = F.normalize(features.float(), dim=1)
    similarity = (unit @ unit.T) / temperature
    itself = ~(same | other)
    logs = similarity - similarity.masked_fill(itself, -math.inf).logsumexp(1, keepdim=True)
    return -(logs.masked_fill(~same, 0).sum(1)[usable] / same.sum(1)[usable]).mean()


def _pairs(labels: Int[Tensor, " B"]) -> tuple[Bool[Tensor, "B B"], Bool[Tensor, "B B"]]:
    """Which other images are of the same class, and which are of another."""
    same = labels[:, None] == labels[None, :]
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def _distances(unit: Float[Tensor, "B D"]) -> Float[Tensor, "B B"]:
    """Euclidean distances of vectors of unit length."""
    return (2 - 2 * (unit @ unit.T)).clamp_min(MIN_SQUARED_DISTANCE).sqrt()


@dataclass(frozen=True, kw_only=True)
class MetricLoss(Objective):
    """Cross-entropy + weight * a loss of the features of a batch; a member writes ``from_features``.

    With ``alone``, cross-entropy trains the last layer only, on features that it cannot change: the features are then
    learned by the metric loss alone, and the classifier is complete all the same. A weight of 0 is cross-entropy.
    Needs batches with several images of a class.
    """

    weight: float = 0.5
    alone: bool = False
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    """Of the cross-entropy: one weight for each class."""
    across_images = True
    min_class_images: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Raise ValueError for a negative weight, or one of 0 for a metric loss alone."""
        check_number("weight", self.weight, 0)
        if self.alone and not self.weight:
            raise ValueError(
                "weight must be above 0 where the metric loss is alone: nothing else trains the features"
            )

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch.

        Raises TypeError for soft labels: an image that is a mixture of two classes is a positive of neither.
        """
        entropy = CrossEntropy(label_smoothing=self.label_smoothing, class_weights=self.class_weights)
        if not self.weight:
            return entropy(classifier, batch)
        if batch.labels.is_floating_point():
            raise TypeError(
                f"{self.name} compares images of one class: it cannot use mixed images (mixup, cutmix)"
            )
        features, logits = classifier.features_and_logits(batch.pixels)
        if self.alone:
            logits = get_head(classifier.network)(features.detach())
        metric = self.from_features(features, batch.labels)
        return entropy.from_logits(logits.float(), batch.labels) + self.weight * metric

    @abstractmethod
    def from_features(self, features: Float[Tensor, "B D"], labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """The metric loss of a batch of features."""


@dataclass(frozen=True, kw_only=True)
class Contrastive(MetricLoss):
    """``contrastive_loss``, with cross-entropy."""

    margin: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for a margin that is not above 0."""
        super().__post_init__()
        check_positive("margin", self.margin)

    def from_features(self, features: Float[Tensor, "B D"], labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """The contrastive loss."""
        return contrastive_loss(features, labels, self.margin)


@dataclass(frozen=True, kw_only=True)
class Triplet(MetricLoss):
    """``triplet_loss`` with batch-hard mining, with cross-entropy; a ``margin`` of 0 is the soft one."""

    margin: float = 0.2

    def __post_init__(self) -> None:
        """Raise ValueError for a negative margin."""
        super().__post_init__()
        check_number("margin", self.margin, 0)

    def from_features(self, features: Float[Tensor, "B D"], labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """The triplet loss."""
        return triplet_loss(features, labels, self.margin or None)


@dataclass(frozen=True, kw_only=True)
class SupCon(MetricLoss):
    """``supervised_contrastive_loss``, with cross-entropy."""

    temperature: float = 0.1

    def __post_init__(self) -> None:
        """Raise ValueError for a temperature that is not above 0."""
        super().__post_init__()
        check_positive("temperature", self.temperature)

    def from_features(self, features: Float[Tensor, "B D"], labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """The supervised contrastive loss."""
        return supervised_contrastive_loss(features, labels, self.temperature)


@dataclass(frozen=True, kw_only=True)
class CosineMargin(LogitLoss):
    """Cross-entropy of ``scale`` times cosines, those of the true class made smaller: a margin between classes.

    The network gets a ``CosineHead`` of that scale, whose logits these are; the margin is in the loss only.
    """

    scale: float = 16.0
    margin: float = 0.35
    max_margin: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        """Raise ValueError for a scale that is not above 0, or a margin that is negative or too large."""
        check_positive("scale", self.scale)
        check_number("margin", self.margin, 0)
        if self.margin > self.max_margin:
            raise ValueError(f"margin must be at most {self.max_margin:.4g}, not {self.margin}")

    @property
    def head(self) -> tuple[str, Mapping[str, Any]]:
        """A cosine head of this scale."""
        return "cosine", {"scale": self.scale}

    def per_sample(self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The loss of each image."""
        own = F.one_hot(labels, logits.shape[1]).bool()
        lowered = self.scale * self.lower(logits / self.scale)
        return F.cross_entropy(torch.where(own, lowered, logits), labels, reduction="none")

    @abstractmethod
    def lower(self, cosines: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Cosines as they count for the true class."""


@dataclass(frozen=True, kw_only=True)
class CosFace(CosineMargin):
    """The margin is taken from the cosine (Wang et al. 2018, arXiv 1801.09414, equation 4)."""

    def lower(self, cosines: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Cos - margin."""
        return cosines - self.margin


@dataclass(frozen=True, kw_only=True)
class ArcFace(CosineMargin):
    """The margin, in radians, is added to the angle (Deng et al. 2019, arXiv 1801.07698, equation 3).

    Past pi - margin, where the cosine would rise again, cos - margin sin(margin) goes on falling.
    """

    margin: float = 0.5
    max_margin: ClassVar[float] = math.pi / 2

    def lower(self, cosines: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """cos(theta + margin)."""
        cosines = cosines.clamp(-MAX_COSINE, MAX_COSINE)
        moved = cosines * math.cos(self.margin) - (1 - cosines.square()).sqrt() * math.sin(self.margin)
        turned = cosines < -math.cos(self.margin)
        return torch.where(turned, cosines - self.margin * math.sin(self.margin), moved)
