"""What is chosen where the user chose nothing, and a sentence about each choice."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..data.headers import Survey
from .optimizers import DEFAULT_LR
from .recipe import Recipe, seconds

SIZES = (28, 32, 48, 64, 96, 128, 160, 192, 224)
"""Working sizes that are chosen by themselves; any from 8 to 1024 can be asked for."""

MAX_STEPS = 8000
"""More steps than this from scratch bring little at these sizes: a budget is not spent for its own sake."""

MAX_EPOCHS = 60

FEW = 1000
"""Fewer training images than this deserve a word of warning."""

_ADVICE = "expect a modest result; more images, or --weights to start from, help most."

PROBE_LR = 10
"""Times the usual learning rate where only the head learns: it is far from its best, and has nothing to lose."""

STEADY_LR: Mapping[str, float] = {
    "mlp": 0.5,
    "vgg11": 0.25,
    "vgg13": 0.25,
    "vgg16": 0.25,
    "alexnet-small": 0.25,
    "alexnet": 0.1,
}
"""Networks that bear less than the usual learning rate of SGD: by this factor (``benchmarks/rates.py``)."""


@dataclass(frozen=True)
class Choice:
    """A field that was chosen for the user: its value, and a sentence that says why and how to change it."""

    field: str
    value: object
    why: str


def pixels(recipe: Recipe, seen: Survey) -> list[Choice]:
    """Size and channels, from what a survey of the images says."""
    chosen: list[Choice] = []
    if recipe.size is None:
        size, why = _size(seen)
        chosen.append(Choice("size", size, f"Working size {size} x {size}: {why} (--size)."))
    if recipe.channels is None:
        channels = 3 if seen.grey < 0.99 else 1
        what = "colour" if channels == 3 else "grey"
        chosen.append(Choice("channels", channels, f"Working in {what}, as the images are (--channels)."))
    return chosen


def _size(seen: Survey) -> tuple[int, str]:
    low, median, high = seen.short_side.low, seen.short_side.median, seen.short_side.high
    if low == high == seen.width.high == seen.height.high and SIZES[0] <= low <= SIZES[-1]:
        return low, "all images have that size"
    if median < SIZES[0]:
        return SIZES[0], f"the images are smaller ({median:.0f} pixels), and this is the smallest that is chosen"
    return max(s for s in SIZES if s <= median), f"the median short side is {median:.0f} pixels"


def network(recipe: Recipe, *, train_images: int) -> list[Choice]:
    """Model, augmentation, batch size and learning rate, from size, channels and the number of images."""
    assert recipe.size is not None
    chosen: list[Choice] = []
    model = recipe.model
    if model is None:
        model = "lenet5" if recipe.channels == 1 and recipe.size <= 32 else "resnet20"
        chosen.append(Choice("model", model, f"Network {model}, by the size of the images (--model)."))
    if recipe.augment is None:
        words = _augmentations(recipe.size, grey=recipe.channels == 1)
        why = "no mirror images: grey pictures are often characters" if recipe.channels == 1 else "photographs"
        chosen.append(Choice("augment", words, f"Augmentation {' '.join(words)} ({why}; --augment)."))
    batch_size = recipe.batch_size
    if batch_size is not None and batch_size > train_images:
        batch_size = train_images
        chosen.append(Choice("batch_size", batch_size, f"Batches of {batch_size}: there are no more images."))
    if batch_size is None:
        batch_size = min(128, train_images, max(16, 2 ** int(math.log2(max(train_images / 20, 1)))))
        chosen.append(Choice("batch_size", batch_size, f"Batches of {batch_size} (--batch-size)."))
    if recipe.lr is None:
        name = recipe.optimizer.partition(":")[0]
        factor = STEADY_LR.get(model.partition(":")[0], 1.0) if name == "sgd" else 1.0
        factor *= PROBE_LR if recipe.freeze == "backbone" else 1
        lr = float(f"{DEFAULT_LR[name] * factor * batch_size / 128:.4g}")
        chosen.append(Choice("lr", lr, f"Peak learning rate {lr:g} (--lr)."))
    if recipe.weights is None and train_images < FEW:
        chosen.append(
            Choice("weights", None, f"Only {train_images:,} images to learn from, from scratch: {_ADVICE}")
        )
    return chosen


def _augmentations(size: int, *, grey: bool) -> tuple[str, ...]:
    shift = max(1, size // 20 if grey else size // 8)
    return (f"shift:{shift}",) if grey else ("flip", f"shift:{shift}")


def epochs(recipe: Recipe, *, train_images: int, images_per_second: float) -> Choice:
    """Whole epochs that fit nine tenths of the budget, but no more than do good."""
    assert recipe.batch_size is not None
    fitting = int(0.9 * seconds(recipe.budget) * images_per_second / train_images)
    enough = min(MAX_EPOCHS, math.ceil(MAX_STEPS * recipe.batch_size / train_images))
    count = max(1, min(fitting, enough))
    took = _minutes(count * train_images / images_per_second)
    what = "1 epoch" if count == 1 else f"{count} epochs"
    limit = f"the budget of {recipe.budget} (--budget)" if fitting < enough else "more would bring little"
    if not fitting:
        limit = f"even one is more than the budget of {recipe.budget} (try --size, --limit or another --model)"
    return Choice("epochs", count, f"{what}, about {took}: {limit}; --epochs sets them.")


def _minutes(amount: float) -> str:
    return f"{amount:.0f} s" if amount < 90 else f"{amount / 60:.1f} min"
