"""A backbone is pre-trained on images whose labels are not read: the run folder, the loop, the bundle."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import progress, runtime
from ..choose import choose
from ..classifier import Classifier, write_bundle_card
from ..data import concat, load_dataset, survey
from ..errors import DataError, RecipeError
from ..files import read_json_object, write_json, write_text
from ..sources import absolute_place, find_unlabelled
from ..types import Dataset, Splits
from .budget import Budget, Deadline
from .build import build_classifier
from .defaults import choose_execution, to_memory_format
from .plan import resolve
from .preparation import read_splits
from .recipe import Recipe
from .refinement import refine
from .run_folder import RunFolder, check_run_folder, create_run_folder
from .self_supervised import COLOUR_VIEWS, GREY_VIEWS, SELF_SUPERVISED_METHODS, build_pretraining
from .starts import SMALL_NETWORK, USUAL_NETWORK, default_pixels

NO_CLASSES = ("no class", "nor this one")
"""The classes of a backbone that knows none: a network must have two."""

PRETRAINING_FILE, KNN_FILE = "pretraining.json", "knn.json"
"""How a run was pre-trained, and what its features were compared with at the end."""

MAX_WATCHED_IMAGES, WATCHED_SHARE = 500, 0.05
"""Images, and share of them, that are not trained on, to see whether views of new images are matched too."""

USUAL_BATCH, LR_PER_IMAGE = 256, 0.06 / 128
"""Images of a batch, and the peak rate of SGD for each of them, as lightly's benchmarks have it."""

MAX_PRETRAINING_EPOCHS = 1000
"""Passes beyond which nothing was published."""


class PretrainingFolder(RunFolder):
    """The folder of a pre-training."""

    @property
    def onward(self) -> str:
        """The command that continues it."""
        return f"sightline pretrain --resume {self.path}"

    def read_method(self) -> str:
        """The word of ``--by``; RecipeError where this folder is no pre-training."""
        found = read_json_object(self.path / PRETRAINING_FILE)
        if "by" not in found:
            raise RecipeError(
                f"'{self.path}' is no pre-training: continue a training with sightline train --resume."
            )
        return str(found["by"])


@dataclass(frozen=True, eq=False)
class Pretraining:
    """A finished pre-training, and what its features can be compared with."""

    folder: PretrainingFolder
    by: str
    recipe: Recipe
    classifier: Classifier
    start: Classifier
    """The network with its first weights."""
    images: int
    labelled: Splits | None
    """The same images with their labels, and the test images that were held out; None where there are no labels."""
    facts: dict[str, Any]
    notes: tuple[str, ...]


def read_without_labels(recipe: Recipe) -> tuple[Dataset, Splits | None, tuple[str, ...]]:
    """The images of a recipe to pre-train on, their labelled splits where they have labels, and notes.

    Labels only say which test images are held out, where the data does not; images are in the order of their bytes, so
    that neither names nor folders matter. Raises DataError where there is no image.
    """
    try:
        labelled, notes = read_splits(recipe)
        images = concat([replace(part, columns={}) for part in (labelled.train, labelled.val)])
    except DataError:  # no labels
        assert recipe.data is not None
        source = find_unlabelled(recipe.data)
        chosen = default_pixels(survey(source), recipe.size, recipe.channels, recipe.window)
        images = load_dataset(source, recipe.replace(**{each.field: each.value for each in chosen}).geometry)
        labelled, notes = None, (*images.notes, *(each.reason for each in chosen))
    images = images.subset(np.unique(images.digests, return_index=True)[1])
    return (
        replace(images, labels=np.zeros(len(images), np.int64), classes=NO_CLASSES, columns={}),
        labelled,
        notes,
    )


def open_defaults(recipe: Recipe, images: Dataset) -> Recipe:
    """The recipe with its open fields chosen for pre-training on these images."""
    grey, size = images.geometry.channels == 1, max(images.geometry.size)
    batch = recipe.batch_size or min(USUAL_BATCH, 2 ** max(1, int(np.log2(max(2, len(images) // 4)))))
    usual: dict[str, Any] = {
        "size": images.geometry.size[0],
        "channels": images.geometry.channels,
        "model": SMALL_NETWORK if grey and size <= 32 else USUAL_NETWORK,
        "augment": GREY_VIEWS if grey else COLOUR_VIEWS,
        "batch_size": batch,
        "lr": float(f"{LR_PER_IMAGE * batch:.4g}"),
        "normalize": "fitted",
        "schedule": "cosine",
        "method": "gradient",
        "cpu_replicas": 1,
    }
    chosen = {
        name: value for name, value in usual.items() if name not in recipe.fields_set or vars(recipe)[name] is None
    }
    return recipe.replace(**chosen)


def pretrain_backbone(
    recipe: Recipe,
    by: str,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    began: float,
    share: float = 1.0,
) -> Pretraining:
    """Pre-train on the recipe's images and save the backbone in a run folder; its epochs fit ``share`` of the budget.

    ``resume`` is the folder of an interrupted one, continued exactly. Raises RecipeError for too few images,
    TrainingError where the features collapse, Interrupted.
    """
    where, folder, finished = runtime.resolve_device(device), None, dict[str, Any]()
    if resume is not None:
        folder = PretrainingFolder(resume)
        recipe, by = folder.read_recipe(), folder.read_method()
        finished = folder.read_facts()
        if finished and (resume / KNN_FILE).is_file():
            raise RecipeError(
                f"The pre-training '{resume}' is finished. Use it: sightline train DATA --weights {resume}"
            )
    else:
        check_run_folder(out, overwrite=overwrite)
    method = choose(SELF_SUPERVISED_METHODS, by, "way to pre-train")
    images, labelled, notes = read_without_labels(recipe)
    recipe = open_defaults(recipe, images)
    order = runtime.permutation(len(images), recipe.data_seed)
    aside = min(MAX_WATCHED_IMAGES, int(WATCHED_SHARE * len(images)))
    aside = max(2, aside) if len(images) > 3 else 0
    splits = Splits(
        images.subset(np.sort(order[aside:])), images.subset(np.sort(order[:aside])), images.subset(order[:0])
    )
    plan = resolve(recipe).fit_to(splits.train)
    classifier, built = build_classifier(plan, splits, where)
    start = copy.deepcopy(classifier).eval()
    deadline = None
    if resume is None and recipe.epochs is None and recipe.steps is None:
        deadline = replace(Deadline.of(recipe, splits, began), share=share)
    plan, measured = choose_execution(plan, classifier, splits.train, deadline)
    made = build_pretraining(method, classifier, plan, splits.train)
    notes = (*notes, *built, *measured)
    if folder is None:
        for note in notes:
            progress.notify(note)
        recipe = plan.recipe.replace(data=absolute_place(recipe.data))
        plan = plan.replace(data=recipe.data)
        name = f"{Path(recipe.data or '').name.partition('.')[0]}-{by}".replace(":", "_")
        folder = PretrainingFolder(create_run_folder(out, name, overwrite=overwrite).path)
        folder.write_header(recipe, splits, notes)
        write_json(folder.path / PRETRAINING_FILE, {"by": by})
    if deadline is not None:
        budget = Budget(plan.recipe, deadline, MAX_PRETRAINING_EPOCHS, folder.log)
        made = replace(made, hooks={**made.hooks, "budget": budget})
    to_memory_format(classifier, plan.recipe.memory_format or "contiguous")
    classifier.provenance |= {"pretrained_by": by, "train_images": len(splits.train)}
    if finished:  # stopped while its features were compared
        classifier, facts = Classifier.load(folder.path).to(where), finished
    else:
        facts = refine(classifier, plan, splits, made, folder, resume=resume is not None)
    write_bundle_card(folder.bundle, describe_backbone(classifier, by, len(splits.train)))
    if deadline is not None:
        steps = None if facts["steps"] % facts["steps_per_epoch"] == 0 else facts["steps"]
        plan = plan.replace(epochs=facts["epochs"], steps=steps)
        write_text(folder.path / "recipe.toml", plan.recipe.to_toml())
    return Pretraining(
        folder, by, plan.recipe, classifier.eval(), start, len(splits.train), labelled, facts, notes
    )  # fmt: skip


def describe_backbone(classifier: Classifier, by: str, images: int) -> str:
    """The card of a backbone that knows no classes."""
    g = classifier.geometry
    return (
        f"# A backbone pre-trained by {by}\n\nIt knows no classes: {classifier.architecture.name}, trained on "
        f"{images:,} images of {g.size[0]} x {g.size[1]} pixels whose labels were not read. Its classes "
        f"'{NO_CLASSES[0]}' and '{NO_CLASSES[1]}' are placeholders. Train a classifier from it:\n\n"
        "    sightline train DATA --weights THIS_RUN\n"
    )
