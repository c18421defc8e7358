"""Attacks that climb the loss by its gradient to the pixels: one step (FGSM) or many (PGD)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import runtime
from ..checks import check_int, check_positive
from ..choose import lookup
from ..classifier import Classifier, frozen_eval
from .base import BALLS, Ball, check_eps, check_norm
from .losses import (
    ATTACK_LOSSES,
    AttackLoss,
    StopCondition,
    cross_entropy_loss,
    is_correct,
    require_gradient,
)


def loss_gradient(
    classifier: Classifier, at: Float[Tensor, "B C H W"], against: Tensor, loss: AttackLoss
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"], Float[Tensor, " B"]]:
    """The gradient of each image's loss to its pixels, the logits and the losses; no weight gets a gradient.

    One pass forward and back for all images: in eval mode none of them touches another's loss.
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
    """``steps`` steps of ``size`` up the loss, from ``at`` (overwritten), never leaving the ball.

    An image for which ``until(logits, against)`` holds at the beginning of a step stays there, and is not worked
    on any more. Call it within ``frozen_eval``.
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
    """Where the answer is not the label."""
    return logits.argmax(1) != labels


def is_target_reached(logits: Float[Tensor, "B K"], labels: Tensor) -> Bool[Tensor, " B"]:
    """Where the answer is the label."""
    return logits.argmax(1) == labels


def _negate(loss: AttackLoss) -> AttackLoss:
    return lambda logits, labels: -loss(logits, labels)


@dataclass(frozen=True)
class FGSM:
    """One step of eps by the sign of the gradient (Goodfellow et al. 2015): quick, and easily resisted.

    ``early_stop`` leaves images alone that are answered wrongly as they are; ``targeted`` takes labels for the
    answers wanted.
    """

    needs_gradient: ClassVar[bool] = True
    norm: str = "linf"
    targeted: bool = False
    early_stop: bool = True

    def __post_init__(self) -> None:
        """Raise ChoiceError for an unknown norm."""
        check_norm(self.norm)

    def __call__(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        labels: Int[Tensor, " B"],
        eps: float,
    ) -> Float[Tensor, "B C H W"]:
        """The images, moved; RecipeError for an impossible eps, GradientError where there are no gradients."""
        check_eps(eps, images, self.norm)
        require_gradient(classifier, "FGSM")
        if not eps:
            return images
        ball = BALLS[self.norm](images, eps)
        loss, goal = (
            (_negate(cross_entropy_loss), is_target_reached) if self.targeted else (cross_entropy_loss, is_fooled)
        )
        until = goal if self.early_stop else None
        with frozen_eval(classifier):
            return gradient_ascent(classifier, ball, images.clone(), labels, loss, size=eps, steps=1, until=until)


@dataclass(frozen=True)
class PGD:
    """Steps up the gradient from a random start, never leaving the ball (Madry et al. 2018): the standard attack.

    ``step`` is in pixels (2.5 eps / steps where not given); each of ``restarts`` attacks what the one before did
    not fool. ``loss``: cross-entropy, margin or dlr. ``early_stop`` leaves an image where it is first fooled,
    which saves work and never fools fewer; False gives the last step's image, as published. ``seed`` None draws
    from torch's global generator.
    """

    needs_gradient: ClassVar[bool] = True
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
        """Raise ValueError or ChoiceError for a field that cannot be."""
        check_norm(self.norm)
        lookup(ATTACK_LOSSES, self.loss, "loss of an attack")
        check_int("steps", self.steps, 1)
        check_int("restarts", self.restarts, 1)
        if self.step is not None:
            check_positive("step", self.step)

    def __call__(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        labels: Int[Tensor, " B"],
        eps: float,
    ) -> Float[Tensor, "B C H W"]:
        """The images, moved; RecipeError for an impossible eps, GradientError where there are no gradients."""
        check_eps(eps, images, self.norm)
        require_gradient(classifier, "PGD")
        if not eps:
            return images
        with frozen_eval(classifier):
            found, ball = images.clone(), BALLS[self.norm](images, eps)
            left = torch.arange(len(images), device=images.device)
            if self.early_stop:
                left = self._unfinished_rows(classifier, images, labels)
            for restart in range(self.restarts):
                if not len(left):
                    break
                found[left] = self._attack_rows(classifier, ball, left, labels[left], restart)
                if restart + 1 < self.restarts:
                    left = left[self._unfinished_rows(classifier, found[left], labels[left])]
        return found

    def _unfinished_rows(self, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        """Rows whose answer is not yet what the attack wants."""
        same = is_correct(classifier, images, labels)
        return (~same if self.targeted else same).nonzero().squeeze(1)

    def _attack_rows(
        self, classifier: Classifier, whole: Ball, left: Tensor, labels: Tensor, restart: int
    ) -> Tensor:
        """One climb of the rows that are left; an image's start does not depend on which others are."""
        generator = None if self.seed is None else runtime.make_generator(self.seed, restart)
        at = (whole.random(generator) if self.random_start else whole.images)[left]
        loss, goal = ATTACK_LOSSES[self.loss], is_fooled
        if self.targeted:
            loss, goal = _negate(loss), is_target_reached
        return gradient_ascent(
            classifier,
            whole.select(left),
            at,
            labels,
            loss,
            size=self.step or 2.5 * whole.eps / self.steps,
            steps=self.steps,
            until=goal if self.early_stop else None,
        )
