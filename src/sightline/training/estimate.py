"""What a training will cost, before it is spent: time per epoch, memory and disk."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .. import runtime
from ..data import iterate_batches, load_dataset, survey
from ..errors import DataError, RecipeError
from ..sources import Source, find
from ..types import Dataset, Findings, Remark, Splits
from . import autotune, defaults
from .freezing import check_freezing
from .plan import build_classifier, build_objective, check_progressive_size, recipe_geometry, validate_recipe
from .recipe import Recipe
from .transfer import inherit_settings

ESTIMATE_SAMPLE_IMAGES = 512
"""Images that are decoded to measure on."""


def estimate_cost(data: str | Path | None, recipe: Recipe | None = None, *, device: str = "auto") -> Findings:
    """Time per epoch, memory and disk that ``train`` would take, measured on a sample of the images.

    Writes nothing that stays. The values hold ``recipe`` (as it would be resolved), ``train_images``,
    ``decode_seconds``, ``epoch_seconds``, ``seconds``, ``memory_mb`` and ``disk_mb``. Raises as ``train`` does.
    """
    recipe = (recipe or Recipe()).replace(data=None if data is None else str(data))
    if recipe.data is None:
        raise RecipeError("Say which images to use: a folder, an archive, a table, or a name such as digits.")
    validate_recipe(recipe)
    recipe, _ = inherit_settings(recipe)
    assert recipe.data is not None
    source = find(recipe.data, limit=recipe.limit, seed=recipe.data_seed)
    known = recipe.size is not None and recipe.channels is not None
    chosen = [] if known else defaults.default_pixels(recipe, survey(source))
    recipe = recipe.replace(**{each.field: each.value for each in chosen})
    count = _count_train_images(source, recipe)
    more = defaults.default_network(recipe, train_images=count)
    recipe = recipe.replace(**{each.field: each.value for each in more})
    assert recipe.batch_size is not None
    sample, decode = _decode_sample(source, recipe)
    where = runtime.resolve_device(device)
    classifier, _ = build_classifier(recipe, Splits(sample, sample, sample), where)
    check_progressive_size(recipe, classifier)
    check_freezing(recipe, classifier.network)
    batch = next(iter(iterate_batches(sample, min(recipe.batch_size, len(sample)), device=where)))
    measured = autotune.measure_throughput(classifier, recipe, build_objective(recipe, sample.counts), batch)
    notes = [each.reason for each in (*chosen, *more)]
    if recipe.epochs is None:
        choice = defaults.default_epochs(recipe, train_images=count, images_per_second=measured.images_per_second)
        recipe, notes = recipe.replace(epochs=choice.value), [*notes, choice.reason]
    weights = sum(t.numel() * t.element_size() for t in classifier.state_dict().values())
    store = len(source) * int(np.prod(sample.geometry.shape))
    values: dict[str, Any] = {
        "recipe": asdict(measured.mode.apply_to(recipe)),
        "train_images": count,
        "images_per_second": measured.images_per_second,
        "decode_seconds": decode * len(source),
        "epoch_seconds": count / measured.images_per_second,
        "seconds": (recipe.epochs or 0) * count / measured.images_per_second + decode * len(source),
        "memory_mb": max(runtime.peak_memory_mb(), 0.0),
        "disk_mb": (store + _SAVED_COPIES * weights) / 1e6,
    }
    return Findings(
        "outlook", values, tuple(Remark("note", text) for text in (*notes, *_cost_sentences(values, store)))
    )


_SAVED_COPIES = 5
"""Times the weights that a run folder holds: the bundle, and a checkpoint with momentum and best weights."""


def _count_train_images(source: Source, recipe: Recipe) -> int:
    """Images that will be trained on, judged by given splits or by shares."""
    given = source.columns.get("split")
    if given is None:
        return max(2, round(len(source) * (1 - recipe.val - recipe.test)))
    pool = int((given == "train").sum())
    missing = sum(
        share for part, share in (("val", recipe.val), ("test", recipe.test)) if not (given == part).any()
    )
    return max(2, round(pool * (1 - missing)))


def _decode_sample(source: Source, recipe: Recipe) -> tuple[Dataset, float]:
    """A sample of the images, decoded into a place that does not stay, and the seconds each took."""
    count = min(len(source), max(ESTIMATE_SAMPLE_IMAGES, recipe.batch_size or 0))
    rows = np.sort(runtime.permutation(len(source), recipe.seed)[:count])
    with TemporaryDirectory(prefix="sightline-outlook-") as folder:
        started = time.perf_counter()
        dataset = load_dataset(source.subset(rows), recipe_geometry(recipe), cache=Path(folder), max_bad=1.0)
        took = time.perf_counter() - started
        if not len(dataset):
            raise DataError(f"None of {count} images of '{recipe.data}' could be read: sightline check lists why.")
        pixels = dataset[np.arange(len(dataset))]
    return replace(dataset, pixels=pixels, rows=np.arange(len(dataset))), took / count


def _cost_sentences(values: dict[str, Any], store: int) -> tuple[str, ...]:
    """The figures as sentences."""
    return (
        f"Decoding once: about {_format_duration(values['decode_seconds'])}, {store / 1e6:,.0f} MB on disk, kept.",
        f"An epoch of {values['train_images']:,} images: about {_format_duration(values['epoch_seconds'])} "
        f"({values['images_per_second']:,.0f} images/s).",
        f"In all about {_format_duration(values['seconds'])}, {values['memory_mb']:,.0f} MB of memory measured so far, "
        f"{values['disk_mb']:,.0f} MB of disk.",
    )


def _format_duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
