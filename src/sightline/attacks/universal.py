"""One change for all images: fitted on some, it fools on others."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import runtime
from ..checks import check_int
from ..classifier import Classifier, frozen_eval
from .base import BALLS, Attack, check_eps, check_norm, require_gradient
from .gradient import cross_entropy_loss, loss_gradient

MAX_IMAGE_LOSS = 9.0
"""Cross-entropy at which an image stops counting, so that images already fooled do not drown the others."""


@dataclass(frozen=True, eq=False)
class UniversalPerturbation(Attack):
    """A fixed change that is added to every image, scaled down where ``eps`` is below its own."""

    needs_gradient: ClassVar[bool] = False
    kind: ClassVar = "universal"
    change: Float[Tensor, "1 C H W"] = field(repr=False)
    eps: float
    norm: str = "linf"

    def run(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], labels: Int[Tensor, " B"], eps: float
    ) -> Float[Tensor, "B C H W"]:
        """The images with the change."""
        del classifier, labels
        return (images + self.change * min(1.0, eps / self.eps)).clamp(0, 1)


@dataclass(frozen=True)
class Universal(Attack):
    """One change for all images, by stochastic gradient ascent (Shafahi et al. 2018, Algorithm 1).

    ``fit`` makes it on some images, for others; called as an attack it is fitted on the very images it attacks.
    ``steps`` steps of eps / 10, each on ``batch_size`` images.
    """

    kind: ClassVar = "universal"
    fits: ClassVar[bool] = True
    steps: int = 100
    batch_size: int = 128
    norm: str = "linf"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError or ChoiceError for an impossible field."""
        check_norm(self.norm)
        check_int("steps", self.steps, 1)
        check_int("batch_size", self.batch_size, 1)

    def run(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], labels: Int[Tensor, " B"], eps: float
    ) -> Float[Tensor, "B C H W"]:
        """The images with the change fitted on them."""
        return self.fit(classifier, images, labels, eps)(classifier, images, labels, eps)

    def fit(
        self, classifier: Classifier, images: Float[Tensor, "N C H W"], labels: Int[Tensor, " N"], eps: float
    ) -> UniversalPerturbation:
        """The change that fools on these images; GradientError for a classifier without gradients."""
        check_eps(eps, images, self.norm)
        require_gradient(classifier, type(self).__name__)
        ball = BALLS[self.norm]
        generator = runtime.make_generator(self.seed)
        with frozen_eval(classifier):
            change = torch.zeros_like(images[:1])
            for _ in range(self.steps):
                some = torch.randint(len(images), (self.batch_size,), generator=generator).to(images.device)
                slope, _, _ = loss_gradient(
                    classifier,
                    (images[some] + change).clamp_(0, 1),
                    labels[some],
                    lambda logits, given: cross_entropy_loss(logits, given).clamp(max=MAX_IMAGE_LOSS),
                )
                change.add_(ball.steepest_direction(slope.sum(0, keepdim=True)), alpha=eps / 10)
                change = ball.clip_norm(change, eps)
        return UniversalPerturbation(change, eps, self.norm)
