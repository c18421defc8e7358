"""Counterfactuals: a small, smooth change that turns the answer to another class, and the nearest training images.

An adversarial example also turns the answer, by an invisible change that leads nowhere. This change is made of low
frequencies and pulled, in the network's features, to where training images of the class are.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from .. import progress, runtime
from ..classifier import Classifier, frozen_eval
from ..data import relabel, stratified_subset
from ..errors import BundleError, ChoiceError, DataError
from ..features import embed_cached
from ..inference import embed
from ..types import Dataset
from .base import require_logit_gradient

MAX_GALLERY_IMAGES = 5000
"""Training images searched, at most; of more a stratified sample."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest training images of B images, nearest first."""

    index: Int[ndarray, "B k"]
    """Positions in the gallery's dataset; -1 where it has fewer than k images."""
    distance: Float[ndarray, "B k"]
    """Euclidean distance of the features; infinite where the gallery has fewer than k images."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Training images with their features."""

    dataset: Dataset
    features: Float[Tensor, "N D"]

    def nearest(
        self, features: Float[Tensor, "B D"], k: int = 5, labels: Int[Tensor, " B"] | None = None
    ) -> Neighbours:
        """The ``k`` nearest images to each; with ``labels``, the nearest of each image's class."""
        distance = torch.cdist(features.double(), self.features.double())  # (B N)
        if labels is not None:
            own = torch.from_numpy(self.dataset.labels).to(labels.device)
            distance = distance.masked_fill(own[None] != labels[:, None], torch.inf)
        found, index = distance.topk(min(k, distance.shape[1]), dim=1, largest=False)
        missing = ~found.isfinite()
        return Neighbours(index.masked_fill(missing, -1).cpu().numpy(), found.cpu().numpy())

    def describe_nearest(self, features: Float[Tensor, "B D"], k: int) -> list[tuple[dict[str, Any], ...]]:
        """Position, file, label and distance of each image's ``k`` nearest, JSON-ready."""
        near, known = self.nearest(features, k), self.dataset
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

    def distance(
        self, features: Float[Tensor, "B D"], labels: Int[Tensor, " B"], k: int = 5
    ) -> Float[ndarray, " B"]:
        """The mean distance to the ``k`` nearest images of the class ``labels``; infinite where there are none."""
        found = self.nearest(features, k, labels).distance
        count = np.isfinite(found).sum(1)
        total = np.where(np.isfinite(found), found, 0).sum(1)
        return np.where(count > 0, total / np.maximum(count, 1), np.inf)


def build_gallery(
    classifier: Classifier,
    dataset: Dataset,
    *,
    most: int = MAX_GALLERY_IMAGES,
    seed: int = 0,
) -> Gallery:
    """The images of the classifier's classes with their features; of more than ``most`` a stratified sample.

    Labels become those of the classifier, matched by name. Features come from the cache where a network with a last
    layer made them before. Raises DataError where no image is left.
    """
    chosen = relabel(dataset, classifier.classes, drop_unknown=True)
    chosen = chosen.subset(chosen.is_labelled)
    if not len(chosen):
        raise DataError("There are no training images of the classifier's classes to compare with.")
    if len(chosen) > most:
        order = runtime.permutation(len(chosen), seed)
        chosen = chosen.subset(stratified_subset(chosen.labels, order, limit=most))
    with frozen_eval(classifier, weight_noise=False):
        try:
            features = embed_cached(classifier, chosen, precision=torch.float32)
        except BundleError:  # an ensemble or an estimator has no last layer of its own, and no store
            features = embed(classifier, chosen)
    return Gallery(chosen, torch.from_numpy(features).to(classifier.device))


TURNING_PROBABILITY = 0.5
"""Probability of the target from which the answer counts as turned."""

PROBABILITY_MARGIN = 0.1
"""Probability aimed at beyond that, so that rounding to 8 bits does not turn the answer back."""

PULL_NEIGHBOURS = 5
"""Training images of the target whose mean feature vector attracts the change."""

MAX_FREQUENCIES = 32
"""Frequencies in each direction, at most; small images use the lower half of theirs."""


@dataclass(frozen=True, eq=False)
class Counterfactuals:
    """Changed images of 8 bits per channel, and how near they came to the target."""

    images: Float[Tensor, "B C H W"]
    probabilities: Float[ndarray, " B"]
    """Calibrated probability of the target."""
    change: Float[ndarray, " B"]
    """Euclidean length of the change, in pixels of [0, 1]."""
    before: Float[ndarray, " B"]
    """Mean feature distance from the image to its nearest training images of the target."""
    after: Float[ndarray, " B"]
    """The same distance from the changed image."""
    nearest: Int[ndarray, " B"]
    """Position in the gallery of the nearest real image of the target; -1 where there is none."""

    @property
    def reached(self) -> Bool[ndarray, " B"]:
        """Whether the answer turned."""
        return self.probabilities >= TURNING_PROBABILITY


def find_counterfactuals(
    classifier: Classifier,
    images: Float[Tensor, "B C H W"],
    targets: Int[Tensor, " B"],
    gallery: Gallery | None = None,
    *,
    steps: int = 200,
    band: int | None = None,
    pull: float = 1.0,
    size: float = 10.0,
) -> Counterfactuals:
    """The smallest smooth change found that makes each image's target at least as probable as not.

    Minimises ``hinge(log odds) + pull |f - a|^2 / |f0 - a|^2 + size * mean square change`` over the ``band``
    lowest cosines of each direction: f are the features, f0 those of the image, a the mean of its nearest training
    images of the target. Without a ``gallery`` there is no pull. Raises GradientError for a classifier without
    gradients, ChoiceError for a target out of range.
    """
    require_logit_gradient(classifier, "A counterfactual")
    check_target_classes(classifier, targets)
    goal, scale, near = _feature_goal(classifier, images, targets, gallery)
    waves = cosine_basis(images, band)
    shape = (len(images), images.shape[1], *(len(each) for each in waves))
    weights = torch.zeros(shape, device=images.device, requires_grad=True)
    # a hundredth of the range per step and pixel
    rate = 0.01 * math.sqrt(images[0, 0].numel() / weights[0, 0].numel())
    optimizer = torch.optim.Adam([weights], rate)
    best, least = images.clone(), torch.full((len(images),), torch.inf, device=images.device)
    wanted = math.log((TURNING_PROBABILITY + PROBABILITY_MARGIN) / (1 - TURNING_PROBABILITY - PROBABILITY_MARGIN))
    with frozen_eval(classifier, weight_noise=False), progress.progress_bar("counterfactual", steps) as advance:
        for _ in range(steps):
            changed = (images + torch.einsum("bcij,ih,jw->bchw", weights, *waves)).clamp(0, 1)
            missing = F.relu(wanted - log_odds(classifier, changed, targets))
            cost = size * (changed - images).square().mean((1, 2, 3))
            if goal is not None:
                cost = cost + pull * (classifier.features(changed).float() - goal).square().sum(1) / scale
            with torch.no_grad():  # a turned answer beats any other, then the lower cost
                value = torch.where(missing > 0, 1e6 * (1 + missing), cost)
                better = value < least
                least = torch.where(better, value, least)
                best = torch.where(better[:, None, None, None], changed, best)
            (weights.grad,) = torch.autograd.grad((missing + cost).sum(), weights)
            optimizer.step()
            advance()
        changed = (best.detach() * 255).round() / 255  # as it would be saved
        before = after = np.full(len(images), np.nan)
        with torch.no_grad():
            probable = classifier.probabilities(changed).gather(1, targets[:, None])[:, 0]
            if gallery is not None:
                before, after = (
                    gallery.distance(classifier.features(each).float(), targets, PULL_NEIGHBOURS)
                    for each in (images, changed)
                )
    length = (changed - images).flatten(1).norm(dim=1)
    return Counterfactuals(
        changed, probable.double().cpu().numpy(), length.double().cpu().numpy(), before, after, near
    )


def check_target_classes(classifier: Classifier, targets: Int[Tensor, " B"]) -> None:
    """Raise ChoiceError for a class number that the classifier does not have."""
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(classifier.classes):
        raise ChoiceError(f"Class numbers go from 0 to {len(classifier.classes) - 1}.")


def _feature_goal(
    classifier: Classifier, images: Tensor, targets: Tensor, gallery: Gallery | None
) -> tuple[Tensor | None, Tensor, Int[ndarray, " B"]]:
    """The features that attract the change, the squared distance to them, and the nearest real image."""
    if gallery is None:
        return None, torch.ones(len(images)), np.full(len(images), -1)
    with frozen_eval(classifier, weight_noise=False), torch.no_grad():
        features = classifier.features(images).float()
    found = gallery.nearest(features, PULL_NEIGHBOURS, targets)
    index = torch.from_numpy(found.index).to(images.device)
    known = (index >= 0)[:, :, None]
    around = torch.where(known, gallery.features[index.clamp(min=0)], 0)
    goal = around.sum(1) / known.sum(1).clamp(min=1)
    goal = torch.where(known.any(1), goal, features)  # no training image of the class: no pull
    return goal, (features - goal).square().sum(1).clamp(min=1e-6), found.index[:, 0]


def cosine_basis(images: Tensor, band: int | None) -> list[Tensor]:
    """The lowest cosines (DCT-II, orthonormal) of the rows and of the columns, (frequencies, pixels) each."""
    made = []
    for side in images.shape[2:]:
        count = min(side, band or min(MAX_FREQUENCIES, max(2, side // 2)))
        phase = torch.arange(count)[:, None] * (torch.arange(side) + 0.5) * math.pi / side
        waves = torch.cos(phase) * math.sqrt(2 / side)
        waves[0] /= math.sqrt(2)
        made.append(waves.to(images))
    return made


def log_odds(classifier: Classifier, images: Tensor, targets: Tensor) -> Float[Tensor, " B"]:
    """log(p / (1 - p)) of the target's calibrated probability p."""
    logits = classifier(images).float() / classifier.temperature
    own = targets[:, None]
    others = logits.scatter(1, own, -torch.inf).logsumexp(1)
    return logits.gather(1, own)[:, 0] - others
