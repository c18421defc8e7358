"""Training a classifier that exists: every method that trains enters here."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import runtime
from ..classifier import Classifier
from ..errors import Interrupted, TrainingError
from ..files import write_json
from ..types import Batch, Splits
from .calibrate import logits_of, temperature, validate
from .fit import Batches, Hook, State, fit
from .folder import RunFolder
from .hooks import Average, Best, Checkpoint, History, Live, Patience
from .objectives import Objective
from .optimizers import SCHEDULES, optimizer
from .recipe import Recipe


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
) -> dict[str, Any]:
    """Train ``classifier`` in place by a complete recipe; keep the best on validation, calibrated, as the bundle.

    Returns the facts that ``training.json`` holds. Raises Interrupted when stopped (state saved, resumable)
    and TrainingError at a loss that is not finite (the best weights so far are in the bundle).
    """
    assert recipe.epochs is not None
    runtime.seed(recipe.seed)  # whatever drew from the global generator before must not matter to dropout
    state = State(classifier, optimizer(classifier, recipe), recipe.epochs, method.steps_per_epoch)
    averaged = Average(classifier, recipe.ema) if recipe.ema else None
    candidate = averaged.classifier if averaged else classifier
    best = Best(candidate)
    remembered: dict[str, Hook] = dict(method.hooks or {}) | {"best": best}
    if averaged:
        remembered["average"] = averaged
    checkpoint = Checkpoint(folder.checkpoint, remembered, splits.train.fingerprint, recipe.to_toml())
    if resume:
        _recall(folder, state, remembered, splits, recipe)
    watching: list[Hook] = [*remembered.values(), History(folder.path / "history.csv")]
    if recipe.patience:
        watching.append(Patience(recipe.patience))
    with ExitStack() as stack:
        stack.enter_context(_interruptible(state))
        watching += [checkpoint, Live(stack, state, folder.say)]
        if not resume:
            checkpoint.save(state)
        try:
            _fit(state, recipe, method, lambda: validate(candidate, splits.val), watching)
        except TrainingError as error:
            kept = f"No epoch was finished; the last weights saved are in {folder.checkpoint}."
            if best.weights is not None:
                kept = _keep(classifier, best, splits, folder)
            raise TrainingError(f"{error} {kept}") from error
        if state.interrupted:
            checkpoint.save(state)
            raise Interrupted(
                f"Stopped at step {state.step} of {state.steps}; nothing is lost. "
                f"Go on with: sightline train --resume {folder.path}"
            )
    if state.stop:
        folder.say(f"Stopped early: {state.stop}.")
    _keep(classifier, best, splits, folder)
    return _finish(state, best, classifier, folder)


def _fit(
    state: State,
    recipe: Recipe,
    method: Method,
    validate: Callable[[], tuple[float, float]],
    hooks: Sequence[Hook],
) -> None:
    """The loop, as recipe and method say."""
    assert recipe.lr is not None
    fit(
        state,
        method.objective,
        method.batches,
        SCHEDULES[recipe.schedule](recipe.warmup),
        recipe.lr,
        validate=validate,
        bfloat16=recipe.precision == "bfloat16",
        gradient_step=method.gradient_step,
        hooks=hooks,
    )


def _keep(classifier: Classifier, best: Best, splits: Splits, folder: RunFolder) -> str:
    """Put the best weights into the classifier, fit the temperature, save the bundle; say what was kept."""
    if best.weights is not None:
        classifier.load_state_dict(best.weights)
    classifier.temperature = round(temperature(*logits_of(classifier, splits.val)), 6)
    classifier.save(folder.bundle)
    return f"The weights of epoch {best.epoch} are kept in {folder.bundle}."


def _finish(state: State, best: Best, classifier: Classifier, folder: RunFolder) -> dict[str, Any]:
    rows = [asdict(row) for row in state.history]
    folder.write_curves(rows)
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
    write_json(folder.path / "training.json", facts)
    return facts


def _recall(folder: RunFolder, state: State, hooks: Mapping[str, Hook], splits: Splits, recipe: Recipe) -> None:
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
    state.take(saved["state"])
    for name, hook in hooks.items():
        hook.take(saved["hooks"][name])


@contextmanager
def _interruptible(state: State) -> Iterator[None]:
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
