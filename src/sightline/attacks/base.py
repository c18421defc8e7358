"""What every attack is, and the norm balls that limit it: at most eps from the image, in pixels of [0, 1]."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..choose import lookup
from ..classifier import Classifier, frozen_eval
from ..errors import GradientError, RecipeError


class Attack(ABC):
    """Changes each image by at most eps in the attack's norm, so that the classifier answers wrongly.

    To add an attack, write a frozen dataclass with ``run`` and name it in ``ATTACKS``. An attack that stops
    working on an image at its first wrong answer has a field ``early_stop``: it is switched off for a stochastic
    classifier, where one lucky draw of the noise would end the attack.
    """

    needs_gradient: ClassVar[bool] = True
    """Whether it follows the gradient of the logits; the others work on every classifier."""

    kind: ClassVar[Literal["noise", "one-step", "iterative", "decision", "universal"]] = "iterative"
    """How it searches, by which ``find_attack`` finds it; a decision attack sees answers only."""

    fits: ClassVar[bool] = False
    """Whether ``fit`` learns a change from some images that is then tested on others."""

    norm: str
    """The norm that eps limits: a name of ``BALLS``."""

    def __call__(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        labels: Int[Tensor, " B"],
        eps: float,
    ) -> Float[Tensor, "B C H W"]:
        """Return the attacked images; ``images`` and the classifier stay as they were.

        Args:
            images: in [0, 1].
            labels: the right answers; for a targeted attack the wanted ones.
            eps: largest change in ``norm``, in pixels of [0, 1]; 0 returns the images.

        Raises RecipeError for an impossible eps and GradientError for a classifier without gradients.
        """
        check_eps(eps, images, self.norm)
        if self.needs_gradient:
            require_gradient(classifier, type(self).__name__)
        if not eps:
            return images
        attack = self.without_early_stop() if classifier.stochastic else self
        with frozen_eval(classifier):
            return attack.run(classifier, images, labels, eps)

    @abstractmethod
    def run(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        labels: Int[Tensor, " B"],
        eps: float,
    ) -> Float[Tensor, "B C H W"]:
        """Attack a classifier in eval mode that records gradients to the pixels; eps is checked and above 0."""

    def without_early_stop(self) -> "Attack":
        """The same attack, which works on every image to its last step."""
        attack: Any = self
        return dataclasses.replace(attack, early_stop=False) if getattr(attack, "early_stop", False) else self

    def fit(
        self,
        classifier: Classifier,
        images: Float[Tensor, "N C H W"],
        labels: Int[Tensor, " N"],
        eps: float,
    ) -> "Attack":
        """The attack fitted on these images; itself where ``fits`` is False and each image is attacked on its own."""
        del classifier, images, labels, eps
        return self


USE_DECISION_ATTACK = "Choose an attack that only asks for answers: --by rays."


def require_gradient(classifier: Classifier, what: str, instead: str = USE_DECISION_ATTACK) -> None:
    """Raise GradientError for a classifier without gradients; ``what`` begins the message, ``instead`` ends it."""
    if not classifier.differentiable:
        word = classifier.architecture.arguments.get("word") or classifier.architecture.name
        raise GradientError(
            f"{what} follows the gradient of the answers, and this classifier ({word}) has none. {instead}"
        )


@torch.no_grad()
def is_correct(
    classifier: Classifier, images: Float[Tensor, "B C H W"], labels: Int[Tensor, " B"]
) -> Bool[Tensor, " B"]:
    """Whether the classifier's answer to each image is its label."""
    return classifier(images).argmax(1) == labels


class Ball(ABC):
    """All images in [0, 1] that are at most ``eps`` from each of the given ones."""

    def __init__(self, images: Float[Tensor, "B C H W"], eps: float) -> None:
        self.images, self.eps = images, eps

    def select(self, rows: Int[Tensor, " b"] | Bool[Tensor, " B"]) -> "Ball":
        """The ball around some of the images."""
        return type(self)(self.images[rows], self.eps)

    @staticmethod
    @abstractmethod
    def max_eps(images: Float[Tensor, "B C H W"]) -> float:
        """The largest distance between two images of this shape."""

    @staticmethod
    @abstractmethod
    def steepest_direction(gradient: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The change of length 1 that gains most along the gradient, which is overwritten."""

    @staticmethod
    @abstractmethod
    def clip_norm(change: Float[Tensor, "B C H W"], eps: float) -> Float[Tensor, "B C H W"]:
        """The change, overwritten, shortened to a length of at most eps."""

    @abstractmethod
    def random(self, generator: torch.Generator | None) -> Float[Tensor, "B C H W"]:
        """A random point of each ball, drawn from torch's global generator where none is given."""

    @abstractmethod
    def project(self, at: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """``at``, overwritten, projected back into the ball."""

    def step(
        self, at: Float[Tensor, "B C H W"], gradient: Float[Tensor, "B C H W"], size: float | Float[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        """``at`` moved by ``size`` along the steepest direction and projected; both tensors are overwritten."""
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
        """From black to white."""
        del images
        return 1.0

    @staticmethod
    def steepest_direction(gradient: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Its sign."""
        return gradient.sign_()

    @staticmethod
    def clip_norm(change: Float[Tensor, "B C H W"], eps: float) -> Float[Tensor, "B C H W"]:
        """Each pixel's change clipped to eps."""
        return change.clamp_(-eps, eps)

    def random(self, generator: torch.Generator | None) -> Float[Tensor, "B C H W"]:
        """Uniform in the cube, then clipped to [0, 1], as published."""
        return self.project(random_like(self.images, generator).mul_(2 * self.eps).add_(self.images - self.eps))

    def project(self, at: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Each pixel clipped to its range."""
        return at.clamp_(self.low, self.high)


class L2Ball(Ball):
    """The square root of the summed squared changes is at most eps."""

    @staticmethod
    def max_eps(images: Float[Tensor, "B C H W"]) -> float:
        """From an all black to an all white image."""
        return math.sqrt(images[0].numel())

    @staticmethod
    def steepest_direction(gradient: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The gradient, scaled to length 1."""
        most = gradient.abs().amax((1, 2, 3), keepdim=True)  # squares of small gradients would be 0 in float32
        gradient.div_(most.clamp_(min=torch.finfo(gradient.dtype).tiny))
        return gradient.div_(_l2_norms(gradient))

    @staticmethod
    def clip_norm(change: Float[Tensor, "B C H W"], eps: float) -> Float[Tensor, "B C H W"]:
        """The change, scaled."""
        return change.mul_((eps / _l2_norms(change)).clamp_(max=1))

    def random(self, generator: torch.Generator | None) -> Float[Tensor, "B C H W"]:
        """Uniform in the sphere, then clipped to [0, 1]."""
        change = self.steepest_direction(random_like(self.images, generator, normal=True))
        share = random_like(self.images[:, :1, :1, :1], generator).pow_(1 / self.images[0].numel())
        return change.mul_(share * self.eps).add_(self.images).clamp_(0, 1)

    def project(self, at: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The change scaled, then clipped to [0, 1], which only shortens it."""
        return self.clip_norm(at.sub_(self.images), self.eps).add_(self.images).clamp_(0, 1)


BALLS: Mapping[str, type[Ball]] = {"linf": LinfBall, "l2": L2Ball}
"""Name of a norm -> its ball."""


def parse_eps(word: str | float) -> float:
    """Parse a distance in pixels: a number or a fraction such as "8/255". Raises RecipeError for anything else.

    >>> parse_eps("8/255") == 8 / 255, parse_eps("0.3")
    (True, 0.3)
    """
    try:
        return float(Fraction(word)) if isinstance(word, str) else float(word)
    except (ValueError, ZeroDivisionError) as error:
        raise RecipeError(f"eps is '{word}': write a number of pixels, such as 8/255 or 0.3.") from error


def format_eps(eps: float) -> str:
    """Format a distance in pixels: in grey values of 255 where it is a whole number of them.

    >>> format_eps(8 / 255), format_eps(0.075), format_eps(0.123456)
    ('8/255', '0.075', '0.1235')
    """
    if abs(eps - round(eps, 3)) < 1e-9:
        return f"{eps:g}"
    grey = eps * 255
    return f"{round(grey)}/255" if abs(grey - round(grey)) < 1e-6 else f"{eps:.4g}"


def check_norm(norm: str) -> None:
    """Raise ChoiceError for an unknown norm."""
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
    """Random numbers of the tensor's shape, layout and device: uniform in [0, 1), or standard normal."""
    if generator is None:
        return torch.randn_like(like) if normal else torch.rand_like(like)
    make = torch.randn if normal else torch.rand
    return torch.empty_like(like).copy_(make(like.shape, generator=generator, dtype=like.dtype))


def _l2_norms(change: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 1 1"]:
    return torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True).clamp_(min=1e-12)
