"""Before a training: what it will cost (time, memory, disk), and which learning rate to begin with."""

import copy
import math
import time
from dataclasses import asdict, dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .. import runtime
from ..classifier import Classifier
from ..data import DEFAULT_VAL_SHARE, MAX_UNREADABLE_SHARE, iterate_batches, load_dataset
from ..errors import DataError, RecipeError, TrainingError
from ..sources import Source, find, find_unlabelled
from ..types import UNLABELLED, Dataset, Findings, Remark, Splits
from .budget import format_minutes
from .build import build_classifier, build_method, count_passes
from .defaults import (
    ALL_UNFROZEN,
    default_epochs,
    default_network,
    measure_throughput,
    to_memory_format,
    with_default_execution,
)
from .distributed import check_processes
from .fit import Method
from .gradients import build_gradients
from .plan import Plan, resolve
from .preparation import prepare
from .recipe import Recipe
from .restoring import split_to_train
from .rival import RIVAL_NOTE, rival_recipe
from .starts import affordable_network, choose_pixels, limit_train_images
from .transfer import Freezer
from .unlabelled import no_pool_error

ESTIMATE_SAMPLE_IMAGES = 512
"""Images that are decoded to measure on."""

SAVED_WEIGHT_COPIES = 5
"""Copies of the weights in a run folder: the bundle, and a checkpoint with momentum and best weights."""

LOSS_SMOOTHING = 0.9
"""Weight of the running mean in the smoothed loss of the range test."""

DIVERGENCE_FACTOR = 4.0
"""The range test ends where the smoothed loss exceeds its minimum by this factor."""


def estimate_cost(data: str | Path | None, recipe: Recipe | None = None, *, device: str = "auto") -> Findings:
    """Time per epoch, memory and disk that ``train`` would take, measured on a sample of the images.

    Leaves nothing on disk. The values are ``recipe`` (as it would be resolved), ``train_images``,
    ``images_per_second``, ``decode_seconds``, ``epoch_seconds``, ``seconds``, ``memory_mb`` and ``disk_mb``. Raises
    as ``train`` does before its first step; of more than ``ESTIMATE_SAMPLE_IMAGES`` images only a sample is read.
    """
    recipe = (recipe or Recipe()).replace(data=None if data is None else str(data))
    if recipe.data is None:
        raise RecipeError("Say which images to use: a folder, an archive, a table, or a name such as digits.")
    plan = resolve(recipe)
    plan.check_network()
    if plan.recipe.target is not None:
        find_unlabelled(plan.recipe.target)  # raises where there is none
    source = find(recipe.data, limit=recipe.limit, seed=recipe.data_seed, rule=recipe.label_rule)
    pixels = choose_pixels(plan, source)
    plan = plan.replace(**{each.field: each.value for each in pixels})
    known = len(source.notes)
    source, limited = limit_train_images(plan.recipe, source)
    limits, pixels = source.notes[known:], [*pixels, *limited]
    images, everything = _count_train_images(source, plan.recipe), len(source)
    if plan.semi_supervised is not None and plan.recipe.unlabelled is None and (source.labels != UNLABELLED).all():
        raise no_pool_error(plan.recipe)
    source = source.subset(np.flatnonzero(source.labels != UNLABELLED))
    pixels += affordable_network(plan, plan.recipe.geometry, len(source))
    plan = plan.replace(**{each.field: each.value for each in pixels})
    network = default_network(plan, train_images=images)
    plan = plan.replace(**{each.field: each.value for each in network})
    sample, decode = _decode_sample(source, plan.recipe)
    where = runtime.resolve_device(device)
    if len(sample) + len(sample.skipped) == len(source):
        split_to_train(sample, plan.recipe)  # its errors are those of training
    plan = plan.fit_to(sample)
    check_processes(plan.recipe.devices, where, plan.recipe.batch_size or 1)
    classifier, _ = build_classifier(plan, Splits(sample, sample, sample), where)
    batch = next(iter(iterate_batches(sample, min(plan.recipe.batch_size or 1, len(sample)), device=where)))
    measured = measure_throughput(classifier, plan, batch, train_images=images)
    rate, notes = (
        measured.images_per_second / (beside.cost if (beside := plan.semi_supervised or plan.domain) else 1),
        [*limits, *(each.reason for each in (*pixels, *network)), *measured.notes],
    )
    plan = plan.replace(**vars(measured.mode))
    if plan.head is not None:
        notes.append(
            "The last layer is computed on frozen features first; fine-tuning follows only where it pays."
        )
        if not plan.head.fine_tunes:
            plan = plan.replace(epochs=0)
        if rival_recipe(recipe, plan, sample, images) is not None:
            notes.append(RIVAL_NOTE)
    if plan.recipe.epochs is None:
        epochs = default_epochs(plan.recipe, train_images=images, images_per_second=rate)
        plan, notes = plan.replace(epochs=epochs.value), [*notes, epochs.reason]
    weights = sum(t.numel() * t.element_size() for t in classifier.state_dict().values())
    store = everything * int(np.prod(sample.geometry.shape))
    values: dict[str, Any] = {
        "recipe": asdict(plan.recipe),
        "train_images": images,
        "images_per_second": rate,
        "decode_seconds": decode * everything,
        "epoch_seconds": images / rate,
        "seconds": count_passes(plan.recipe, plan.recipe.epochs or 0) * images / rate + decode * everything,
        "memory_mb": max(runtime.peak_memory_mb(), 0.0),
        "disk_mb": (store + SAVED_WEIGHT_COPIES * weights) / 1e6,
    }
    notes += [
        f"Decoding once: about {format_minutes(values['decode_seconds'])}, {store / 1e6:,.0f} MB on disk, kept.",
        f"An epoch of {images:,} images: about {format_minutes(values['epoch_seconds'])} ({rate:,.0f} images/s).",
        f"In total about {format_minutes(values['seconds'])}, {values['memory_mb']:,.0f} MB of memory measured so far, "
        f"{values['disk_mb']:,.0f} MB of disk.",
    ]
    return Findings("cost of training", values, tuple(Remark("note", text) for text in notes))


def _count_train_images(source: Source, recipe: Recipe) -> int:
    """Number of training images, by the data's own splits or by the fractions."""
    source = source.subset(np.flatnonzero(source.labels != UNLABELLED))
    given = source.columns.get("split")
    val = DEFAULT_VAL_SHARE if recipe.val_fraction is None else recipe.val_fraction
    if given is None:
        return max(2, round(len(source) * (1 - val - recipe.test_fraction)))
    pool = int((given == "train").sum())
    missing = sum(
        fraction for part, fraction in (("val", val), ("test", recipe.test_fraction)) if not (given == part).any()
    )
    return max(2, round(pool * (1 - missing)))


def _decode_sample(source: Source, recipe: Recipe) -> tuple[Dataset, float]:
    """A sample of the images, decoded into a temporary folder, and the seconds per image."""
    count = min(len(source), max(ESTIMATE_SAMPLE_IMAGES, recipe.batch_size or 0))
    rows = np.sort(runtime.permutation(len(source), recipe.seed)[:count])
    with TemporaryDirectory(prefix="sightline-outlook-") as folder:
        started = time.perf_counter()
        max_bad = 1.0 if count < len(source) else MAX_UNREADABLE_SHARE  # all of them: refused as training refuses
        dataset = load_dataset(source.subset(rows), recipe.geometry, cache=Path(folder), max_bad=max_bad)
        took = time.perf_counter() - started
        if not len(dataset):
            raise DataError(f"None of {count} images of '{recipe.data}' could be read: sightline check lists why.")
        if (bad := len(dataset.skipped)) > MAX_UNREADABLE_SHARE * count:
            raise DataError(
                f"{bad} of a sample of {count} images of '{recipe.data}' cannot be read, and training refuses more "
                f"than {MAX_UNREADABLE_SHARE:.0%}: repair or remove what sightline check lists."
            )
        pixels = dataset[np.arange(len(dataset))]
    return replace(dataset, pixels=pixels, rows=np.arange(len(dataset))), took / count


@dataclass(frozen=True)
class LRFinderResult:
    """Learning rates tried, rising by a constant factor, and the loss at each."""

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed training losses."""
    suggestion: float
    """The rate at which the loss falls fastest per doubling of the rate."""

    def findings(self) -> Findings:
        """For JSON and people."""
        text = (
            f"The loss falls fastest at a rate of {self.suggestion:g}: for a peak, try from there up to "
            f"the rate of the lowest loss, {self.lrs[int(np.argmin(self.losses))]:g} (--lr)."
        )
        values = {"suggestion": self.suggestion, "rates": self.lrs, "losses": self.losses}
        return Findings("learning rate", values, (Remark("note", text),))


def find_lr(data: str | Path | None, recipe: Recipe | None = None, *, device: str = "auto") -> LRFinderResult:
    """The LR range test for data and a recipe with open fields; keeps nothing but the decoded images.

    Raises as ``train`` does.
    """
    plan = resolve((recipe or Recipe()).replace(data=None if data is None else str(data)))
    plan.check_network()
    plan, splits, _ = prepare(plan)
    plan = with_default_execution(plan)
    where = runtime.resolve_device(device)
    classifier, _ = build_classifier(plan, splits, where)
    return run_lr_range_test(classifier, plan, build_method(plan, splits, where))


def run_lr_range_test(
    classifier: Classifier,
    plan: Plan,
    method: Method,
    *,
    low: float = 1e-5,
    high: float = 10.0,
    steps: int = 100,
) -> LRFinderResult:
    """Train a copy for at most ``steps`` steps while the rate rises from ``low`` to ``high``, exponentially.

    Smith 2015 (arXiv 1506.01186, section 3.3). The classifier does not change. Raises TrainingError where not even
    the lowest rates give a finite loss.
    """
    recipe = plan.recipe
    own = to_memory_format(copy.deepcopy(classifier), recipe.memory_format or "contiguous").train()
    optimizer = plan.build_optimizer(own, lr=low)
    Freezer(own, plan.freezing)(ALL_UNFROZEN)
    gradients = build_gradients(
        own,
        bfloat16=recipe.precision == "bfloat16",
        pieces=recipe.grad_accum_steps,
        fused=bool(recipe.fused_kernels),
    )
    lrs, losses, running = [], [], 0.0
    endless = chain.from_iterable(method.batches(epoch, 0) for epoch in count())
    for step, batch in enumerate(islice(endless, steps)):
        lr = low * (high / low) ** (step / max(steps - 1, 1))
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        loss = float(gradients(method.objective, batch))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running = LOSS_SMOOTHING * running + (1 - LOSS_SMOOTHING) * loss
        smooth = running / (1 - LOSS_SMOOTHING ** (step + 1))
        if not math.isfinite(loss) or (losses and smooth > DIVERGENCE_FACTOR * min(losses)):
            break
        lrs.append(lr)
        losses.append(smooth)
    if len(losses) < 5:
        raise TrainingError("The loss is not finite even at tiny learning rates: check images, weights and loss.")
    # Where the loss falls fastest before its minimum, over a window; the first losses are means of a few batches.
    width = max(2, len(losses) // 12)
    lowest = max(int(np.argmin(losses)), 3 * width)
    falls = [losses[i + width] - losses[i - width] for i in range(2 * width, min(lowest, len(losses) - width))]
    middle = 2 * width + int(np.argmin(falls)) if falls else len(losses) // 2
    return LRFinderResult(tuple(lrs), tuple(losses), float(f"{lrs[middle]:.1e}"))
