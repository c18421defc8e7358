"""Tuning from end to end: the settings, the trials, the leaderboard, and the winner trained as a run."""

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from .. import progress, runtime
from ..checks import check_int
from ..data import DEFAULT_VAL_SHARE, iterate_batches
from ..errors import OutputError, RecipeError, TrainingError
from ..sources import absolute_place
from ..training import (
    Recipe,
    Run,
    RunFolder,
    build_classifier,
    default_epochs,
    measure_throughput,
    parse_duration,
    prepare,
    reopen,
    resolve,
    resume,
    train,
)
from ..types import Splits
from .leaderboard import (
    field_importance,
    is_budget_spent,
    latest_attempts,
    leaderboard_rows,
    trial_values,
    write_leaderboard,
)
from .search import SearchMethod, parse_search, search_word
from .space import NumericRange, SearchSpace, SpaceSpec, parse_space
from .study_store import HEARTBEAT_SECONDS, StudyConfig, StudyStore, database_url
from .trial import SplitsCache, run_trials, run_workers

DEFAULT_TRIALS = 20
"""Default number of trials of a round; a grid has as many as it has points."""

MAX_WORKERS_PER_CORE = 4
"""Maximum workers per core: more would fill the memory and speed nothing up."""

_SHARED_FIELDS = ("size", "channels", "epochs", "precision", "memory_format", "cpu_replicas", "fused_kernels")
"""Fields chosen once, so that all trials share them."""

_START_FIELDS = ("model", "method", "normalize", "resize_mode", "crop_fraction", "interpolation", "val_fraction")
"""Fields chosen once from the images, where the recipe leaves them open: published weights, and what these expect."""


@dataclass(frozen=True)
class TuningResult:
    """Result of a study, and the winner as a run."""

    folder: Path
    rows: tuple[Mapping[str, Any], ...]
    """A row for each trial, best first: ``trial``, ``state``, ``val_accuracy``, the values, ..."""
    recipe: Recipe
    """Recipe of the best trial."""
    importance: Mapping[str, float] | None
    """Share of the variance of accuracy that each field explains alone."""
    winner: Run | None
    """The best recipe trained as a run; None while other processes still train trials."""

    @property
    def best(self) -> Mapping[str, Any]:
        """The first row."""
        return self.rows[0]


def tune(
    data: str | Path | None,
    base: Recipe | None = None,
    space: SpaceSpec = (),
    *,
    by: str | SearchMethod = "tpe",
    trials: int | None = None,
    budget: str | None = None,
    zoom_rounds: int = 0,
    workers: int = 1,
    storage: str | None = None,
    out: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
) -> TuningResult:
    """Search a space of recipes for the best validation accuracy, and train the winner as a run.

    `space` gives the ranges around the recipe `base`: words such as "lr=1e-4..1e-1", or ranges by field. `by` is
    the search method; `trials` the number of each round (20; of a grid, all points); `zoom_rounds` the number of
    further, narrower rounds. No trial begins that would probably end after the `budget` ("2h"). The same call
    continues an interrupted study; several processes may share one. Raises RecipeError, ChoiceError or OutputError
    for bad arguments, TrainingError if no trial could be trained, Interrupted when stopped.
    """
    base = _base_recipe(base, data, seed)
    parsed, search = parse_space(space, base), parse_search(by)
    _check_arguments(parsed, trials, zoom_rounds, workers)
    limit = None if budget is None else parse_duration(budget)
    folder = Path(out or Path("runs") / f"{Path(base.data or '').name.partition('.')[0]}-tune")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "workers").is_dir())):
        raise OutputError(f"'{folder}' exists already and is not a study. Choose another --out.")
    validated = base if base.val_fraction is not None else base.replace(val_fraction=DEFAULT_VAL_SHARE)
    plan, splits, notes = prepare(resolve(parsed.apply_to(validated, parsed.costly_point())))
    example = plan.recipe
    for note in notes:
        progress.notify(note)
    points = search.points(parsed)
    count = trials or (DEFAULT_TRIALS if points is None else len(points))
    config = StudyConfig(
        folder=folder,
        url=database_url(storage, folder),
        name="study" if storage is None else folder.name,
        base=base,
        space=parsed,
        search=search,
        trials=count,
        zoom_rounds=zoom_rounds,
        budget=limit,
        max_epochs=0,
        heartbeat_seconds=HEARTBEAT_SECONDS,
        device=device,
    )
    workers = min(workers, count)
    store = StudyStore(config.url, config.name, folder, config.heartbeat_seconds)
    config = _join_study(config, store, example, splits, workers)
    started = time.perf_counter()
    if workers == 1 or run_workers(config, workers):
        run_trials(config, store, SplitsCache(example, splits))
    return _finish_study(config, store, time.perf_counter() - started)


def _base_recipe(base: Recipe | None, data: str | Path | None, seed: int | None) -> Recipe:
    """The recipe with an absolute path of the data, checked."""
    base = base or Recipe()
    if seed is not None:
        base = base.replace(seed=seed)
    given = base.data if data is None else str(data)
    if given is None:
        raise RecipeError("Name the images to use: a folder, an archive, a table, or a data set such as digits.")
    base = base.replace(data=absolute_place(given), devices=1)
    if base.epochs == 0:
        raise RecipeError("A recipe of 0 epochs trains nothing, so there is nothing to tune. Set --epochs.")
    return base


def _check_arguments(space: SearchSpace, trials: int | None, zoom_rounds: int, workers: int) -> None:
    for name, value, least in (("trials", trials, 1), ("zoom-rounds", zoom_rounds, 0), ("workers", workers, 1)):
        if value is not None:
            check_int(f"--{name}", value, least, error=RecipeError)
    if workers > (most := MAX_WORKERS_PER_CORE * runtime.cpu_count()):
        raise RecipeError(
            f"--workers is {workers}: use at most {most} on this machine, {MAX_WORKERS_PER_CORE} per core."
        )
    if "epochs" in space.ranges and min(space.ranges["epochs"].boundary_values) == 0:
        raise RecipeError("A trial of 0 epochs trains nothing: search epochs from 1 upwards.")
    if zoom_rounds and not any(isinstance(each, NumericRange) for each in space.ranges.values()):
        raise RecipeError(
            "--zoom-rounds narrows ranges, and this space has only choices: leave it out, or give a range."
        )


def _join_study(
    config: StudyConfig, store: StudyStore, example: Recipe, splits: Splits, workers: int
) -> StudyConfig:
    """The settings that all processes share: those of the stored study, else new ones, which are stored."""
    plan = {
        "space": config.space.to_words(),
        "by": search_word(config.search),
        "recipe": _changed_fields(config.base),
        "data": splits.train.fingerprint,
    }
    with FileLock(config.folder / "workers" / "plan.lock"):
        if stored := store.plan():
            old = _changed_fields(Recipe().replace(**stored["recipe"]))  # with today's names
            check_same_plan(plan, stored | {"recipe": old}, config.folder)
            shared = stored["settled"]
            states = [one.state.name for one in latest_attempts(store.trials())]
            done = sum(state in ("COMPLETE", "PRUNED", "FAIL") for state in states)
            progress.notify(
                f"Continuing the study in '{config.folder}': {done} {'trial' if done == 1 else 'trials'} done."
            )
        else:
            shutil.rmtree(config.folder / "trials", ignore_errors=True)  # checkpoints of a deleted study
            shared = _shared_settings(config, example, splits, workers)
            store.save_plan({**plan, "settled": shared})
    base = config.base.replace(**{name: value for name, value in shared.items() if name != "every"})
    searched = config.space.ranges.get("epochs")
    epochs = int(max(searched.boundary_values)) if searched is not None else base.epochs or 1
    return dataclasses.replace(config, base=base, max_epochs=epochs, report_interval=shared["every"])


def _changed_fields(base: Recipe) -> dict[str, Any]:
    """Fields that differ from the defaults, as JSON, without the images (known by fingerprint) and the budget."""
    default = vars(Recipe())
    changed = {name: value for name, value in vars(base).items() if value != default[name]}
    return json.loads(json.dumps({name: v for name, v in changed.items() if name not in ("data", "budget")}))


def check_same_plan(plan: Mapping[str, Any], stored: Mapping[str, Any], folder: Path) -> None:
    """Raise RecipeError if the stored study was begun with another space, method, recipe or images."""
    found = []
    for part, title in (("space", "the range of {}"), ("recipe", "the recipe's {}")):
        for name in sorted(plan[part].keys() | stored[part].keys()):
            new, old = (
                "not given" if one.get(name) is None else str(one[name]) for one in (plan[part], stored[part])
            )
            if new != old:
                found.append(f"{title.format(name)} ({old} before, {new} now)")
    if plan["by"] != stored["by"]:
        found.append(f"--by ({stored['by']} before, {plan['by']} now)")
    if plan["data"] != stored["data"]:
        found.append("the images")
    if found:
        raise RecipeError(
            f"The study in '{folder}' was begun with other settings: {'; '.join(found)}. "
            "Repeat them, or choose another --out."
        )


def _shared_settings(config: StudyConfig, example: Recipe, splits: Splits, workers: int) -> dict[str, Any]:
    """Size, epochs and execution mode of every trial, chosen once; prints the cost of the search.

    Measured at the costly point of the space. CPU replicas are off: several workers use the cores better.
    """
    total = config.trials * (1 + config.zoom_rounds)
    plan = resolve(example.replace(cpu_replicas=example.cpu_replicas or 1)).fit_to(splits.train)
    if plan.head is not None and not plan.head.fine_tunes:
        progress.notify(f"{total} trials of a head on kept features: the images are embedded once.")
        fixed = plan.recipe.replace(epochs=0, precision="float32", memory_format="contiguous", fused_kernels=False)
        return {"every": 1} | _take_shared(config, fixed)
    device = runtime.resolve_device(config.device)
    assert plan.recipe.batch_size is not None
    classifier, _ = build_classifier(plan, splits, device)
    batch = next(iter(iterate_batches(splits.train, plan.recipe.batch_size, device=device)))
    measured = measure_throughput(classifier, plan, batch, train_images=len(splits.train))
    recipe, images = plan.recipe.replace(**vars(measured.mode)), len(splits.train)
    rate = measured.images_per_second
    if recipe.epochs is None:
        share = max((config.budget or parse_duration(recipe.budget)) * workers / total, 0.001)
        within = recipe.replace(budget=f"{share:.3f}")
        recipe = recipe.replace(epochs=default_epochs(within, train_images=images, images_per_second=rate).value)
        epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
        progress.notify(f"{epochs} per trial, so that all trials fit the budget; --epochs changes it.")
    epoch_seconds, epochs = images / rate, recipe.epochs or 1
    took = epochs * epoch_seconds * total / workers
    about = f"{took:.0f} seconds" if took < 90 else f"{took / 60:.0f} minutes"
    progress.notify(
        f"{total} trials in {measured.mode}, about {about} in total if none is stopped early. "
        "You can stop and continue at any time."
    )
    # A report costs some hundredths of a second: every 2 s, but ten times a trial, if it may stop the trial.
    every = min(int(2 / epoch_seconds), epochs // 10) if config.search.prunes else int(30 / epoch_seconds)
    return {"every": max(1, every)} | _take_shared(config, recipe)


def _take_shared(config: StudyConfig, recipe: Recipe) -> dict[str, Any]:
    """The fields of a resolved recipe that all trials share: none that is searched, or given as where to start."""
    searched = {name.partition(".")[0] for name in config.space.ranges}
    start = [name for name in _START_FIELDS if vars(config.base)[name] is None and name not in searched]
    names = [*(name for name in _SHARED_FIELDS if name not in config.space.ranges), *start]
    return {name: vars(recipe)[name] for name in names}


def _finish_study(config: StudyConfig, store: StudyStore, took: float) -> TuningResult:
    """Write the leaderboard and the pictures, and train the winner."""
    trials, rounds = store.trials(), store.rounds(config.space)
    rows, best = leaderboard_rows(trials, rounds), store.best()
    planned = config.trials * (1 + config.zoom_rounds)
    if config.budget is not None and len(rows) < planned and is_budget_spent(trials, config.budget):
        progress.notify(f"The budget is spent after {len(rows)} of {planned} trials.")
    if best is None:
        reason = next((row["reason"] for row in rows if row["reason"]), "No trial was finished in the given time.")
        raise TrainingError(f"None of {len(rows)} trials could be trained. The first reason: {reason}")
    recipe = config.build_recipe(trial_values(best))
    importance = field_importance(rows, config.space)
    states = [row["state"] for row in rows]
    summary = {
        "data": Path(config.base.data or "").name,
        "by": search_word(config.search),
        "seed": config.base.seed,
        "rounds": [{"first_trial": start, "space": space.to_words()} for start, space in rounds],
        **{state: states.count(state) for state in ("finished", "pruned", "failed")},
        "seconds": round(took, 3),
        "training_seconds": round(sum(row["seconds"] or 0 for row in rows), 3),
        "importance": importance,
        "best": dict(rows[0]),
        "recipe": _changed_fields(recipe),
    }
    write_leaderboard(config.folder, rows, config.space, summary)
    winner = None
    if running := states.count("running"):
        progress.notify(
            f"Other processes still train {running} {'trial' if running == 1 else 'trials'}; the last to end "
            "trains the winner."
        )
    else:
        winner = _train_winner(config, recipe)
    return TuningResult(config.folder, tuple(rows), recipe, importance, winner)


def _train_winner(config: StudyConfig, recipe: Recipe) -> Run:
    """The best recipe as a run in `winner`: opened if it exists, resumed if it is unfinished, else trained."""
    place = config.folder / "winner"
    with FileLock(config.folder / "workers" / "winner.lock"):
        run = RunFolder(place)
        if (place / "recipe.toml").is_file():
            resolved = vars(run.read_recipe())
            if all(v is None or name == "budget" or resolved[name] == v for name, v in vars(recipe).items()):
                if run.read_facts():
                    return reopen(place, device=config.device)
                if run.checkpoint.is_file():
                    return resume(place, device=config.device)
        progress.notify("Training the winner as a run.")
        return train(config.base.data, recipe, out=place, device=config.device, overwrite=place.exists())
