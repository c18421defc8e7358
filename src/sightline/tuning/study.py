"""Tuning from end to end: the plan, the trials, the board, and the winner trained as any other run."""

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from .. import progress, runtime
from ..checks import check_int
from ..data import iterate_batches
from ..errors import OutputError, RecipeError, TrainingError
from ..training import (
    Recipe,
    Run,
    RunFolder,
    autotune,
    build_classifier,
    build_objective,
    defaults,
    parse_duration,
    prepare,
    reopen,
    resume,
    train,
)
from ..types import Splits
from .config import StudyConfig
from .leaderboard import field_importance, leaderboard_rows, write_leaderboard
from .search import GridSearch, SearchMethod, grid_size, parse_search
from .space import NumericRange, SearchSpace, SpaceSpec, parse_space
from .storage import database_url
from .study_store import StudyStore, check_same_plan, is_budget_spent
from .trial import SplitsCache, run_trials
from .workers import run_workers

DEFAULT_TRIALS = 20
"""Trials of a round where nobody said how many; a grid has as many as it has points."""

MAX_WORKERS_PER_CORE = 4
"""Workers for each core, at most: many more would fill the memory and do nothing faster."""

_SHARED_FIELDS = ("size", "channels", "epochs", "precision", "memory_format", "replicas")
"""What is chosen once, so that all trials have it the same."""


@dataclass(frozen=True)
class TuningResult:
    """What a study found, and the winner."""

    folder: Path
    rows: tuple[Mapping[str, Any], ...]
    """A row for each trial, best first: ``trial``, ``state``, ``val_accuracy``, the values, ..."""
    recipe: Recipe
    """The best trial's."""
    importance: Mapping[str, float] | None
    """Share of the spread of accuracy each field explains by itself."""
    winner: Run | None
    """The best recipe trained as a run of its own; None while another process still has trials under way."""

    @property
    def best(self) -> Mapping[str, Any]:
        """The first row."""
        return self.rows[0]


def tune(
    data: str | Path | None,
    base: Recipe | None = None,
    over: SpaceSpec = (),
    *,
    by: str | SearchMethod = "tpe",
    trials: int | None = None,
    budget: str | None = None,
    refine: int = 0,
    workers: int = 1,
    storage: str | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
) -> TuningResult:
    """Search the space ``over`` round the recipe ``base`` for the best validation accuracy; train the winner.

    ``trials`` are of each round (20; all of a grid), ``refine`` narrower rounds follow, and no trial is begun that
    would probably end after the ``budget``. The same call goes on where an earlier one was stopped, exactly, and
    several at once share the work. Raises RecipeError, ChoiceError, OutputError for what cannot be done,
    TrainingError where no trial could be trained, Interrupted when stopped.
    """
    base = _base_recipe(base, data, seed)
    space, search = parse_space(over, base), parse_search(by)
    _check_arguments(space, trials, refine, workers)
    limit = None if budget is None else parse_duration(budget)
    folder = _study_folder(out, base)
    example, splits, notes = prepare(space.apply_to(base, space.costly_point()))
    for note in notes:
        progress.notify(note)
    count = grid_size(space, []) if trials is None and isinstance(search, GridSearch) else trials or DEFAULT_TRIALS
    workers = min(workers, count)
    job = StudyConfig(
        folder=folder,
        url=database_url(storage, folder),
        name="study" if storage is None else folder.name,
        base=base,
        space=space,
        search=search,
        trials=count,
        zoom_rounds=refine,
        budget=limit,
        max_epochs=0,
        device=device,
    )
    journal = StudyStore(job.url, job.name, folder)
    job = _join_study(job, journal, example, splits, workers)
    images, started = SplitsCache(example, splits), time.perf_counter()
    if workers == 1 or run_workers(job, workers):
        run_trials(job, journal, images)
    return _finish_study(job, journal, time.perf_counter() - started)


def _base_recipe(base: Recipe | None, data: str | Path | None, seed: int | None) -> Recipe:
    """The recipe with data that mean the same from any folder."""
    base = base or Recipe()
    if seed is not None:
        base = base.replace(seed=seed)
    given = base.data if data is None else str(data)
    if given is None:
        raise RecipeError("Say which images to use: a folder, an archive, a table, or a name such as digits.")
    base = base.replace(data=str(Path(given).resolve()) if Path(given).exists() else given, processes=1)
    if base.epochs == 0:
        raise RecipeError("A recipe of 0 epochs trains nothing, so there is nothing to tune: give --epochs.")
    return base


def _check_arguments(space: SearchSpace, trials: int | None, refine: int, workers: int) -> None:
    for name, value, least in (("trials", trials, 1), ("refine", refine, 0), ("workers", workers, 1)):
        if value is not None:
            check_int(f"--{name}", value, least, error=RecipeError)
    if workers > (most := MAX_WORKERS_PER_CORE * runtime.cpu_count()):
        raise RecipeError(
            f"--workers is {workers}: it must be {most} or fewer on this machine, {MAX_WORKERS_PER_CORE} a core."
        )
    if "epochs" in space.ranges and min(space.ranges["epochs"].boundary_values) == 0:
        raise RecipeError("A trial of 0 epochs trains nothing: search epochs from 1 on.")
    if refine and not any(isinstance(each, NumericRange) for each in space.ranges.values()):
        raise RecipeError("--refine narrows ranges, and here are only choices: leave it out, or give a range.")


def _study_folder(out: str | Path | None, base: Recipe) -> Path:
    """Where the study is kept: ``out``, or ``runs/DATA-tune``, new or an earlier study's."""
    name = Path(base.data or "").name.partition(".")[0]
    folder = Path(out) if out is not None else Path("runs") / f"{name}-tune"
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "workers").is_dir())):
        raise OutputError(f"'{folder}' exists already and is not a study. Choose another --out.")
    return folder


def _join_study(
    job: StudyConfig, journal: StudyStore, example: Recipe, splits: Splits, workers: int
) -> StudyConfig:
    """The job as the study has it: begun now, or as it was begun."""
    plan = {
        "space": job.space.to_words(),
        "by": _search_text(job.search),
        "recipe": _changed_fields(job.base),
        "data": splits.train.fingerprint,
    }
    with FileLock(job.folder / "workers" / "plan.lock"):
        stored = journal.plan()
        if stored:
            check_same_plan(plan, stored, job.folder)
            settled = stored["settled"]
            progress.notify(f"Going on with the study in '{job.folder}': {_progress_text(journal)}.")
        else:
            shutil.rmtree(job.folder / "trials", ignore_errors=True)  # checkpoints of a study that is no more
            settled = _shared_settings(job, example, splits, workers)
            journal.save_plan({**plan, "settled": settled})
    base = job.base.replace(**{name: value for name, value in settled.items() if name != "every"})
    most = job.space.ranges.get("epochs")
    epochs = int(max(most.boundary_values)) if most is not None else base.epochs or 1
    return dataclasses.replace(job, base=base, epochs=epochs, every=settled["every"])


def _search_text(search: SearchMethod) -> str:
    """The search as a value: its name and all its arguments."""
    return repr(search).replace("()", "")


def _changed_fields(base: Recipe) -> dict[str, Any]:
    """What was asked for of the recipe, as JSON, but for the images (known by fingerprint) and the time."""
    usual = vars(Recipe())
    asked = {name: value for name, value in vars(base).items() if value != usual[name]}
    return json.loads(json.dumps({name: v for name, v in asked.items() if name not in ("data", "budget")}))


def _progress_text(journal: StudyStore) -> str:
    states = [one.state.name for one in journal.trials()]
    done = sum(state in ("COMPLETE", "PRUNED", "FAIL") for state in states)
    return f"{done} trials are done" if done != 1 else "1 trial is done"


def _shared_settings(job: StudyConfig, example: Recipe, splits: Splits, workers: int) -> dict[str, Any]:
    """Size, epochs and pace of every trial, chosen once; says what the search will cost.

    Measured on the middle of the space. Replicas are left alone: several workers use the cores better.
    """
    searched = job.space.ranges
    recipe = example.replace(replicas=example.replicas or 1)
    where = runtime.resolve_device(job.device)
    assert recipe.batch_size is not None
    classifier, _ = build_classifier(recipe, splits, where)
    first = next(iter(iterate_batches(splits.train, recipe.batch_size, device=where)))
    measured = autotune.measure_throughput(classifier, recipe, build_objective(recipe, splits.train.counts), first)
    recipe, images = measured.mode.apply_to(recipe), len(splits.train)
    total = job.trials * (1 + job.zoom_rounds)
    if recipe.epochs is None:
        share = max((job.budget or parse_duration(recipe.budget)) * workers / total, 0.001)
        rate, within = measured.images_per_second, recipe.replace(budget=f"{share:.3f}")
        found = defaults.default_epochs(within, train_images=images, images_per_second=rate)
        recipe = recipe.replace(epochs=found.value)
        epochs = "1 epoch" if found.value == 1 else f"{found.value} epochs"
        progress.notify(f"{epochs} a trial, so that all fit the budget; --epochs sets them.")
    took = (recipe.epochs or 1) * images / measured.images_per_second * total / workers
    about = f"{took:.0f} seconds" if took < 90 else f"{took / 60:.0f} minutes"
    progress.notify(
        f"{total} trials in {measured.mode}, about {about} in all if none is stopped early; "
        "stop and go on as you like."
    )
    every = _report_interval(job.search, recipe.epochs or 1, images / measured.images_per_second)
    return {"every": every} | {name: vars(recipe)[name] for name in _SHARED_FIELDS if name not in searched}


def _report_interval(search: SearchMethod, epochs: int, took: float) -> int:
    """Epochs of ``took`` seconds between two reports: a report costs some hundredths of a second.

    Where trials are stopped early, 2 seconds' worth, but a tenth of the training at most; otherwise 30.
    """
    return max(1, min(int(2 / took), epochs // 10) if search.prunes else int(30 / took))


def _finish_study(job: StudyConfig, journal: StudyStore, took: float) -> TuningResult:
    """The board, the pictures and the winner."""
    trials, rounds = journal.trials(), journal.rounds(job.space)
    wanted = job.trials * (1 + job.zoom_rounds)
    if job.budget is not None and len(trials) < wanted and is_budget_spent(trials, job.budget):
        progress.notify(f"The budget is spent after {len(trials)} of {wanted} trials.")
    rows, best = leaderboard_rows(trials, rounds), journal.best()
    if best is None:
        reason = next((row["reason"] for row in rows if row["reason"]), "No trial was finished in the time given.")
        raise TrainingError(f"None of {len(rows)} trials could be trained, the first for this reason: {reason}")
    recipe = job.build_recipe(best.params)
    importance = field_importance(rows, job.space)
    write_leaderboard(job.folder, rows, job.space, _summary(job, rows, rounds, importance, took))
    at_work = sum(one.state.name == "RUNNING" for one in trials)
    if at_work:
        progress.notify(f"{at_work} trials are under way in other processes; the last to end trains the winner.")
    winner = None if at_work else _train_winner(job, recipe)
    return TuningResult(job.folder, tuple(rows), recipe, importance, winner)


def _summary(
    job: StudyConfig,
    rows: Sequence[Mapping[str, Any]],
    rounds: Sequence[tuple[int, SearchSpace]],
    importance: Mapping[str, float] | None,
    took: float,
) -> dict[str, Any]:
    """What ``tuning.json`` says before its list of trials."""
    states = [row["state"] for row in rows]
    return {
        "data": Path(job.base.data or "").name,
        "by": _search_text(job.search),
        "seed": job.base.seed,
        "rounds": [{"first_trial": start, "space": space.to_words()} for start, space in rounds],
        **{state: states.count(state) for state in ("finished", "pruned", "failed")},
        "seconds": round(took, 3),
        "training_seconds": round(sum(row["seconds"] or 0 for row in rows), 3),
        "importance": importance,
        "best": dict(rows[0]),
        "recipe": _changed_fields(job.build_recipe({name: rows[0][name] for name in job.space.ranges})),
    }


def _train_winner(job: StudyConfig, recipe: Recipe) -> Run:
    """The best recipe as a run of its own in ``winner``: trained now, gone on with, or there already."""
    place = job.folder / "winner"
    with FileLock(job.folder / "workers" / "winner.lock"):
        run = RunFolder(place)
        if (place / "recipe.toml").is_file() and _is_recipe_of(run.read_recipe(), recipe):
            if run.read_facts():
                return reopen(place, device=job.device)
            if run.checkpoint.is_file():
                return resume(place, device=job.device)
        progress.notify("Training the winner, as a run of its own.")
        return train(job.base.data, recipe, out=place, device=job.device, overwrite=place.exists())


def _is_recipe_of(resolved: Recipe, wanted: Recipe) -> bool:
    """Whether a run's resolved recipe is what the wanted one becomes."""
    return all(
        value is None or name == "budget" or vars(resolved)[name] == value for name, value in vars(wanted).items()
    )
