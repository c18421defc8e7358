"""What every explainer is, and what becomes of its answer: evidence for each place, heat in [0, 1]."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attacks import require_gradient
from ..classifier import Classifier, frozen_eval

EXPLANATION_BATCH_SIZE = 128
"""Images in one pass of the network, at most."""

FULL_HEAT_QUANTILE = 0.995
"""Quantile of the evidence that becomes full heat: a single loud pixel would leave all others dark."""


class Explainer(ABC):
    """``(classifier, images, targets) -> signed attribution (B C H W)``: a value, the same each time.

    It explains the raw logit of each image's target. What only knows places gives every channel the same map.
    """

    signed: bool = True
    """Whether above 0 means for the target and below 0 against it; of a mere gradient the magnitude speaks."""

    needs_gradient: bool = True
    """Whether it looks inside the network; the others only ask it."""

    @abstractmethod
    def __call__(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        """What each pixel of ``images``, in [0, 1], does to the logit of its target; nothing else is changed."""


@contextmanager
def deterministic_eval(classifier: Classifier, *, noise: bool = False) -> Iterator[None]:
    """Within it the classifier answers in eval mode and gradients are recorded; then every module is as it was.

    Weights are as they are, without the noise that a defence puts into them, unless ``noise`` is asked for.
    """
    with frozen_eval(classifier, weight_noise=noise):
        yield


def require_logit_gradient(classifier: Classifier, what: str) -> None:
    """Raise GradientError where a method that follows gradients is asked of a classifier that has none."""
    require_gradient(classifier, what, "Use --by occlusion or --by rise, which only ask for answers.")


def gather_target_logits(
    classifier: Classifier, pixels: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """The raw logit of each image's target."""
    return classifier(pixels).gather(1, targets[:, None].clone())[:, 0]  # a clone: targets may come from inference


def as_leaf(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """A copy whose gradient can be asked for, whatever the images came from."""
    return images.detach().clone().requires_grad_()


def explain_in_batches(
    explain: Callable[[Tensor, Tensor], Tensor],
    images: Float[Tensor, "B C H W"],
    targets: Int[Tensor, " B"],
    size: int = EXPLANATION_BATCH_SIZE,
) -> Float[Tensor, "B C H W"]:
    """``explain`` of ``size`` images at a time, so that memory does not grow with the batch."""
    if not len(images):
        return torch.zeros_like(images)
    pairs = zip(images.split(size), targets.split(size), strict=True)
    return torch.cat([explain(some, of) for some, of in pairs])


def reduce_channels(explainer: Explainer, attribution: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """One number a place, the more the better for the target: signed the sum of the channels, else the loudest."""
    return attribution.sum(1) if explainer.signed else attribution.abs().amax(1)


def to_heat_map(found: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """Evidence as heat in [0, 1], each image by itself: what speaks against the target is 0.

    Full heat is the 99.5 % quantile. A map without evidence for the target stays cold.
    """
    positive = found.clamp(min=0)
    flat = positive.flatten(1)
    most = flat.kthvalue(max(1, math.ceil(FULL_HEAT_QUANTILE * flat.shape[1])), dim=1).values
    most = torch.where(most > 0, most, flat.amax(1))
    return (positive / most.clamp(min=1e-30)[:, None, None]).clamp(max=1)
