"""One trial: the recipe with its values, trained, judged on validation, recorded whatever happens."""

import shutil
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import progress
from ..errors import Interrupted, OutputError, SightlineError
from ..files import explaining
from ..training.assemble import geometry_of
from ..training.fit import State
from ..training.folder import Quiet
from ..training.hooks import Watcher
from ..training.recipe import Recipe
from ..training.run import prepare, train_on
from ..types import Geometry, Splits
from .job import Job
from .journal import Journal, facts_of

if TYPE_CHECKING:
    from optuna.trial import Trial

PRUNED = "others were better at this epoch"
"""Why a pruned trial stops."""


class Images:
    """The images of every trial: read and split once for each way of making them pixels."""

    def __init__(self, recipe: Recipe, splits: Splits) -> None:
        self.known: dict[Geometry, Splits] = {geometry_of(recipe): splits}

    def of(self, recipe: Recipe) -> Splits:
        """The images as this recipe wants them."""
        geometry = geometry_of(recipe)
        if geometry not in self.known:
            self.known[geometry] = prepare(recipe)[1]
        return self.known[geometry]


class Watch(Watcher):
    """Reports each epoch to the study and asks whether the trial is worth going on with."""

    def __init__(self, job: Job, trial: "Trial", journal: Journal) -> None:
        self.job, self.trial, self.journal = job, trial, journal
        self.best = (-1.0, 0.0)
        self.epochs = 0
        self.reported = set(journal.reported(trial.number))

    def after_epoch(self, state: State) -> None:
        """Report; stop a trial that others have left behind, unless it is done anyway."""
        row = state.history[-1]
        self.best, self.epochs = max(self.best, (row.val_accuracy, -row.val_loss)), row.epoch
        known = row.epoch in self.reported
        if self.journal.report(self.job, self.trial, row.val_accuracy, row.epoch, known=known):
            state.stop = PRUNED if state.epoch < state.epochs else state.stop

    def to_dict(self) -> dict[str, Any]:
        """The best epoch's accuracy and loss."""
        return {"best": list(self.best), "epochs": self.epochs}

    def take(self, saved: dict[str, Any]) -> None:
        """Take up the saved best."""
        accuracy, loss = saved["best"]
        self.best, self.epochs = (accuracy, loss), saved["epochs"]


def work(job: Job, journal: Journal, images: Images) -> None:
    """Try what the study has to try, one trial after another, until there is nothing more to do."""
    with journal.at_work():
        while (trial := journal.claim(job)) is not None:
            attempt(job, journal, images, trial)


def attempt(job: Job, journal: Journal, images: Images, trial: "Trial") -> None:
    """Train one trial, from its checkpoint where it has one, and record how it went.

    One whose values were tried already takes over that result. A trial that cannot be trained is recorded with the
    reason. Raises Interrupted when stopped (the trial goes back to the queue) and OutputError where the database
    or the disk cannot be written.
    """
    number, values = trial.number, trial.params
    if (twin := journal.twin(trial)) is not None:
        reason = f"It is trial {twin.number} again, so it was not trained."
        journal.finish(number, twin.value or 0.0, {**facts_of(twin), "seconds": 0.0, "reason": reason})
        progress.say(f"Trial {number}: {said(values)}: {reason}")
        return
    folder = Quiet(job.folder / "trials" / f"{number:04}")
    with explaining(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    watch, started = Watch(job, trial, journal), time.perf_counter()
    try:
        recipe = job.recipe(values)
        with journal.beating(number):
            splits, again = images.of(recipe), folder.checkpoint.is_file()
            run = train_on(splits, recipe, folder, device=job.device, hooks={"tuning": watch}, resume=again)
    except (Interrupted, KeyboardInterrupt) as error:
        journal.give_back(number)
        raise Interrupted(
            f"Stopped in trial {number}; it and the trials before it are kept in '{job.folder}'. "
            "Go on with the same command."
        ) from error
    except OutputError:
        raise
    except (SightlineError, RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        reason = reason_of(error)
        journal.fail(number, reason, epochs=watch.epochs, seconds=_since(started))
        progress.say(f"Trial {number}: {said(values)}: failed. {reason}")
    else:
        accuracy, loss = watch.best
        facts = {"val_loss": -loss, "epochs": watch.epochs, "seconds": _since(started)}
        pruned = run.facts["stopped_early"] == PRUNED
        journal.finish(number, accuracy, facts, pruned=pruned)
        end = "stopped early at" if pruned else "validation accuracy"
        progress.say(f"Trial {number}: {said(values)}: {end} {accuracy:.2%}, {facts['seconds']:.1f} s.")
    shutil.rmtree(folder.path, ignore_errors=True)


def reason_of(error: BaseException) -> str:
    """Why a trial failed, in a sentence: training's own messages go on to name files that are gone by then."""
    text = " ".join(str(error).split()) or "Memory ran out."
    if "allocate" in text.lower() or "out of memory" in text.lower() or isinstance(error, MemoryError):
        return "Memory ran out: smaller batches or a smaller network need less."
    return f"{text.partition('. ')[0].rstrip('.')}."


def said(values: Mapping[str, Any]) -> str:
    """The values of a trial as one reads them.

    >>> said({"lr": 0.012345678, "batch_size": 64})
    'lr=0.01235 batch_size=64'
    """
    return " ".join(f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in values.items())


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
