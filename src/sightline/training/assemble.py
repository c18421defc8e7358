"""A recipe's words become objects: the fresh classifier, the objective, the way to train."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from numpy import ndarray

from .. import runtime
from ..augmentation import policy
from ..choose import lookup
from ..classifier import Classifier
from ..data.loader import Augment, Shuffled, batches, count_batches, to_batch
from ..errors import DataError, RecipeError
from ..models import INITIALISATIONS, Architecture, architecture, build, initialise, load_weights
from ..preprocessing import check as check_preprocessing
from ..preprocessing import fit as fit_preprocessing
from ..types import Batch, Geometry, Splits
from . import pace
from .objectives import OBJECTIVES, Objective, balanced_weights
from .optimizers import optimizer
from .recipe import Recipe, window
from .refinement import Method
from .schedules import schedule
from .team import ALONE, Team

SAMPLE = 2000
"""Training images that a network's data-dependent layers are set from."""

GROWN_BY = 2 / 3
"""Share of the epochs after which images have their full size."""


def check_names(recipe: Recipe) -> None:
    """Refuse a misspelt name before an hour of decoding, not after."""
    objective_of(recipe)
    policy(recipe.augment or ())
    check_preprocessing(recipe.normalize)
    schedule(recipe.schedule, recipe.warmup, recipe.epochs)
    optimizer(torch.nn.Linear(1, 1), recipe.replace(lr=recipe.lr or 0.1))
    if recipe.init != "own":
        lookup(INITIALISATIONS, recipe.init, "initialisation")
    if recipe.model is not None:
        build(plan_of(recipe, classes=2, channels=3, size=(32, 32)))
    if recipe.weights is not None and not Path(recipe.weights).is_file():
        raise RecipeError(f"There is no file of weights '{recipe.weights}'.")
    if recipe.start_size and recipe.size and recipe.start_size > recipe.size:
        raise RecipeError(f"start_size is {recipe.start_size}: it must not be above the size, {recipe.size}.")


def geometry_of(recipe: Recipe) -> Geometry:
    """How a recipe's files become pixels."""
    assert recipe.size is not None
    return Geometry(
        size=(recipe.size, recipe.size),
        channels=recipe.channels or 3,
        fit=recipe.fit,
        filter=recipe.filter,
        window=window(recipe.window),
    )


def plan_of(recipe: Recipe, *, classes: int, channels: int, size: tuple[int, int]) -> Architecture:
    """The architecture a recipe asks for."""
    assert recipe.model is not None
    word = recipe.model if recipe.dropout is None else f"{recipe.model}:dropout={recipe.dropout}"
    plan = architecture(word, classes=classes, channels=channels, size=size)
    return replace(plan, surgery=(*plan.surgery, ("mirrored", {}))) if recipe.mirrored else plan


def fresh(recipe: Recipe, splits: Splits, device: torch.device) -> tuple[Classifier, tuple[str, ...]]:
    """The classifier before training: seeded initial weights, or the given ones."""
    train = splits.train
    runtime.seed(recipe.seed)
    plan = plan_of(recipe, classes=len(train.classes), channels=train.geometry.channels, size=train.geometry.size)
    network = build(plan)
    preprocessing = fit_preprocessing(train, recipe.normalize, train.geometry.channels)
    if recipe.init != "own":
        initialise(network, recipe.init)
    notes: tuple[str, ...] = ()
    sample = np.sort(runtime.order(len(train), recipe.seed)[:SAMPLE])
    with torch.no_grad():
        network.adapt(preprocessing(to_batch(train[sample])))
    if recipe.weights is not None:
        notes = (*notes, str(load_weights(network, recipe.weights)))
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
        },
    )
    return classifier.to(device), notes


def objective_of(recipe: Recipe, counts: Int[ndarray, " K"] | None = None) -> Objective:
    """The recipe's loss; ``counts`` are the training images of each class, for balanced weights."""
    balanced = recipe.class_weights == "balanced" and counts is not None
    weights = balanced_weights(counts) if balanced and counts is not None else None
    make = lookup(OBJECTIVES, recipe.loss, "loss")
    return make(label_smoothing=recipe.label_smoothing, class_weights=weights)


def method_of(
    recipe: Recipe,
    splits: Splits,
    device: torch.device,
    objective: Objective,
    augment: Augment | None = None,
    team: Team = ALONE,
) -> Method:
    """The plain way to train: shuffled, augmented batches of the training images, this process's share."""
    augment = augment or policy(recipe.augment or ())
    assert recipe.batch_size is not None
    layout = pace.LAYOUTS[recipe.memory_format or "contiguous"]
    balanced = recipe.sampling == "balanced"

    def epoch(number: int, start: int) -> Iterable[Batch]:
        whole = batches(
            splits.train,
            recipe.batch_size or 0,
            device=device,
            order=Shuffled(recipe.seed, number, balanced),
            start=start,
            augment=augment,
            drop_last=True,
            memory_format=layout,
            share=(team.rank, team.size),
        )
        return _shrunk(whole, side_at(recipe, number), layout)

    return Method(objective, epoch, count_batches(len(splits.train), recipe.batch_size, drop_last=True))


def side_at(recipe: Recipe, epoch: int) -> int:
    """Pixels of a side in this epoch: from ``start_size`` in steps of 4 to the working size."""
    size, start = recipe.size or 0, recipe.start_size
    if start is None or start >= size:
        return size
    share = min(1.0, epoch / max(1.0, GROWN_BY * (recipe.epochs or 1)))
    return min(size, start + 4 * round((size - start) * share / 4))


def _shrunk(whole: Iterable[Batch], side: int, layout: torch.memory_format) -> Iterator[Batch]:
    for batch in whole:
        if side >= batch.pixels.shape[-1]:
            yield batch
            continue
        small = F.interpolate(batch.pixels, (side, side), mode="bilinear", antialias=True)
        yield replace(batch, pixels=small.contiguous(memory_format=layout))


def check_growth(recipe: Recipe, classifier: Classifier) -> None:
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
