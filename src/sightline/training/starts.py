"""Where training starts when the recipe leaves it open: published weights for photos, and what goes with them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..classifier import Classifier
from ..data import Survey
from ..models import find_card
from ..types import Dataset, Splits
from .build import build_classifier
from .plan import QUALITY_MODELS, Plan, resolve
from .recipe import PRETRAINED, Recipe

PHOTO_SIDE = 64
"""Pixels of the median short side from which images are taken for photos."""

FINE_TUNING: Mapping[str, object] = {
    "optimizer": "adamw",
    "lr": 5e-4,
    "weight_decay": 0.01,
    "layer_decay": 0.75,
    "schedule": "cosine",
    "warmup": 0.1,
    "label_smoothing": 0.1,
    "ema_decay": 0.98,
    "freeze_norms": True,
    "batch_size": 32,
    "augment": ("flip", "resized-crop:least=0.35"),
    "cpu_replicas": 1,
}
"""Fields of a recipe for fine-tuning from a computed head, where the user left them open."""


@dataclass(frozen=True)
class Default:
    """A field that was chosen for the user: its value, and a sentence that says why and how to change it."""

    field: str
    value: object
    reason: str


def default_start(plan: Plan, images: Survey) -> list[Default]:
    """Published weights where the images are photos, and what the weights' card says of pixels."""
    recipe, card = plan.recipe, plan.card
    chosen: list[Default] = []
    if card is None:
        word = QUALITY_MODELS["standard"]
        if recipe.model is not None or not _looks_like_photos(recipe, images):
            return []
        card = find_card(word.split(":")[1])
        chosen.append(
            Default(
                "model",
                word,
                f"Starting from {card.name}, trained on {card.trained_on}, because these are photos (--from-scratch "
                "starts from random weights, --model chooses another network).",
            )
        )
    said = {"size": card.size, "normalize": PRETRAINED}
    if recipe.resize_mode in (None, "crop"):
        said |= {"resize_mode": "crop", "crop_fraction": card.crop_fraction}
    said["interpolation"] = card.interpolation
    open_fields = {name: value for name, value in said.items() if vars(recipe)[name] is None}
    if open_fields:
        shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in open_fields.items())
        first, *rest = open_fields
        chosen.append(Default(first, open_fields[first], f"Pixels as the card of the weights says: {shown}."))
        chosen += [Default(name, open_fields[name], "") for name in rest]
    return chosen


def build_published_start(images: Dataset, device: torch.device, quality: str = "standard") -> Classifier:
    """The published network of a quality, as training on these images would begin with it; its head is random."""
    none = images.subset(np.arange(0))
    plan = resolve(Recipe(model=QUALITY_MODELS[quality], normalize=PRETRAINED))
    plan = plan.replace(size=images.geometry.size[0], channels=images.geometry.channels).fit_to(images)
    return build_classifier(plan, Splits(images, none, none), device)[0].eval()


def _looks_like_photos(recipe: Recipe, images: Survey) -> bool:
    untouched = recipe.weights is None and recipe.normalize is None and recipe.init == "default"
    plain = not (recipe.from_scratch or recipe.weight_noise or recipe.progressive_from or recipe.flip_tta)
    large = images.short_side.median >= PHOTO_SIDE and (recipe.size is None or recipe.size >= PHOTO_SIDE)
    return untouched and plain and large
