"""Where an attack may go: at most eps from the image, in pixels of [0, 1], and never outside [0, 1]."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..choose import lookup
from ..classifier import Classifier
from ..errors import RecipeError


@runtime_checkable
class Attack(Protocol):
    """A value that changes images, each by at most eps in its norm, so that the classifier answers wrongly."""

    needs_gradient: ClassVar[bool]
    """Whether it only works where answers can be differentiated."""

    @property
    def norm(self) -> str:
        """What eps is measured in: a name of ``BALLS``."""
        ...

    def __call__(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        labels: Int[Tensor, " B"],
        eps: float,
        /,
    ) -> Float[Tensor, "B C H W"]:
        """The images, changed; ``labels`` are the right answers (of a targeted attack: the wanted ones)."""
        ...


class Ball(ABC):
    """All images at most ``eps`` from each of the given ones and within [0, 1]."""

    def __init__(self, images: Float[Tensor, "B C H W"], eps: float) -> None:
        self.images, self.eps = images, eps

    def select(self, rows: Int[Tensor, " b"] | Bool[Tensor, " B"]) -> "Ball":
        """The ball around some of the images."""
        return type(self)(self.images[rows], self.eps)

    @staticmethod
    @abstractmethod
    def max_eps(images: Float[Tensor, "B C H W"]) -> float:
        """The eps that reaches every image of this shape."""

    @staticmethod
    @abstractmethod
    def steepest_direction(gradient: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The change of length 1 that gains most along the gradient, which is overwritten."""

    @staticmethod
    @abstractmethod
    def clip_norm(change: Float[Tensor, "B C H W"], eps: float) -> Float[Tensor, "B C H W"]:
        """The change, overwritten, brought to a length of at most eps."""

    @abstractmethod
    def random(self, generator: torch.Generator | None) -> Float[Tensor, "B C H W"]:
        """A point drawn from each ball; without a generator from torch's global one."""

    @abstractmethod
    def project(self, at: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """``at``, overwritten, brought back into the ball."""

    def step(
        self, at: Float[Tensor, "B C H W"], gradient: Float[Tensor, "B C H W"], size: float | Float[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        """``at`` moved by ``size`` uphill, and back into the ball; both tensors are overwritten."""
        if isinstance(size, Tensor):
            return self.project(at.addcmul_(self.steepest_direction(gradient), size.view(-1, 1, 1, 1)))
        return self.project(at.add_(self.steepest_direction(gradient), alpha=size))


class LinfBall(Ball):
    """No pixel changes by more than eps."""

    def __init__(self, images: Float[Tensor, "B C H W"], eps: float) -> None:
        super().__init__(images, eps)
        self.low, self.high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)

    @staticmethod
    def max_eps(images: Float[Tensor, "B C H W"]) -> float:
        """Black becomes white."""
        del images
        return 1.0

    @staticmethod
    def steepest_direction(gradient: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Its sign."""
        return gradient.sign_()

    @staticmethod
    def clip_norm(change: Float[Tensor, "B C H W"], eps: float) -> Float[Tensor, "B C H W"]:
        """Each pixel's change cut to eps."""
        return change.clamp_(-eps, eps)

    def random(self, generator: torch.Generator | None) -> Float[Tensor, "B C H W"]:
        """Uniform in the cube, then cut to [0, 1], as published."""
        return self.project(random_like(self.images, generator).mul_(2 * self.eps).add_(self.images - self.eps))

    def project(self, at: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Each pixel cut to its range."""
        return at.clamp_(self.low, self.high)


class L2Ball(Ball):
    """The square root of the summed squared changes is at most eps."""

    @staticmethod
    def max_eps(images: Float[Tensor, "B C H W"]) -> float:
        """From all black to all white."""
        return math.sqrt(images[0].numel())

    @staticmethod
    def steepest_direction(gradient: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The gradient, brought to length 1."""
        most = gradient.abs().amax((1, 2, 3), keepdim=True)  # squares of small gradients would be 0 in float32
        gradient.div_(most.clamp_(min=torch.finfo(gradient.dtype).tiny))
        return gradient.div_(_l2_norms(gradient))

    @staticmethod
    def clip_norm(change: Float[Tensor, "B C H W"], eps: float) -> Float[Tensor, "B C H W"]:
        """Scaled."""
        return change.mul_((eps / _l2_norms(change)).clamp_(max=1))

    def random(self, generator: torch.Generator | None) -> Float[Tensor, "B C H W"]:
        """Uniform in the sphere, then cut to [0, 1]."""
        change = self.steepest_direction(random_like(self.images, generator, normal=True))
        share = random_like(self.images[:, :1, :1, :1], generator).pow_(1 / self.images[0].numel())
        return change.mul_(share * self.eps).add_(self.images).clamp_(0, 1)

    def project(self, at: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The change shortened, then cut to [0, 1], which only shortens it more."""
        return self.clip_norm(at.sub_(self.images), self.eps).add_(self.images).clamp_(0, 1)


BALLS: Mapping[str, type[Ball]] = {"linf": LinfBall, "l2": L2Ball}
"""Name of a norm -> its ball."""


def parse_eps(word: str | float) -> float:
    """A distance in pixels as people write it; RecipeError for what is no number.

    >>> pixels("8/255") == 8 / 255, pixels("0.3")
    (True, 0.3)
    """
    try:
        return float(Fraction(word)) if isinstance(word, str) else float(word)
    except (ValueError, ZeroDivisionError) as error:
        raise RecipeError(f"eps is '{word}': write a number of pixels, such as 8/255 or 0.3.") from error


def format_eps(eps: float) -> str:
    """A distance in pixels as people read it.

    >>> written(8 / 255), written(0.075), written(0.123456)
    ('8/255', '0.075', '0.1235')
    """
    if abs(eps - round(eps, 3)) < 1e-9:
        return f"{eps:g}"
    grey = eps * 255
    return f"{round(grey)}/255" if abs(grey - round(grey)) < 1e-6 else f"{eps:.4g}"


def check_norm(norm: str) -> None:
    """Raise ChoiceError for a norm nobody knows."""
    lookup(BALLS, norm, "norm")


def check_eps(eps: float, images: Float[Tensor, "B C H W"], norm: str) -> None:
    """Raise RecipeError for an eps that is negative, or larger than the distance between any two images."""
    most = BALLS[norm].max_eps(images)
    if not 0 <= eps <= most * (1 + 1e-6):
        hint = f" For {eps:g} of 255 grey values write {eps:g}/255." if 1 < eps <= 255 and norm == "linf" else ""
        raise RecipeError(
            f"eps is {eps:g}: it must be from 0 to {most:.4g} for images of this size ({norm}), because pixels go "
            f"from 0 to 1.{hint}"
        )


def random_like(
    like: Float[Tensor, "..."], generator: torch.Generator | None, *, normal: bool = False
) -> Float[Tensor, "..."]:
    """Random numbers, uniform in [0, 1) or normal, of this shape, layout and place; the same in every layout."""
    if generator is None:
        return torch.randn_like(like) if normal else torch.rand_like(like)
    make = torch.randn if normal else torch.rand
    return torch.empty_like(like).copy_(make(like.shape, generator=generator, dtype=like.dtype))


def _l2_norms(change: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 1 1"]:
    return torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True).clamp_(min=1e-12)
