"""A time budget is kept and used: what remains of the training is planned again at every step.

The budget begins with the command and ends with its report. How far a run is, and with it the learning rate, is the
share of the steps that fit, so that a busy minute or a quiet one changes the plan and not the course of the schedule.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from .. import runtime
from ..data import nested_subset
from ..types import Splits
from .build import progressive_size
from .fit import TrainingState
from .hooks import BaseHook
from .recipe import Recipe, parse_duration

PLANNED_SHARE = 0.95
"""Share of the budget at which the report should be written; the rest is for what slows down at the end."""

EVALUATION_COST = {"float32": 0.35, "bfloat16": 0.6}
"""Time to evaluate an image in float32, forward only, as a share of the time to train on one in this precision, until
it is measured. Of ResNet-20 it is 0.3 and 0.57 where bfloat16 is native."""

MAX_VALIDATION_SHARE = 0.25
"""Share of the budget that one validation and the calibration may take together."""

MIN_VALIDATED_IMAGES = 500
"""Validation images that are kept even if the network is slow."""

MAX_WARMUP_IMAGES = 320
"""Images that a test evaluates in addition, to warm up and to measure latencies (at most twice its own)."""

MIN_SECONDS_TO_MEASURE = 60.0
"""Budget from which time is reserved to measure latencies in full; in a smaller one they are where time is left."""

MEASURING_SECONDS = 2.0
"""Seconds in which latencies are measured, besides the images that warm up."""

MAX_REPORT_SECONDS = 6.0
"""Time of the report of a small network on a quiet machine, which is reserved where the budget allows it."""

MIN_TESTED_IMAGES = 200
"""Test images that are evaluated even after the deadline: an accuracy within 7 points, at 95 %."""

MAX_LOAD = 5.0
"""Largest factor by which a busy machine lengthens what is reserved for the report."""

MAX_RESERVED_SHARE = 0.5
"""Share of the budget that test and report may take from training: an untrained network need not be tested."""

MIN_TIMED_STEPS = 3
"""Steps before the first plan: the first ones compile kernels."""

MEMORY_SECONDS = 10.0
"""Time over which the seconds of a step are averaged."""

MAX_CUT_EPOCHS = 10
"""Whole epochs up to which a part of a further one is trained; after more it would be a small share of the run."""

MIN_PART = 0.1
"""Smallest part of an epoch that is worth its validation."""

MIN_CHANGE = 1.15
"""A new plan is announced where its epochs differ from those last announced by this factor, up or down."""


@dataclass
class Deadline:
    """When training must end, so that calibration, test and report end within the budget."""

    seconds: float
    """The budget."""
    began: float
    """``time.monotonic()`` at the command."""
    val: int
    test: int
    image_seconds: float = 0.0
    """Seconds of an image evaluated in float32, as far as they are known."""
    load: float = 1.0
    """How many times as long as on a quiet machine the work of one thread takes now."""
    share: float = 1.0
    """Share of the budget at which training ends, where something else is trained after it."""

    @classmethod
    def of(cls, recipe: Recipe, splits: Splits, began: float) -> "Deadline":
        """The deadline of a command that began then."""
        made = cls(parse_duration(recipe.budget), began, len(splits.val.labelled), len(splits.test))
        made.measure_load()
        return made

    @property
    def validation(self) -> float:
        """Seconds of one pass over the validation images."""
        return self.val * self.image_seconds

    def seconds_left(self) -> float:
        """Seconds for training, without what follows it; negative where they are over."""
        after = 2 * self.validation + self.test_seconds
        after = min(after, MAX_RESERVED_SHARE * self.seconds)
        return self.began + PLANNED_SHARE * self.share * self.seconds - after - time.monotonic()

    @property
    def report_seconds(self) -> float:
        """Seconds of the report after the test, as long as it may take in this budget on this machine now."""
        return min(MAX_REPORT_SECONDS, 0.1 * self.seconds) * self.load

    @property
    def test_seconds(self) -> float:
        """Seconds of the test and its report, and of measuring latencies where the budget is no small one."""
        measured = min(MAX_WARMUP_IMAGES, 2 * self.test) * (self.seconds >= MIN_SECONDS_TO_MEASURE)
        return (self.test + measured) * self.image_seconds + self.report_seconds

    def can_measure_costs(self) -> bool:
        """Whether latency and memory can be measured in full before the budget is over."""
        measured = min(MAX_WARMUP_IMAGES, 2 * self.test) * self.image_seconds + MEASURING_SECONDS
        return self.time_left() >= self.test * self.image_seconds + self.report_seconds + measured

    def time_left(self) -> float:
        """Seconds until the end of the budget; negative where it is over."""
        return self.began + self.seconds - time.monotonic()

    def measure_load(self) -> None:
        """Ask how busy the machine is now."""
        self.load = min(MAX_LOAD, runtime.measure_load())

    def testable_images(self) -> int:
        """Test images that fit the time left, with a short report after them; at least ``MIN_TESTED_IMAGES``."""
        left = self.time_left() - self.report_seconds / 2
        fitting = self.test if not self.image_seconds else int(left / self.image_seconds)
        return min(self.test, max(MIN_TESTED_IMAGES, fitting))


def sample_validation(deadline: Deadline | None, splits: Splits, seed: int) -> tuple[Splits, tuple[str, ...]]:
    """The splits with as many validation images as fit their share of the budget, and a note where that is a part."""
    if deadline is None:
        return splits, ()
    val = splits.val.labelled
    fitting = int(MAX_VALIDATION_SHARE * deadline.seconds / 2 / max(deadline.image_seconds, 1e-9))
    wanted = max(MIN_VALIDATED_IMAGES, fitting)
    if len(val) <= wanted:
        return splits, ()
    some = val.subset(nested_subset(val.labels, wanted / len(val), seed))
    deadline.val = len(some)
    note = (
        f"Validation on {len(some):,} of {len(val):,} images, the same share of every class, which is what fits the "
        f"budget of {deadline.seconds:g} s (--budget)."
    )
    return replace(splits, val=some), (note,)


class Budget(BaseHook):
    """Sets ``epochs`` and ``last_steps`` of a training, at every step, so that it ends at its deadline.

    ``most`` is the largest useful number of epochs. Its state is not saved: a resumed run keeps the last plan.
    """

    def __init__(self, recipe: Recipe, deadline: Deadline, most: int, say: Callable[[str], None]) -> None:
        assert recipe.epochs is not None
        assert recipe.batch_size is not None
        self.deadline, self.most, self.say = deadline, most, say
        self.batch_size, self.first_plan = recipe.batch_size, recipe.epochs
        self.evaluation_cost = EVALUATION_COST[recipe.precision or "float32"]
        self.announced: float = recipe.epochs
        size, start = recipe.size or 1, recipe.progressive_from
        sides = [progressive_size(size, start, epoch, recipe.epochs) for epoch in range(recipe.epochs)]
        self.shares = [(side / size) ** 2 for side in sides if side < size]
        """Pixels of an image in the epochs in which images grow, as a share of those at the working size."""
        self.timed, self.step_seconds, self.stepped = 0, 0.0, 0.0
        self.validated = False
        self.between = 0.0
        """Seconds between two epochs besides validation: checkpoint, history."""

    def after_step(self, state: TrainingState) -> None:
        """Take the time of the step, and plan the rest of the run."""
        now = time.monotonic()
        took = state.seconds if state.batch == 1 else now - self.stepped
        if state.batch == 1 and state.epoch:
            self.between = max(0.0, now - took - self.stepped)
        self.stepped = now
        self.timed += 1
        weight = max(1 / max(1, self.timed - 2), min(1.0, took / MEMORY_SECONDS))
        self.step_seconds += weight * (took / self._share(state.epoch) - self.step_seconds)
        if not self.validated:
            self.deadline.image_seconds = self.evaluation_cost * self.step_seconds / self.batch_size
        if self.timed >= MIN_TIMED_STEPS or self.deadline.seconds_left() < 0:
            self._plan(state)

    def after_epoch(self, state: TrainingState) -> None:
        """Take the time of the validation, plan the rest of the run, and announce a plan that changed."""
        now = time.monotonic()
        seconds = (now - self.stepped) / max(1, self.deadline.val)  # calibration and test are in float32
        self.deadline.image_seconds = seconds * self.evaluation_cost / EVALUATION_COST["float32"]
        self.validated, self.stepped = True, now
        if state.epoch < state.epochs:
            self._plan(state)
        epochs = state.total_steps / state.steps_per_epoch
        if state.epoch >= state.epochs:
            self._conclude(state, epochs)
        elif not 1 / MIN_CHANGE < epochs / self.announced < MIN_CHANGE:
            row = state.history[-1]
            self.say(
                f"Planned again after epoch {state.epoch}: {epochs:.3g} epochs instead of {self.announced:.3g}, at "
                f"{row.images_per_second:,.0f} images/s (--epochs)."
            )
            self.announced = epochs

    def _plan(self, state: TrainingState) -> None:
        """Whole epochs and a part of one that fit the time left; the current epoch ends early where it must."""
        whole, step, validation = state.steps_per_epoch, max(self.step_seconds, 1e-9), self.deadline.validation
        left, epochs, cut = self.deadline.seconds_left(), state.epoch, 0
        now = self._share(state.epoch) * step
        if state.batch:
            left -= (whole - state.batch) * now + validation
            epochs += 1
        if left < 0 and state.batch:
            cut = max(state.batch, whole + int(left / now)) % whole
        else:
            while epochs < len(self.shares) and left > (cost := self._share(epochs) * whole * step + validation):
                left, epochs = left - cost - self.between, epochs + 1
            each = whole * step + validation + self.between
            more = max(0, int(left / each))
            part = int((left - more * each - validation - self.between) / step)
            epochs += more
            if more < MAX_CUT_EPOCHS and part >= MIN_PART * whole:
                epochs, cut = epochs + 1, part % whole
        if epochs > self.most:
            epochs, cut = self.most, 0
        state.epochs, state.last_steps = epochs, cut

    def _share(self, epoch: int) -> float:
        """Pixels of an image in this epoch, as a share of those at the working size."""
        return self.shares[epoch] if epoch < len(self.shares) else 1.0

    def _conclude(self, state: TrainingState, epochs: float) -> None:
        """A remark where the run had other epochs than were planned at first, and where its last one was cut."""
        budget, remarks = f"the budget of {self.deadline.seconds:g} s", []
        if state.last_steps:
            remarks.append(
                f"The last epoch was cut to {state.last_steps} of {state.steps_per_epoch} steps, which is what fits "
                f"{budget} (--budget, --size, --limit or another --model)."
            )
        if not 1 / MIN_CHANGE < epochs / self.first_plan < MIN_CHANGE:
            limit = "more would gain little" if state.epochs >= self.most else f"as many as fit {budget}"
            remarks.append(
                f"Planned again while training: {epochs:.3g} epochs instead of {self.first_plan}, {limit} (--epochs)."
            )
        for remark in remarks:
            self.say(remark)
        state.remarks += remarks


def format_minutes(seconds: float) -> str:
    """Seconds up to 90, then minutes."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
