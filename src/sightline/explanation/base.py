"""What every explainer is, and how its attribution becomes a map: one number per place, then heat in [0, 1]."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..attacks import require_gradient
from ..classifier import Classifier, frozen_eval

EXPLANATION_BATCH_SIZE = 128
"""Images per forward pass, at most."""

FULL_HEAT_QUANTILE = 0.995
"""Quantile of the evidence that becomes full heat, so that a single outlier does not leave everything else dark."""


class Explainer(ABC):
    """``(classifier, images, targets) -> signed attribution (B C H W)`` of the raw logit of each image's target.

    To add one, write a frozen dataclass with ``run`` and name it in ``EXPLAINERS``. The same call gives the same
    map. An explainer that only knows places gives every channel the same map.
    """

    signed: ClassVar[bool] = True
    """Whether the sign says for or against the target; of a mere gradient only the magnitude speaks."""

    needs_gradient: ClassVar[bool] = True
    """Whether it follows gradients; the others only ask for logits and work on every classifier."""

    batch_size: ClassVar[int] = EXPLANATION_BATCH_SIZE
    """Images that ``run`` is given at once, at most."""

    def __call__(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        """What each pixel of ``images``, in [0, 1], does to the logit of its target class.

        The classifier is in eval mode meanwhile, without weight noise, and unchanged afterwards. Raises
        GradientError for a classifier without gradients, ChoiceError for a network that the method does not fit.
        """
        if self.needs_gradient:
            require_logit_gradient(classifier, type(self).__name__)
        if not len(images):
            return torch.zeros_like(images)
        with frozen_eval(classifier, weight_noise=False):
            prepared = self.prepare(classifier, images)
            pairs = zip(images.split(self.batch_size), targets.split(self.batch_size), strict=True)
            return torch.cat([self.run(classifier, some, of, prepared) for some, of in pairs])

    def prepare(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Any:
        """What all batches share, such as masks or a layer's name."""
        del classifier, images

    @abstractmethod
    def run(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        targets: Int[Tensor, " B"],
        prepared: Any,
    ) -> Float[Tensor, "B C H W"]:
        """The attribution of one batch, with what ``prepare`` returned; the classifier is in eval mode."""


def require_logit_gradient(classifier: Classifier, what: str) -> None:
    """Raise GradientError for a classifier without gradients; ``what`` begins the message."""
    require_gradient(classifier, what, "Use --by occlusion or --by rise, which only ask for answers.")


def gather_target_logits(
    classifier: Classifier, pixels: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """The raw logit of each image's target."""
    return classifier(pixels).gather(1, targets[:, None].clone())[:, 0]  # a clone: targets may come from inference


def as_leaf(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """A copy that records a gradient, independent of the graph of the images."""
    return images.detach().clone().requires_grad_()


def reduce_channels(explainer: Explainer, attribution: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """The evidence of each place: the sum over channels if signed, else the largest magnitude."""
    return attribution.sum(1) if explainer.signed else attribution.abs().amax(1)


def to_heat_map(evidence: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """Evidence for the target as heat in [0, 1], each image scaled by itself; evidence against it is 0.

    Full heat is the 99.5 % quantile. A map without evidence for the target is 0 everywhere.
    """
    positive = evidence.clamp(min=0)
    flat = positive.flatten(1)
    most = flat.kthvalue(max(1, math.ceil(FULL_HEAT_QUANTILE * flat.shape[1])), dim=1).values
    most = torch.where(most > 0, most, flat.amax(1))
    return (positive / most.clamp(min=1e-30)[:, None, None]).clamp(max=1)
