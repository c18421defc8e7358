"""A gradient attack without parameters to tune: the step size follows from how the loss rises."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import runtime
from ..checks import check_int
from ..classifier import Classifier
from .base import BALLS, Attack, Ball, check_norm, is_correct
from .gradient import AttackLoss, cross_entropy_loss, dlr_loss, is_fooled, loss_gradient

STEP_MOMENTUM = 0.75
"""Weight of the new step; the rest is the step before it."""

MIN_RISING_SHARE = 0.75
"""Share of the steps between two checkpoints that must raise the loss for the step size to stay."""


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD: PGD with momentum that halves its step where the loss stalls (Croce and Hein 2020).

    It maximises the cross-entropy and then, on the images that survive, the difference of logits ratio.
    ``restarts`` repeats both from other random starts. ``early_stop`` leaves an image where it is first
    misclassified; False works on every image to the last step and returns the highest loss seen.
    """

    steps: int = 100
    restarts: int = 1
    norm: str = "linf"
    seed: int = 0
    early_stop: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError or ChoiceError for an impossible field."""
        check_norm(self.norm)
        check_int("steps", self.steps, 1)
        check_int("restarts", self.restarts, 1)

    def run(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], labels: Int[Tensor, " B"], eps: float
    ) -> Float[Tensor, "B C H W"]:
        """Both losses from each start, on the images not fooled yet."""
        found, whole = images.clone(), BALLS[self.norm](images, eps)
        left = torch.arange(len(images), device=images.device)
        if self.early_stop:
            left = is_correct(classifier, images, labels).nonzero().squeeze(1)
        for restart in range(self.restarts):
            for loss in (cross_entropy_loss, dlr_loss):
                if not len(left):
                    return found
                start = whole.random(runtime.make_generator(self.seed, restart))[left]
                found[left], fooled = self._ascend(classifier, whole.select(left), start, labels[left], loss)
                if not self.early_stop:
                    fooled = ~is_correct(classifier, found[left], labels[left])
                left = left[~fooled]
        return found

    def _ascend(
        self, classifier: Classifier, ball: Ball, start: Tensor, labels: Tensor, loss: AttackLoss
    ) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, " B"]]:
        """Each image where it was first fooled, or else where its loss was highest; and whether it was fooled."""
        slope, logits, height = loss_gradient(classifier, start, labels, loss)
        found, fooled = start.clone(), is_fooled(logits, labels) & self.early_stop
        state = _AscentState(start, slope, height, ball.eps)
        intervals = checkpoint_intervals(self.steps)
        interval = next(intervals)
        on, since = ~fooled, 0
        for step in range(self.steps):
            if not on.all():
                state.select(on)
                ball, labels = ball.select(on), labels[on]
            if not len(labels):
                break
            state.move(ball, first=step == 0)
            slope, logits, height = loss_gradient(classifier, state.at, labels, loss)
            state.record(slope, height)
            out = is_fooled(logits, labels) & self.early_stop
            found[state.rows[out]] = state.at[out]
            fooled[state.rows[out]] = True
            on, since = ~out, since + 1
            if since == interval:
                state.halve_stalled_steps(interval)
                interval, since = next(intervals), 0
        if len(labels):
            highest = state.rows[on]
            found[highest] = state.best[on]
        return found, fooled


def checkpoint_intervals(steps: int) -> Iterator[int]:
    """Steps between checkpoints of the step size: 22 % of all, then 3 % fewer each time, at least 6 %.

    >>> from itertools import islice
    >>> list(islice(checkpoint_intervals(100), 6))
    [22, 19, 16, 13, 10, 7]
    """
    length, least, less = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    while True:
        yield length
        length = max(length - less, least)


class _AscentState:
    """Position, gradient and step size of each image; all fields have one row per image."""

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
        """Go on with these images only."""
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
        """Record gradient and loss of the new position."""
        self.rises += loss > self.loss
        self.slope, self.loss = slope, loss
        better = loss > self.best_loss
        self.best_loss = torch.where(better, loss, self.best_loss)
        chosen = better.view(-1, 1, 1, 1)
        self.best = torch.where(chosen, self.at, self.best)
        self.best_slope = torch.where(chosen, slope, self.best_slope)

    def halve_stalled_steps(self, window: int) -> None:
        """Halve the step and go back to the best position where the loss stalled: section 3 of the paper."""
        stalled = ~self.halved & (self.best_then >= self.best_loss)
        self.halved = (self.rises < MIN_RISING_SHARE * window) | stalled
        self.best_then = self.best_loss.clone()
        self.size = torch.where(self.halved, self.size / 2, self.size)
        back = self.halved.view(-1, 1, 1, 1)
        self.at = torch.where(back, self.best, self.at)
        self.slope = torch.where(back, self.best_slope, self.slope)
        self.rises.zero_()
