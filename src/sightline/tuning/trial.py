"""One trial: the recipe with its values, trained, judged on validation images, and recorded whatever happens."""

import shutil
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from .. import progress
from ..errors import Interrupted, OutputError, SightlineError
from ..files import explain_write_errors
from ..training import BaseHook, Recipe, SilentRunFolder, TrainingState, prepare, resolve, train_on_splits
from ..types import Geometry, Splits
from .study_store import StudyConfig, StudyStore, TrialFailed, trial_facts, trial_indices

if TYPE_CHECKING:
    from optuna.trial import Trial

PRUNED_REASON = "others were better at this epoch"
"""Why training stops in a pruned trial."""


class SplitsCache:
    """The images of every trial: read and split once for each geometry."""

    def __init__(self, recipe: Recipe, splits: Splits) -> None:
        self.splits: dict[Geometry, Splits] = {recipe.geometry: splits}

    def for_recipe(self, recipe: Recipe) -> Splits:
        """The images in the geometry of this recipe."""
        geometry = recipe.geometry
        if geometry not in self.splits:
            self.splits[geometry] = prepare(resolve(recipe))[1]
        return self.splits[geometry]


class PruningHook(BaseHook):
    """Reports the validation accuracy of each epoch to the study and stops a trial that the pruner rejects."""

    def __init__(self, config: StudyConfig, trial: "Trial", reported: Collection[int]) -> None:
        self.config, self.trial, self.reported = config, trial, reported
        self.best = (-1.0, 0.0)
        """Accuracy and negative loss of the best epoch."""
        self.epochs = 0

    def after_epoch(self, state: TrainingState) -> None:
        """Report the epoch; stop training if the pruner says so, unless it is at its end anyway."""
        row = state.history[-1]
        self.best, self.epochs = max(self.best, (row.val_accuracy, -row.val_loss)), row.epoch
        if row.epoch % self.config.report_interval:
            return
        if row.epoch not in self.reported:
            self.trial.report(row.val_accuracy, row.epoch)
        if self.config.search.prunes and self.trial.should_prune() and state.epoch < state.epochs:
            state.stop = PRUNED_REASON

    def state_dict(self) -> dict[str, Any]:
        """Accuracy and loss of the best epoch."""
        return {"best": list(self.best), "epochs": self.epochs}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        accuracy, loss = saved["best"]
        self.best, self.epochs = (accuracy, loss), saved["epochs"]


def run_trials(config: StudyConfig, store: StudyStore, images: SplitsCache) -> None:
    """Train one trial after another until the study has no more to begin."""
    while store.has_next(config):
        store.run_next(config, lambda trial, index: train_trial(config, store, images, trial, index))


def train_trial(config: StudyConfig, store: StudyStore, images: SplitsCache, trial: "Trial", index: int) -> float:
    """Train one trial, from its checkpoint if an earlier attempt left one; returns its validation accuracy.

    Values that were tried before take over the earlier result. Raises TrialFailed if the trial cannot be trained,
    optuna.TrialPruned if it was stopped early, Interrupted if the user stopped it, OutputError if the database or
    the disk cannot be written.
    """
    from optuna import TrialPruned

    values = trial.params
    if (twin := store.find_duplicate(trial)) is not None:
        same = trial_indices(store.trials())[twin.number]
        reason = f"It has the values of trial {same}, so it was not trained."
        trial.set_user_attr("facts", {**trial_facts(twin), "seconds": 0.0, "reason": reason, "same_as": same})
        progress.notify(f"Trial {index}: {format_values(values)}: {reason}")
        return twin.value or 0.0
    folder = SilentRunFolder(config.folder / "trials" / f"{index:04}")
    with explain_write_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    hook, started = PruningHook(config, trial, store.reported_epochs(trial.number)), time.perf_counter()
    try:
        recipe = config.build_recipe(values)
        splits, again = images.for_recipe(recipe), folder.checkpoint.is_file()
        run = train_on_splits(splits, recipe, folder, device=config.device, hooks={"tuning": hook}, resume=again)
    except (Interrupted, KeyboardInterrupt) as error:
        raise Interrupted(
            f"Stopped in trial {index}. It and the trials before it are saved in '{config.folder}'. "
            "Continue with the same command."
        ) from error
    except OutputError:
        raise
    except (SightlineError, RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        reason, seconds = failure_reason(error), round(time.perf_counter() - started, 3)
        trial.set_user_attr("facts", {"reason": reason, "epochs": hook.epochs, "seconds": seconds})
        progress.notify(f"Trial {index}: {format_values(values)}: failed. {reason}")
        shutil.rmtree(folder.path, ignore_errors=True)
        raise TrialFailed(reason) from error
    (accuracy, loss), seconds = hook.best, round(time.perf_counter() - started, 3)
    trial.set_user_attr("facts", {"val_loss": -loss, "epochs": hook.epochs, "seconds": seconds})
    pruned = run.facts["stopped_early"] == PRUNED_REASON
    end = "stopped early at" if pruned else "validation accuracy"
    progress.notify(f"Trial {index}: {format_values(values)}: {end} {accuracy:.2%}, {seconds:.1f} s.")
    shutil.rmtree(folder.path, ignore_errors=True)
    if pruned:
        raise TrialPruned
    return accuracy


def failure_reason(error: BaseException) -> str:
    """Why a trial failed, in one sentence: the rest of training's messages names files that no longer exist."""
    text = " ".join(str(error).split()) or "Memory ran out."
    if "allocate" in text.lower() or "out of memory" in text.lower() or isinstance(error, MemoryError):
        return "Memory ran out: use smaller batches or a smaller network."
    return f"{text.partition('. ')[0].rstrip('.')}."


def format_values(values: Mapping[str, Any]) -> str:
    """The values of a trial as text.

    >>> format_values({"lr": 0.012345678, "batch_size": 64})
    'lr=0.01235 batch_size=64'
    """
    return " ".join(f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in values.items())
