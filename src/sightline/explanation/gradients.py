"""Explanations by the gradient of the logit with respect to the pixels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import runtime
from ..checks import check_int, check_number
from ..classifier import Classifier
from .base import (
    EXPLANATION_BATCH_SIZE,
    Explainer,
    as_leaf,
    deterministic_eval,
    explain_in_batches,
    gather_target_logits,
    require_logit_gradient,
)


def logit_gradient(
    classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """The gradient of each image's target logit with respect to its pixels."""
    with deterministic_eval(classifier):
        pixels = as_leaf(images)
        (found,) = torch.autograd.grad(gather_target_logits(classifier, pixels, targets).sum(), pixels)
    return found


@dataclass(frozen=True)
class Saliency(Explainer):
    """The gradient of the target's logit: where a small change matters most (Simonyan et al. 2013, 1312.6034).

    Its sign says which way to change a pixel, not whether it speaks for the target: heat shows the magnitude.
    """

    signed = False

    def __call__(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        """Change of the logit per unit of pixel; raises GradientError where there is none."""
        require_logit_gradient(classifier, "Saliency")
        return explain_in_batches(lambda some, of: logit_gradient(classifier, some, of), images, targets)


@dataclass(frozen=True)
class SmoothGrad(Explainer):
    """The mean gradient over noisy copies of the image (Smilkov et al. 2017, arXiv 1706.03825).

    ``noise`` is the standard deviation as a share of the image's own range; every image gets the same draws.
    """

    samples: int = 25
    noise: float = 0.15
    seed: int = 0
    signed = False

    def __post_init__(self) -> None:
        """Raise ValueError for no samples or an impossible noise."""
        check_int("samples", self.samples, 1, 10_000)
        check_number("noise", self.noise, 0, 1)

    def __call__(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        """Change of the logit per unit of pixel, averaged; raises GradientError where there is none."""
        require_logit_gradient(classifier, "SmoothGrad")
        drawn = torch.randn(self.samples, *images.shape[1:], generator=runtime.make_generator(self.seed))
        noise = drawn.to(images)[:, None] * self.noise

        def explain(some: Tensor, of: Tensor) -> Tensor:
            reach = (some.amax((1, 2, 3)) - some.amin((1, 2, 3)))[:, None, None, None]
            shares = torch.full((self.samples,), 1 / self.samples)
            return _sum_gradients(classifier, some, of, shares, lambda steps: some + reach * noise[steps])

        return explain_in_batches(explain, images, targets)


@dataclass(frozen=True)
class IntegratedGradients(Explainer):
    """``(x - x') * integral of the gradient from x' to x`` (Sundararajan et al. 2017, arXiv 1703.01365).

    It sums to the logit's change from ``baseline`` x', an image of this one value in [0, 1]. The integral is taken
    at the ``steps`` points of Gauss and Legendre. A pixel that equals the baseline gets nothing.
    """

    steps: int = 32
    baseline: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for no steps or a baseline that is no pixel."""
        check_int("steps", self.steps, 1, 10_000)
        check_number("baseline", self.baseline, 0, 1)

    def __call__(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        """Each pixel's part of the logit's change; raises GradientError where there is no gradient."""
        require_logit_gradient(classifier, "Integrated gradients")
        points, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(self.steps))
        places = ((points + 1) / 2).to(images).view(-1, 1, 1, 1, 1)

        def explain(some: Tensor, of: Tensor) -> Tensor:
            way = some - self.baseline
            return way * _sum_gradients(
                classifier, some, of, weights / 2, lambda steps: self.baseline + places[steps] * way
            )

        return explain_in_batches(explain, images, targets)


def _sum_gradients(
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
