"""``train``: from data and a recipe to a run. Prepare the images, choose what was left open, build, refine."""

import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import progress, runtime
from ..classifier import Classifier
from ..data import Augment
from ..errors import Interrupted, RecipeError, SightlineError
from ..files import write_text
from ..sources import absolute_place
from ..types import Splits
from .budget import Budget, Deadline, sample_validation
from .build import build_classifier, build_method
from .defaults import choose_execution, default_network, to_memory_format, useful_epochs
from .distributed import (
    SINGLE_PROCESS,
    MainGuardError,
    ProcessGroup,
    check_processes,
    group_from_env,
    is_under_launcher,
    launch_processes,
)
from .fairness import apply_mitigation
from .fit import Hook, Method
from .head_first import (
    HeadResult,
    can_gain,
    check_head_method,
    decide_fine_tuning,
    describe_head,
    fit_head,
    refine_head,
)
from .losses import ObjectiveLike
from .plan import Plan, resolve
from .preparation import prepare, read_dataset, split_as_before, with_defaults
from .recipe import Recipe, parse_duration
from .refinement import keep_best_epoch, refine
from .restoring import locate_images
from .rival import RIVAL_NOTE, RIVAL_SHARE, Rival, rival_recipe, time_for_rival
from .run_folder import RunFolder, check_run_folder, create_run_folder
from .unlabelled import add_target, limit_validation


@dataclass(frozen=True)
class Run:
    """A finished training: its folder, the classifier, what it was made from, and when its report should be written."""

    folder: Path
    recipe: Recipe
    classifier: Classifier
    splits: Splits
    facts: Mapping[str, Any]
    notes: tuple[str, ...]
    deadline: Deadline | None = None


def train(
    data: str | Path | None,
    recipe: Recipe | None = None,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    objective: ObjectiveLike | None = None,
    augment: Augment | None = None,
    began: float | None = None,
) -> Run:
    """Train a classifier on ``data`` (a folder, archive, table or name) and write its run folder.

    What the recipe leaves open is chosen, reported, and written to the run's ``recipe.toml``. The epoch that is best
    on the validation split is kept; the test split is not used. ``objective`` and ``augment`` are objects in place
    of the recipe's words; an objective may be a function ``(classifier, batch) -> loss``. The budget begins at
    ``began`` (``time.monotonic()``), or now. Raises SightlineError where data or recipe cannot be used, Interrupted.
    """
    runtime.check_main_guard()
    began = time.monotonic() if began is None else began
    recipe = (recipe or Recipe()).replace(data=None if data is None else str(data))
    where = runtime.resolve_device(device)
    if is_under_launcher():  # torchrun started this process: the main one begins the run, all train it
        group = group_from_env(where)
        recipe = recipe.replace(devices=group.size)
        path = ""
        if group.is_main:
            begun = _begin_run(recipe, out, where, objective, augment, overwrite=overwrite, began=began)
            path = str(begun[0].path.resolve())
        return _train_as_member(group, Path(group.broadcast_text(path)), objective, augment, False)
    run = _train_new(recipe, out, where, objective, augment, overwrite=overwrite, began=began)
    return _try_rival(run, device, time_for_rival(run.deadline) if run.deadline else None)


def _train_new(
    recipe: Recipe,
    out: str | Path | None,
    where: torch.device,
    objective: ObjectiveLike | None = None,
    augment: Augment | None = None,
    *,
    overwrite: bool,
    began: float,
    like: RunFolder | None = None,
) -> Run:
    """A run from its beginning, on the splits of the run ``like`` where that is given."""
    begun = _begin_run(recipe, out, where, objective, augment, overwrite=overwrite, began=began, like=like)
    folder, plan, classifier, head, splits, notes, deadline = begun
    if plan.recipe.devices > 1:
        try:
            return _train_in_processes(folder, plan, splits, notes, where, objective, augment, resume=False)
        except MainGuardError:
            shutil.rmtree(folder.path)  # nothing was trained, and the corrected script needs the place
            raise
    budget = None
    if deadline is not None and plan.recipe.epochs:
        budget = Budget(plan.recipe, deadline, useful_epochs(plan.recipe, len(splits.train.labelled)), folder.log)
    run = _train_run(folder, plan, classifier, head, splits, notes, resume=False, budget=budget)
    return replace(run, deadline=deadline)


def _try_rival(run: Run, device: str, seconds: float | None, data: str | Path | None = None) -> Run:
    """The run, or the network from scratch that its folder asks for, trained in these seconds, where that is better.

    Continues one that was interrupted. A rival that cannot be trained, or has no ``seconds``, costs the run nothing.
    """
    rival = Rival(RunFolder(run.folder))
    if (recipe := rival.read_recipe()) is None:
        return run
    folder = RunFolder(rival.path)
    try:
        if folder.read_facts():
            other = reopen(folder.path, data, device=device)
        elif folder.checkpoint.exists():
            other = resume(folder.path, data, device=device)
        elif seconds is None:
            rival.give_up("there was no time left (--budget)")
            return run
        else:
            shutil.rmtree(rival.path, ignore_errors=True)
            recipe = recipe.replace(budget=f"{seconds:g}s", data=run.recipe.data)
            where, began = runtime.resolve_device(device), time.monotonic()
            other = _train_new(recipe, rival.path, where, overwrite=False, began=began, like=RunFolder(run.folder))
    except Interrupted as error:
        onward = f"Go on with: sightline train --resume {run.folder}"
        raise Interrupted(f"Stopped while a small network from scratch was trained. {onward}") from error
    except SightlineError as error:
        rival.give_up(str(error))
        return run
    rival.judge(run.classifier, run.splits, other.classifier, other.splits)
    facts = rival.settle()
    best = other if facts["from_scratch"]["kept"] else run
    deadline = run.deadline
    if deadline is not None:
        deadline = replace(deadline, image_seconds=best.deadline.image_seconds if best.deadline else 0.0)
    notes = (*best.notes, facts["from_scratch"]["reason"])
    return replace(best, folder=run.folder, facts=facts, notes=notes, deadline=deadline)


def _begin_run(
    recipe: Recipe,
    out: str | Path | None,
    device: torch.device,
    objective: ObjectiveLike | None,
    augment: Augment | None,
    *,
    overwrite: bool,
    began: float,
    like: RunFolder | None = None,
) -> tuple[RunFolder, Plan, Classifier, HeadResult | None, Splits, tuple[str, ...], Deadline | None]:
    """All before the first step: images read, choices made, the folder begun. No deadline where epochs are given."""
    wanted = Path(out) if out is not None else None
    check_run_folder(wanted, overwrite=overwrite)
    plan = resolve(recipe, objective=objective, augment=augment)
    plan.check_network()
    plan, splits, notes = prepare(plan, like)
    told = () if like is None else like.read_notes()
    for note in notes:
        if note not in told:
            progress.notify(note)
    check_processes(plan.recipe.devices, device, plan.recipe.batch_size or 1)
    deadline = Deadline.of(recipe, splits, began) if recipe.epochs is None and recipe.steps is None else None
    learned, rival = splits.train.labelled, None
    if deadline is not None and objective is None and augment is None and len(splits.val):
        rival = rival_recipe(recipe, plan, learned, len(learned))
        deadline.share = 1 - RIVAL_SHARE if rival else 1.0
    plan, classifier, head, built = _start(plan, splits, device, deadline=deadline)
    if deadline is not None and rival is not None and not can_gain(head):
        rival, deadline.share = None, 1.0
    built = (*built, RIVAL_NOTE) if rival else built
    column = plan.recipe.fairness_column
    fair = apply_mitigation(plan.mitigation, column, learned, plan.objective)
    plan, measured = choose_execution(plan, classifier, learned, deadline)
    alone = plan.head is None and like is None  # a rival is judged on the validation images of its run
    shown, sampled = sample_validation(deadline if alone else None, splits, recipe.data_seed)
    more = (*built, *filter(None, [fair.note]), *measured, *sampled)
    for note in more:
        progress.notify(note)
    places = ("data", "weights", "unlabelled", "target")
    recipe = plan.recipe.replace(**{name: absolute_place(vars(plan.recipe)[name]) for name in places})
    word = re.split(r"[.*?[{]", Path(recipe.data or "").name)[0].rstrip("-_")  # of a pattern, what goes before it
    name = f"{word}-{recipe.model}".lstrip("-").replace(":", "_")
    folder = create_run_folder(wanted, name, overwrite=overwrite)  # only now is an old run given up
    folder.write_header(recipe, splits, (*notes, *more))
    if rival is not None:
        Rival(folder).write_recipe(rival)
    return folder, replace(plan, recipe=recipe), classifier, head, shown, (*notes, *more), deadline


def _start(
    plan: Plan, splits: Splits, device: torch.device, *, blank: bool = False, deadline: Deadline | None = None
) -> tuple[Plan, Classifier, HeadResult | None, tuple[str, ...]]:
    """The classifier before training by gradient, its head computed where the plan says so; and notes.

    A plan whose computed head leaves nothing to fine-tune comes back with 0 epochs.
    """
    check_head_method(plan)
    classifier, notes = build_classifier(plan, splits, device, blank=blank and plan.head is None)
    if plan.head is None:
        return plan, classifier, None, notes
    head = fit_head(classifier, plan, splits, deadline)
    plan, why = decide_fine_tuning(head, plan, deadline)
    return plan, classifier, head, (*notes, *describe_head(head, plan), *filter(None, [why]))


def train_on_splits(
    splits: Splits,
    recipe: Recipe,
    folder: RunFolder,
    *,
    device: str | torch.device = "auto",
    hooks: Mapping[str, Hook] | None = None,
    resume: bool = False,
) -> Run:
    """Train a new classifier on images that are split already: one of many trials, folds or learning-curve points.

    Chooses what the recipe leaves open of network, batches and execution; runs in one process. ``folder`` gets
    checkpoint and bundle; a ``SilentRunFolder`` prints nothing. ``resume`` continues from its checkpoint.
    """
    where = runtime.resolve_device(device) if isinstance(device, str) else device
    geometry = splits.train.geometry
    splits, _ = limit_validation(resolve(recipe), splits)
    plan = resolve(recipe).replace(size=geometry.size[0], channels=geometry.channels, devices=1)
    plan = with_defaults(plan, default_network(plan, train_images=len(splits.train.labelled))).fit_to(splits.train)
    plan, classifier, head, _ = _start(plan, splits, where, blank=resume)
    plan, _ = choose_execution(plan, classifier, splits.train.labelled)
    to_memory_format(classifier, plan.recipe.memory_format or "contiguous")
    method = build_method(plan, splits, where)
    method = replace(method, hooks={**method.hooks, **(hooks or {})})
    facts = _refine(classifier, plan, splits, method, folder, head, resume=resume)
    return Run(folder.path, plan.recipe, classifier, splits, facts, tuple(facts["remarks"]))


def resume(
    folder: str | Path,
    data: str | Path | None = None,
    *,
    device: str = "auto",
    objective: ObjectiveLike | None = None,
    augment: Augment | None = None,
    take_best: bool = False,
) -> Run:
    """Continue an interrupted run, exactly as if it had not been interrupted.

    ``data`` is where its images lie now, if not where they were: they are known by their bytes. A run with an
    objective or augmentation object needs it again. ``take_best`` trains no further: the best epoch so far is kept.
    """
    runtime.check_main_guard()
    run = RunFolder(Path(folder))
    if (run.path / "pretraining.json").is_file():
        raise RecipeError(f"'{folder}' is a pre-training: go on with sightline pretrain --resume {folder}")
    recipe, rival = run.read_recipe(), Rival(run)
    if take_best and not run.read_facts():
        keep_best_epoch(run)
    elif take_best and not rival.is_judged and rival.read_recipe() is not None:
        rival.give_up("the best so far was taken")
        return reopen(folder, data, device=device)
    if rival.is_judged:
        rival.settle()
        return reopen(folder, data, device=device)
    if run.read_facts() and rival.read_recipe() is None:
        raise RecipeError(
            f"The run '{folder}' is finished: there is nothing to resume. See sightline evaluate {folder}"
        )
    recipe = locate_images(run, recipe, data, f"sightline train --resume {folder} DATA")
    seconds = RIVAL_SHARE * parse_duration(recipe.budget)
    if run.read_facts():
        return _try_rival(reopen(folder, data, device=device), device, seconds, data)
    where = runtime.resolve_device(device)
    if is_under_launcher():
        group = group_from_env(where, recipe.devices)
        write_text(run.path / "recipe.toml", recipe.to_toml())  # every process the same
        return _train_as_member(group, run.path, objective, augment, True)
    plan, splits, notes = prepare(resolve(recipe, objective=objective, augment=augment), run)
    if data is not None:
        write_text(run.path / "recipe.toml", recipe.to_toml())
    if recipe.devices > 1:
        return _train_in_processes(run, plan, splits, notes, where, objective, augment, resume=True)
    plan, classifier, head, _ = _start(plan, splits, where, blank=True)
    resumed = _train_run(run, plan, classifier, head, splits, notes, resume=True)
    if take_best and rival.read_recipe() is not None:
        rival.give_up("the best so far was taken")
    return _try_rival(resumed, device, seconds, data)


def reopen(folder: str | Path, data: str | Path | None = None, *, device: str = "auto") -> Run:
    """A finished run, read back: the classifier as saved, and the images it was made from.

    ``data`` is where these lie now, if not where they were. They are known by their bytes: copied, moved or touched
    files are the same images, and new ones are left out. Raises DataError where they are gone.
    """
    run = RunFolder(Path(folder))
    recipe = run.read_recipe()
    classifier = Classifier.load(run.path).to(runtime.resolve_device(device))
    recipe = locate_images(run, recipe, data, f"sightline evaluate {folder} DATA")
    known = classifier.provenance.get("data_fingerprint")
    splits, notes, changes = split_as_before(run, recipe, read_dataset(recipe)[0], known, classifier.classes)
    for change in changes:
        progress.notify(change)
    return Run(run.path, recipe, classifier, splits, run.read_facts(), notes)


def _train_in_processes(
    folder: RunFolder,
    plan: Plan,
    splits: Splits,
    notes: tuple[str, ...],
    device: torch.device,
    objective: ObjectiveLike | None,
    augment: Augment | None,
    *,
    resume: bool,
) -> Run:
    """Train in several processes of this machine; the run is read back from what the main one wrote."""
    launch_processes(_train_as_member, plan.recipe.devices, device, folder.path, objective, augment, resume)
    classifier = Classifier.load(folder.path).to(device)
    return Run(folder.path, plan.recipe, classifier, splits, folder.read_facts(), notes)


def _train_as_member(
    group: ProcessGroup, path: Path, objective: ObjectiveLike | None, augment: Augment | None, resume: bool
) -> Run:
    """What each process of a group does: prepare everything from the run's recipe, then train its share."""
    folder, device = RunFolder(path), group.fabric.device
    plan, splits, notes = prepare(resolve(folder.read_recipe(), objective=objective, augment=augment), folder)
    plan, classifier, head, _ = _start(plan, splits, device, blank=resume)
    group = group.begin_training(classifier)
    return _train_run(folder, plan, classifier, head, splits, notes, resume=resume, group=group)


def _train_run(
    folder: RunFolder,
    plan: Plan,
    classifier: Classifier,
    head: HeadResult | None,
    splits: Splits,
    notes: tuple[str, ...],
    *,
    resume: bool,
    group: ProcessGroup = SINGLE_PROCESS,
    budget: Budget | None = None,
) -> Run:
    recipe, method = plan.recipe, build_method(plan, splits, classifier.device, group)
    if budget is not None:
        method = replace(method, hooks={**method.hooks, "budget": budget})
    to_memory_format(classifier, recipe.memory_format or "contiguous")
    if not resume and recipe.epochs and group.is_main:
        folder.write_train_batch(next(iter(method.batches(0, 0))), splits.train.classes)
    facts = _refine(classifier, plan, splits, method, folder, head, resume=resume, group=group)
    if group.is_main and facts["remarks"]:
        folder.write_notes([*folder.read_notes(), *facts["remarks"]])
    if budget is not None and not facts["stopped_early"]:  # what was really trained, to be trained again
        steps = None if facts["steps"] % facts["steps_per_epoch"] == 0 else facts["steps"]
        recipe = recipe.replace(epochs=facts["epochs"], steps=steps)
        write_text(folder.path / "recipe.toml", recipe.to_toml())
    return Run(folder.path, recipe, classifier.eval(), splits, facts, (*notes, *facts["remarks"]))


def _refine(
    classifier: Classifier,
    plan: Plan,
    splits: Splits,
    method: Method,
    folder: RunFolder,
    head: HeadResult | None,
    *,
    resume: bool,
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Any]:
    if plan.domain is not None:
        method = add_target(method, plan, classifier, splits, group)
    if head is None:
        return refine(classifier, plan, splits, method, folder, resume=resume, group=group)
    return refine_head(classifier, plan, splits, method, folder, head, resume=resume, group=group)
