"""``refine``: a classifier that exists is trained in a run folder; every way of training enters here."""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .. import runtime
from ..classifier import Classifier
from ..errors import DataError, DivergenceError, Interrupted, RecipeError, TrainingError, WorkerLostError
from ..files import write_json
from ..inference import predict_logits
from ..layers import open_kernels
from ..types import Splits
from .distributed import SINGLE_PROCESS, ProcessGroup, launcher_words
from .fit import Hook, Method, Stateful, TrainingState, optimise
from .gradients import build_gradients
from .hooks import (
    EMA,
    BestWeights,
    Checkpoint,
    EarlyStopping,
    HistoryWriter,
    ProgressReporter,
    Recovery,
    write_checkpoint,
)
from .losses import check_cuts
from .plan import Plan
from .recipe import Recipe
from .run_folder import RunFolder
from .transfer import Freezer

TEMPERATURE_PRIOR = 0.5
"""Standard deviation of the prior on ln T: a small validation set without an error would ask for T = 0."""


def refine(
    classifier: Classifier,
    plan: Plan,
    splits: Splits,
    method: Method,
    folder: RunFolder,
    *,
    resume: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Train ``classifier`` in place; keep the best epoch's weights, calibrated, as the bundle of ``folder``.

    Returns the facts that ``training.json`` holds. In a process group every process calls it, and the main one
    writes. Raises DataError where the classes of the images are not the classifier's, RecipeError where the recipe
    cuts batches that the method needs whole, Interrupted when stopped (resumable) and TrainingError at a loss that
    is not finite in the first epoch, at lower rates too: later, training goes on from the best weights.
    """
    recipe, onward = plan.recipe, f"Go on with: {launcher_words()}{folder.onward}"
    _check_refinable(classifier, plan, splits, method)
    runtime.seed_torch(recipe.seed + group.rank)  # dropout must not depend on what drew before
    state = start_training(classifier, plan, method)
    group.broadcast_state(state.modules)
    ema = EMA(classifier, recipe.ema_decay, state.modules) if recipe.ema_decay else None
    best = BestWeights(ema.classifier if ema else classifier, method.select)
    hooks: dict[str, Hook] = {**method.hooks, "best": best}
    if ema:
        hooks["average"] = ema
    stateful: dict[str, Stateful] = {**hooks}
    if state.modules:
        stateful["method.modules"] = state.modules
    if isinstance(method.batches, Stateful):
        stateful["method.batches"] = method.batches
    recovery = Recovery(state, best, {name: each for name, each in stateful.items() if each is not best})
    hooks["recovery"] = stateful["recovery"] = recovery  # after the others, whose state it copies
    checkpoint = Checkpoint(folder.checkpoint, stateful, splits.train.fingerprint, recipe.to_toml())
    if resume:
        _load_checkpoint(folder, state, stateful, splits, recipe)
    watching: list[Hook] = [*hooks.values(), *([EarlyStopping(recipe.patience)] if recipe.patience else [])]
    freezer = Freezer(classifier, plan.freezing, freeze_norms=recipe.freeze_norms)
    with ExitStack() as stack:
        stack.enter_context(_handle_signals(state))
        stack.enter_context(runtime.keep_freed_memory())
        if group.is_main:
            history = HistoryWriter(folder.path / "history.csv")
            watching += [history, checkpoint, ProgressReporter(stack, state, folder.log)]
            if not resume:
                checkpoint.save(state)
        validate = _make_validate(state, plan, method, splits, best.candidate, ema, group)
        try:
            _optimise(state, plan, method, watching, recovery, freezer, validate, folder, group)
        except WorkerLostError as error:
            raise WorkerLostError(f"{error} {onward}") from error
        except TrainingError as error:
            kept = f"No epoch was finished; the last weights saved are in {folder.checkpoint}."
            if best.weights is not None:
                kept = _save_best(classifier, best, splits, folder, group)
            raise TrainingError(f"{error} {kept}") from error
        freezer.unfreeze()
        if state.interrupted:
            if group.is_main:
                checkpoint.save(state)
            raise Interrupted(f"Stopped at step {state.step} of {state.total_steps}; nothing is lost. {onward}")
    if group.is_main and state.stop:
        folder.log(f"Stopped early: {state.stop}.")
    _save_best(classifier, best, splits, folder, group)
    return _write_facts(state, best, folder, group)


def _optimise(
    state: TrainingState,
    plan: Plan,
    method: Method,
    watching: list[Hook],
    recovery: Recovery,
    freezer: Freezer,
    validate: Callable[[], tuple[float, float]],
    folder: RunFolder,
    group: ProcessGroup,
) -> None:
    """``optimise``, from earlier weights at a lower rate where training diverges. Raises as it does."""
    recipe = plan.recipe
    why = open_kernels()[1] if recipe.fused_kernels else ""
    if why and why not in state.remarks:  # the recipe has them, and this machine does not
        state.remarks.append(why)
        folder.log(why)
    while True:
        gradients = build_gradients(  # again after divergence: replicas have statistics of their own
            state.classifier,
            bfloat16=recipe.precision == "bfloat16",
            pieces=recipe.grad_accum_steps,
            replicas=recipe.cpu_replicas or 1,
            fused=bool(recipe.fused_kernels),
        )
        try:
            with gradients:
                optimise(
                    state,
                    method,
                    watching,
                    validate=validate,
                    gradients=gradients,
                    before_epoch=freezer,
                    group=group,
                )
            return
        except DivergenceError as error:
            if not recovery.go_back(state, error.what):
                raise
            if state.stop:
                return
            if group.is_main:
                folder.log(state.remarks[-1])


def start_training(classifier: Classifier, plan: Plan, method: Method) -> TrainingState:
    """The state of a training before its first step, for ``optimise``."""
    recipe = plan.recipe
    assert recipe.epochs is not None
    assert recipe.lr is not None
    modules = nn.ModuleDict(method.modules).to(classifier.device)
    epochs, cut, whole = recipe.epochs, 0, method.steps_per_epoch
    if recipe.steps is not None and recipe.steps < epochs * whole:
        epochs, cut = math.ceil(recipe.steps / whole), recipe.steps % whole
    return TrainingState(
        classifier,
        plan.build_optimizer(classifier, modules),
        epochs,
        method.steps_per_epoch,
        last_steps=cut,
        peak_lr=recipe.lr,
        schedule=plan.schedule,
        clip_grad=recipe.clip_grad,
        modules=modules,
    )


def fit_temperature(logits: Float[Tensor, "N K"], labels: Int[Tensor, " N"]) -> float:
    """The T that minimises the negative log-likelihood of softmax(logits / T) (Guo et al. 2017, section 4.2).

    The prior ln T ~ N(0, 0.5) is negligible with a thousand images and keeps T sane with thirty. Images without a
    label (-1) are left out.
    """
    from scipy.optimize import minimize_scalar

    z, y = logits[labels >= 0].double().numpy(), labels[labels >= 0].numpy()
    z = z - z.max(1, keepdims=True)
    true = z[np.arange(len(y)), y]

    def loss(log_t: float) -> float:
        scale = math.exp(-log_t)
        nll = np.log(np.exp(z * scale).sum(1)) - true * scale
        return float(nll.sum() + (log_t / TEMPERATURE_PRIOR) ** 2 / 2)

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return float(math.exp(found.x))


def _check_refinable(classifier: Classifier, plan: Plan, splits: Splits, method: Method) -> None:
    replicas = plan.recipe.cpu_replicas or 1
    if splits.train.classes != classifier.classes:
        raise DataError(
            f"The images have the classes {_name_some(splits.train.classes)}, but the classifier has "
            f"{_name_some(classifier.classes)}: relabel the images to the classifier's classes, in their order."
        )
    check_cuts(method.objective, plan.recipe.grad_accum_steps, replicas, plan.recipe.devices)
    if method.modules and replicas > 1:
        raise RecipeError(
            "A method with modules of its own cannot be shared by replicas: leave out --cpu-replicas."
        )


def _name_some(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")


def _make_validate(
    state: TrainingState,
    plan: Plan,
    method: Method,
    splits: Splits,
    candidate: Classifier,
    ema: EMA | None,
    group: ProcessGroup,
) -> Callable[[], tuple[float, float]]:
    """(loss, accuracy) of the weights to be kept, on this process's share of the labelled validation images.

    It is computed in the precision of training; calibration and test, later, in float32.
    """
    kind, bfloat16 = candidate.device.type, plan.recipe.precision == "bfloat16"
    images = splits.val.labelled
    share = images if group.size == 1 else images.subset(np.arange(group.rank, len(images), group.size))

    def validate() -> tuple[float, float]:
        group.sync_norm_stats(*{state.classifier, candidate})
        averaged = ema.applied_to(state.modules) if ema and state.modules else nullcontext()
        with averaged, torch.autocast(kind, torch.bfloat16, enabled=bfloat16):
            loss, accuracy = (method.validate or method.objective.validate)(candidate, share)
        if group.size == 1:
            return loss, accuracy
        sums = torch.tensor([loss, accuracy, 1.0], device=candidate.device) * len(share)
        loss, accuracy, count = group.sum(sums).tolist()
        return loss / count, accuracy / count

    return validate


def _save_best(
    classifier: Classifier, best: BestWeights, splits: Splits, folder: RunFolder, group: ProcessGroup
) -> str:
    """Put the best weights into the classifier, fit the temperature, save the bundle; say what was kept."""
    if best.weights is not None:
        classifier.load_state_dict(best.weights)
    calibrated = best.weights is None and classifier.temperature != 1  # a computed head, on kept features
    if len(val := splits.val.labelled) and not calibrated:
        classifier.temperature = round(fit_temperature(*predict_logits(classifier, val)), 6)
    if group.is_main:
        classifier.save(folder.bundle)
    return f"The weights of epoch {best.epoch} are kept in {folder.bundle}."


def _write_facts(
    state: TrainingState, best: BestWeights, folder: RunFolder, group: ProcessGroup
) -> dict[str, Any]:
    rows = [asdict(row) for row in state.history]
    facts = {
        "epochs": state.epoch,
        "best_epoch": best.epoch,
        "stopped_early": state.stop,
        "steps": state.step,
        "steps_per_epoch": state.steps_per_epoch,
        "peak_lr": state.peak_lr,
        "recoveries": state.recoveries,
        "remarks": state.remarks,
        "seconds": round(sum(row.seconds for row in state.history), 3),
        "images_per_second": rows[-1]["images_per_second"] if rows else None,
        "peak_memory_mb": round(runtime.peak_memory_mb(), 1),
        "temperature": state.classifier.temperature,
        "val_accuracy": rows[best.epoch - 1]["val_accuracy"] if rows else None,
    }
    if group.is_main:
        folder.write_curves(rows)
        write_json(folder.path / "training.json", facts)
    return facts


def keep_best_epoch(folder: RunFolder) -> None:
    """Let an interrupted run end, when it is resumed, with the best epoch that it has finished.

    Raises TrainingError where it has finished none, or its checkpoint cannot be read.
    """
    saved = _read_checkpoint(folder)
    if saved["hooks"]["best"]["weights"] is None:
        raise TrainingError(
            f"'{folder.path}' has finished no epoch, so there is no best one: sightline train --resume {folder.path}"
        )
    saved["state"]["stop"] = "the best epoch so far was taken"
    write_checkpoint(folder.checkpoint, saved)


def _read_checkpoint(folder: RunFolder) -> dict[str, Any]:
    try:
        return torch.load(folder.checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"'{folder.path}' has no last.ckpt to resume from. Train again.") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise TrainingError(f"'{folder.checkpoint}' is damaged and cannot be resumed: {error}.") from error


def _load_checkpoint(
    folder: RunFolder, state: TrainingState, stateful: Mapping[str, Stateful], splits: Splits, recipe: Recipe
) -> None:
    saved = _read_checkpoint(folder)
    if saved["fingerprint"] != splits.train.fingerprint:
        raise TrainingError(
            f"The images changed since '{folder.path}' began, so it cannot be resumed exactly. "
            "Restore the old images, or train again."
        )
    if Recipe.parse_toml(saved["recipe"]).replace(data=None) != recipe.replace(
        data=None
    ):  # images are their bytes
        raise TrainingError(
            f"The recipe.toml of '{folder.path}' was changed since it began, so it cannot be resumed exactly. "
            "Change it back, or train again from it with --recipe."
        )
    state.load_state_dict(saved["state"])
    state.classifier.provenance = saved["provenance"]
    for name, each in stateful.items():
        if name in saved["hooks"]:  # the first releases saved fewer
            each.load_state_dict(saved["hooks"][name])


@contextmanager
def _handle_signals(state: TrainingState) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks training to stop after its step; a second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def interrupt(number: int, frame: object) -> None:
        del frame
        state.interrupted = True
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
