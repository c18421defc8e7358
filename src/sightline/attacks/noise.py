"""Random noise of a given size: no attack, but what every attack must beat."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from .. import runtime
from ..checks import check_int
from ..classifier import Classifier, frozen_eval
from .base import BALLS, check_eps, check_norm
from .losses import is_correct


@dataclass(frozen=True)
class RandomNoise:
    """A point drawn from the ball: no attack, but what every attack must beat.

    The first of ``tries`` that fools the classifier is taken; it needs no gradient.
    """

    needs_gradient: ClassVar[bool] = False
    tries: int = 1
    norm: str = "linf"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError or ChoiceError for a field that cannot be."""
        check_norm(self.norm)
        check_int("tries", self.tries, 1)

    def __call__(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        labels: Int[Tensor, " B"],
        eps: float,
    ) -> Float[Tensor, "B C H W"]:
        """The images with noise, those that are answered wrongly without it as they are."""
        check_eps(eps, images, self.norm)
        if not eps:
            return images
        with frozen_eval(classifier):
            found = images.clone()
            left = is_correct(classifier, images, labels).nonzero().squeeze(1)
            for number in range(self.tries):
                if not len(left):
                    break
                ball = BALLS[self.norm](images[left], eps)
                found[left] = ball.random(runtime.make_generator(self.seed, number))
                left = left[is_correct(classifier, found[left], labels[left])] if number + 1 < self.tries else left
        return found
