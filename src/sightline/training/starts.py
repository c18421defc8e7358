"""Where training starts when the recipe leaves it open: what pixels become, and published weights for photos."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .. import runtime
from ..classifier import Classifier
from ..data import Survey, is_stored, survey, time_decoding
from ..features import time_embedding
from ..models import WeightsCard, build, find_card, parse_architecture
from ..sources import Source, limit_training
from ..types import Dataset, Geometry, Splits
from .budget import format_minutes
from .build import build_classifier
from .plan import QUALITY_MODELS, Plan, resolve
from .recipe import PRETRAINED, Recipe, parse_duration

MAX_DEFAULT_EPOCHS = 60
"""Epochs after which more would gain little, at most."""

USUAL_NETWORK, SMALL_NETWORK = "resnet20", "lenet5"
"""What small colour images are trained with from random weights; the second where time is short."""

PHOTO_SIDE = 64
"""Pixels of the median short side from which images are taken for photos."""

SMALLER_SIZES = (192, 160, 128)
"""Working sizes in place of the card's, where features of all images at that would take too much of the budget."""

FEATURE_SHARE = 1 / 3
"""Share of the budget that features of all images may take."""

TIMED_IMAGES = 16
"""Images on which the speed of a network is measured."""

SLOW_IMAGE_SECONDS = 0.1
"""Nothing is measured where images that take so long would fit."""

READING_SHARE = 0.12
"""Share of the budget that reading and decoding the images may take."""

SLOW_DECODING_SECONDS = 0.01
"""Decoding is not timed where images that take so long would fit their share of the budget."""

MIN_READ_IMAGES = 500
"""Training images that are read even where they take more; or half as many as are held out, where these are more."""

TRAINING_SHARE = 0.5
"""Share of the budget that training gets, about, where the rest is start, images, test and report."""

MIN_IMAGE_PASSES = 60_000
"""Images, repeated ones counted, that the usual network for small colour images must see in the budget to be better
than a smaller one which sees many times as many."""

SMALL_SIDES = range(12, 65)
"""Working sizes at which a smaller network is taken where time is short; LeNet-5 takes no smaller ones."""

SLOW_RATE = 200.0
"""Images of 32 x 32 pixels per second: where training at this rate gives enough passes, nothing is measured."""

WHOLE_PICTURE_IMAGES = 300
"""Images from which fine-tuning sees whole pictures, squashed; the head of fewer is better with the centre alone."""

DEFAULT_SIZES = (28, 32, 48, 64, 96, 128, 160, 192, 224)
"""Working sizes that are chosen automatically; any from 8 to 1024 can be asked for."""

FINE_TUNING: Mapping[str, object] = {
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.01,
    "layer_decay": 0.75,
    "schedule": "cosine",
    "warmup": 0.1,
    "label_smoothing": 0.1,
    "ema_decay": 0.98,
    "freeze": "early",
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


def choose_pixels(start: Plan | Recipe, source: Source) -> list[Default]:
    """Size and channels where they are open; with a plan also published weights for photos, and what these expect."""
    recipe = start.recipe if isinstance(start, Plan) else start
    known = recipe.size is not None and recipe.channels is not None
    chosen: list[Default] = []
    if isinstance(start, Plan) and not (known and recipe.model is not None and start.card is None):
        chosen = default_start(start, survey(source))
        recipe = recipe.replace(**{default.field: default.value for default in chosen})
    if recipe.size is None or recipe.channels is None:
        chosen += default_pixels(survey(source), recipe.size, recipe.channels, recipe.window)
    return chosen


def default_pixels(
    images: Survey, size: int | None = None, channels: int | None = None, window: str | None = None
) -> list[Default]:
    """Size, channels and the range of 32-bit grey where they are open, from a survey of the images."""
    chosen: list[Default] = []
    if size is None:
        low, middle, high = images.short_side.low, images.short_side.median, images.short_side.high
        smallest, largest = DEFAULT_SIZES[0], DEFAULT_SIZES[-1]
        if low == high == images.width.high == images.height.high and smallest <= low <= largest:
            size, why = low, "all images have that size"
        elif middle < smallest:
            size, why = smallest, f"the images are smaller ({middle:.0f} pixels), and this is the smallest default"
        else:
            size = max(s for s in DEFAULT_SIZES if s <= middle)
            why = f"the median short side is {middle:.0f} pixels"
        chosen.append(Default("size", size, f"Working size {size} x {size}: {why} (--size)."))
    if channels is None:
        channels = 3 if images.grey < 0.99 else 1
        what = "colour" if channels == 3 else "grey"
        chosen.append(Default("channels", channels, f"Working in {what}, like the images (--channels)."))
    if window is None and images.window is not None:
        low, high = (f"{edge:.6g}" for edge in images.window)
        why = "which the values of a sample of these 32-bit images span"
        chosen.append(
            Default(
                "window",
                f"{low}:{high}",
                f"{low} is shown as black and {high} as white, {why} (--window {low}:{high}).",
            )
        )
    return chosen


def default_start(plan: Plan, images: Survey) -> list[Default]:
    """Published weights where the images are photos, and what the weights' card says of pixels."""
    recipe, card = plan.recipe, plan.card
    chosen: list[Default] = []
    if card is None:
        word = QUALITY_MODELS["standard"]
        untouched = recipe.model is None and recipe.weights is None and recipe.normalize is None
        plain = not (recipe.from_scratch or recipe.weight_noise or recipe.progressive_from or recipe.flip_tta)
        photos = images.short_side.median >= PHOTO_SIDE and (recipe.size is None or recipe.size >= PHOTO_SIDE)
        if not (untouched and recipe.init == "default" and plain and photos):
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
    size = None
    if recipe.size is None and recipe.epochs is None:
        size = affordable_size(recipe.model or str(chosen[0].value), card, images.total, recipe.budget)
    said = {"size": card.size if size is None else None, "normalize": PRETRAINED}
    tunes = recipe.method in (None, "finetune") and images.total >= WHOLE_PICTURE_IMAGES
    if recipe.resize_mode is None and tunes and card.crop_fraction < 1:
        why = (
            f"Whole pictures, squashed, instead of the card's centre crop of {card.crop_fraction:.1%}: with this "
            "many images their borders help (--resize-mode crop)."
        )
        chosen.append(Default("resize_mode", "squash", why))
    elif recipe.resize_mode in (None, "crop"):
        said |= {"resize_mode": "crop", "crop_fraction": card.crop_fraction}
    said["interpolation"] = card.interpolation
    open_fields = {name: value for name, value in said.items() if value and vars(recipe)[name] is None}
    if open_fields:
        shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in open_fields.items())
        first, *rest = open_fields
        chosen.append(Default(first, open_fields[first], f"Pixels as the card of the weights says: {shown}."))
        chosen += [Default(name, open_fields[name], "") for name in rest]
    return [*chosen, *filter(None, [size])]


def affordable_size(model: str, card: WeightsCard, count: int, budget: str) -> Default | None:
    """A smaller working size, where the features of ``count`` images at the card's size do not fit their share.

    The speed is measured on random pixels. None where the card's size fits, or where the network takes no other.
    """
    side, rng = card.size, np.random.default_rng(0)
    allowed = FEATURE_SHARE * parse_duration(budget)
    if count * SLOW_IMAGE_SECONDS <= allowed:
        return None
    geometry = Geometry(size=(side, side))
    rows = np.arange(TIMED_IMAGES)
    images = Dataset(
        pixels=rng.integers(0, 256, (TIMED_IMAGES, *geometry.shape), np.uint8),
        rows=rows,
        labels=rows % 2,
        classes=("a", "b"),
        files=rows.astype(str),
        digests=rows.astype(np.uint64),
        geometry=geometry,
        fingerprint="noise",
    )
    classifier = build_published_start(images, runtime.resolve_device("auto"), model)
    if "img_size" in getattr(classifier.network, "arguments", {}):
        return None
    seconds = time_embedding(classifier, images) / TIMED_IMAGES * count
    smaller = largest_affordable(seconds, allowed, side)
    if smaller == side:
        return None
    return Default(
        "size",
        smaller,
        f"Working size {smaller} x {smaller}: features of {count:,} images would take {format_minutes(seconds)} at "
        f"the card's {side}, more than a third of the budget of {budget} (--size, --budget).",
    )


def limit_train_images(
    recipe: Recipe, source: Source, *, within_budget: bool = True
) -> tuple[Source, list[Default]]:
    """The source with the recipe's ``train_limit``, or with as many training images as can be decoded in their share
    of the budget, and what was chosen.

    ``recipe`` has its size. Given val and test splits stay whole. All images stay where the epochs or ``limit`` are
    given, and where the decoded images are stored already.
    """
    if recipe.train_limit is not None:
        return limit_training(source, recipe.train_limit, recipe.data_seed), []
    allowed = READING_SHARE * parse_duration(recipe.budget)
    given = (recipe.epochs, recipe.steps, recipe.limit)
    if (
        not within_budget
        or any(each is not None for each in given)
        or len(source) * SLOW_DECODING_SECONDS <= allowed
    ):
        return source, []
    each = 0.0 if is_stored(source, recipe.geometry) else time_decoding(source, recipe.geometry)
    if len(source) * each <= allowed:
        return source, []
    held_out = int(np.isin(source.columns.get("split", ""), ("val", "test")).sum())
    count = max(MIN_READ_IMAGES, held_out // 2, int(allowed / each) - held_out)
    why = f"as many as the budget of {recipe.budget} allows (--budget), "
    limited = limit_training(source, count, recipe.data_seed, why)
    return limited, [] if limited is source else [Default("train_limit", count, "")]


def affordable_network(plan: Plan, images: Geometry, train_images: int) -> list[Default]:
    """A smaller network in place of the usual one for small colour images, where the budget is too short for that.

    The speed is measured on random pixels. Empty where the usual one fits, or the network or epochs are given.
    """
    recipe, side = plan.recipe, images.size[0]
    given = recipe.model or recipe.weights or recipe.epochs is not None or recipe.steps is not None
    if given or images.channels == 1 or side not in SMALL_SIDES:
        return []
    wanted = min(MIN_IMAGE_PASSES, MAX_DEFAULT_EPOCHS * train_images)
    allowed = TRAINING_SHARE * parse_duration(recipe.budget)
    if wanted * (side / 32) ** 2 / SLOW_RATE <= allowed:
        return []
    rate = _time_training(USUAL_NETWORK, images)
    if wanted / rate <= allowed:
        return []
    why = (
        f"Network {SMALL_NETWORK}, because {USUAL_NETWORK} would see about {allowed * rate:,.0f} images in the budget "
        f"of {recipe.budget}, too few to learn from (--model, --budget)."
    )
    return [Default("model", SMALL_NETWORK, why)]


def _time_training(model: str, images: Geometry) -> float:
    """Images per second of the fastest of three steps of training, on random pixels."""
    network = build(parse_architecture(model, classes=10, channels=images.channels, size=images.size)).train()
    pixels = torch.rand(TIMED_IMAGES, images.channels, *images.size)
    times: list[float] = []
    for _ in range(3):  # the first compiles kernels
        began = time.perf_counter()
        network.logits(pixels).logsumexp(1).sum().backward()
        times.append(time.perf_counter() - began)
    return TIMED_IMAGES / min(times)


def largest_affordable(seconds: float, allowed: float, side: int) -> int:
    """The size whose pass over the images fits, if it takes ``seconds`` at ``side`` and time grows with the pixels.

    >>> largest_affordable(100, 60, 224), largest_affordable(100, 30, 224)
    (160, 128)
    """
    sizes = (side, *(size for size in SMALLER_SIZES if size < side))
    return next((size for size in sizes if seconds * (size / side) ** 2 <= allowed), sizes[-1])


def build_published_start(
    images: Dataset,
    device: torch.device,
    model: str = QUALITY_MODELS["standard"],
    *,
    accept_licence: bool = True,
) -> Classifier:
    """A published network, as training on these images would begin with it; its head is random."""
    none = images.subset(np.arange(0))
    plan = resolve(Recipe(model=model, normalize=PRETRAINED, accept_licence=accept_licence))
    plan.check_licence()
    plan = plan.replace(size=images.geometry.size[0], channels=images.geometry.channels).fit_to(images)
    return build_classifier(plan, Splits(images, none, none), device)[0].eval()
