"""The study as the database keeps it: the plan, and who tries what, safe against any process's death.

A trial is begun, and belongs to a process, in one transaction. One whose process died goes back to the queue under
its own number, with its values: nothing is lost, and nothing is tried twice.
"""

import platform
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ..errors import OutputError, RecipeError
from ..files import explain_write_errors as explaining_files
from .config import StudyConfig
from .search import GridSearch, grid_point, grid_size, sample_values
from .space import SearchSpace, space_from_words
from .storage import explain_database_errors, open_storage, redact_url

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial, TrialState

HEARTBEAT_GRACE_SECONDS = 300.0
"""Seconds of silence after which a process on another machine counts as dead."""

HEARTBEAT_SECONDS = 30.0
"""Seconds between two signs of life."""

MAX_TRIAL_RESTARTS = 5
"""Processes that may die in a trial, none getting further than the one before, until it is given up."""


class StudyStore:
    """One study in a database, seen from one process."""

    def __init__(self, url: str, name: str, folder: Path) -> None:
        import optuna

        self.url, self.name, self.folder = url, name, folder
        with explaining_files(folder):
            (folder / "workers").mkdir(parents=True, exist_ok=True)
        self.storage = open_storage(url)
        with self._safely():
            self.study = optuna.create_study(
                storage=self.storage, study_name=name, direction="maximize", load_if_exists=True
            )
            self._id = self.storage.get_study_id_from_name(name)
        self.token = uuid.uuid4().hex
        self.life = FileLock(folder / "workers" / f"{self.token}.lock")
        self._claims = FileLock(folder / "workers" / "claims.lock")

    @contextmanager
    def _safely(self) -> Iterator[None]:
        with explain_database_errors(self.url):
            yield

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While it lasts, this process is seen to live: the system frees its lock however it ends."""
        with explaining_files(self.folder):
            self.life.acquire()
        try:
            yield
        finally:
            self.life.release()
            Path(self.life.lock_file).unlink(missing_ok=True)

    # The plan

    def plan(self) -> dict[str, Any]:
        """What the study was begun with; empty where it is new. Raises OutputError for another program's study."""
        with self._safely():
            plan = self.study.user_attrs.get("plan")
            if plan is None and self.study.get_trials(deepcopy=False):
                raise OutputError(
                    f"The database '{redact_url(self.url)}' holds a study '{self.name}' that another program made: "
                    "choose another --out or --storage."
                )
        return plan or {}

    def save_plan(self, plan: Mapping[str, Any]) -> None:
        """Keep the plan of a new study."""
        with self._safely():
            self.study.set_user_attr("plan", plan)

    def rounds(self, first: SearchSpace) -> list[tuple[int, SearchSpace]]:
        """The number of the first trial of each round, and its space."""
        with self._safely():
            later = self.study.user_attrs.get("rounds", [])
        return [(0, first), *((start, space_from_words(words)) for start, words in later)]

    # Trials

    def trials(self) -> list["FrozenTrial"]:
        """Every trial, by number."""
        with self._safely():
            return self.study.get_trials(deepcopy=False)

    def best(self) -> "FrozenTrial | None":
        """The finished trial of highest validation accuracy, of lowest loss among equals, the first of those."""
        done = [t for t in self.trials() if t.state.name == "COMPLETE"]
        return min(done, key=trial_sort_key, default=None)

    def claim(self, job: StudyConfig) -> "Trial | None":
        """The next trial for this process, with all its values; None where there is nothing more to do.

        Waits while other processes finish what the next round depends on.
        """
        while True:
            with self._claims, self._safely():
                taken, more = self._next(job)
            if taken is not None or not more:
                return taken
            time.sleep(1)

    def _next(self, job: StudyConfig) -> tuple["Trial | None", bool]:
        """A trial, if one can be begun now, and whether to ask again."""
        trials = self.trials()
        if self._recover(trials):
            trials = self.trials()
        if job.budget is not None and is_budget_spent(trials, job.budget):
            return None, False
        rounds = self.rounds(job.space)
        start, space = rounds[-1]
        for one in trials:
            if one.state.name == "WAITING" and self._take(one):
                return self._proposed(one.number, one._trial_id, rounds, job), False
        tried = [one.params for one in trials if one.number < start]
        wanted = min(job.trials, grid_size(space, tried)) if isinstance(job.search, GridSearch) else job.trials
        if len(trials) < start + wanted:
            return self._new(rounds, job), False
        return None, len(rounds) <= job.zoom_rounds and self._refined(trials, rounds)

    def _refined(self, trials: Sequence["FrozenTrial"], rounds: Sequence[tuple[int, SearchSpace]]) -> bool:
        """Begin the next round once all trials have ended; False where none of them was finished."""
        if any(not one.state.is_finished() for one in trials):
            return True
        if (best := self.best()) is None:
            return False
        narrower = (len(trials), rounds[-1][1].narrow_around(best.params))
        later = [[start, space.to_words()] for start, space in (*rounds[1:], narrower)]
        self.study.set_user_attr("rounds", later)
        return True

    def _take(self, one: "FrozenTrial") -> bool:
        """Make a waiting trial this process's, unless another was quicker."""
        if not self.storage.set_trial_state_values(one._trial_id, _state("RUNNING")):
            return False
        self.storage.set_trial_user_attr(one._trial_id, "owner", self._owner())
        return True

    def _new(self, rounds: Sequence[tuple[int, SearchSpace]], job: StudyConfig) -> "Trial | None":
        """Begin a trial that is this process's from its first moment."""
        from optuna.trial import create_trial

        blank = create_trial(state=_state("RUNNING"), user_attrs={"owner": self._owner()})
        identity = self.storage.create_new_trial(self._id, template_trial=blank)
        return self._proposed(self.storage.get_trial(identity).number, identity, rounds, job)

    def _proposed(
        self, number: int, identity: int, rounds: Sequence[tuple[int, SearchSpace]], job: StudyConfig
    ) -> "Trial | None":
        from optuna.trial import Trial

        start, space = next((start, space) for start, space in reversed(rounds) if start <= number)
        if isinstance(job.search, GridSearch):
            tried = [one.params for one in self.trials() if one.number < start]
            point = grid_point(space, job.base.seed, number - start, tried)
            if point is None:  # another machine began the last one at the same moment
                self.fail_trial(number, "There was nothing left to try.", surplus=True)
                return None
            have = self.storage.get_trial(identity).params
            for name in (name for name in space.ranges if name not in have):
                dist = space.ranges[name].distribution()
                self.storage.set_trial_param(identity, name, dist.to_internal_repr(point[name]), dist)
        self.study.sampler = job.search.sampler(0)
        self.study.pruner = job.search.pruner(job.max_epochs)
        trial = Trial(self.study, identity)
        sample_values(trial, space, job.search, job.base.seed)
        return trial

    def _owner(self) -> dict[str, Any]:
        return {"host": platform.node(), "lock": str(Path(self.life.lock_file).resolve()), "beat": time.time()}

    def _recover(self, trials: Sequence["FrozenTrial"]) -> bool:
        """Put trials whose process died back into the queue; give up those that kill every process.

        Tells whether there were any.
        """
        running = [one for one in trials if one.state.name == "RUNNING"]
        dead = [one for one in running if not self._lives(one.user_attrs.get("owner"))]
        for one in dead:
            epochs = len(one.intermediate_values)
            before, count = one.user_attrs.get("deaths", (epochs, 0))
            count = count + 1 if before == epochs else 1
            self.storage.set_trial_user_attr(one._trial_id, "deaths", [epochs, count])
            if count < MAX_TRIAL_RESTARTS:
                self.storage.set_trial_state_values(one._trial_id, _state("WAITING"))
            else:
                why = f"Its process ended {count} times without getting further, as when memory runs out."
                self.fail_trial(one.number, why)
        return bool(dead)

    def _lives(self, owner: Mapping[str, Any] | None) -> bool:
        """Whether the process that a trial belongs to is still there."""
        if owner is None:
            return False
        if owner["host"] != platform.node():
            return time.time() - owner["beat"] < HEARTBEAT_GRACE_SECONDS
        path = Path(owner["lock"])
        if path == Path(self.life.lock_file).resolve():
            return True
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            return True
        return False

    @contextmanager
    def beating(self, number: int) -> Iterator[None]:
        """While it lasts, other machines see that this process lives."""
        identity = self.storage.get_trial_id_from_study_id_trial_number(self._id, number)
        done = threading.Event()

        def beat() -> None:
            while not done.wait(HEARTBEAT_SECONDS):
                try:
                    self.storage.set_trial_user_attr(identity, "owner", self._owner())
                except Exception:  # a sign of life that is late harms nobody
                    continue

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    # Results

    def reported(self, number: int) -> Iterable[int]:
        """Epochs of a trial that an earlier process reported."""
        return next(one for one in self.trials() if one.number == number).intermediate_values

    def report(self, job: StudyConfig, trial: "Trial", accuracy: float, epoch: int, *, known: bool) -> bool:
        """Keep an epoch's validation accuracy, if it is one to report; whether the trial is not worth going on."""
        if epoch % job.report_interval:
            return False
        with self._safely():
            if not known:
                trial.report(accuracy, epoch)
            return job.search.prunes and bool(trial.should_prune())

    def find_duplicate(self, trial: "Trial") -> "FrozenTrial | None":
        """A finished trial of the same values: training it again would give the same."""
        same = (one for one in self.trials() if one.state.name == "COMPLETE" and one.params == trial.params)
        return next(same, None)

    def complete_trial(
        self, number: int, accuracy: float, facts: Mapping[str, Any], *, pruned: bool = False
    ) -> None:
        """Keep a trial's result: its accuracy on validation, or that it was stopped early."""
        with self._safely():
            self._note(number, facts)
            if pruned:
                self.study.tell(number, state=_state("PRUNED"))
            else:
                self.study.tell(number, accuracy)

    def fail_trial(self, number: int, reason: str, **facts: Any) -> None:
        """Keep that a trial failed, and why."""
        with self._safely():
            self._note(number, {"reason": reason, **facts})
            self.study.tell(number, state=_state("FAIL"))

    def requeue_trial(self, number: int) -> None:
        """Put a trial that this process was stopped in back into the queue."""
        with self._safely():
            identity = self.storage.get_trial_id_from_study_id_trial_number(self._id, number)
            self.storage.set_trial_state_values(identity, _state("WAITING"))

    def _note(self, number: int, facts: Mapping[str, Any]) -> None:
        identity = self.storage.get_trial_id_from_study_id_trial_number(self._id, number)
        self.storage.set_trial_user_attr(identity, "facts", dict(facts))


def trial_sort_key(one: "FrozenTrial") -> tuple[float, float, int]:
    """What finished trials are sorted by, best first."""
    return -(one.value or 0.0), trial_facts(one).get("val_loss", float("inf")), one.number


def trial_facts(one: "FrozenTrial") -> Mapping[str, Any]:
    """What was noted of a trial at its end; empty before."""
    return one.user_attrs.get("facts", {})


def training_seconds(trials: Sequence["FrozenTrial"], now: datetime) -> float:
    """Seconds in which at least one trial was trained: what workers do at once counts once."""
    spans = sorted(
        (begun, one.datetime_complete or now)
        for one in trials
        if one.state.name != "WAITING" and (begun := one.datetime_start)
    )
    total, reached = 0.0, datetime.min
    for begun, ended in spans:
        total += max(0.0, (ended - max(begun, reached)).total_seconds())
        reached = max(reached, ended)
    return total


def is_budget_spent(trials: Sequence["FrozenTrial"], budget: float) -> bool:
    """Whether another trial, as long as the others usually are, would end after the budget."""
    trained = (t for t in trials if t.state.name in ("COMPLETE", "PRUNED") and not trial_facts(t).get("reason"))
    spans = [(t.datetime_start, t.datetime_complete) for t in trained]
    took = [(ended - begun).total_seconds() for begun, ended in spans if begun and ended]
    return bool(took) and training_seconds(trials, datetime.now()) + median(took) > budget


def _state(name: str) -> "TrialState":
    from optuna.trial import TrialState

    return TrialState[name]


def plan_differences(plan: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """What keeps this command from going on with the stored study, each as a few words."""
    found = []
    for part, title in (("space", "the range of {}"), ("recipe", "the recipe's {}")):
        for name in sorted(plan[part].keys() | stored[part].keys()):
            new, old = plan[part].get(name), stored[part].get(name)
            if new != old:
                found.append(f"{title.format(name)} ({_format_setting(old)} before, {_format_setting(new)} now)")
    if plan["by"] != stored["by"]:
        found.append(f"--by ({stored['by']} before, {plan['by']} now)")
    if plan["data"] != stored["data"]:
        found.append("the images")
    return found


def _format_setting(value: Any) -> str:
    return "not given" if value is None else str(value)


def check_same_plan(plan: Mapping[str, Any], stored: Mapping[str, Any], folder: Path) -> None:
    """Raise RecipeError where the stored study was begun with another space, search, recipe or images."""
    if found := plan_differences(plan, stored):
        raise RecipeError(
            f"The study in '{folder}' cannot go on with this command, which differs from the one that began it: "
            f"{'; '.join(found)}. Give it as before, or choose another --out."
        )
