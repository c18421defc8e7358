"""From data and a recipe to a run: prepare the images, choose what was left open, build, refine."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import progress, runtime
from ..classifier import Classifier
from ..data import Augment, iterate_batches, load_dataset, split, survey
from ..errors import DataError, RecipeError
from ..preprocessing import forecast_fit
from ..sources import find
from ..types import Dataset, Splits
from . import autotune, defaults
from .distributed import SINGLE_PROCESS, ProcessGroup, group_from_env, is_under_launcher, launch_processes
from .distributed import check_processes as check_team
from .fairness import describe_fairness
from .fit import Hook
from .freezing import check_freezing
from .losses import Objective
from .plan import (
    build_classifier,
    build_method,
    build_objective,
    check_progressive_size,
    recipe_geometry,
    validate_recipe,
)
from .recipe import Recipe
from .refinement import Method, refine
from .run_folder import RunFolder, check_run_folder, create_run_folder
from .schedules import parse_schedule
from .transfer import INHERIT, inherit_settings


@dataclass(frozen=True)
class Run:
    """A finished training: its folder, what it made, and what it made it from."""

    folder: Path
    recipe: Recipe
    classifier: Classifier
    splits: Splits
    facts: Mapping[str, Any]
    notes: tuple[str, ...]


def train(
    data: str | Path | None,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    objective: Objective | None = None,
    augment: Augment | None = None,
) -> Run:
    """Train a fresh classifier on ``data`` (a folder, archive, table or name) and write its run folder.

    Whatever the recipe leaves open is chosen, said, and written to the run's ``recipe.toml``. The best
    epoch on validation is kept; the test split is not looked at. ``objective`` and ``augment`` are objects
    of your own in place of the recipe's names. Raises SightlineError, each with its remedy, for data or a
    recipe that cannot be used, and Interrupted when stopped by a signal.
    """
    recipe = (recipe or Recipe()).replace(data=None if data is None else str(data))
    where = runtime.resolve_device(device)
    if is_under_launcher():
        return _train_under_launcher(recipe, out, where, objective, augment, overwrite=overwrite)
    begun = _start_run(recipe, out, where, objective, overwrite=overwrite)
    if begun.recipe.processes > 1:
        return _train_in_processes(begun, where, objective, augment, resume=False)
    loss = objective or build_objective(begun.recipe, begun.splits.train.counts)
    method = build_method(begun.recipe, begun.splits, where, loss, augment)
    return _run_method(begun, method, resume=False)


def _start_run(
    recipe: Recipe, out: str | Path | None, where: torch.device, objective: Objective | None, *, overwrite: bool
) -> Run:
    """Everything before the first step: images read, choices made and said, the run's folder begun."""
    wanted = Path(out) if out is not None else None
    check_run_folder(wanted, overwrite=overwrite)
    validate_recipe(recipe)
    recipe, splits, notes = prepare(recipe)
    for note in notes:
        progress.notify(note)
    check_team(recipe.processes, where, recipe.batch_size or 1)
    classifier, weighed = build_classifier(recipe, splits, where)
    check_progressive_size(recipe, classifier)
    check_freezing(recipe, classifier.network)
    loss = objective or build_objective(recipe, splits.train.counts)
    weighed += describe_fairness(recipe, splits.train, loss)
    recipe, measured = _choose_execution(recipe, splits, classifier, loss)
    for note in (*weighed, *measured):
        progress.notify(note)
    notes += (*weighed, *measured)
    recipe = recipe.replace(data=_absolute(recipe.data), weights=_absolute(recipe.weights))
    name = f"{Path(recipe.data or '').name.partition('.')[0]}-{recipe.model}".replace(":", "_")
    # Only now: an old run is not given up for one that cannot begin.
    folder = create_run_folder(wanted, name, overwrite=overwrite)
    folder.write_header(recipe, splits, notes)
    return Run(folder.path, recipe, classifier, splits, {}, notes)


def train_on_splits(
    splits: Splits,
    recipe: Recipe,
    folder: RunFolder,
    *,
    device: str | torch.device = "auto",
    hooks: Mapping[str, Hook] | None = None,
    resume: bool = False,
) -> Run:
    """Train a fresh classifier on images that are already split: what trials, folds and learning curves repeat.

    What the recipe leaves open of network, batches and pace is chosen; in one process. ``folder`` gets the
    checkpoint and the bundle; ``SilentRunFolder`` ones say nothing of the epochs. ``resume`` goes on from its checkpoint.
    """
    where = runtime.resolve_device(device) if isinstance(device, str) else device
    recipe, _ = inherit_settings(recipe)
    seen = splits.train.geometry
    recipe = recipe.replace(size=seen.size[0], channels=seen.channels, processes=1)
    chosen = defaults.default_network(recipe, train_images=len(splits.train))
    recipe = recipe.replace(**{choice.field: choice.value for choice in chosen})
    classifier, _ = build_classifier(recipe, splits, where, blank=resume)
    check_progressive_size(recipe, classifier)
    check_freezing(recipe, classifier.network)
    objective = build_objective(recipe, splits.train.counts)
    recipe, _ = _choose_execution(recipe, splits, classifier, objective)
    autotune.to_memory_format(classifier, recipe.memory_format or "contiguous")
    method = build_method(recipe, splits, where, objective)
    method = replace(method, hooks={**(method.hooks or {}), **(hooks or {})})
    facts = refine(classifier, recipe, splits, method, folder, resume=resume)
    return Run(folder.path, recipe, classifier, splits, facts, ())


def resume(
    folder: str | Path,
    *,
    device: str = "auto",
    objective: Objective | None = None,
    augment: Augment | None = None,
) -> Run:
    """Go on with an interrupted run, exactly as if it had not been interrupted.

    A run that was given an objective or augmentation of its own needs it again.
    """
    run = RunFolder(Path(folder))
    recipe = run.read_recipe()
    if run.read_facts():
        raise RecipeError(
            f"The run '{folder}' is finished: there is nothing to resume. See sightline evaluate {folder}"
        )
    _, splits, notes = prepare(recipe)
    where = runtime.resolve_device(device)
    if recipe.processes > 1:
        blank = _build_blank_classifier(recipe, splits, where)
        return _train_in_processes(
            Run(run.path, recipe, blank, splits, {}, notes), where, objective, augment, resume=True
        )
    loss = objective or build_objective(recipe, splits.train.counts)
    begun = Run(run.path, recipe, _build_blank_classifier(recipe, splits, where), splits, {}, notes)
    return _run_method(begun, build_method(recipe, splits, where, loss, augment), resume=True)


def _build_blank_classifier(recipe: Recipe, splits: Splits, device: torch.device) -> Classifier:
    """The classifier whose weights a checkpoint has."""
    return build_classifier(recipe, splits, device, blank=True)[0]


def reopen(folder: str | Path, *, device: str = "auto") -> Run:
    """A finished run, read back: the classifier as saved, and the very images it was made from."""
    run = RunFolder(Path(folder))
    recipe = run.read_recipe()
    classifier = Classifier.load(run.path).to(runtime.resolve_device(device))
    recipe, splits, notes = prepare(recipe)
    if classifier.provenance.get("data_fingerprint") != splits.train.fingerprint:
        raise DataError(
            f"The images changed since '{folder}' was trained, so its test images are not the same any more. "
            f"Bring the old images back, or name the images to test on: sightline evaluate {folder} DATA"
        )
    return Run(run.path, recipe, classifier, splits, run.read_facts(), notes)


def read_dataset(recipe: Recipe, *, max_bad: float = 0.05) -> tuple[Dataset, list[defaults.Default]]:
    """Find and decode the recipe's images, at the size it names or the one chosen for them.

    Raises DataError where more than the share ``max_bad`` of them cannot be read.
    """
    if recipe.data is None:
        raise RecipeError("Say which images to use: a folder, an archive, a table, or a name such as digits.")
    source = find(recipe.data, limit=recipe.limit, seed=recipe.data_seed)
    known = recipe.size is not None and recipe.channels is not None
    chosen = [] if known else defaults.default_pixels(recipe, survey(source))
    recipe = recipe.replace(**{choice.field: choice.value for choice in chosen})
    return load_dataset(source, recipe_geometry(recipe), max_bad=max_bad), chosen


def prepare(recipe: Recipe) -> tuple[Recipe, Splits, tuple[str, ...]]:
    """Read and split the recipe's images; choose size, channels, network and how to train it.

    Returns the recipe with those choices, the splits, and a sentence for each thing worth saying.
    """
    recipe, started = inherit_settings(recipe)
    dataset, chosen = read_dataset(recipe)
    recipe = recipe.replace(**{choice.field: choice.value for choice in chosen})
    splits = split(dataset, val=recipe.val, test=recipe.test, seed=recipe.data_seed, group=recipe.group)
    if not len(splits.train) or not len(splits.val):
        raise DataError(f"'{recipe.data}' has too few images to train and validate on. Add images.")
    if unseen := [
        name for name, count in zip(splits.train.classes, splits.train.counts, strict=True) if not count
    ]:
        raise DataError(
            f"No image is left to learn {', '.join(map(repr, unseen[:5]))} from, in '{recipe.data}': they could "
            "not be read, or are copies of images of another class. Add images, or remove the class."
        )
    more = defaults.default_network(recipe, train_images=len(splits.train))
    recipe = recipe.replace(**{choice.field: choice.value for choice in more})
    train = splits.train
    cost = (
        ()
        if recipe.normalize == INHERIT
        else forecast_fit(recipe.normalize or "", train.geometry.shape, len(train))
    )
    notes = (*dataset.notes, *splits.notes, *started, *_default_notes(recipe, (*chosen, *more)), *cost)
    return recipe, splits, notes


def _absolute(path: str | None) -> str | None:
    """A path that means the same from any folder; a name stays a name."""
    return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


def _default_notes(recipe: Recipe, choices: Iterable[defaults.Default]) -> tuple[str, ...]:
    """The sentences about what was chosen; how to train is not worth one where nothing is trained."""
    untrained = recipe.epochs == 0
    return tuple(
        c.reason for c in choices if not (untrained and c.field in {"augment", "batch_size", "lr", "weights"})
    )


def _choose_execution(
    recipe: Recipe, splits: Splits, classifier: Classifier, objective: Objective
) -> tuple[Recipe, tuple[str, ...]]:
    """Choose precision, memory layout, replicas and epochs from a measurement on this machine."""
    assert recipe.batch_size is not None
    if recipe.epochs == 0 or (autotune.has_execution_mode(recipe) and recipe.epochs is not None):
        return autotune.with_default_execution(recipe), ()
    first = next(iter(iterate_batches(splits.train, recipe.batch_size, device=classifier.device)))
    measured = autotune.measure_throughput(classifier, recipe, objective, first)
    why = "" if autotune.has_execution_mode(recipe) else ", the fastest measured here"
    recipe = measured.mode.apply_to(recipe)
    notes = [f"Training in {measured.mode}{why}: about {measured.images_per_second:,.0f} images/s."]
    if recipe.epochs is None:
        rate = measured.images_per_second * (recipe.processes if classifier.device.type == "cuda" else 1)
        choice = defaults.default_epochs(recipe, train_images=len(splits.train), images_per_second=rate)
        recipe = recipe.replace(epochs=choice.value)
        notes.append(choice.reason)
    parse_schedule(recipe.schedule, recipe.warmup, recipe.epochs)  # longer than the run? say so before it begins
    check_freezing(recipe)
    return recipe, tuple(notes)


def _train_in_processes(
    begun: Run, device: torch.device, objective: Objective | None, augment: Augment | None, *, resume: bool
) -> Run:
    """Train in several processes of this machine; the run is read back from what the first one wrote."""
    launch_processes(_train_as_member, begun.recipe.processes, device, begun.folder, objective, augment, resume)
    classifier = Classifier.load(begun.folder).to(device)
    return replace(begun, classifier=classifier, facts=RunFolder(begun.folder).read_facts())


def _train_under_launcher(
    recipe: Recipe,
    out: str | Path | None,
    where: torch.device,
    objective: Objective | None,
    augment: Augment | None,
    *,
    overwrite: bool,
) -> Run:
    """Train as one of the processes that torchrun started: the first one begins the run, all carry it out."""
    team = group_from_env(where)
    recipe = recipe.replace(processes=team.size)
    path = ""
    if team.is_main:
        path = str(_start_run(recipe, out, where, objective, overwrite=overwrite).folder.resolve())
    return _train_as_member(team, Path(team.broadcast_text(path)), objective, augment, False)


def _train_as_member(
    team: ProcessGroup, path: Path, objective: Objective | None, augment: Augment | None, resume: bool
) -> Run:
    """What each process of a team does: everything again from the run's recipe, then its share of the training."""
    recipe = RunFolder(path).read_recipe()
    _, splits, notes = prepare(recipe)
    device = team.fabric.device
    classifier = (
        _build_blank_classifier(recipe, splits, device) if resume else build_classifier(recipe, splits, device)[0]
    )
    team.broadcast_state(classifier)
    loss = objective or build_objective(recipe, splits.train.counts)
    method = build_method(recipe, splits, device, loss, augment, team)
    return _run_method(Run(path, recipe, classifier, splits, {}, notes), method, resume=resume, team=team)


def _run_method(begun: Run, method: Method, *, resume: bool, team: ProcessGroup = SINGLE_PROCESS) -> Run:
    folder, recipe = RunFolder(begun.folder), begun.recipe
    autotune.to_memory_format(begun.classifier, recipe.memory_format or "contiguous")
    if not resume and recipe.epochs and team.is_main:
        folder.write_train_batch(next(iter(method.batches(0, 0))), begun.splits.train.classes)
    facts = refine(begun.classifier, recipe, begun.splits, method, folder, resume=resume, team=team)
    return replace(begun, facts=facts)
