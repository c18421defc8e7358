"""Explainers that follow the gradient of the target's logit to the pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import runtime
from ..checks import check_int, check_number
from ..classifier import Classifier
from .base import EXPLANATION_BATCH_SIZE, Explainer, as_leaf, gather_target_logits


def logit_gradient(
    classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """The gradient of each image's target logit with respect to its pixels."""
    pixels = as_leaf(images)
    (found,) = torch.autograd.grad(gather_target_logits(classifier, pixels, targets).sum(), pixels)
    return found


@dataclass(frozen=True)
class Saliency(Explainer):
    """The gradient of the target's logit: where a small change matters most (Simonyan et al. 2013, 1312.6034).

    Its sign says which way to change a pixel, not whether it speaks for the target, so heat shows the magnitude.
    """

    signed: ClassVar[bool] = False

    def run(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"], prepared: Any
    ) -> Float[Tensor, "B C H W"]:
        """Change of the logit per unit of pixel."""
        del prepared
        return logit_gradient(classifier, images, targets)


@dataclass(frozen=True)
class SmoothGrad(Explainer):
    """The mean gradient over noisy copies of the image (Smilkov et al. 2017, arXiv 1706.03825).

    ``noise`` is the standard deviation as a share of the image's own range; every image gets the same draws.
    """

    samples: int = 25
    noise: float = 0.15
    seed: int = 0
    signed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible field."""
        check_int("samples", self.samples, 1, 10_000)
        check_number("noise", self.noise, 0, 1)

    def prepare(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "S 1 C H W"]:
        """The noise, which all images share."""
        del classifier
        drawn = torch.randn(self.samples, *images.shape[1:], generator=runtime.make_generator(self.seed))
        return drawn.to(images)[:, None] * self.noise

    def run(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        targets: Int[Tensor, " B"],
        prepared: Tensor,
    ) -> Float[Tensor, "B C H W"]:
        """Change of the logit per unit of pixel, averaged."""
        reach = (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))[:, None, None, None]
        shares = torch.full((self.samples,), 1 / self.samples)
        return sum_gradients(classifier, images, targets, shares, lambda steps: images + reach * prepared[steps])


@dataclass(frozen=True)
class IntegratedGradients(Explainer):
    """``(x - x') * integral of the gradient from x' to x`` (Sundararajan et al. 2017, arXiv 1703.01365).

    The attributions sum to the logit's change from ``baseline`` x', an image of this one value in [0, 1]. The
    integral is a Gauss-Legendre sum over ``steps`` points. A pixel that equals the baseline gets nothing.
    """

    steps: int = 32
    baseline: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible field."""
        check_int("steps", self.steps, 1, 10_000)
        check_number("baseline", self.baseline, 0, 1)

    def run(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"], prepared: Any
    ) -> Float[Tensor, "B C H W"]:
        """Each pixel's part of the logit's change."""
        del prepared
        points, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(self.steps))
        places = ((points + 1) / 2).to(images).view(-1, 1, 1, 1, 1)
        way = images - self.baseline
        return way * sum_gradients(
            classifier, images, targets, weights / 2, lambda steps: self.baseline + places[steps] * way
        )


def sum_gradients(
    classifier: Classifier,
    images: Float[Tensor, "B C H W"],
    targets: Int[Tensor, " B"],
    weights: Float[Tensor, " S"],
    points: Callable[[Int[Tensor, " s"]], Float[Tensor, "s B C H W"]],
) -> Float[Tensor, "B C H W"]:
    """The weighted sum of the gradients at S points of each image, as many at once as fit into one pass."""
    total, weights = torch.zeros_like(images), weights.to(images)
    for steps in torch.arange(len(weights)).split(max(1, EXPLANATION_BATCH_SIZE // len(images))):
        found = logit_gradient(classifier, points(steps).flatten(0, 1), targets.repeat(len(steps)))
        total += torch.einsum("s,sbchw->bchw", weights[steps], found.unflatten(0, (len(steps), -1)))
    return total
