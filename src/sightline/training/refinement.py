"""Training a classifier that exists: every method that trains enters here."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from .. import runtime
from ..classifier import Classifier
from ..errors import Interrupted, TrainingError, WorkerLostError
from ..files import write_json
from ..inference import predict_logits, validate
from ..types import Batch, Splits
from .adversarial import AdversarialLoss
from .calibrate import fit_temperature
from .distributed import SINGLE_PROCESS, ProcessGroup
from .fit import Batches, Hook, TrainingState, optimise
from .freezing import Freezer
from .gradients import build_gradients
from .hooks import EMA, BestWeights, Checkpoint, EarlyStopping, HistoryWriter, ProgressReporter
from .losses import Objective
from .optimizers import build_optimizer
from .recipe import Recipe
from .run_folder import RunFolder
from .schedules import parse_schedule


@dataclass(frozen=True)
class Method:
    """What a way of training may change: objective, batches, and the step between backward and update."""

    objective: Objective
    batches: Batches
    steps_per_epoch: int
    gradient_step: Callable[[Classifier, Batch], None] | None = None
    hooks: Mapping[str, Hook] | None = None


def refine(
    classifier: Classifier,
    recipe: Recipe,
    splits: Splits,
    method: Method,
    folder: RunFolder,
    *,
    resume: bool = False,
    team: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Train ``classifier`` in place by a complete recipe; keep the best on validation, calibrated, as the bundle.

    Returns the facts that ``training.json`` holds. Raises Interrupted when stopped (state saved, resumable)
    and TrainingError at a loss that is not finite (the best weights so far are in the bundle). In a ``team``
    every process calls it, and the first one writes.
    """
    assert recipe.epochs is not None
    runtime.seed_torch(
        recipe.seed + team.rank
    )  # what drew from the global generator before must not matter to dropout
    state = TrainingState(classifier, build_optimizer(classifier, recipe), recipe.epochs, method.steps_per_epoch)
    averaged = EMA(classifier, recipe.ema) if recipe.ema else None
    best = BestWeights(averaged.classifier if averaged else classifier)
    remembered: dict[str, Hook] = dict(method.hooks or {}) | {"best": best}
    if averaged:
        remembered["average"] = averaged
    checkpoint = Checkpoint(folder.checkpoint, remembered, splits.train.fingerprint, recipe.to_toml())
    if resume:
        _load_checkpoint(folder, state, remembered, splits, recipe)
    watching: list[Hook] = [*remembered.values()]
    if recipe.patience:
        watching.append(EarlyStopping(recipe.patience))
    with ExitStack() as stack:
        stack.enter_context(_handle_signals(state))
        stack.enter_context(runtime.keep_freed_memory())
        if team.is_main:
            watching += [
                HistoryWriter(folder.path / "history.csv"),
                checkpoint,
                ProgressReporter(stack, state, folder.log),
            ]
        if team.is_main and not resume:
            checkpoint.save(state)
        _watched(state, recipe, splits, method, best, watching, team, checkpoint, folder)
    if team.is_main and state.stop:
        folder.log(f"Stopped early: {state.stop}.")
    _save_best(classifier, best, splits, folder, team)
    return _write_facts(state, best, classifier, folder, team)


def _watched(
    state: TrainingState,
    recipe: Recipe,
    splits: Splits,
    method: Method,
    best: BestWeights,
    watching: Sequence[Hook],
    team: ProcessGroup,
    checkpoint: Checkpoint,
    folder: RunFolder,
) -> None:
    """The loop; whatever ends it early leaves what it has, and says how to go on."""
    onward = f"Go on with: sightline train --resume {folder.path}"
    try:
        _fit(state, recipe, method, splits, best.candidate, watching, team)
    except WorkerLostError as error:
        raise WorkerLostError(f"{error} {onward}") from error
    except TrainingError as error:
        kept = f"No epoch was finished; the last weights saved are in {folder.checkpoint}."
        if best.weights is not None:
            kept = _save_best(state.classifier, best, splits, folder, team)
        raise TrainingError(f"{error} {kept}") from error
    if state.interrupted:
        if team.is_main:
            checkpoint.save(state)
        raise Interrupted(f"Stopped at step {state.step} of {state.total_steps}; nothing is lost. {onward}")


def _fit(
    state: TrainingState,
    recipe: Recipe,
    method: Method,
    splits: Splits,
    candidate: Classifier,
    hooks: Sequence[Hook],
    team: ProcessGroup,
) -> None:
    """The loop, as recipe and method say."""
    assert recipe.lr is not None
    own = splits.val if team.size == 1 else splits.val.subset(np.arange(team.rank, len(splits.val), team.size))

    def look() -> tuple[float, float]:
        team.sync_norm_stats(*{state.classifier, candidate})
        asked = method.objective.validate if isinstance(method.objective, AdversarialLoss) else validate
        loss, accuracy = asked(candidate, own)
        if team.size == 1:
            return loss, accuracy
        sums = torch.tensor([loss, accuracy, 1.0], device=candidate.device) * len(own)
        loss, accuracy, count = team.sum(sums).tolist()
        return loss / count, accuracy / count

    worked = build_gradients(
        state.classifier,
        bfloat16=recipe.precision == "bfloat16",
        pieces=recipe.accumulate,
        replicas=recipe.replicas or 1,
    )
    rest = Freezer(state.classifier, recipe)
    with worked:
        optimise(
            state,
            worked,
            method.objective,
            method.batches,
            parse_schedule(recipe.schedule, recipe.warmup, recipe.epochs),
            recipe.lr,
            validate=look,
            begin=rest,
            clip=recipe.clip,
            gradient_step=method.gradient_step,
            hooks=hooks,
            team=team,
        )
    rest.unfreeze()


def _save_best(
    classifier: Classifier, best: BestWeights, splits: Splits, folder: RunFolder, team: ProcessGroup
) -> str:
    """Put the best weights into the classifier, fit the temperature, save the bundle; say what was kept."""
    if best.weights is not None:
        classifier.load_state_dict(best.weights)
    classifier.temperature = round(fit_temperature(*predict_logits(classifier, splits.val)), 6)
    if team.is_main:
        classifier.save(folder.bundle)
    return f"The weights of epoch {best.epoch} are kept in {folder.bundle}."


def _write_facts(
    state: TrainingState, best: BestWeights, classifier: Classifier, folder: RunFolder, team: ProcessGroup
) -> dict[str, Any]:
    rows = [asdict(row) for row in state.history]
    facts = {
        "epochs": state.epoch,
        "best_epoch": best.epoch,
        "stopped_early": state.stop,
        "seconds": round(sum(row.seconds for row in state.history), 3),
        "images_per_second": rows[-1]["images_per_second"] if rows else None,
        "peak_memory_mb": round(runtime.peak_memory_mb(), 1),
        "temperature": classifier.temperature,
        "val_accuracy": best.score[0] if rows else None,
    }
    if team.is_main:
        folder.write_curves(rows)
        write_json(folder.path / "training.json", facts)
    return facts


def _load_checkpoint(
    folder: RunFolder, state: TrainingState, hooks: Mapping[str, Hook], splits: Splits, recipe: Recipe
) -> None:
    try:
        saved = torch.load(folder.checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"'{folder.path}' has no last.ckpt to resume from. Train it anew.") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise TrainingError(f"'{folder.checkpoint}' is damaged and cannot be resumed: {error}.") from error
    if saved["fingerprint"] != splits.train.fingerprint:
        raise TrainingError(
            f"The images changed since '{folder.path}' began, so it cannot be resumed exactly. "
            "Bring the old images back, or train anew."
        )
    if saved["recipe"] != recipe.to_toml():
        raise TrainingError(
            f"The recipe.toml of '{folder.path}' was changed since it began, so it cannot be resumed exactly. "
            "Change it back, or train anew from it with --recipe."
        )
    state.load_state_dict(saved["state"])
    state.classifier.provenance = saved["provenance"]
    for name, hook in hooks.items():
        hook.load_state_dict(saved["hooks"][name])


@contextmanager
def _handle_signals(state: TrainingState) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks training to stop after its step; a second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: object) -> None:
        del frame
        state.interrupted = True
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
