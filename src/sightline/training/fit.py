"""The only training loop in the package.

A method may change three things: the objective, the batches, and (where it must) a gradient step
between backward and update. Hooks watch.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .. import runtime
from ..classifier import Classifier
from ..errors import TrainingError
from ..types import Batch
from .distributed import SINGLE_PROCESS, ProcessGroup
from .gradients import Gradients
from .losses import Objective
from .schedules import Schedule, TrainingProgress

Batches = Callable[[int, int], Iterable[Batch]]
"""(epoch, batches already done in it) -> the epoch's remaining batches, always the same ones."""

LOSS_CHECK_STEPS = 50
"""Steps between looks at the loss: looking makes an accelerator wait."""


_DIVERGENCE_ADVICE = "Try a lower --lr (a tenth), a longer --warmup, or --precision float32."


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch, as ``history.csv`` holds it."""

    epoch: int
    seconds: float
    lr: float
    train_loss: float
    val_loss: float
    val_accuracy: float
    images_per_second: float


@dataclass
class TrainingState:
    """Where training is: all that a checkpoint must hold besides the hooks' own state."""

    classifier: Classifier
    optimizer: torch.optim.Optimizer
    epochs: int
    steps_per_epoch: int
    epoch: int = 0
    """Epochs finished."""
    batch: int = 0
    """Batches finished in the epoch under way."""
    history: list[EpochMetrics] = field(default_factory=list)
    stop: str | None = None
    """Why training should end before its last epoch; set by a hook, obeyed after the epoch."""
    interrupted: bool = False
    """Set from a signal handler; the loop leaves after the step under way."""
    loss_sum: float = 0.0
    images: int = 0
    seconds: float = 0.0
    """Time spent in the epoch under way, not counting what a resumed run waited for."""
    pending: list[tuple[Tensor, int]] = field(default_factory=list)
    """Losses not yet read from the device, each with its batch size."""

    @property
    def step(self) -> int:
        """Optimiser steps taken since the start."""
        return self.epoch * self.steps_per_epoch + self.batch

    @property
    def progress(self) -> TrainingProgress:
        """What a schedule may know of it."""
        done = self.epoch + self.batch / max(self.steps_per_epoch, 1)
        return TrainingProgress(done, self.epochs, [row.val_loss for row in self.history])

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def flush_losses(self) -> None:
        """Read the pending losses; raise TrainingError naming the first step whose loss is not finite."""
        if not self.pending:
            return
        losses = torch.stack([loss for loss, _ in self.pending]).cpu().double().tolist()
        first = self.step - len(losses) + 1
        for step, (loss, (_, images)) in enumerate(zip(losses, self.pending, strict=True), first):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"The loss became {loss} at step {step} (epoch {self.epoch + 1}). {_DIVERGENCE_ADVICE}"
                )
            self.loss_sum += loss * images
            self.images += images
        self.pending.clear()

    def state_dict(self) -> dict[str, Any]:
        """What ``torch.save`` keeps and ``torch.load(weights_only=True)`` reads."""
        self.flush_losses()
        return {
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": runtime.get_rng_state(),
            "history": [asdict(row) for row in self.history],
            "stop": self.stop,
            "counters": [self.epochs, self.epoch, self.batch, self.images],
            "sums": [self.loss_sum, self.seconds],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Become what ``to_dict`` saved."""
        self.classifier.load_state_dict(saved["classifier"])
        self.optimizer.load_state_dict(saved["optimizer"])
        runtime.set_rng_state(saved["random"])
        self.history = [EpochMetrics(**row) for row in saved["history"]]
        self.stop = saved["stop"]
        self.epochs, self.epoch, self.batch, self.images = saved["counters"]
        self.loss_sum, self.seconds = saved["sums"]


@runtime_checkable
class Hook(Protocol):
    """Watches training; what it must remember across a resume is in its state."""

    def after_step(self, state: TrainingState) -> None:
        """Called after each optimiser step."""
        ...

    def after_epoch(self, state: TrainingState) -> None:
        """Called when an epoch is in ``state.history``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold of this hook."""
        ...

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Become what ``to_dict`` saved."""
        ...


def optimise(
    state: TrainingState,
    gradients: Gradients,
    objective: Objective,
    batches: Batches,
    schedule: Schedule,
    peak_lr: float,
    *,
    validate: Callable[[], tuple[float, float]],
    begin: Callable[[int], None] | None = None,
    clip: float = 0.0,
    gradient_step: Callable[[Classifier, Batch], None] | None = None,
    hooks: Sequence[Hook] = (),
    team: ProcessGroup = SINGLE_PROCESS,
) -> None:
    """Train ``state.classifier`` from where ``state`` is to its last epoch.

    ``validate()`` gives the validation (loss, accuracy) of the weights to be kept; ``begin(epoch)`` is called
    when the classifier has been put into training mode. Ends early when a
    hook sets ``state.stop`` (after an epoch) or a signal ``state.interrupted`` (after a step).
    Raises TrainingError at a loss that is not finite.
    """
    while state.epoch < state.epochs and not state.stop:
        started = time.perf_counter() - state.seconds
        state.classifier.train()
        if begin is not None:
            begin(state.epoch)
        for batch in batches(state.epoch, state.batch):
            factor = schedule(state.progress)
            for group in state.optimizer.param_groups:
                group["lr"] = peak_lr * factor * group["lr_factor"]
            loss = team.average_gradients(state.classifier, gradients(objective, batch))
            _step_optimizer(state, batch, clip, gradient_step)
            state.batch += 1
            state.pending.append((loss, len(batch) * team.size))
            state.seconds = time.perf_counter() - started
            if len(state.pending) >= LOSS_CHECK_STEPS:
                state.flush_losses()
            for hook in hooks:
                hook.after_step(state)
            if team.any(state.interrupted, state.step):
                state.interrupted = True
                return
        state.flush_losses()
        val_loss, val_accuracy = validate()
        if not math.isfinite(val_loss):
            raise TrainingError(
                f"The validation loss became {val_loss} in epoch {state.epoch + 1}. {_DIVERGENCE_ADVICE}"
            )
        _finish_epoch(state, val_loss, val_accuracy)
        for hook in hooks:
            hook.after_epoch(state)


def _step_optimizer(
    state: TrainingState, batch: Batch, clip: float, gradient_step: Callable[[Classifier, Batch], None] | None
) -> None:
    """One step of the optimiser along the gradients that are there."""
    if gradient_step is not None:
        gradient_step(state.classifier, batch)
    if clip:
        torch.nn.utils.clip_grad_norm_(state.classifier.parameters(), clip)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


def _finish_epoch(state: TrainingState, val_loss: float, val_accuracy: float) -> None:
    state.epoch += 1
    row = EpochMetrics(
        epoch=state.epoch,
        seconds=round(state.seconds, 3),
        lr=state.optimizer.param_groups[0]["lr"],
        train_loss=state.loss_sum / max(state.images, 1),
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        images_per_second=round(state.images / max(state.seconds, 1e-9), 1),
    )
    state.history.append(row)
    state.batch, state.images, state.loss_sum, state.seconds = 0, 0, 0.0, 0.0
