"""A time budget is kept: the epochs are planned again after each one, and the first is cut where it does not fit."""

import time
from collections.abc import Callable

from ..types import Splits
from .fit import TrainingState
from .hooks import BaseHook
from .recipe import Recipe, parse_duration

PLANNED_SHARE = 0.9
"""Share of the budget that is planned at first; the rest is for what slows down."""

EVALUATION_COST = 0.35
"""Time of an evaluated image, as a share of a trained one's: forward only, in float32."""

MAX_REPORT_SECONDS = 6.0
"""Time of the report of a small network, which is reserved where the budget allows it."""

MAX_RESERVED_SHARE = 0.4
"""Share of the budget that test and report may take from training: an untrained network need not be tested."""

MIN_TIMED_STEPS = 5
"""Steps before the first epoch may be cut: the first ones compile kernels."""

MIN_GROWTH = 1.15
"""More epochs are planned only where they are this many times the plan."""


class Budget(BaseHook):
    """Sets ``epochs`` and ``steps_per_epoch`` of a training so that it ends within the recipe's budget.

    ``began`` is ``time.monotonic()`` at the command, ``most`` the largest useful number of epochs; what follows
    training (test, report) is reserved. Its state is not saved: a resumed run keeps the last plan.
    """

    def __init__(
        self, recipe: Recipe, splits: Splits, began: float, most: int, say: Callable[[str], None]
    ) -> None:
        assert recipe.epochs is not None
        assert recipe.batch_size is not None
        self.seconds, self.began, self.say = parse_duration(recipe.budget), began, say
        self.batch_size, self.planned = recipe.batch_size, recipe.epochs
        self.most = most
        self.val, self.test = len(splits.val.labelled), len(splits.test)
        self.full_steps = 0
        self.epoch_began = began

    def after_step(self, state: TrainingState) -> None:
        """Cut the first epoch to the steps that fit, with validation and test, at the speed so far."""
        if state.batch == 1:
            self.epoch_began = time.monotonic() - state.seconds
        if state.epoch:
            return
        self.full_steps = self.full_steps or state.steps_per_epoch
        step = state.seconds / state.batch
        evaluation = (2 * self.val + self.test) * EVALUATION_COST * step / self.batch_size
        left = self._time_left(evaluation)
        if state.batch < MIN_TIMED_STEPS:
            return
        fitting = max(state.batch, state.batch + int(left / step))
        state.steps_per_epoch = min(self.full_steps, fitting)
        state.epochs = self.planned if fitting >= self.full_steps else 1  # the rate falls to zero within what fits

    def after_epoch(self, state: TrainingState) -> None:
        """Plan the number of epochs from the time that the last one took."""
        now, row = time.monotonic(), state.history[-1]
        took = max(now - self.epoch_began, 1e-6)
        evaluation = max(0.0, took - row.seconds) * (1 + self.test / max(self.val, 1))
        epochs = state.epoch + max(0, int(self._time_left(evaluation) / took))
        if epochs >= state.epochs:
            roomy = self._time_left(evaluation) - (1 - PLANNED_SHARE) * self.seconds
            epochs = min(self.most, state.epoch + max(0, int(roomy / took)))
            if state.epoch > 1 or epochs < MIN_GROWTH * state.epochs:
                epochs = state.epochs
        before, state.epochs = state.epochs, epochs
        cut = state.epoch == 1 and state.steps_per_epoch < self.full_steps
        if cut:
            state.remarks.append(
                f"The first epoch was cut to {state.steps_per_epoch} of {self.full_steps} steps: a whole one does not "
                f"fit the budget of {self.seconds:g} s (--budget, --size, --limit or another --model)."
            )
            self.say(state.remarks[-1])
        if epochs != before:
            state.remarks.append(
                f"Planned again after epoch {state.epoch}: {epochs} epochs in place of {before}, at "
                f"{row.images_per_second:,.0f} images/s and {took:.1f} s an epoch with validation (--epochs)."
            )
            self.say(state.remarks[-1])

    def _time_left(self, evaluation: float) -> float:
        """Seconds until training must end, if what follows takes ``evaluation`` and the report."""
        return self.began + self.seconds - reserved_seconds(self.seconds, evaluation) - time.monotonic()


def reserved_seconds(budget: float, evaluation: float) -> float:
    """Seconds of a budget that are reserved for the report and an ``evaluation`` of so many seconds."""
    return min(min(MAX_REPORT_SECONDS, 0.1 * budget) + evaluation, MAX_RESERVED_SHARE * budget)


def format_minutes(seconds: float) -> str:
    """Seconds up to 90, then minutes."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
