"""One trial: the recipe with its values, trained, judged on validation, recorded whatever happens."""

import shutil
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import progress
from ..errors import Interrupted, OutputError, SightlineError
from ..files import explain_write_errors
from ..training import BaseHook, Recipe, SilentRunFolder, TrainingState, prepare, recipe_geometry, train_on_splits
from ..types import Geometry, Splits
from .config import StudyConfig
from .study_store import StudyStore, trial_facts

if TYPE_CHECKING:
    from optuna.trial import Trial

PRUNED_REASON = "others were better at this epoch"
"""Why a pruned trial stops."""


class SplitsCache:
    """The images of every trial: read and split once for each way of making them pixels."""

    def __init__(self, recipe: Recipe, splits: Splits) -> None:
        self.known: dict[Geometry, Splits] = {recipe_geometry(recipe): splits}

    def for_recipe(self, recipe: Recipe) -> Splits:
        """The images as this recipe wants them."""
        geometry = recipe_geometry(recipe)
        if geometry not in self.known:
            self.known[geometry] = prepare(recipe)[1]
        return self.known[geometry]


class PruningHook(BaseHook):
    """Reports each epoch to the study and asks whether the trial is worth going on with."""

    def __init__(self, job: StudyConfig, trial: "Trial", journal: StudyStore) -> None:
        self.job, self.trial, self.journal = job, trial, journal
        self.best = (-1.0, 0.0)
        self.epochs = 0
        self.reported = set(journal.reported(trial.number))

    def after_epoch(self, state: TrainingState) -> None:
        """Report; stop a trial that others have left behind, unless it is done anyway."""
        row = state.history[-1]
        self.best, self.epochs = max(self.best, (row.val_accuracy, -row.val_loss)), row.epoch
        known = row.epoch in self.reported
        if self.journal.report(self.job, self.trial, row.val_accuracy, row.epoch, known=known):
            state.stop = PRUNED_REASON if state.epoch < state.epochs else state.stop

    def state_dict(self) -> dict[str, Any]:
        """The best epoch's accuracy and loss."""
        return {"best": list(self.best), "epochs": self.epochs}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up the saved best."""
        accuracy, loss = saved["best"]
        self.best, self.epochs = (accuracy, loss), saved["epochs"]


def run_trials(job: StudyConfig, journal: StudyStore, images: SplitsCache) -> None:
    """Try what the study has to try, one trial after another, until there is nothing more to do."""
    with journal.at_work():
        while (trial := journal.claim(job)) is not None:
            train_trial(job, journal, images, trial)


def train_trial(job: StudyConfig, journal: StudyStore, images: SplitsCache, trial: "Trial") -> None:
    """Train one trial, from its checkpoint where it has one, and record how it went.

    One whose values were tried already takes over that result. A trial that cannot be trained is recorded with the
    reason. Raises Interrupted when stopped (the trial goes back to the queue) and OutputError where the database
    or the disk cannot be written.
    """
    number, values = trial.number, trial.params
    if (twin := journal.find_duplicate(trial)) is not None:
        reason = f"It is trial {twin.number} again, so it was not trained."
        journal.complete_trial(number, twin.value or 0.0, {**trial_facts(twin), "seconds": 0.0, "reason": reason})
        progress.notify(f"Trial {number}: {format_values(values)}: {reason}")
        return
    folder = SilentRunFolder(job.folder / "trials" / f"{number:04}")
    with explain_write_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    watch, started = PruningHook(job, trial, journal), time.perf_counter()
    try:
        recipe = job.build_recipe(values)
        with journal.beating(number):
            splits, again = images.for_recipe(recipe), folder.checkpoint.is_file()
            run = train_on_splits(splits, recipe, folder, device=job.device, hooks={"tuning": watch}, resume=again)
    except (Interrupted, KeyboardInterrupt) as error:
        journal.requeue_trial(number)
        raise Interrupted(
            f"Stopped in trial {number}; it and the trials before it are kept in '{job.folder}'. "
            "Go on with the same command."
        ) from error
    except OutputError:
        raise
    except (SightlineError, RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        reason = failure_reason(error)
        journal.fail_trial(number, reason, epochs=watch.epochs, seconds=_elapsed(started))
        progress.notify(f"Trial {number}: {format_values(values)}: failed. {reason}")
    else:
        accuracy, loss = watch.best
        facts = {"val_loss": -loss, "epochs": watch.epochs, "seconds": _elapsed(started)}
        pruned = run.facts["stopped_early"] == PRUNED_REASON
        journal.complete_trial(number, accuracy, facts, pruned=pruned)
        end = "stopped early at" if pruned else "validation accuracy"
        progress.notify(
            f"Trial {number}: {format_values(values)}: {end} {accuracy:.2%}, {facts['seconds']:.1f} s."
        )
    shutil.rmtree(folder.path, ignore_errors=True)


def failure_reason(error: BaseException) -> str:
    """Why a trial failed, in a sentence: training's own messages go on to name files that are gone by then."""
    text = " ".join(str(error).split()) or "Memory ran out."
    if "allocate" in text.lower() or "out of memory" in text.lower() or isinstance(error, MemoryError):
        return "Memory ran out: smaller batches or a smaller network need less."
    return f"{text.partition('. ')[0].rstrip('.')}."


def format_values(values: Mapping[str, Any]) -> str:
    """The values of a trial as one reads them.

    >>> said({"lr": 0.012345678, "batch_size": 64})
    'lr=0.01235 batch_size=64'
    """
    return " ".join(f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in values.items())


def _elapsed(started: float) -> float:
    return round(time.perf_counter() - started, 3)
