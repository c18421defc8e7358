"""From a plan and images to what training needs: the classifier before training, and the plain method."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .. import runtime
from ..batches import Batch
from ..classifier import Classifier
from ..data import Shuffle, count_batches, iterate_batches, to_tensor
from ..errors import DataError, RecipeError
from ..layers import Network, initialise
from ..models import build, find_imagenet_classes, find_stages
from ..preprocessing import Normalise, Preprocessing, fit_preprocessing
from ..types import Splits
from .distributed import SINGLE_PROCESS, ProcessGroup
from .fairness import apply_mitigation
from .fit import Method
from .plan import Plan
from .recipe import INHERIT, PRETRAINED, Recipe
from .transfer import load_initial_weights, start_provenance, warn_of_leakage
from .unlabelled import add_unlabelled

ADAPTATION_IMAGES = 2000
"""Training images that a network's data-dependent layers are initialised from."""

FULL_SIZE_AFTER = 2 / 3
"""Fraction of the epochs after which progressive resizing has reached the working size."""

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def build_classifier(
    plan: Plan, splits: Splits, device: torch.device, *, blank: bool = False
) -> tuple[Classifier, tuple[str, ...]]:
    """The classifier before training, with seeded initial weights or the given ones; and notes about them.

    ``plan`` fits the training images (``Plan.fit_to``). With ``blank`` no weights are loaded: a checkpoint has them.
    Raises RecipeError where the network cannot be built or frozen as the recipe says, or answers one size only
    although its images grow.
    """
    recipe, train = plan.recipe, splits.train
    assert plan.architecture is not None
    runtime.seed_torch(recipe.seed)
    network = build(plan.architecture)
    if recipe.normalize == INHERIT and plan.source is not None:
        preprocessing = copy.deepcopy(plan.source.preprocessing)
    elif recipe.normalize == PRETRAINED:
        preprocessing = card_preprocessing(plan, train.geometry.channels)
    else:
        preprocessing = fit_preprocessing(train, recipe.normalize or "fitted", train.geometry.channels)
    if recipe.init != "default":
        initialise(network, recipe.init)
    if type(network).init_from_data is not Network.init_from_data:
        sample = np.sort(runtime.permutation(len(train), recipe.seed)[:ADAPTATION_IMAGES])
        with torch.no_grad():
            network.init_from_data(preprocessing(to_tensor(train[sample])))
    notes: tuple[str, ...] = ()
    if not blank and recipe.weights is None:
        notes = tuple(filter(None, [network.load_published()]))
    elif not blank and recipe.weights is not None:
        keep_head = recipe.epochs == 0
        notes = (load_initial_weights(network, preprocessing, recipe.weights, plan.source, train, keep_head),)
        if plan.source is not None:
            notes += warn_of_leakage(recipe.weights, plan.source, splits.test, recipe.data, recipe.data_seed)
    published = _published_provenance(plan, train.classes)
    if published and (seen := published["weights"]["known_classes"]):
        notes += (
            f"The weights learned from ImageNet, which has {', '.join(seen[:5])}{', ...' if seen[5:] else ''} among "
            "its own classes: accuracy on other subjects will be lower.",
        )
    start = recipe.model if plan.is_pretrained else None
    classifier = Classifier(
        preprocessing,
        network,
        architecture=plan.architecture,
        classes=train.classes,
        geometry=train.geometry,
        provenance={
            "data": Path(recipe.data or "").name,  # the path is in recipe.toml; a bundle travels
            "data_fingerprint": train.fingerprint,
            "train_images": len(train.labelled),
            "seed": recipe.seed,
            "split_seed": recipe.data_seed,
            **({} if plan.semi_supervised is None else {"semi_supervised": recipe.semi_supervised}),
            **published,
            **start_provenance(
                start if recipe.weights is None else Path(recipe.weights).name, network, plan.source
            ),
        },
    ).to(device)
    if plan.freezing.freezes:
        plan.freezing.n_frozen([stage.name for stage in find_stages(network)], 0)  # raises for an unknown stage
    if (side := recipe.progressive_from) is not None:
        try:
            with torch.inference_mode():
                classifier.eval()(torch.zeros(1, train.geometry.channels, side, side, device=device))
        except (RuntimeError, DataError) as error:
            raise RecipeError(
                f"The recipe's progressive_from is {side}, but {recipe.model} accepts images of its own size only: "
                "leave it out, or choose another model."
            ) from error
    return classifier, (*network.notes, *notes)


def _published_provenance(plan: Plan, classes: Sequence[str]) -> dict[str, Any]:
    """What is known of the published weights at the origin, which a run passes on to those that start from it.

    ``classes`` that the weights learned to tell apart already are among it: accuracy on them is too optimistic.
    """
    known = None if plan.card is None else plan.card.as_json()
    if plan.source is not None:
        known = plan.source.provenance.get("weights")
    if known is None:
        return {}
    seen = find_imagenet_classes(classes) if "ImageNet" in known["trained_on"] else []
    return {"weights": {**known, "known_classes": seen}}


def card_preprocessing(plan: Plan, channels: int) -> Preprocessing:
    """The normalisation on the card of the published weights; grey images get the means over its channels.

    Raises RecipeError where the network has no published weights.
    """
    if plan.card is None:
        raise RecipeError(
            f"The recipe's normalize is '{PRETRAINED}', but {plan.recipe.model} starts from no published weights: "
            "leave normalize out, or choose a network with pretrained=True."
        )
    mean, std = plan.card.mean, plan.card.std
    if channels != len(mean):
        mean, std = (fmean(mean),) * channels, (fmean(std),) * channels
    return Preprocessing([Normalise(mean, std)])


def build_method(plan: Plan, splits: Splits, device: torch.device, group: ProcessGroup = SINGLE_PROCESS) -> Method:
    """The plain way to train: shuffled, augmented batches of this process's share of the labelled training images.

    With the plan's semi-supervised objective they have unlabelled images beside them.
    """
    recipe = plan.recipe
    assert recipe.batch_size is not None
    size = recipe.batch_size
    memory_format = MEMORY_FORMATS[recipe.memory_format or "contiguous"]
    fair = apply_mitigation(plan.mitigation, recipe.fairness_column, splits.train.labelled, plan.objective)
    balanced = fair.balanced or plan.sampling.balanced
    if fair.balanced and plan.sampling.classes:
        raise RecipeError(
            "Training balances groups, so batches cannot be by class: leave out --sampling or --fairness-column."
        )

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        side = progressive_size(recipe.size or 0, recipe.progressive_from, epoch, recipe.epochs or 1)
        for batch in iterate_batches(
            fair.train,
            size,
            device=device,
            order=Shuffle(recipe.seed, epoch, balanced, fair.balanced, plan.sampling.classes),
            start=start,
            augment=plan.augment,
            drop_last=True,
            memory_format=memory_format,
            share=(group.rank, group.size),
        ):
            if side >= batch.pixels.shape[-1]:
                yield batch
                continue
            small = F.interpolate(batch.pixels, (side, side), mode="bilinear", antialias=True)
            yield replace(batch, pixels=small.contiguous(memory_format=memory_format))

    method = Method(
        fair.objective, batches, count_batches(len(fair.train), size, drop_last=True), hooks=fair.hooks
    )
    return method if plan.semi_supervised is None else add_unlabelled(method, plan, splits, group, device)


def progressive_size(size: int, start: int | None, epoch: int, epochs: int) -> int:
    """Pixels of a side in this epoch: from ``start`` in steps of 4 to ``size``, reached after 2/3 of the epochs."""
    if start is None or start >= size:
        return size
    fraction = min(1.0, epoch / max(1.0, FULL_SIZE_AFTER * epochs))
    return min(size, start + 4 * round((size - start) * fraction / 4))


def count_passes(recipe: Recipe, epochs: int) -> float:
    """The cost of this number of epochs, in passes over images of the working size: images that grow begin smaller."""
    if recipe.progressive_from is None:
        return epochs
    size = recipe.size or 1
    return sum((progressive_size(size, recipe.progressive_from, i, epochs) / size) ** 2 for i in range(epochs))
