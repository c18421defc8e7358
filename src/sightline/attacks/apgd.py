"""A gradient attack without parameters to get wrong: its step size follows from how the climb goes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import runtime
from ..checks import check_int
from ..classifier import Classifier, frozen_eval
from .base import BALLS, Ball, check_eps, check_norm
from .gradient import is_fooled, loss_gradient
from .losses import AttackLoss, cross_entropy_loss, dlr_loss, is_correct, require_gradient

STEP_MOMENTUM = 0.75
"""Share of the new step; the rest is the step before it."""

MIN_RISING_SHARE = 0.75
"""Share of a window's steps that must raise the loss for the step size to stay."""


@dataclass(frozen=True)
class APGD:
    """PGD that halves its step where the climb stalls: Auto-PGD (Croce and Hein 2020), nothing to tune.

    First up the cross-entropy, then, on what survives, up the difference of logits ratio (the plain margin below
    four classes), which does not go flat where answers are sure. ``restarts`` repeats both from other random
    starts.
    """

    needs_gradient: ClassVar[bool] = True
    steps: int = 100
    restarts: int = 1
    norm: str = "linf"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError or ChoiceError for a field that cannot be."""
        check_norm(self.norm)
        check_int("steps", self.steps, 1)
        check_int("restarts", self.restarts, 1)

    def __call__(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        labels: Int[Tensor, " B"],
        eps: float,
    ) -> Float[Tensor, "B C H W"]:
        """The images, moved; RecipeError for an impossible eps, GradientError where there are no gradients."""
        check_eps(eps, images, self.norm)
        require_gradient(classifier, "APGD")
        if not eps:
            return images
        with frozen_eval(classifier):
            found, whole = images.clone(), BALLS[self.norm](images, eps)
            left = is_correct(classifier, images, labels).nonzero().squeeze(1)
            for turn in range(self.restarts):
                for loss in (cross_entropy_loss, dlr_loss):
                    if not len(left):
                        return found
                    start = whole.random(runtime.make_generator(self.seed, turn))[left]
                    found[left], beaten = _ascend(
                        classifier, whole.select(left), start, labels[left], loss, self.steps
                    )
                    left = left[~beaten]
        return found


def checkpoint_intervals(steps: int) -> Iterator[int]:
    """How many steps lie between looks at the step size: 22 % of all, then ever fewer, at least 6 %.

    >>> from itertools import islice
    >>> list(islice(windows(100), 6))
    [22, 19, 16, 13, 10, 7]
    """
    length, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    while True:
        yield length
        length = max(length - less, least)


class _AscentState:
    """Where each image of a climb is; all fields have one row an image."""

    def __init__(self, at: Tensor, slope: Tensor, loss: Tensor, eps: float) -> None:
        self.rows = torch.arange(len(at), device=at.device)
        self.at, self.before = at, at.clone()
        self.slope = slope
        self.best, self.best_slope, self.best_loss = at.clone(), slope.clone(), loss.clone()
        self.loss = loss
        self.size = torch.full_like(loss, 2 * eps)
        self.rises = torch.zeros_like(loss)
        self.best_then = loss.clone()
        self.halved = torch.ones_like(loss, dtype=torch.bool)

    def select(self, on: Bool[Tensor, " B"]) -> None:
        """Only these images are climbed with any more."""
        for name, field in vars(self).items():
            vars(self)[name] = field[on]

    def move(self, ball: Ball, *, first: bool) -> None:
        """One step with momentum: Algorithm 1, lines 7 and 8."""
        drift = self.at - self.before
        self.before = self.at
        stepped = ball.step(self.at.clone(), self.slope.clone(), self.size)
        if not first:
            stepped = ball.project(
                (stepped - self.at).mul_(STEP_MOMENTUM).add_(drift, alpha=1 - STEP_MOMENTUM).add_(self.at)
            )
        self.at = stepped

    def record(self, slope: Tensor, loss: Tensor) -> None:
        """Take note of what the new place gives."""
        self.rises += loss > self.loss
        self.slope, self.loss = slope, loss
        better = loss > self.best_loss
        self.best_loss = torch.where(better, loss, self.best_loss)
        chosen = better.view(-1, 1, 1, 1)
        self.best = torch.where(chosen, self.at, self.best)
        self.best_slope = torch.where(chosen, slope, self.best_slope)

    def halve_stalled_steps(self, window: int) -> None:
        """Halve the step where too few steps rose, or nothing came of it, and go on from the best: section 3."""
        stalled = ~self.halved & (self.best_then >= self.best_loss)
        self.halved = (self.rises < MIN_RISING_SHARE * window) | stalled
        self.best_then = self.best_loss.clone()
        self.size = torch.where(self.halved, self.size / 2, self.size)
        back = self.halved.view(-1, 1, 1, 1)
        self.at = torch.where(back, self.best, self.at)
        self.slope = torch.where(back, self.best_slope, self.slope)
        self.rises.zero_()


def _ascend(
    classifier: Classifier, ball: Ball, start: Tensor, labels: Tensor, loss: AttackLoss, steps: int
) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, " B"]]:
    """The images where the climb fooled the classifier, or the highest it came; and where it did."""
    slope, logits, height = loss_gradient(classifier, start, labels, loss)
    found, beaten = start.clone(), is_fooled(logits, labels)
    way = _AscentState(start, slope, height, ball.eps)
    looks = checkpoint_intervals(steps)
    window = next(looks)
    on, since = ~beaten, 0
    for step in range(steps):
        if not on.all():
            way.select(on)
            ball, labels = ball.select(on), labels[on]
        if not len(labels):
            break
        way.move(ball, first=step == 0)
        slope, logits, height = loss_gradient(classifier, way.at, labels, loss)
        way.record(slope, height)
        out = is_fooled(logits, labels)
        found[way.rows[out]] = way.at[out]
        beaten[way.rows[out]] = True
        on, since = ~out, since + 1
        if since == window:
            way.halve_stalled_steps(window)
            window, since = next(looks), 0
    if len(labels):
        highest = way.rows[on]
        found[highest] = way.best[on]
    return found, beaten
