"""Attacks that follow the gradient of a loss to the pixels, in one step (FGSM) or many (PGD), and those losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import runtime
from ..checks import check_int, check_positive
from ..choose import lookup
from ..classifier import Classifier
from .base import BALLS, Attack, Ball, check_norm, is_correct

AttackLoss = Callable[[Float[Tensor, "B K"], Tensor], Float[Tensor, " B"]]
"""(logits, labels) -> the loss of each image, which the attack maximises."""

StopCondition = Callable[[Float[Tensor, "B K"], Tensor], Bool[Tensor, " B"]]
"""(logits, labels) -> whether each image is where the attack wants it."""


def cross_entropy_loss(logits: Float[Tensor, "B K"], labels: Tensor) -> Float[Tensor, " B"]:
    """-log p of the label, or of each label by its share where labels are soft."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin_loss(logits: Float[Tensor, "B K"], labels: Tensor) -> Float[Tensor, " B"]:
    """The largest other logit minus the label's: above 0 exactly where the answer is wrong."""
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return logits.scatter(1, labels.unsqueeze(1), float("-inf")).amax(1) - own


def dlr_loss(logits: Float[Tensor, "B K"], labels: Tensor) -> Float[Tensor, " B"]:
    """The difference of logits ratio: the margin over the gap from the first to the third logit.

    Croce and Hein 2020, equation 6. Unlike cross-entropy it keeps a gradient where the classifier is confident.
    Below four classes it means little and is the plain margin.
    """
    if logits.shape[1] < 4:
        return margin_loss(logits, labels)
    top = logits.topk(3, 1).values
    return margin_loss(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


ATTACK_LOSSES = {"cross-entropy": cross_entropy_loss, "margin": margin_loss, "dlr": dlr_loss}
"""Name -> the loss that a gradient attack maximises."""


def loss_gradient(
    classifier: Classifier, at: Float[Tensor, "B C H W"], against: Tensor, loss: AttackLoss
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"], Float[Tensor, " B"]]:
    """The gradient of each image's loss to its pixels, the logits and the losses; weights get no gradient.

    One forward and one backward pass for all images: in eval mode no image affects the loss of another.
    """
    at.requires_grad_()
    logits = classifier(at).float()
    losses = loss(logits, against)
    (slope,) = torch.autograd.grad(losses.sum(), at)
    at.requires_grad_(False)
    return slope, logits.detach(), losses.detach()


def gradient_ascent(
    classifier: Classifier,
    ball: Ball,
    at: Float[Tensor, "B C H W"],
    against: Tensor,
    loss: AttackLoss,
    *,
    size: float,
    steps: int,
    until: StopCondition | None = None,
) -> Float[Tensor, "B C H W"]:
    """``steps`` steps of ``size`` up the loss from ``at``, which is overwritten, each projected into the ball.

    An image for which ``until(logits, against)`` holds at the beginning of a step stays there and leaves the
    batch. Call it within ``frozen_eval``.
    """
    whole, rows = None, torch.arange(len(at), device=at.device)
    for _ in range(steps):
        slope, logits, _ = loss_gradient(classifier, at, against, loss)
        if until is not None and (done := until(logits, against)).any():
            whole = torch.empty_like(ball.images) if whole is None else whole
            whole[rows[done]] = at[done]
            on = ~done
            rows, at, slope, against, ball = rows[on], at[on], slope[on], against[on], ball.select(on)
            if not len(rows):
                return whole
        at = ball.step(at, slope, size)
    if whole is None:
        return at
    whole[rows] = at
    return whole


def is_fooled(logits: Float[Tensor, "B K"], labels: Tensor) -> Bool[Tensor, " B"]:
    """Whether the answer is not the label."""
    return logits.argmax(1) != labels


def is_target_reached(logits: Float[Tensor, "B K"], labels: Tensor) -> Bool[Tensor, " B"]:
    """Whether the answer is the wanted label."""
    return logits.argmax(1) == labels


def _negate(loss: AttackLoss) -> AttackLoss:
    return lambda logits, labels: -loss(logits, labels)


@dataclass(frozen=True)
class FGSM(Attack):
    """Fast gradient sign method: one step of eps along the sign of the gradient (Goodfellow et al. 2015).

    ``early_stop`` leaves images unchanged that are misclassified already; ``targeted`` takes the wanted labels.
    """

    kind: ClassVar = "one-step"
    norm: str = "linf"
    targeted: bool = False
    early_stop: bool = True

    def __post_init__(self) -> None:
        """Raise ChoiceError for an unknown norm."""
        check_norm(self.norm)

    def run(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], labels: Int[Tensor, " B"], eps: float
    ) -> Float[Tensor, "B C H W"]:
        """One step of size eps."""
        ball = BALLS[self.norm](images, eps)
        loss, goal = (
            (_negate(cross_entropy_loss), is_target_reached) if self.targeted else (cross_entropy_loss, is_fooled)
        )
        until = goal if self.early_stop else None
        return gradient_ascent(classifier, ball, images.clone(), labels, loss, size=eps, steps=1, until=until)


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent from a random start: the standard attack (Madry et al. 2018).

    ``step`` is in pixels, by default 2.5 eps / steps. Each of ``restarts`` attacks what the one before did not
    fool. ``loss`` is cross-entropy, margin or dlr. ``early_stop`` leaves an image where it is first misclassified,
    which saves work and never fools fewer; False returns the last step's image, as published. ``targeted`` takes
    the wanted labels. ``seed`` None draws from torch's global generator.
    """

    steps: int = 40
    step: float | None = None
    restarts: int = 1
    norm: str = "linf"
    loss: str = "cross-entropy"
    random_start: bool = True
    targeted: bool = False
    early_stop: bool = True
    seed: int | None = 0

    def __post_init__(self) -> None:
        """Raise ValueError or ChoiceError for an impossible field."""
        check_norm(self.norm)
        lookup(ATTACK_LOSSES, self.loss, "loss of an attack")
        check_int("steps", self.steps, 1)
        check_int("restarts", self.restarts, 1)
        if self.step is not None:
            check_positive("step", self.step)

    def run(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], labels: Int[Tensor, " B"], eps: float
    ) -> Float[Tensor, "B C H W"]:
        """``steps`` steps from each start; an image's start does not depend on the other images."""
        loss, goal = ATTACK_LOSSES[self.loss], is_fooled
        if self.targeted:
            loss, goal = _negate(loss), is_target_reached
        found, whole = images.clone(), BALLS[self.norm](images, eps)
        left = torch.arange(len(images), device=images.device)
        if self.early_stop:
            left = self._unfinished_rows(classifier, images, labels)
        for restart in range(self.restarts):
            if not len(left):
                break
            generator = None if self.seed is None else runtime.make_generator(self.seed, restart)
            found[left] = gradient_ascent(
                classifier,
                whole.select(left),
                (whole.random(generator) if self.random_start else whole.images)[left],
                labels[left],
                loss,
                size=self.step or 2.5 * eps / self.steps,
                steps=self.steps,
                until=goal if self.early_stop else None,
            )
            if restart + 1 < self.restarts:
                left = left[self._unfinished_rows(classifier, found[left], labels[left])]
        return found

    def _unfinished_rows(self, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        """Rows whose answer is not yet what the attack wants."""
        same = is_correct(classifier, images, labels)
        return (~same if self.targeted else same).nonzero().squeeze(1)
