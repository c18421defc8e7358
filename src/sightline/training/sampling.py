"""How images are drawn for batches: any, every class equally often, or several images each of a few classes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import DataError
from ..types import Dataset
from .losses import Objective
from .recipe import Recipe

MIN_CLASS_SHARE = 4
"""Mean number of images of a class that a random batch should have for a loss that compares them."""


@dataclass(frozen=True)
class Sampling:
    """How images are drawn for a batch."""

    balanced: bool = False
    """Every class equally often."""
    classes: int = 0
    """Classes of each batch, with as many images of each; 0 for any."""


def sample_shuffled() -> Sampling:
    """Images in random order, each once in an epoch."""
    return Sampling()


def sample_balanced() -> Sampling:
    """Every class equally often, however few images it has."""
    return Sampling(balanced=True)


def sample_classes(classes: int = 8) -> Sampling:
    """Batches of that many classes, with equally many images of each.

    Raises ValueError for fewer than 2.
    """
    if classes < 2:
        raise ValueError(f"classes must be at least 2, not {classes}: images of different classes are compared")
    return Sampling(classes=classes)


SAMPLINGS: Mapping[str, Callable[..., Sampling]] = {
    "shuffled": sample_shuffled,
    "balanced": sample_balanced,
    "classes": sample_classes,
}
"""The words of ``sampling``: ``classes:8``."""


def default_sampling(objective: Objective, recipe: Recipe, train: Dataset) -> tuple[str, str] | None:
    """The word of ``sampling`` where random batches have too few images of a class for the objective, and why.

    Raises DataError for a class with too few images to compare.
    """
    least, size, count = objective.min_class_images, recipe.batch_size or 0, len(train.classes)
    if least == 1:
        return None
    if few := [f"{name} ({n})" for name, n in zip(train.classes, train.counts, strict=True) if n < least]:
        raise DataError(
            f"{objective.name} compares images of one class, but of some there are fewer than {least} training images: "
            f"{', '.join(few[:5])}. Add images, leave these classes out, or use --loss cross-entropy."
        )
    places = size // (2 * MIN_CLASS_SHARE)
    if "sampling" in recipe.fields_set or size >= MIN_CLASS_SHARE * count or places < 2:
        return None
    return (
        f"classes:{places}",
        f"Batches of {places} classes each: random ones would have too few images of a class (--sampling).",
    )
