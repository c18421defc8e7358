"""What watches training: averages, the best weights, recovery, early stopping, checkpoints, progress."""

import copy
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import progress
from ..classifier import Classifier
from ..errors import DivergenceError
from ..files import atomic_replace, write_csv
from .fit import EpochMetrics, Stateful, TrainingState, rank_by_accuracy

MAX_RECOVERIES = 3
"""Rates a thousand times lower do not help where these did not."""

LR_FACTOR_AFTER_DIVERGENCE = 0.1
"""Factor on the peak learning rate: networks that diverge at 0.1 train well at 0.01."""

MIN_LEARNED = 0.2
"""Accuracy above that of guessing from which a network has learned something that it can lose."""

CHANCE_MARGIN = 0.05
"""Accuracy above that of guessing within which a network has learned nothing."""

COLLAPSE_LOSS_FACTOR = 2.0
"""A training loss this many times the lowest, or above that of the first epoch, belongs to a collapse."""


class BaseHook:
    """A hook that does nothing: override what is needed."""

    def after_step(self, state: TrainingState) -> None:
        """Nothing."""

    def after_epoch(self, state: TrainingState) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Nothing to restore."""


class EMA(BaseHook):
    """An exponential moving average of the weights: w <- w + (1 - d) (w_now - w) after each step.

    d = min(decay, (1 + t) / (10 + t)), so that early steps are soon forgotten. Running statistics of norms are
    averaged the same way; counters are copied. ``modules`` are the method's own, averaged with the classifier.
    """

    def __init__(self, classifier: Classifier, decay: float, modules: nn.ModuleDict | None = None) -> None:
        self.classifier = copy.deepcopy(classifier).requires_grad_(False)
        self.modules = copy.deepcopy(modules or nn.ModuleDict()).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def after_step(self, state: TrainingState) -> None:
        """Move the average towards the weights."""
        rate = 1 - min(self.decay, (1 + state.step) / (10 + state.step))
        for mean, current in ((self.classifier, state.classifier), (self.modules, state.modules)):
            averaged, latest = (
                [t for t in module.state_dict().values() if t.is_floating_point()] for module in (mean, current)
            )
            if averaged:
                torch._foreach_lerp_(averaged, latest, rate)
            for own, new in zip(mean.buffers(), current.buffers(), strict=True):
                if not own.is_floating_point():
                    own.copy_(new)

    @contextmanager
    def applied_to(self, modules: nn.ModuleDict) -> Iterator[None]:
        """The method's modules with their averaged weights, for validation; afterwards with their own again."""
        own = {name: t.clone() for name, t in modules.state_dict().items()}
        modules.load_state_dict(self.modules.state_dict())
        try:
            yield
        finally:
            modules.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights."""
        return {"classifier": self.classifier.state_dict(), "modules": self.modules.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the averaged weights."""
        self.classifier.load_state_dict(saved.get("classifier", saved))  # the first releases saved them alone
        self.modules.load_state_dict(saved.get("modules", {}))


class BestWeights(BaseHook):
    """Keeps a copy of the ``candidate``'s weights after the best epoch: that with the largest ``select(metrics)``."""

    def __init__(
        self, candidate: Classifier, select: Callable[[EpochMetrics], tuple[float, ...]] = rank_by_accuracy
    ) -> None:
        self.candidate, self.select = candidate, select
        self.epoch = 0
        self.score: tuple[float, ...] | None = None
        self.weights: Mapping[str, Tensor] | None = None

    def after_epoch(self, state: TrainingState) -> None:
        """Compare the epoch just finished with the best so far."""
        score = self.select(state.history[-1])
        if self.score is None or score > self.score:
            self.score, self.epoch = score, state.epoch
            self.weights = {name: t.detach().clone() for name, t in self.candidate.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """The best epoch and its weights."""
        return {"epoch": self.epoch, "score": list(self.score or ()), "weights": self.weights}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the best epoch and its weights."""
        self.epoch, self.weights = saved["epoch"], saved["weights"]
        self.score = tuple(saved["score"]) if self.epoch else None


class Recovery(BaseHook):
    """Takes a run that diverged back to its best weights, or to its first ones, at a lower learning rate.

    ``others`` is what must go back with the weights: the state of hooks, batches and the method's modules.
    """

    def __init__(self, state: TrainingState, best: BestWeights, others: Mapping[str, Stateful]) -> None:
        self.best, self.others = best, dict(others)
        self.first: Mapping[str, Tensor] | None = copy.deepcopy(state.classifier.state_dict())
        self.saved = self._copy_others()
        self.idle = 0
        """Epochs in which nothing was learned, since the first weights."""
        self.initial = math.inf
        """Loss of the first step."""

    def after_step(self, state: TrainingState) -> None:
        """Keep the first loss."""
        if state.pending and self.initial == math.inf:
            self.initial = float(state.pending[0][0])

    def _copy_others(self) -> dict[str, Any]:
        return {name: copy.deepcopy(each.state_dict()) for name, each in self.others.items()}

    def after_epoch(self, state: TrainingState) -> None:
        """Keep the state of the best epoch; raise DivergenceError where the epoch lost what was learned.

        Also where the loss exploded and nothing was learned, or, after a divergence, nothing in two epochs: the rate is
        still too high. Until something was learned, the first weights are kept.
        """
        *before, row = state.history
        guessed = 1 / len(state.classifier.classes)
        ignorance = math.log(len(state.classifier.classes))  # the loss of equal probabilities, in nats
        at_chance = row.val_accuracy - guessed < CHANCE_MARGIN
        if self.first is not None and at_chance and row.val_loss > 0.99 * ignorance:
            exploded = row.train_loss > COLLAPSE_LOSS_FACTOR * self.initial
            self.idle += 1
            again = state.recoveries < MAX_RECOVERIES and state.epoch < state.epochs
            if again and (exploded or (state.recoveries and self.idle > 1)):
                raise DivergenceError(
                    f"In epoch {row.epoch} nothing was learned ({row.val_accuracy:.0%} of the validation images are "
                    "right)."
                )
            if exploded or state.recoveries:
                return
        if self.best.epoch == state.epoch:
            self.first, self.saved = None, self._copy_others()
            return
        if not before:
            return
        learned = max(each.val_accuracy for each in before) - guessed
        lost = learned > MIN_LEARNED and row.val_accuracy - guessed < learned / 4
        lowest = min(each.train_loss for each in before)
        if lost and row.train_loss > min(before[0].train_loss, COLLAPSE_LOSS_FACTOR * lowest):
            raise DivergenceError(f"In epoch {row.epoch} the accuracy fell to {row.val_accuracy:.0%}.")

    def go_back(self, state: TrainingState, what: str) -> bool:
        """Restore the weights and lower the rate; where that did not help before, stop with the best weights.

        Returns False where there is nothing to go on with: no epoch was finished at any rate.
        """
        weights = self.best.weights if self.first is None else self.first
        if state.recoveries >= MAX_RECOVERIES or weights is None:
            state.pending.clear()
            state.stop = f"{what[0].lower()}{what[1:].rstrip('.')}, at a rate of {state.peak_lr:g} too"
            state.remarks.append(f"Stopped early: {state.stop}.")
            return self.best.weights is not None
        state.recoveries += 1
        self.idle = 0
        state.classifier.load_state_dict(weights)
        for name, each in self.others.items():
            each.load_state_dict(copy.deepcopy(self.saved[name]))
        high = state.peak_lr
        state.restart_epoch(LR_FACTOR_AFTER_DIVERGENCE)
        origin = f"the weights of epoch {self.best.epoch}" if self.first is None else "the first weights"
        state.remarks.append(
            f"{what} Training went on from {origin}, at a peak rate of {state.peak_lr:g} instead of {high:g} (--lr)."
        )
        return True

    def state_dict(self) -> dict[str, Any]:
        """The first weights until something was learned, and the state of the others."""
        return {"first": self.first, "saved": self.saved, "idle": self.idle, "initial": self.initial}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what there is to go back to."""
        self.first, self.saved, self.idle = saved["first"], saved["saved"], saved.get("idle", 0)
        self.initial = saved.get("initial", math.inf)


class EarlyStopping(BaseHook):
    """Stops training after ``epochs`` epochs without a lower validation loss."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def after_epoch(self, state: TrainingState) -> None:
        """Count the epochs since the lowest validation loss."""
        losses = [row.val_loss for row in state.history]
        since = len(losses) - 1 - losses.index(min(losses))
        if since >= self.epochs:
            state.stop = f"the validation loss has not fallen for {since} epochs"


class Checkpoint(BaseHook):
    """Writes everything needed to go on exactly, after each epoch and every ``every`` seconds."""

    def __init__(
        self, path: Path, stateful: Mapping[str, Stateful], fingerprint: str, recipe: str, *, every: float = 30.0
    ) -> None:
        self.recipe = recipe
        self.path = path
        self.stateful = stateful
        self.fingerprint = fingerprint
        self.every = every
        self.saved_at = time.monotonic()

    def after_step(self, state: TrainingState) -> None:
        """Save if the last one is old."""
        if time.monotonic() - self.saved_at > self.every:
            self.save(state)

    def after_epoch(self, state: TrainingState) -> None:
        """Save, unless that was done moments ago; the last epoch is always saved."""
        last = state.epoch >= state.epochs or state.stop is not None
        if last or time.monotonic() - self.saved_at > min(1.0, self.every):
            self.save(state)

    def save(self, state: TrainingState) -> None:
        """Write ``last.ckpt`` whole, or leave the one before."""
        content = {
            "state": state.state_dict(),
            "hooks": {name: each.state_dict() for name, each in self.stateful.items()},
            "fingerprint": self.fingerprint,
            "recipe": self.recipe,
            "provenance": state.classifier.provenance,
        }
        write_checkpoint(self.path, content)
        self.saved_at = time.monotonic()


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole, or leave the one before."""
    whole = io.BytesIO()  # torch would not say that a disk is full
    torch.save(content, whole)
    with atomic_replace(path) as temporary:
        temporary.write_bytes(whole.getbuffer())


class HistoryWriter(BaseHook):
    """Writes ``history.csv``, whole, after each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_epoch(self, state: TrainingState) -> None:
        """Rewrite the table."""
        rows = [asdict(row).values() for row in state.history]
        write_csv(self.path, [[field.name for field in fields(EpochMetrics)], *rows])


class ProgressReporter(BaseHook):
    """A progress bar over the whole run, and a line for each epoch (on the terminal, one a second at most)."""

    def __init__(self, stack: ExitStack, state: TrainingState, say: Callable[..., None]) -> None:
        self.logged_at = 0.0
        self.advance = stack.enter_context(progress.progress_bar("Training", state.total_steps))
        self.advance(state.step)
        self.log = say

    def after_step(self, state: TrainingState) -> None:
        """Move the bar."""
        self.advance(1, note=f"epoch {state.epoch + 1} of {state.epochs}", total=state.total_steps)

    def after_epoch(self, state: TrainingState) -> None:
        """Say how the epoch went."""
        row = state.history[-1]
        aloud = time.monotonic() - self.logged_at > 1 or state.epoch == state.epochs
        if aloud:
            self.logged_at = time.monotonic()
        self.log(
            f"epoch {row.epoch:>{len(str(state.epochs))}}/{state.epochs}  train loss {row.train_loss:.4f}  "
            f"validation loss {row.val_loss:.4f}  accuracy {row.val_accuracy:.2%}  {row.seconds:.1f} s"
            f"{state.epoch_note}",
            aloud=aloud,
        )
        state.epoch_note = ""
