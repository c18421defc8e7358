"""One study in an Optuna database: its plan, its trials, and what happens when a process dies.

All of it goes through Optuna's public interface. `study.optimize` begins a trial, records its heartbeat and its
result; a trial whose heartbeat stopped is marked as failed and its values are queued again, as a new attempt at
the same trial.
"""

import platform
import re
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ..errors import Interrupted, OutputError
from ..files import explain_write_errors
from ..training import Recipe
from .search import SearchMethod, remaining_points, sample_values
from .space import SearchSpace, current_name, space_from_words
from .storage import explain_database_errors, open_storage, redact_url

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

HEARTBEAT_SECONDS = 10
"""Seconds between two heartbeats of a running trial."""

GRACE_HEARTBEATS = 6
"""Missed heartbeats after which the process of a trial counts as dead."""

MAX_ATTEMPTS = 5
"""Attempts at a trial that die at the same epoch before the trial is given up."""

POLL_SECONDS = 1.0
"""Seconds between two looks at trials that other processes still train."""


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
        storage = open_storage(url, heartbeat_seconds, self.grace_seconds)
        with explain_database_errors(url):
            self.study = optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True
            )
        self.name = name
        self._lock = FileLock(folder / "workers" / "claims.lock")

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


def trial_indices(trials: Sequence["FrozenTrial"]) -> dict[int, int]:
    """Index of the trial that each attempt belongs to, by the number of the attempt in the database.

    Indices count from 0 in the order of the first attempts. A later attempt, after a crash, has a new number but
    the same index. Surplus trials, which two machines began at the same moment, have none.
    """
    found: dict[int, int] = {}
    count = 0
    for one in trials:
        if trial_facts(one).get("surplus"):
            continue
        if earlier := one.user_attrs.get("earlier_attempts"):
            found[one.number] = found[earlier[0]]
        else:
            found[one.number] = count
            count += 1
    return found


def latest_attempts(trials: Sequence["FrozenTrial"]) -> list["FrozenTrial"]:
    """The last attempt at each trial."""
    repeated = {number for one in trials for number in one.user_attrs.get("earlier_attempts", ())}
    return [one for one in trials if one.number not in repeated]


def is_lost(one: "FrozenTrial") -> bool:
    """Whether an attempt failed because its process died or was stopped, not because training failed."""
    facts = trial_facts(one)
    return one.state.name == "FAIL" and ("reason" not in facts or "same_as" in facts)


def count_deaths(one: "FrozenTrial", trials: Sequence["FrozenTrial"]) -> int:
    """Attempts at a trial, the last ones, whose process died at the epoch that this attempt reached."""
    attempts = {*one.user_attrs.get("earlier_attempts", ()), one.number}
    reached = [
        len(each.intermediate_values)
        for each in trials
        if each.number in attempts and "interrupted" not in each.user_attrs
    ]
    return reached.count(len(one.intermediate_values))


def trial_sort_key(one: "FrozenTrial") -> tuple[float, float, int]:
    """Sorts finished trials, best first: accuracy, then loss, then number."""
    return -(one.value or 0.0), trial_facts(one).get("val_loss", float("inf")), one.number


def trial_values(one: "FrozenTrial") -> dict[str, Any]:
    """The values of a trial, by the fields of a recipe."""
    return {current_name(name): value for name, value in one.params.items()}


def trial_facts(one: "FrozenTrial") -> Mapping[str, Any]:
    """The facts recorded at the end of a trial; empty before."""
    return one.user_attrs.get("facts", {})


def training_seconds(trials: Sequence["FrozenTrial"], now: datetime) -> float:
    """Seconds in which at least one trial was trained: trials that run at the same time count once.

    Attempts that died are left out: nothing says when they ended.
    """
    spans = sorted(
        (begun, one.datetime_complete or now)
        for one in trials
        if one.state.name != "WAITING"
        and (one.state.name != "FAIL" or trial_facts(one))
        and (begun := one.datetime_start)
    )
    total, reached = 0.0, datetime.min
    for begun, ended in spans:
        total += max(0.0, (ended - max(begun, reached)).total_seconds())
        reached = max(reached, ended)
    return total


def is_budget_spent(trials: Sequence["FrozenTrial"], budget: float) -> bool:
    """Whether another trial, of median duration, would end after the budget (seconds)."""
    trained = (one for one in trials if one.state.name in ("COMPLETE", "PRUNED"))
    spans = [(one.datetime_start, one.datetime_complete) for one in trained if not trial_facts(one).get("reason")]
    took = [(ended - begun).total_seconds() for begun, ended in spans if begun and ended]
    return bool(took) and training_seconds(trials, datetime.now()) + median(took) > budget
