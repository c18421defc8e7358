"""Training of trials, in this process or in several workers, each recorded even if it fails."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import errors, progress
from ..errors import DivergenceError, Interrupted, OutputError, SightlineError
from ..files import explain_write_errors
from ..training import BaseHook, Recipe, SilentRunFolder, TrainingState, prepare, resolve, train_on_splits
from ..types import Geometry, Splits
from .leaderboard import trial_facts, trial_indices
from .study_store import StudyConfig, StudyStore, TrialFailed

if TYPE_CHECKING:
    from optuna.trial import Trial

PRUNED_REASON = "others were better at this epoch"
"""Why training stops in a pruned trial."""

PARENT_POLL_SECONDS = 1.0
"""Seconds between two checks whether the parent process still exists."""


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
        if run.facts["recoveries"]:  # the result would be that of another rate
            raise DivergenceError(run.facts["remarks"][0])
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
    if head := run.facts.get("head"):  # computed, and fine-tuning may have been skipped, or been no better
        verdict = run.facts.get("fine_tuning")
        hook.best = run.facts["val_accuracy"], -(verdict if verdict and verdict["kept"] else head)["val_loss"]
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


# Worker processes


def run_workers(config: StudyConfig, workers: int) -> int:
    """Run the trials of a study in new processes and wait for them; their messages are printed as they come.

    Returns the number of workers that died without a message: the caller finishes what they left. Raises the
    SightlineError of a worker once the others have ended, and Interrupted if they were stopped.
    """

    def relay(process: "subprocess.Popen[bytes]") -> None:
        for line in process.stderr or ():
            progress.notify(line.decode(errors="replace").rstrip("\n"))

    payload = pickle.dumps((config, os.getpid()))
    with ExitStack() as stack:
        processes = [stack.enter_context(_spawn_worker(payload)) for _ in range(workers)]
        relays = [threading.Thread(target=relay, args=(one,), daemon=True) for one in processes]
        for thread in relays:
            thread.start()
        try:
            answers = [_read_answer(one) for one in processes]
        except KeyboardInterrupt:
            for one in processes:  # a terminal's Ctrl-C has reached them too; another program's signal has not
                one.send_signal(signal.SIGTERM)
            answers = [_read_answer(one) for one in processes]
        for thread in relays:
            thread.join()
    found = [json.loads(answer) for answer in answers if answer.strip()]
    raised = [vars(errors)[one["kind"]](one["text"]) for one in found]
    if raised:
        raise next((error for error in raised if not isinstance(error, Interrupted)), raised[0])
    lost = sum(one.returncode != 0 for one in processes)
    if lost:
        progress.notify(
            f"{lost} of {workers} workers died without a message, perhaps because memory ran out. "
            "This process finishes their trials."
        )
    return lost


def _spawn_worker(payload: bytes) -> "subprocess.Popen[bytes]":
    """A new process that reads its settings from stdin: a command line would show the password in an address."""
    source = str(Path(__file__).parents[2])
    paths = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-c", "from sightline.tuning.trial import worker_main; worker_main()"],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(payload)
    process.stdin.close()
    return process


def _read_answer(process: "subprocess.Popen[bytes]") -> bytes:
    """The error of a worker as JSON, read when it ends; empty if there was none."""
    assert process.stdout is not None
    return process.stdout.read()


def worker_main() -> None:
    """Entry point of a worker: settings from stdin, then trials; an error goes to stdout as one JSON object."""
    import torch

    config, parent = pickle.loads(sys.stdin.buffer.read())  # from the process that started this one
    torch.set_num_threads(1)

    def stop_with_parent() -> None:  # as if the user asked for it
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_with_parent, daemon=True).start()
    try:
        store = StudyStore(config.url, config.name, config.folder, config.heartbeat_seconds)
        run_trials(config, store, load_splits(config))
    except SightlineError as error:
        sys.stdout.write(json.dumps({"kind": type(error).__name__, "text": str(error)}))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stdout.write(json.dumps({"kind": "Interrupted", "text": "Stopped. Continue with the same command."}))
        sys.exit(1)


def load_splits(config: StudyConfig) -> SplitsCache:
    """The images of the study, read by this process from the store of decoded images."""
    plan, splits, _ = prepare(resolve(config.build_recipe(config.space.costly_point())))
    return SplitsCache(plan.recipe, splits)
