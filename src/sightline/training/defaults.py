"""What is chosen where the user chose nothing, and a sentence about each choice."""

import math
from dataclasses import dataclass

from ..data import Survey
from ..models import NETWORKS
from .optimizers import DEFAULT_LR
from .recipe import Recipe, parse_duration

DEFAULT_SIZES = (28, 32, 48, 64, 96, 128, 160, 192, 224)
"""Working sizes that are chosen by themselves; any from 8 to 1024 can be asked for."""

MAX_DEFAULT_STEPS = 8000
"""More steps than this from scratch bring little at these sizes: a budget is not spent for its own sake."""

MAX_DEFAULT_EPOCHS = 60

FEW_TRAIN_IMAGES = 1000
"""Fewer training images than this deserve a word of warning."""

_ADVICE = "expect a modest result; more images, or --weights to start from, help most."

LINEAR_PROBE_LR_FACTOR = 10
"""Times the usual learning rate where only the head learns: it is far from its best, and has nothing to lose."""


@dataclass(frozen=True)
class Default:
    """A field that was chosen for the user: its value, and a sentence that says why and how to change it."""

    field: str
    value: object
    reason: str


def default_pixels(recipe: Recipe, seen: Survey) -> list[Default]:
    """Size and channels, from what a survey of the images says."""
    chosen: list[Default] = []
    if recipe.size is None:
        size, why = _default_size(seen)
        chosen.append(Default("size", size, f"Working size {size} x {size}: {why} (--size)."))
    if recipe.channels is None:
        channels = 3 if seen.grey < 0.99 else 1
        what = "colour" if channels == 3 else "grey"
        chosen.append(Default("channels", channels, f"Working in {what}, as the images are (--channels)."))
    return chosen


def _default_size(seen: Survey) -> tuple[int, str]:
    low, median, high = seen.short_side.low, seen.short_side.median, seen.short_side.high
    if low == high == seen.width.high == seen.height.high and DEFAULT_SIZES[0] <= low <= DEFAULT_SIZES[-1]:
        return low, "all images have that size"
    if median < DEFAULT_SIZES[0]:
        return DEFAULT_SIZES[
            0
        ], f"the images are smaller ({median:.0f} pixels), and this is the smallest that is chosen"
    return max(s for s in DEFAULT_SIZES if s <= median), f"the median short side is {median:.0f} pixels"


def default_network(recipe: Recipe, *, train_images: int) -> list[Default]:
    """Model, augmentation, batch size and learning rate, from size, channels and the number of images."""
    assert recipe.size is not None
    chosen: list[Default] = []
    model = recipe.model
    if model is None:
        model = "lenet5" if recipe.channels == 1 and recipe.size <= 32 else "resnet20"
        chosen.append(Default("model", model, f"Network {model}, by the size of the images (--model)."))
    if recipe.augment is None:
        words = _default_augmentations(recipe.size, grey=recipe.channels == 1)
        why = "no mirror images: grey pictures are often characters" if recipe.channels == 1 else "photographs"
        chosen.append(Default("augment", words, f"Augmentation {' '.join(words)} ({why}; --augment)."))
    batch_size = recipe.batch_size
    if batch_size is not None and batch_size > train_images:
        batch_size = train_images
        chosen.append(Default("batch_size", batch_size, f"Batches of {batch_size}: there are no more images."))
    if batch_size is None:
        batch_size = min(128, train_images, max(16, 2 ** int(math.log2(max(train_images / 20, 1)))))
        chosen.append(Default("batch_size", batch_size, f"Batches of {batch_size} (--batch-size)."))
    if recipe.lr is None:
        name = recipe.optimizer.partition(":")[0]
        known = NETWORKS.get(model.partition(":")[0])
        factor = known.lr_factor if known and name == "sgd" else 1.0
        factor *= LINEAR_PROBE_LR_FACTOR if recipe.freeze == "backbone" else 1
        lr = float(f"{DEFAULT_LR[name] * factor * batch_size / 128:.4g}")
        chosen.append(Default("lr", lr, f"Peak learning rate {lr:g} (--lr)."))
    if recipe.weights is None and train_images < FEW_TRAIN_IMAGES:
        chosen.append(
            Default("weights", None, f"Only {train_images:,} images to learn from, from scratch: {_ADVICE}")
        )
    return chosen


def _default_augmentations(size: int, *, grey: bool) -> tuple[str, ...]:
    shift = max(1, size // 20 if grey else size // 8)
    return (f"shift:{shift}",) if grey else ("flip", f"shift:{shift}")


def default_epochs(recipe: Recipe, *, train_images: int, images_per_second: float) -> Default:
    """Whole epochs that fit nine tenths of the budget, but no more than do good."""
    assert recipe.batch_size is not None
    fitting = int(0.9 * parse_duration(recipe.budget) * images_per_second / train_images)
    enough = min(MAX_DEFAULT_EPOCHS, math.ceil(MAX_DEFAULT_STEPS * recipe.batch_size / train_images))
    count = max(1, min(fitting, enough))
    took = _format_minutes(count * train_images / images_per_second)
    what = "1 epoch" if count == 1 else f"{count} epochs"
    limit = f"the budget of {recipe.budget} (--budget)" if fitting < enough else "more would bring little"
    if not fitting:
        limit = f"even one is more than the budget of {recipe.budget} (try --size, --limit or another --model)"
    return Default("epochs", count, f"{what}, about {took}: {limit}; --epochs sets them.")


def _format_minutes(amount: float) -> str:
    return f"{amount:.0f} s" if amount < 90 else f"{amount / 60:.1f} min"
