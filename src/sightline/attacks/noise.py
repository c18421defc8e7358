"""Random noise of a given size: the baseline that every attack must beat."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import runtime
from ..checks import check_int
from ..classifier import Classifier
from .base import BALLS, Attack, check_norm, is_correct
from .gradient import margin_loss


@dataclass(frozen=True)
class RandomNoise(Attack):
    """A random point of the ball: the baseline that every attack must beat. It needs no gradient.

    The first of ``tries`` points that is misclassified is taken; without ``early_stop`` the point of largest
    margin.
    """

    needs_gradient: ClassVar[bool] = False
    kind: ClassVar = "noise"
    tries: int = 1
    norm: str = "linf"
    seed: int = 0
    early_stop: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError or ChoiceError for an impossible field."""
        check_norm(self.norm)
        check_int("tries", self.tries, 1)

    def run(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], labels: Int[Tensor, " B"], eps: float
    ) -> Float[Tensor, "B C H W"]:
        """The images with noise; with ``early_stop`` those misclassified already stay unchanged."""
        found = images.clone()
        if not self.early_stop:
            best = torch.full((len(images),), -torch.inf, device=images.device)
            for number in range(self.tries):
                tried = BALLS[self.norm](images, eps).random(runtime.make_generator(self.seed, number))
                margin = margin_loss(classifier(tried).detach().float(), labels)
                better = margin > best
                best[better], found[better] = margin[better], tried[better]
            return found
        left = is_correct(classifier, images, labels).nonzero().squeeze(1)
        for number in range(self.tries):
            if not len(left):
                break
            found[left] = BALLS[self.norm](images[left], eps).random(runtime.make_generator(self.seed, number))
            left = left[is_correct(classifier, found[left], labels[left])] if number + 1 < self.tries else left
        return found
