"""The only training loop in the package.

Each step is ``loss = method.step(state, gradients, method.objective, batch)``. A ``Method`` says what is minimised,
on which batches, how a step is taken and how epochs are compared; hooks watch.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .. import runtime
from ..batches import Batch
from ..classifier import Classifier
from ..errors import DivergenceError, TrainingError
from ..types import Dataset
from .distributed import SINGLE_PROCESS, ProcessGroup
from .gradients import Gradients, SingleReplica
from .losses import Objective, as_objective
from .optimizers import Constant, Schedule, TrainingProgress

Batches = Callable[[int, int], Iterable[Batch]]
"""(epoch, batches already done in it) -> the remaining batches of the epoch.

A plain function yields the same batches for the same arguments. An object that is ``Stateful`` may remember what it
yielded (a replay buffer): its state is in the checkpoint. It updates its state before it yields a batch, because
the checkpoint is written after the step of that batch, and it prefetches nothing itself: prefetching belongs below
it, in the ``batches`` it reads from, or its state would run ahead of training.
"""

LOSS_CHECK_STEPS = 50
"""Steps between two reads of the loss: a read makes an accelerator wait."""


@runtime_checkable
class Stateful(Protocol):
    """An object whose state a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings and containers of them (``torch.load(weights_only=True)`` reads them)."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Restore what ``state_dict`` returned."""
        ...


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch: a row of ``history.csv``."""

    epoch: int
    seconds: float
    lr: float
    train_loss: float
    val_loss: float
    val_accuracy: float
    images_per_second: float


@dataclass
class TrainingState:
    """Where training is: all that a checkpoint must hold besides the state of hooks, batches and modules."""

    classifier: Classifier
    optimizer: torch.optim.Optimizer
    epochs: int
    steps_per_epoch: int
    peak_lr: float = field(kw_only=True)
    schedule: Schedule = field(default_factory=lambda: Constant(warmup=0.0), kw_only=True)
    clip_grad: float = field(default=0.0, kw_only=True)
    """Largest norm of a step's gradient; 0 for no limit."""
    modules: nn.ModuleDict = field(default_factory=nn.ModuleDict, kw_only=True)
    """The method's own modules, which the optimizer trains too."""
    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished batches of the current epoch."""
    history: list[EpochMetrics] = field(default_factory=list)
    stop: str | None = None
    """Why training should end before its last epoch; set by a hook, obeyed after the epoch."""
    interrupted: bool = False
    """Set by a signal handler; the loop returns after the current step."""
    loss_sum: float = 0.0
    images: int = 0
    seconds: float = 0.0
    """Training time of the current epoch, without the time between an interruption and its resume."""
    pending: list[tuple[Tensor, int]] = field(default_factory=list)
    """Losses not yet read from the device, each with its batch size."""
    recoveries: int = 0
    """How often training went back to earlier weights."""
    remarks: list[str] = field(default_factory=list)
    """What a reader of the report must know of the course of training, in sentences."""
    epoch_note: str = ""
    """What a hook adds to the log's line of the epoch."""
    last_steps: int = 0
    """Steps of the last epoch where it is cut; 0 where it is whole. A hook may change it, and ``epochs``, at any step:
    the schedule goes by the share of the run that is done."""

    @property
    def step(self) -> int:
        """Optimizer steps taken since the start."""
        return min(self.epoch * self.steps_per_epoch + self.batch, self.total_steps)

    @property
    def progress(self) -> TrainingProgress:
        """What a schedule may depend on."""
        done = self.epoch + self.batch / max(self.steps_per_epoch, 1)
        epochs = self.total_steps / max(self.steps_per_epoch, 1)
        return TrainingProgress(done, epochs, [row.val_loss for row in self.history])

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        cut = self.steps_per_epoch - self.last_steps if self.last_steps else 0
        return self.epochs * self.steps_per_epoch - cut

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps of the current epoch."""
        return (self.epoch + 1 == self.epochs and self.last_steps) or self.steps_per_epoch

    @property
    def trained_modules(self) -> tuple[nn.Module, ...]:
        """The classifier and the method's own modules."""
        return (self.classifier, self.modules)

    def set_lr(self) -> None:
        """Give the optimizer the learning rate of this step."""
        factor = self.schedule(self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_lr * factor * group["lr_factor"]

    def apply_gradients(self) -> None:
        """Clip the gradients, take one optimizer step, and clear them."""
        if self.clip_grad:
            parameters = [p for module in self.trained_modules for p in module.parameters()]
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def flush_losses(self) -> None:
        """Read the pending losses; raise DivergenceError naming the first step whose loss is not finite."""
        if not self.pending:
            return
        losses = torch.stack([loss for loss, _ in self.pending]).cpu().double().tolist()
        first = self.step - len(losses) + 1
        for step, (loss, (_, images)) in enumerate(zip(losses, self.pending, strict=True), first):
            if not math.isfinite(loss):
                raise DivergenceError(f"The loss became {loss} at step {step} (epoch {self.epoch + 1}).")
            self.loss_sum += loss * images
            self.images += images
        self.pending.clear()

    def finish_epoch(self, val_loss: float, val_accuracy: float) -> None:
        """Append the epoch to the history and begin the next one."""
        self.epoch += 1
        metrics = EpochMetrics(
            epoch=self.epoch,
            seconds=round(self.seconds, 3),
            lr=self.optimizer.param_groups[0]["lr"],
            train_loss=self.loss_sum / max(self.images, 1),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            images_per_second=round(self.images / max(self.seconds, 1e-9), 1),
        )
        self.history.append(metrics)
        self.batch, self.images, self.loss_sum, self.seconds = 0, 0, 0.0, 0.0

    def restart_epoch(self, lr_factor: float) -> None:
        """Forget the unfinished epoch and the optimizer's momentum; the peak rate is multiplied by ``lr_factor``."""
        self.peak_lr *= lr_factor
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        self.pending.clear()
        self.batch, self.images, self.loss_sum, self.seconds = 0, 0, 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """What ``torch.save`` writes and ``torch.load(weights_only=True)`` reads."""
        self.flush_losses()
        return {
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": runtime.get_rng_state(),
            "history": [asdict(row) for row in self.history],
            "stop": self.stop,
            "counters": [self.epochs, self.epoch, self.batch, self.images],
            "sums": [self.loss_sum, self.seconds],
            "course": [self.last_steps, self.peak_lr, self.recoveries, self.remarks],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.classifier.load_state_dict(saved["classifier"])
        self.optimizer.load_state_dict(saved["optimizer"])
        runtime.set_rng_state(saved["random"])
        self.history = [EpochMetrics(**row) for row in saved["history"]]
        self.stop = saved["stop"]
        self.epochs, self.epoch, self.batch, self.images = saved["counters"]
        self.loss_sum, self.seconds = saved["sums"]
        if "course" in saved:  # the first releases did not save it
            steps, self.peak_lr, self.recoveries, self.remarks = saved["course"]
            self.last_steps = 0 if steps >= self.steps_per_epoch else steps  # for a time all epochs were cut alike


@runtime_checkable
class Hook(Protocol):
    """Watches training and never touches the loss; its state is in the checkpoint."""

    def after_step(self, state: TrainingState) -> None:
        """Called after each optimizer step."""
        ...

    def after_epoch(self, state: TrainingState) -> None:
        """Called when the epoch's metrics are in ``state.history``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold of this hook."""
        ...

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...


Step = Callable[[TrainingState, Gradients, Objective, Batch], Tensor]


def gradient_step(state: TrainingState, gradients: Gradients, objective: Objective, batch: Batch) -> Tensor:
    """One step along the gradient of the objective on this batch: the step of most methods. Returns the loss."""
    loss = gradients(objective, batch)
    state.apply_gradients()
    return loss


def rank_by_accuracy(metrics: EpochMetrics) -> tuple[float, ...]:
    """Higher is better: the validation accuracy, then a low validation loss."""
    return metrics.val_accuracy, -metrics.val_loss


@dataclass(frozen=True)
class Method:
    """A way of training.

    Only ``objective``, ``batches`` and ``steps_per_epoch`` must be given. ``objective`` may be a plain function
    ``(classifier, batch) -> loss ()``.
    """

    objective: Objective
    batches: Batches
    steps_per_epoch: int
    step: Step = gradient_step
    """``(state, gradients, objective, batch) -> loss``; must leave the optimizer stepped and the gradients cleared.
    ``gradients(objective, batch)`` runs the backward pass in the recipe's precision, pieces and replicas;
    ``state.apply_gradients()`` clips, steps and clears."""
    validate: Callable[[Classifier, Dataset], tuple[float, float]] | None = None
    """(loss, accuracy) on validation images; None for the objective's own ``validate``."""
    select: Callable[[EpochMetrics], tuple[float, ...]] = rank_by_accuracy
    """How epochs are compared: the weights of the epoch with the largest value are kept."""
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    """Modules of the method (a discriminator, a projector): optimised, averaged and checkpointed with the classifier,
    never in the bundle."""
    hooks: Mapping[str, Hook] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))


def optimise(
    state: TrainingState,
    method: Method,
    hooks: Sequence[Hook] = (),
    *,
    validate: Callable[[], tuple[float, float]],
    gradients: Gradients | None = None,
    before_epoch: Callable[[int], None] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> None:
    """Train ``state.classifier`` from where ``state`` is to its last epoch; writes nothing.

    ``hooks`` are called after each step and epoch, ``validate()`` returns (loss, accuracy) after each epoch,
    ``gradients`` is the classifier's own ``SingleReplica`` where not given, and ``before_epoch(epoch)`` is called
    when the classifier is in training mode. Returns early when a hook sets ``state.stop`` (after an epoch) or a
    signal ``state.interrupted`` (after a step). A hook may set ``state.last_steps``: the last epoch then ends after so
    many steps. Raises DivergenceError for a loss that is not finite, TrainingError for an epoch that has not
    ``steps_per_epoch`` batches.
    """
    gradients = group.averaging(gradients or SingleReplica(state.classifier), *state.trained_modules)
    while state.epoch < state.epochs and not state.stop:
        started = time.perf_counter() - state.seconds
        for module in state.trained_modules:
            module.train()
        if before_epoch is not None:
            before_epoch(state.epoch)
        for batch in method.batches(state.epoch, state.batch):
            state.set_lr()
            loss = method.step(state, gradients, method.objective, batch)
            state.batch += 1
            state.pending.append((loss, len(batch) * group.size))
            state.seconds = time.perf_counter() - started
            if len(state.pending) >= LOSS_CHECK_STEPS:
                state.flush_losses()
            for hook in hooks:
                hook.after_step(state)
            if group.any(state.interrupted, state.step):
                state.interrupted = True
                return
            if state.last_steps and state.batch >= state.epoch_steps:
                break
        state.flush_losses()
        if state.batch < state.epoch_steps or state.batch > state.steps_per_epoch:
            raise TrainingError(
                f"Epoch {state.epoch + 1} had {state.batch} batches, but the method's steps_per_epoch is "
                f"{state.steps_per_epoch}: make its batches yield exactly that many."
            )
        val_loss, val_accuracy = validate()
        if not math.isfinite(val_loss):
            raise DivergenceError(f"The validation loss became {val_loss} in epoch {state.epoch + 1}.")
        state.finish_epoch(val_loss, val_accuracy)
        for hook in hooks:
            hook.after_epoch(state)
