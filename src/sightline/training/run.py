"""From data and a recipe to a run: prepare the images, choose what was left open, build, refine."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import progress, runtime
from ..classifier import Classifier
from ..data.dataset import load
from ..data.headers import survey
from ..data.loader import Augment, batches
from ..data.parts import split
from ..errors import DataError, RecipeError
from ..preprocessing import forecast
from ..sources.source import find
from ..types import Dataset, Splits
from . import choices, pace
from .assemble import check_growth, check_names, fresh, geometry_of, method_of, objective_of
from .fit import Hook
from .folder import RunFolder, check_free, create
from .freezing import check_freezing
from .mitigation import check_fair
from .objectives import Objective
from .recipe import Recipe
from .refinement import Method, refine
from .schedules import schedule
from .team import ALONE, Team, joined, launch, launched
from .team import check as check_team
from .transfer import START, informed


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
    where = runtime.device(device)
    if launched():
        return _under_launcher(recipe, out, where, objective, augment, overwrite=overwrite)
    begun = _begin(recipe, out, where, objective, overwrite=overwrite)
    if begun.recipe.processes > 1:
        return _together(begun, where, objective, augment, resume=False)
    loss = objective or objective_of(begun.recipe, begun.splits.train.counts)
    method = method_of(begun.recipe, begun.splits, where, loss, augment)
    return _carry_out(begun, method, resume=False)


def _begin(
    recipe: Recipe, out: str | Path | None, where: torch.device, objective: Objective | None, *, overwrite: bool
) -> Run:
    """Everything before the first step: images read, choices made and said, the run's folder begun."""
    wanted = Path(out) if out is not None else None
    check_free(wanted, overwrite=overwrite)
    check_names(recipe)
    recipe, splits, notes = prepare(recipe)
    for note in notes:
        progress.say(note)
    check_team(recipe.processes, where, recipe.batch_size or 1)
    classifier, weighed = fresh(recipe, splits, where)
    check_growth(recipe, classifier)
    check_freezing(recipe, classifier.network)
    loss = objective or objective_of(recipe, splits.train.counts)
    weighed += check_fair(recipe, splits.train, loss)
    recipe, measured = _pace(recipe, splits, classifier, loss)
    for note in (*weighed, *measured):
        progress.say(note)
    notes += (*weighed, *measured)
    recipe = recipe.replace(data=_absolute(recipe.data), weights=_absolute(recipe.weights))
    name = f"{Path(recipe.data or '').name.partition('.')[0]}-{recipe.model}".replace(":", "_")
    # Only now: an old run is not given up for one that cannot begin.
    folder = create(wanted, name, overwrite=overwrite)
    folder.begin(recipe, splits, notes)
    return Run(folder.path, recipe, classifier, splits, {}, notes)


def train_on(
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
    checkpoint and the bundle; ``Quiet`` ones say nothing of the epochs. ``resume`` goes on from its checkpoint.
    """
    where = runtime.device(device) if isinstance(device, str) else device
    recipe, _ = informed(recipe)
    seen = splits.train.geometry
    recipe = recipe.replace(size=seen.size[0], channels=seen.channels, processes=1)
    chosen = choices.network(recipe, train_images=len(splits.train))
    recipe = recipe.replace(**{choice.field: choice.value for choice in chosen})
    classifier, _ = fresh(recipe, splits, where, blank=resume)
    check_growth(recipe, classifier)
    check_freezing(recipe, classifier.network)
    objective = objective_of(recipe, splits.train.counts)
    recipe, _ = _pace(recipe, splits, classifier, objective)
    pace.to_layout(classifier, recipe.memory_format or "contiguous")
    method = method_of(recipe, splits, where, objective)
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
    recipe = run.recipe()
    if run.facts():
        raise RecipeError(
            f"The run '{folder}' is finished: there is nothing to resume. See sightline evaluate {folder}"
        )
    _, splits, notes = prepare(recipe)
    where = runtime.device(device)
    if recipe.processes > 1:
        blank = _blank(recipe, splits, where)
        return _together(Run(run.path, recipe, blank, splits, {}, notes), where, objective, augment, resume=True)
    loss = objective or objective_of(recipe, splits.train.counts)
    begun = Run(run.path, recipe, _blank(recipe, splits, where), splits, {}, notes)
    return _carry_out(begun, method_of(recipe, splits, where, loss, augment), resume=True)


def _blank(recipe: Recipe, splits: Splits, device: torch.device) -> Classifier:
    """The classifier whose weights a checkpoint has."""
    return fresh(recipe, splits, device, blank=True)[0]


def reopen(folder: str | Path, *, device: str = "auto") -> Run:
    """A finished run, read back: the classifier as saved, and the very images it was made from."""
    run = RunFolder(Path(folder))
    recipe = run.recipe()
    classifier = Classifier.load(run.path).to(runtime.device(device))
    recipe, splits, notes = prepare(recipe)
    if classifier.provenance.get("data_fingerprint") != splits.train.fingerprint:
        raise DataError(
            f"The images changed since '{folder}' was trained, so its test images are not the same any more. "
            f"Bring the old images back, or name the images to test on: sightline evaluate {folder} DATA"
        )
    return Run(run.path, recipe, classifier, splits, run.facts(), notes)


def read(recipe: Recipe, *, max_bad: float = 0.05) -> tuple[Dataset, list[choices.Choice]]:
    """Find and decode the recipe's images, at the size it names or the one chosen for them.

    Raises DataError where more than the share ``max_bad`` of them cannot be read.
    """
    if recipe.data is None:
        raise RecipeError("Say which images to use: a folder, an archive, a table, or a name such as digits.")
    source = find(recipe.data, limit=recipe.limit, seed=recipe.data_seed)
    known = recipe.size is not None and recipe.channels is not None
    chosen = [] if known else choices.pixels(recipe, survey(source))
    recipe = recipe.replace(**{choice.field: choice.value for choice in chosen})
    return load(source, geometry_of(recipe), max_bad=max_bad), chosen


def prepare(recipe: Recipe) -> tuple[Recipe, Splits, tuple[str, ...]]:
    """Read and split the recipe's images; choose size, channels, network and how to train it.

    Returns the recipe with those choices, the splits, and a sentence for each thing worth saying.
    """
    recipe, started = informed(recipe)
    dataset, chosen = read(recipe)
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
    more = choices.network(recipe, train_images=len(splits.train))
    recipe = recipe.replace(**{choice.field: choice.value for choice in more})
    train = splits.train
    cost = () if recipe.normalize == START else forecast(recipe.normalize or "", train.geometry.shape, len(train))
    notes = (*dataset.notes, *splits.notes, *started, *_said(recipe, (*chosen, *more)), *cost)
    return recipe, splits, notes


def _absolute(path: str | None) -> str | None:
    """A path that means the same from any folder; a name stays a name."""
    return str(Path(path).resolve()) if path is not None and Path(path).exists() else path


def _said(recipe: Recipe, choices: Iterable[choices.Choice]) -> tuple[str, ...]:
    """The sentences about what was chosen; how to train is not worth one where nothing is trained."""
    untrained = recipe.epochs == 0
    return tuple(
        c.why for c in choices if not (untrained and c.field in {"augment", "batch_size", "lr", "weights"})
    )


def _pace(
    recipe: Recipe, splits: Splits, classifier: Classifier, objective: Objective
) -> tuple[Recipe, tuple[str, ...]]:
    """Choose precision, memory layout, replicas and epochs from a measurement on this machine."""
    assert recipe.batch_size is not None
    if recipe.epochs == 0 or (pace.settled(recipe) and recipe.epochs is not None):
        return pace.settle(recipe), ()
    first = next(iter(batches(splits.train, recipe.batch_size, device=classifier.device)))
    measured = pace.measure(classifier, recipe, objective, first)
    why = "" if pace.settled(recipe) else ", the fastest measured here"
    recipe = measured.way.set(recipe)
    notes = [f"Training in {measured.way}{why}: about {measured.images_per_second:,.0f} images/s."]
    if recipe.epochs is None:
        rate = measured.images_per_second * (recipe.processes if classifier.device.type == "cuda" else 1)
        choice = choices.epochs(recipe, train_images=len(splits.train), images_per_second=rate)
        recipe = recipe.replace(epochs=choice.value)
        notes.append(choice.why)
    schedule(recipe.schedule, recipe.warmup, recipe.epochs)  # longer than the run? say so before it begins
    check_freezing(recipe)
    return recipe, tuple(notes)


def _together(
    begun: Run, device: torch.device, objective: Objective | None, augment: Augment | None, *, resume: bool
) -> Run:
    """Train in several processes of this machine; the run is read back from what the first one wrote."""
    launch(_as_member, begun.recipe.processes, device, begun.folder, objective, augment, resume)
    classifier = Classifier.load(begun.folder).to(device)
    return replace(begun, classifier=classifier, facts=RunFolder(begun.folder).facts())


def _under_launcher(
    recipe: Recipe,
    out: str | Path | None,
    where: torch.device,
    objective: Objective | None,
    augment: Augment | None,
    *,
    overwrite: bool,
) -> Run:
    """Train as one of the processes that torchrun started: the first one begins the run, all carry it out."""
    team = joined(where)
    recipe = recipe.replace(processes=team.size)
    path = ""
    if team.leads:
        path = str(_begin(recipe, out, where, objective, overwrite=overwrite).folder.resolve())
    return _as_member(team, Path(team.tell(path)), objective, augment, False)


def _as_member(team: Team, path: Path, objective: Objective | None, augment: Augment | None, resume: bool) -> Run:
    """What each process of a team does: everything again from the run's recipe, then its share of the training."""
    recipe = RunFolder(path).recipe()
    _, splits, notes = prepare(recipe)
    device = team.fabric.device
    classifier = _blank(recipe, splits, device) if resume else fresh(recipe, splits, device)[0]
    team.begin_alike(classifier)
    loss = objective or objective_of(recipe, splits.train.counts)
    method = method_of(recipe, splits, device, loss, augment, team)
    return _carry_out(Run(path, recipe, classifier, splits, {}, notes), method, resume=resume, team=team)


def _carry_out(begun: Run, method: Method, *, resume: bool, team: Team = ALONE) -> Run:
    folder, recipe = RunFolder(begun.folder), begun.recipe
    pace.to_layout(begun.classifier, recipe.memory_format or "contiguous")
    if not resume and recipe.epochs and team.leads:
        folder.write_train_batch(next(iter(method.batches(0, 0))), begun.splits.train.classes)
    facts = refine(begun.classifier, recipe, begun.splits, method, folder, resume=resume, team=team)
    return replace(begun, facts=facts)
