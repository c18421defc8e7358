"""What would have to be different for another answer: a small, smooth change towards that class, and a real image.

An adversarial example also turns the answer, by a change nobody sees that leads nowhere. This one is made of low
frequencies and pulled, in the network's features, to where training images of the class are.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from .. import progress
from ..classifier import Classifier
from ..errors import ChoiceError
from .base import deterministic_eval, require_logit_gradient
from .neighbours import Gallery, embed_images

TURNING_PROBABILITY = 0.5
"""Probability of the wanted class at which the answer has turned."""

PROBABILITY_MARGIN = 0.1
"""Probability above that aimed at, so that rounding to 8 bits does not turn the answer back."""

PULL_NEIGHBOURS = 5
"""Training images of the wanted class whose mean, in features, the change is pulled to."""

MAX_FREQUENCIES = 32
"""Lowest frequencies in each direction, at most; of small images, those of the lower half."""


@dataclass(frozen=True, eq=False)
class Counterfactuals:
    """Changed images, in 256 steps a channel, and how near they came."""

    images: Float[Tensor, "B C H W"]
    probabilities: Float[ndarray, " B"]
    """Calibrated, of the wanted class."""
    change: Float[ndarray, " B"]
    """Euclidean length of the change, in pixels of [0, 1]."""
    before: Float[ndarray, " B"]
    """Mean distance, in features, from the image to its nearest training images of the wanted class."""
    after: Float[ndarray, " B"]
    """The same from the changed image."""
    nearest: Int[ndarray, " B"]
    """Position in the gallery of the nearest real image of the wanted class; -1 where there is none."""

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
    """The smallest smooth change found that makes each image's target at least as likely as not.

    Minimises ``hinge(log odds) + pull |f - a|^2 / |f0 - a|^2 + size * mean square change`` over the ``band``
    lowest cosines of each direction, f the features, f0 those of the image, a the mean of the nearest training
    images of the class. Without a ``gallery`` nothing pulls. Raises GradientError where there is no gradient.
    """
    require_logit_gradient(classifier, "A counterfactual")
    check_target_classes(classifier, targets)
    goal, scale, near = _feature_goal(classifier, images, targets, gallery)
    waves = _cosine_basis(images, band)
    shape = (len(images), images.shape[1], *(len(each) for each in waves))
    weights = torch.zeros(shape, device=images.device, requires_grad=True)
    rate = 0.01 * math.sqrt(
        images[0, 0].numel() / weights[0, 0].numel()
    )  # a hundredth of the range a step, a pixel
    optimizer = torch.optim.Adam([weights], rate)
    best, least = images.clone(), torch.full((len(images),), torch.inf, device=images.device)
    wanted = math.log((TURNING_PROBABILITY + PROBABILITY_MARGIN) / (1 - TURNING_PROBABILITY - PROBABILITY_MARGIN))
    with deterministic_eval(classifier), progress.progress_bar("counterfactual", steps) as advance:
        for _ in range(steps):
            changed = (images + torch.einsum("bcij,ih,jw->bchw", weights, *waves)).clamp(0, 1)
            missing = F.relu(wanted - _log_odds(classifier, changed, targets))
            cost = size * (changed - images).square().mean((1, 2, 3))
            if goal is not None:
                cost = cost + pull * (embed_images(classifier, changed) - goal).square().sum(1) / scale
            with torch.no_grad():  # what turns the answer beats what does not, then the cheaper
                value = torch.where(missing > 0, 1e6 * (1 + missing), cost)
                better = value < least
                least = torch.where(better, value, least)
                best = torch.where(better[:, None, None, None], changed, best)
            (weights.grad,) = torch.autograd.grad((missing + cost).sum(), weights)
            optimizer.step()
            advance()
    return _measure(classifier, images, best.detach(), targets, gallery, near)


def check_target_classes(classifier: Classifier, targets: Int[Tensor, " B"]) -> None:
    """Raise ChoiceError for a class number that the classifier does not have."""
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(classifier.classes):
        raise ChoiceError(f"Class numbers go from 0 to {len(classifier.classes) - 1}.")


def _feature_goal(
    classifier: Classifier, images: Tensor, targets: Tensor, gallery: Gallery | None
) -> tuple[Tensor | None, Tensor, Int[ndarray, " B"]]:
    """Where the features are pulled to, the squared distance there, and the nearest real image of the class."""
    if gallery is None:
        return None, torch.ones(len(images)), np.full(len(images), -1)
    with deterministic_eval(classifier), torch.no_grad():
        features = embed_images(classifier, images)
    found = gallery.nearest(features, PULL_NEIGHBOURS, targets)
    index = torch.from_numpy(found.index).to(images.device)
    known = (index >= 0)[:, :, None]
    around = torch.where(known, gallery.features[index.clamp(min=0)], 0)
    goal = around.sum(1) / known.sum(1).clamp(min=1)
    goal = torch.where(known.any(1), goal, features)  # no training image of the class: stay where you are
    return goal, (features - goal).square().sum(1).clamp(min=1e-6), found.index[:, 0]


def _cosine_basis(images: Tensor, band: int | None) -> list[Tensor]:
    """The lowest cosines (DCT-II, orthonormal) of the rows and of the columns, (frequencies, pixels) each."""
    made = []
    for side in images.shape[2:]:
        count = min(side, band or min(MAX_FREQUENCIES, max(2, side // 2)))
        phase = torch.arange(count)[:, None] * (torch.arange(side) + 0.5) * math.pi / side
        waves = torch.cos(phase) * math.sqrt(2 / side)
        waves[0] /= math.sqrt(2)
        made.append(waves.to(images))
    return made


def _log_odds(classifier: Classifier, images: Tensor, targets: Tensor) -> Float[Tensor, " B"]:
    """The logarithm of p / (1 - p), p the target's calibrated probability."""
    logits = classifier(images).float() / classifier.temperature
    own = targets[:, None]
    others = logits.scatter(1, own, -torch.inf).logsumexp(1)
    return logits.gather(1, own)[:, 0] - others


@torch.no_grad()
def _measure(
    classifier: Classifier,
    images: Tensor,
    changed: Tensor,
    targets: Tensor,
    gallery: Gallery | None,
    near: Int[ndarray, " B"],
) -> Counterfactuals:
    """The changed images in 8 bits, as they would be saved, and what is true of those."""
    changed = (changed * 255).round() / 255
    before = after = np.full(len(images), np.nan)
    with deterministic_eval(classifier), torch.no_grad():
        likely = classifier.probabilities(changed).gather(1, targets[:, None])[:, 0]
        if gallery is not None:
            before, after = (
                gallery.distance(embed_images(classifier, each), targets, PULL_NEIGHBOURS)
                for each in (images, changed)
            )
    length = (changed - images).flatten(1).norm(dim=1)
    return Counterfactuals(
        changed, likely.double().cpu().numpy(), length.double().cpu().numpy(), before, after, near
    )
