"""A recipe's words become objects: the fresh classifier, the objective, the way to train."""

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from numpy import ndarray

from .. import runtime
from ..augmentation import parse_policy
from ..choose import choose, lookup, suggest
from ..classifier import Classifier
from ..data import Augment, Shuffle, count_batches, iterate_batches, to_tensor
from ..errors import ChoiceError, DataError, RecipeError
from ..layers import INITIALISATIONS, initialise
from ..models import Architecture, build, parse_architecture
from ..preprocessing import Preprocessing, fit_preprocessing
from ..preprocessing import check_normalisation as check_preprocessing
from ..types import Batch, Geometry, Splits
from . import autotune
from .adversarial import AdversarialLoss
from .class_weights import CLASS_WEIGHTINGS
from .distributed import SINGLE_PROCESS, ProcessGroup
from .fairness import build_fairness, parse_mitigation
from .freezing import check_freezing
from .losses import OBJECTIVES, Objective
from .optimizers import build_optimizer
from .recipe import Recipe, parse_window
from .refinement import Method
from .schedules import parse_schedule
from .transfer import INHERIT, load_initial_weights, load_source, start_provenance

ADAPTATION_IMAGES = 2000
"""Training images that a network's data-dependent layers are set from."""

LOSS_ARGUMENT_NAMES = {"loss_weight": "weight"}
"""Fields of a recipe that a loss calls otherwise."""

FULL_SIZE_AFTER = 2 / 3
"""Share of the epochs after which images have their full size."""


def validate_recipe(recipe: Recipe) -> None:
    """Refuse a misspelt name before an hour of decoding, not after."""
    build_objective(recipe)
    parse_policy(recipe.augment or ())
    if recipe.normalize not in (None, INHERIT):
        check_preprocessing(recipe.normalize)
    parse_schedule(recipe.schedule, recipe.warmup, recipe.epochs)
    build_optimizer(torch.nn.Linear(1, 1), recipe.replace(lr=recipe.lr or 0.1))
    if recipe.init != "own":
        lookup(INITIALISATIONS, recipe.init, "initialisation")
    if recipe.model is not None:
        side = recipe.size or (224 if recipe.model.startswith("timm:") else 32)
        made = build(architecture_for(recipe, classes=2, channels=recipe.channels or 3, size=(side, side)))
        if recipe.weights is None:
            made.load_published()
    if recipe.weights is not None and not Path(recipe.weights).exists():
        raise RecipeError(f"There is no file of weights '{recipe.weights}', and no run or bundle there.")
    load_source(recipe)
    check_freezing(recipe)
    parse_mitigation(recipe)
    if recipe.start_size and recipe.size and recipe.start_size > recipe.size:
        raise RecipeError(f"start_size is {recipe.start_size}: it must not be above the size, {recipe.size}.")


def recipe_geometry(recipe: Recipe) -> Geometry:
    """How a recipe's files become pixels."""
    assert recipe.size is not None
    return Geometry(
        size=(recipe.size, recipe.size),
        channels=recipe.channels or 3,
        resize_mode=recipe.fit,
        interpolation=recipe.filter,
        window=parse_window(recipe.window),
    )


def architecture_for(recipe: Recipe, *, classes: int, channels: int, size: tuple[int, int]) -> Architecture:
    """The architecture a recipe asks for."""
    assert recipe.model is not None
    word = recipe.model if recipe.dropout is None else f"{recipe.model}:dropout={recipe.dropout}"
    plan = parse_architecture(word, classes=classes, channels=channels, size=size)
    changes = [("mirrored", {})] if recipe.mirrored else []
    if recipe.weight_noise:
        changes.append(("noise", {"alpha": recipe.weight_noise}))
    return replace(plan, surgery=(*plan.surgery, *changes))


def build_classifier(
    recipe: Recipe, splits: Splits, device: torch.device, *, blank: bool = False
) -> tuple[Classifier, tuple[str, ...]]:
    """The classifier before training: seeded initial weights, or the given ones; and what is worth saying.

    ``blank``: its weights will come from a checkpoint, so none are looked for.
    """
    train = splits.train
    source = None if blank and recipe.normalize != INHERIT else load_source(recipe)
    runtime.seed_torch(recipe.seed)
    plan = architecture_for(
        recipe, classes=len(train.classes), channels=train.geometry.channels, size=train.geometry.size
    )
    network = build(plan)
    preprocessing = _build_preprocessing(recipe, splits, source)
    if recipe.init != "own":
        initialise(network, recipe.init)
    sample = np.sort(runtime.permutation(len(train), recipe.seed)[:ADAPTATION_IMAGES])
    with torch.no_grad():
        network.init_from_data(preprocessing(to_tensor(train[sample])))
    started = () if blank else load_initial_weights(network, preprocessing, recipe, source, splits)
    classifier = Classifier(
        preprocessing,
        network,
        architecture=plan,
        classes=train.classes,
        geometry=train.geometry,
        provenance={
            "data": Path(recipe.data or "").name,  # the path is in recipe.toml; a bundle travels
            "data_fingerprint": train.fingerprint,
            "train_images": len(train),
            "seed": recipe.seed,
            "split_seed": recipe.data_seed,
            **start_provenance(recipe, network, source),
        },
    )
    return classifier.to(device), (*network.notes, *started)


def _build_preprocessing(recipe: Recipe, splits: Splits, source: Classifier | None) -> Preprocessing:
    """That of the classifier to start from, or one fitted to the training images."""
    if recipe.normalize == INHERIT and source is not None:
        return copy.deepcopy(source.preprocessing)
    return fit_preprocessing(splits.train, recipe.normalize or "fitted", splits.train.geometry.channels)


def build_objective(recipe: Recipe, counts: Int[ndarray, " K"] | None = None) -> Objective:
    """The recipe's loss; ``counts`` are the training images of each class, for the weights of classes.

    Raises ChoiceError for a name nobody knows, RecipeError where the loss cannot use what the recipe says.
    """
    weighting = choose(CLASS_WEIGHTINGS, recipe.class_weights, "weighting of classes")
    given = {
        "label_smoothing": recipe.label_smoothing or None,
        "loss_weight": recipe.loss_weight,
        "class_weights": None if counts is None else weighting(counts),
    }
    given = {name: value for name, value in given.items() if value is not None}
    made = choose({name: partial(_make_loss, name, given) for name in OBJECTIVES}, recipe.loss, "loss")
    if isinstance(made, AdversarialLoss) and (recipe.replicas or 1) > 1:
        raise RecipeError(
            f"The loss {recipe.loss} draws at random, replicas would do so in no certain order: leave them out."
        )
    return made


def _make_loss(name: str, given: Mapping[str, Any], *words: Any, **named: Any) -> Objective:
    """A loss with its own arguments and the recipe's fields."""
    takes = inspect.signature(OBJECTIVES[name]).parameters
    for argument in named:
        if argument not in takes:
            raise ChoiceError(f"The loss '{name}' has no argument '{argument}'. {suggest(argument, takes)}")
    for field in given:
        if LOSS_ARGUMENT_NAMES.get(field, field) not in takes:
            able = ", ".join(
                n
                for n, make in OBJECTIVES.items()
                if LOSS_ARGUMENT_NAMES.get(field, field) in inspect.signature(make).parameters
            )
            raise RecipeError(f"The loss {name} has no use for {field}: leave it out, or choose one of {able}.")
    return OBJECTIVES[name](
        *words, **{LOSS_ARGUMENT_NAMES.get(field, field): value for field, value in given.items()}, **named
    )


def build_method(
    recipe: Recipe,
    splits: Splits,
    device: torch.device,
    objective: Objective,
    augment: Augment | None = None,
    team: ProcessGroup = SINGLE_PROCESS,
) -> Method:
    """The plain way to train: shuffled, augmented batches of the training images, this process's share."""
    augment = augment or parse_policy(recipe.augment or ())
    assert recipe.batch_size is not None
    layout = autotune.MEMORY_FORMATS[recipe.memory_format or "contiguous"]
    fair = build_fairness(recipe, splits.train, objective)
    balanced = fair.balanced or recipe.sampling == "balanced"

    def epoch(number: int, start: int) -> Iterable[Batch]:
        whole = iterate_batches(
            fair.train,
            recipe.batch_size or 0,
            device=device,
            order=Shuffle(recipe.seed, number, balanced, fair.balanced),
            start=start,
            augment=augment,
            drop_last=True,
            memory_format=layout,
            share=(team.rank, team.size),
        )
        return _downscale(whole, image_size_at(recipe, number), layout)

    steps = count_batches(len(splits.train), recipe.batch_size, drop_last=True)
    return Method(fair.objective, epoch, steps, hooks=fair.hooks)


def image_size_at(recipe: Recipe, epoch: int) -> int:
    """Pixels of a side in this epoch: from ``start_size`` in steps of 4 to the working size."""
    size, start = recipe.size or 0, recipe.start_size
    if start is None or start >= size:
        return size
    share = min(1.0, epoch / max(1.0, FULL_SIZE_AFTER * (recipe.epochs or 1)))
    return min(size, start + 4 * round((size - start) * share / 4))


def _downscale(whole: Iterable[Batch], side: int, layout: torch.memory_format) -> Iterator[Batch]:
    for batch in whole:
        if side >= batch.pixels.shape[-1]:
            yield batch
            continue
        small = F.interpolate(batch.pixels, (side, side), mode="bilinear", antialias=True)
        yield replace(batch, pixels=small.contiguous(memory_format=layout))


def check_progressive_size(recipe: Recipe, classifier: Classifier) -> None:
    """Raise RecipeError where ``start_size`` is asked of a network that answers one size only."""
    if recipe.start_size is None:
        return
    side, channels = recipe.start_size, classifier.geometry.channels
    try:
        with torch.inference_mode():
            classifier.eval()(torch.zeros(1, channels, side, side, device=classifier.device))
    except (RuntimeError, DataError) as error:
        raise RecipeError(
            f"The recipe's start_size is {side}, but {recipe.model} answers images of its own size only: "
            "leave it out, or choose another model."
        ) from error
