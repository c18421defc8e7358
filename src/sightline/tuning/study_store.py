"""One study in an Optuna database: its plan, its trials, and what happens when a process dies.

All of it goes through Optuna's public interface. `study.optimize` begins a trial, records its heartbeat and its
result; a trial whose heartbeat stopped is marked as failed and its values are queued again, as a new attempt at
the same trial.
"""

import platform
import re
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ..errors import Interrupted, OutputError
from ..files import explain_write_errors
from ..training import Recipe
from .leaderboard import (
    count_deaths,
    is_budget_spent,
    is_lost,
    latest_attempts,
    trial_indices,
    trial_sort_key,
    trial_values,
)
from .search import SearchMethod, remaining_points, sample_values
from .space import SearchSpace, current_name, space_from_words

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial

HEARTBEAT_SECONDS = 10
"""Seconds between two heartbeats of a running trial."""

GRACE_HEARTBEATS = 6
"""Missed heartbeats after which the process of a trial counts as dead."""

MAX_ATTEMPTS = 5
"""Attempts at a trial that die at the same epoch before the trial is given up."""

POLL_SECONDS = 1.0
"""Seconds between two looks at trials that other processes still train."""


SQLITE_TIMEOUT_SECONDS = 30.0
"""Seconds a write to SQLite waits for the write of another process."""

_REMEDIES = {
    "locked": "another program locks it: close that program and repeat the command",
    "readonly": "it is read-only: change its permissions, or choose another --storage",
    "read-only": "it is read-only: change its permissions, or choose another --storage",
    "not a database": "it is not a database, or is damaged: choose another --storage",
    "malformed": "it is damaged: choose another --storage",
    "unable to open": "it cannot be opened: check that its folder exists and is writable, or choose another "
    "--storage",
    "connection refused": "no server answers at that address: start it, or correct the address",
    "resolve host": "its host is unknown: correct the address",
    "translate host": "its host is unknown: correct the address",
    "authentication failed": "the server rejects that user or password: correct them in the address",
    "password supplied": "the server asks for a password: write postgresql://user:password@host/name",
    "does not exist": "the server has no such database or user: create it, or correct the address",
    "timeout expired": "the server did not answer in time: start it, or correct the address",
    "no longer compatible": "another version of Optuna made it: use that version, upgrade the database with "
    "`optuna storage upgrade`, or choose another --storage",
    "can't locate revision": "another version of Optuna made it: use that version, or choose another --storage",
    "invalid literal": "that is not the address of a database: write a file's path, or postgresql://user@host/name",
    "could not parse": "that is not the address of a database: write a file's path, or postgresql://user@host/name",
    "can't load plugin": "that kind of database is unknown: write a file's path, or postgresql://user@host/name",
    "failed to import": "its driver is not installed: install the driver that SQLAlchemy names for it with pip",
    "no module named": "its driver is not installed: install the driver that SQLAlchemy names for it with pip",
    "disk is full": "the disk is full: free some space and repeat the command",
}


class TrialFailed(Exception):
    """A trial could not be trained; its reason is in its facts."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Settings of one study; workers receive it pickled."""

    folder: Path
    url: str
    """SQLAlchemy address of the database."""
    name: str
    """Name of the study in the database."""
    base: Recipe
    """Recipe that every trial starts from; size, epochs and execution mode are the same unless searched."""
    space: SearchSpace
    search: SearchMethod
    trials: int
    """Trials of each round."""
    zoom_rounds: int
    """Rounds after the first, each in a narrower space."""
    budget: float | None
    """Seconds that the whole search may take."""
    max_epochs: int
    """Largest number of epochs of a trial."""
    report_interval: int = 1
    """Epochs between two reports to the database."""
    heartbeat_seconds: int = HEARTBEAT_SECONDS
    device: str

    def build_recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial with these values."""
        return self.space.apply_to(self.base, values)


class StudyStore:
    """One study in a database, as one process sees it."""

    def __init__(self, url: str, name: str, folder: Path, heartbeat_seconds: int = HEARTBEAT_SECONDS) -> None:
        import optuna

        self.url, self.heartbeat_seconds = url, heartbeat_seconds
        with explain_write_errors(folder):
            (folder / "workers").mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / "workers" / "claims.lock")
        with self._lock:  # of two processes that create the same tables at once, Optuna fails in one
            storage = open_storage(url, heartbeat_seconds, self.grace_seconds)
            with explain_database_errors(url):
                self.study = optuna.create_study(
                    storage=storage, study_name=name, direction="maximize", load_if_exists=True
                )
        self.name = name

    @property
    def grace_seconds(self) -> int:
        """Seconds without a heartbeat after which a process counts as dead."""
        return self.heartbeat_seconds * GRACE_HEARTBEATS

    # The plan

    def plan(self) -> dict[str, Any]:
        """The settings that the study was begun with; empty if it is new.

        Raises OutputError if another program made the study.
        """
        with explain_database_errors(self.url):
            plan = self.study.user_attrs.get("plan")
            if plan is None and self.study.get_trials(deepcopy=False):
                raise OutputError(
                    f"The database '{redact_url(self.url)}' contains a study '{self.name}' that another program "
                    "made. Choose another --out or --storage."
                )
        return upgrade_plan(plan) if plan else {}

    def save_plan(self, plan: Mapping[str, Any]) -> None:
        """Save the settings of a new study."""
        with explain_database_errors(self.url):
            self.study.set_user_attr("plan", plan)

    def rounds(self, first: SearchSpace) -> list[tuple[int, SearchSpace]]:
        """Index of the first trial of each round, and the space of that round."""
        with explain_database_errors(self.url):
            later = self.study.user_attrs.get("rounds", [])
        return [(0, first), *((start, space_from_words(words)) for start, words in later)]

    # Trials

    def trials(self) -> list["FrozenTrial"]:
        """Every attempt at every trial, by its number in the database."""
        with explain_database_errors(self.url):
            return self.study.get_trials(deepcopy=False)

    def best(self) -> "FrozenTrial | None":
        """The finished trial of highest validation accuracy; lowest loss, then lowest number break ties."""
        done = [one for one in self.trials() if one.state.name == "COMPLETE"]
        return min(done, key=trial_sort_key, default=None)

    def find_duplicate(self, trial: "Trial") -> "FrozenTrial | None":
        """A finished trial of the same values: training them again would give the same result."""
        same = (one for one in self.trials() if one.state.name == "COMPLETE" and trial_values(one) == trial.params)
        return next(same, None)

    def reported_epochs(self, number: int) -> Collection[int]:
        """Epochs that earlier attempts at a trial reported."""
        return next(one for one in self.trials() if one.number == number).intermediate_values

    def has_next(self, config: StudyConfig) -> bool:
        """Whether this process should begin another trial.

        Begins the next round when one has ended. Waits for trials of other processes if the next round depends on
        them, or until it is clear that those processes are alive.
        """
        patience = time.monotonic() + self.grace_seconds + self.heartbeat_seconds
        while True:
            self.recover_lost_trials()
            trials, rounds = self.trials(), self.rounds(config.space)
            states = {one.state.name for one in trials}
            is_last = len(rounds) > config.zoom_rounds
            begun = len(set(trial_indices(trials).values()))
            if config.budget is not None and is_budget_spent(trials, config.budget):
                if "RUNNING" not in states:
                    return False
                is_last = True
            elif "WAITING" in states or begun < _round_end(config, rounds, trials):
                return True
            elif "RUNNING" not in states:
                if is_last or (best := self.best()) is None:
                    return False
                narrower = (begun, rounds[-1][1].narrow_around(trial_values(best)))
                later = [[start, space.to_words()] for start, space in (*rounds[1:], narrower)]
                with explain_database_errors(self.url):
                    self.study.set_user_attr("rounds", later)
                continue
            if is_last and time.monotonic() > patience:
                return False
            time.sleep(POLL_SECONDS)

    def run_next(self, config: StudyConfig, objective: Callable[["Trial", int], float]) -> None:
        """Begin the next trial, give it its values, and save what `objective` (trial, index) returns or raises.

        Raises Interrupted or KeyboardInterrupt if stopped; the trial is queued again.
        """

        def run(trial: "Trial") -> float:
            index = self._set_values(config, trial)
            trial.set_user_attr("host", platform.node())  # the heartbeat, begun in a thread, is recorded by now
            try:
                return objective(trial, index)
            except (Interrupted, OutputError, KeyboardInterrupt):
                trial.set_user_attr("interrupted", True)
                raise

        try:
            with explain_database_errors(self.url):
                self.study.sampler = config.search.sampler(0)
                self.study.pruner = config.search.pruner(config.max_epochs)
                self.study.optimize(run, n_trials=1, catch=(TrialFailed,))
        except (Interrupted, KeyboardInterrupt):
            self.recover_lost_trials()
            raise

    def _set_values(self, config: StudyConfig, trial: "Trial") -> int:
        """Give a new trial its values; returns its index. Raises TrialFailed if there is nothing left to try."""
        trials, rounds = self.trials(), self.rounds(config.space)
        index = trial_indices(trials)[trial.number]
        if not trial.params and index >= _round_end(config, rounds, trials):
            trial.set_user_attr("facts", {"surplus": True, "reason": "Another process began the last trial."})
            raise TrialFailed
        number = max(number for number, (start, _) in enumerate(rounds) if start <= index)
        start, space = rounds[number]
        points = _points(config, rounds[: number + 1], trials)
        point = None if points is None or index - start >= len(points) else points[index - start]
        sample_values(trial, space, config.search, seed=config.base.seed, index=index, point=point)
        return index

    def recover_lost_trials(self) -> None:
        """Queue the values of trials again whose process died or was stopped.

        Optuna marks a trial as failed when its heartbeat stops. A process that dies before the first heartbeat
        leaves a trial without a host. A trial that dies 5 times at the same epoch is given up.
        """
        import optuna
        from optuna.trial import TrialState, create_trial

        with self._lock, explain_database_errors(self.url), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
            for one in self.trials():
                age = (datetime.now() - (one.datetime_start or datetime.now())).total_seconds()
                if one.state.name == "RUNNING" and "host" not in one.user_attrs and age > self.grace_seconds:
                    self.study.tell(one.number, state=TrialState.FAIL)
            trials = self.trials()
            latest = latest_attempts(trials)
            for one in latest:
                if not is_lost(one) or count_deaths(one, trials) >= MAX_ATTEMPTS:
                    continue
                earlier = [*one.user_attrs.get("earlier_attempts", ()), one.number]
                self.study.add_trial(
                    create_trial(
                        state=TrialState.WAITING,
                        params=one.params,
                        distributions=one.distributions,
                        intermediate_values=one.intermediate_values,
                        user_attrs={"earlier_attempts": earlier},
                    )
                )


def _points(
    config: StudyConfig, rounds: Sequence[tuple[int, SearchSpace]], trials: Sequence["FrozenTrial"]
) -> list[Mapping[str, Any]] | None:
    """The points of the last of these rounds, in their order; None where the search samples its values."""
    start, space = rounds[-1]
    indices = trial_indices(trials)
    tried = [trial_values(one) for one in trials if one.number in indices and indices[one.number] < start]
    return remaining_points(config.search, space, config.base.seed, tried)


def _round_end(
    config: StudyConfig, rounds: Sequence[tuple[int, SearchSpace]], trials: Sequence["FrozenTrial"]
) -> int:
    """Index after the last trial of the last round."""
    points = _points(config, rounds, trials)
    return rounds[-1][0] + (config.trials if points is None else min(config.trials, len(points)))


def upgrade_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a study of an earlier release, with today's names.

    >>> upgrade_plan({"by": "Hyperband(startup=5, eta=3, least=1)", "space": {"ema": "0.9,0.99"}, "settled": {}})
    {'by': 'hyperband:startup=5:eta=3:least=1', 'space': {'ema_decay': '0.9,0.99'}, 'settled': {}}
    """
    named = {
        part: {current_name(name): value for name, value in plan[part].items()}
        for part in ("space", "settled")
        if part in plan
    }
    by = re.sub(r"\(|, ", ":", plan["by"]).rstrip(")").lower()  # earlier releases stored the repr of the search
    return {**plan, "by": by, **named}


# The database


def database_url(storage: str | Path | None, folder: Path) -> str:
    """The SQLAlchemy URL of a study: the given URL or path of a SQLite file, or ``study.db`` in the folder.

    Raises OutputError if the path is a folder.
    """
    text = str(folder / "study.db") if storage is None else str(storage)
    if "://" not in text and Path(text).is_dir():
        raise OutputError(
            f"--storage is the folder '{text}': name a file in it, such as '{Path(text) / 'study.db'}'."
        )
    return text if "://" in text else f"sqlite:///{Path(text).resolve()}"


def open_storage(url: str, heartbeat_seconds: int, grace_seconds: int) -> "RDBStorage":
    """The Optuna storage at a URL, with its tables, which records a heartbeat of each running trial.

    Raises OutputError with a remedy.
    """
    with explain_database_errors(url):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # Sightline prints its own line for each trial
        waiting: dict[str, Any] = {"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.storages.RDBStorage(
                    url,
                    engine_kwargs=waiting if url.startswith("sqlite") else {},
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=grace_seconds,
                )
        except (RuntimeError, ValueError, ImportError, AssertionError) as error:  # another version, no driver
            raise OutputError(_error_sentence(url, error)) from error


@contextmanager
def explain_database_errors(url: str) -> Iterator[None]:
    """Turn database errors into an OutputError with a remedy."""
    from alembic.util import CommandError
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError, CommandError) as error:
        raise OutputError(_error_sentence(url, error)) from error


def _error_sentence(url: str, error: BaseException) -> str:
    cause: BaseException | None = error
    texts: list[str] = []
    while cause is not None:
        texts.append(" ".join(str(cause).split()))
        cause = cause.__cause__
    known = (remedy for sign, remedy in _REMEDIES.items() if any(sign in text.lower() for text in texts))
    reason = next(known, f"it says '{texts[-1].partition(' [SQL')[0]}': correct the address, or choose another")
    return f"The study's database '{redact_url(url)}' cannot be used: {reason}."


def redact_url(url: str) -> str:
    """The address for messages: the path of a file, or the URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):
        return url
    return parts.database or url if parts.drivername == "sqlite" else parts.render_as_string(hide_password=True)
