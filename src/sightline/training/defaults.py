"""What is chosen where a recipe leaves a field open: from the images, and by measuring this machine (autotuning).

Each choice comes with a sentence that says why, and which flag changes it.
"""

import copy
import hashlib
import json
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray

from .. import runtime
from ..batches import Batch
from ..classifier import Classifier
from ..data import DEFAULT_VAL_SHARE, iterate_batches
from ..errors import GradientError, OutputError
from ..files import write_json
from ..layers import kernel_layout, open_kernels
from ..models import NETWORKS
from ..types import Dataset
from .budget import EVALUATION_COST, PLANNED_SHARE, Deadline, format_minutes
from .build import MEMORY_FORMATS, count_passes
from .gradients import build_gradients, fused_kernels_may_help, replicas_may_help, split_batch
from .plan import Plan
from .recipe import PRETRAINED, Recipe, parse_duration
from .starts import FINE_TUNING, MAX_DEFAULT_EPOCHS, SMALL_NETWORK, USUAL_NETWORK, Default
from .transfer import Freezer

MAX_DEFAULT_STEPS = 8000
"""Steps: training longer from random weights gains little at these sizes, so a budget is not used up."""

FEW_TRAIN_IMAGES = 1000
"""With fewer training images than this, a warning says what to expect."""

LINEAR_PROBE_LR_FACTOR = 10
"""Factor on the usual learning rate where only the head learns."""

MIN_IMAGES_TO_VALIDATE = 10
"""Images of the median class from which some are set aside for validation where the head is computed."""

MIN_VALIDATION_IMAGES = 20
"""A smaller validation split is not worth its images where the head is computed."""

MIN_IMAGES_TO_REGRESS = 3
"""Training images of the median class from which a regression is the default head; class means below."""

PRECISIONS = ("float32", "bfloat16")

PRECISION_TRIAL_IMAGES = 8
"""Images on which a precision is first timed: one that the processor emulates is dropped."""

AUTOTUNE_STEPS = 15
"""Timed steps of each candidate, interleaved; their median decides."""

TRIAL_SECONDS = 1.0
"""No step of a trial begins after this time, once a way was timed: three trials cost 3 s and the steps begun."""

TRIAL_SHARE = 0.01
"""Share of the budget that a trial may take, where that is less."""

MAX_TRIAL_STEP_SECONDS = 0.3
"""A trial's step on more images than fit this time is taken on fewer: eight or more steps are needed."""

SLOW_STEP_FACTOR = 3.0
"""A candidate whose first timed step takes this many times the fastest one's is given up."""

MIN_SECONDS_TO_COMPILE = 60
"""A smaller budget is not spent on compiling kernels."""

ALL_UNFROZEN = 10**9
"""Epoch index large enough that every layer is unfrozen; the time budget is estimated from this slowest case."""


def default_method(plan: Plan, counts: Int[ndarray, " K"] | None = None) -> list[Default]:
    """How the last layer is learned, where that is open: from published weights the head first, which is by class
    means where ``counts``, the training images of each class, are few.
    """
    recipe = plan.recipe
    simple = (
        recipe.freeze == "none" and recipe.loss == "cross-entropy" and not (recipe.fairness_column or plan.domain)
    )
    pays = plan.card is not None and plan.source is None and simple and recipe.devices == 1
    if recipe.method is not None:
        return []
    if pays and counts is not None and np.median(counts) < MIN_IMAGES_TO_REGRESS:
        why = "The head is by prototypes, class means, because images are few (--method probe fits a regression)."
        return [Default("method", "prototypes", why)]
    return [Default("method", "finetune" if pays else "gradient", "")]


def default_fractions(plan: Plan, images: Dataset) -> list[Default]:
    """Shares of the validation and test images: nothing is set aside for validation where images are few and the
    head is computed, nor for the test where no class has a second image.
    """
    recipe, given = plan.recipe, images.columns.get("split")
    if recipe.val_fraction is not None:
        return []
    held_out = np.isin([] if given is None else given, ("val", "test"))
    pool = (images if given is None else images.subset(~held_out)).labelled
    usual = int(np.median(pool.counts))
    few = usual < MIN_IMAGES_TO_VALIDATE or DEFAULT_VAL_SHARE * len(pool) < MIN_VALIDATION_IMAGES
    method = recipe.method or default_method(plan)[0].value
    if method == "gradient" or recipe.epochs or (given is not None and (given == "val").any()) or not few:
        return [Default("val_fraction", DEFAULT_VAL_SHARE, "")]
    calibrated = "on training images left out in turn" if usual > 1 else "on nothing, so it is no probability"
    aside = f"With {usual} image{'s' * (usual > 1)} a class none is set aside for validation"
    why = f"{aside}: all teach the head, and confidence is calibrated {calibrated} (--val-fraction)."
    chosen = [Default("val_fraction", 0.0, why)]
    if pool.counts.max() < 2 and (given is None or not (given == "test").any()):
        why = "No image is left to test on, so nothing is measured: sightline evaluate RUN DATA tests on others."
        chosen.append(Default("test_fraction", 0.0, why))
    return chosen


def default_network(plan: Plan, *, train_images: int) -> list[Default]:
    """Model, augmentation, batch size and learning rate, from size, channels and the number of images."""
    recipe, size, grey = plan.recipe, plan.recipe.size, plan.recipe.channels == 1
    assert size is not None
    chosen: list[Default] = []
    if recipe.normalize is None:
        chosen.append(Default("normalize", PRETRAINED if plan.card else "fitted", ""))
    if recipe.method is None:
        chosen += default_method(plan)
        plan = plan.replace(method=chosen[-1].value)
    if plan.head is not None and plan.head.fine_tunes:
        chosen += [
            Default(name, value, "")
            for name, value in FINE_TUNING.items()
            if (name not in recipe.fields_set or vars(recipe)[name] is None)
            and not (name == "label_smoothing" and plan.semi_supervised)  # pseudo-labels need confidence
        ]
        recipe = plan.replace(**{default.field: default.value for default in chosen}).recipe
    if plan.semi_supervised and "ema_decay" not in recipe.fields_set:
        chosen.append(Default("ema_decay", 0.999, "A moving average of the weights is kept (--ema-decay)."))
    if recipe.model is None:
        model = SMALL_NETWORK if grey and size <= 32 else USUAL_NETWORK
        chosen.append(Default("model", model, f"Network {model}, chosen by the size of the images (--model)."))
    if recipe.augment is None:
        shift = max(1, size // 20 if grey else size // 8)
        words = (f"shift:{shift}",) if grey else ("flip", f"shift:{shift}")
        why = "no mirror images: grey pictures are often characters" if grey else "photographs"
        chosen.append(Default("augment", words, f"Augmentation {' '.join(words)} ({why}; --augment)."))
    batch_size = recipe.batch_size
    if batch_size is not None and batch_size > train_images:
        batch_size = train_images
        chosen.append(Default("batch_size", batch_size, f"Batches of {batch_size}: all the training images."))
    if batch_size is None:
        batch_size = min(128, train_images, max(16, 2 ** int(math.log2(max(train_images / 20, 1)))))
        chosen.append(Default("batch_size", batch_size, f"Batches of {batch_size} (--batch-size)."))
    if recipe.lr is None:
        known = None if plan.architecture is None else NETWORKS.get(plan.architecture.name)
        factor = 1.0 if plan.optimizer.steady or known is None else known.lr_factor
        factor *= LINEAR_PROBE_LR_FACTOR if plan.freezing.head_only else 1
        lr = float(f"{plan.optimizer.default_lr * factor * batch_size / 128:.4g}")
        chosen.append(Default("lr", lr, f"Peak learning rate {lr:g} (--lr)."))
    if recipe.weights is None and not plan.is_pretrained and train_images < FEW_TRAIN_IMAGES:
        few = (
            f"Only {train_images:,} training images and random initial weights: expect a modest result; more images, "
            "or --weights to start from, help most."
        )
        chosen.append(Default("weights", None, few))
    return chosen


def useful_epochs(recipe: Recipe, train_images: int) -> int:
    """Epochs after which more would gain little."""
    assert recipe.batch_size is not None
    most = MAX_DEFAULT_STEPS if recipe.semi_supervised else MAX_DEFAULT_EPOCHS  # few labels are seen very often
    return min(most, math.ceil(MAX_DEFAULT_STEPS * recipe.batch_size / train_images))


def default_epochs(
    recipe: Recipe, *, train_images: int, images_per_second: float, seconds: float | None = None
) -> Default:
    """Whole epochs that fit the ``seconds`` left, or those of the budget, but no more than are useful."""
    if recipe.steps is not None:
        count = math.ceil(recipe.steps * (recipe.batch_size or 1) / train_images)
        return Default("epochs", count, f"{recipe.steps:,} steps, in {count} epochs (--steps).")
    available = max(0.0, PLANNED_SHARE * parse_duration(recipe.budget) if seconds is None else seconds)
    enough, passes = useful_epochs(recipe, train_images), available * images_per_second / train_images
    fitting = bisect_right(range(1, enough + 1), passes, key=partial(count_passes, recipe))
    count = max(1, fitting)
    took = format_minutes(count_passes(recipe, count) * train_images / images_per_second)
    limit = f"the budget of {recipe.budget} (--budget)" if fitting < enough else "more would gain little"
    if not fitting:
        share = f"the budget of {recipe.budget} has time for about {passes:.0%}"
        limit = f"{share} of one (try --size, --limit or another --model)"
    return Default(
        "epochs", count, f"{count} epoch{'s' * (count > 1)}, about {took}: {limit}; --epochs sets them."
    )


@dataclass(frozen=True)
class ExecutionMode:
    """How a training step is executed."""

    precision: str
    memory_format: str
    cpu_replicas: int = 1
    fused_kernels: bool = False

    def __str__(self) -> str:
        replicas = f", {self.cpu_replicas} replicas of one thread each" if self.cpu_replicas > 1 else ""
        return f"{self.precision}, {self.memory_format}{', fused kernels' * self.fused_kernels}{replicas}"


@dataclass(frozen=True)
class Throughput:
    """The fastest mode, and its images per second."""

    mode: ExecutionMode
    images_per_second: float
    notes: tuple[str, ...] = ()


def choose_execution(
    plan: Plan, classifier: Classifier, train: Dataset, deadline: Deadline | None = None
) -> tuple[Plan, tuple[str, ...]]:
    """The plan with precision, memory format, replicas and epochs chosen where its recipe leaves them open; and notes.

    Measures on a batch of the training images unless the recipe has all four, or trains nothing. Epochs fit the
    ``deadline``, or without one the whole budget.
    """
    recipe = plan.recipe
    assert recipe.batch_size is not None
    decided = None not in (recipe.precision, recipe.memory_format, recipe.cpu_replicas)
    if recipe.epochs == 0 or (decided and recipe.epochs is not None):
        return with_default_execution(plan), ()
    batch = next(iter(iterate_batches(train, recipe.batch_size, device=classifier.device)))
    measured = measure_throughput(classifier, plan, batch, train_images=len(train))
    why = "" if decided else ", the fastest measured here"
    speed = f"about {measured.images_per_second:,.0f} images/s"
    notes = [f"Training in {measured.mode}{why}: {speed}.", *measured.notes]
    chosen = vars(measured.mode)
    if recipe.epochs is None:
        rate = measured.images_per_second * (recipe.devices if classifier.device.type == "cuda" else 1)
        rate /= beside.cost if (beside := plan.semi_supervised or plan.domain) else 1
        seconds = None
        if deadline is not None:
            deadline.image_seconds = deadline.image_seconds or EVALUATION_COST[measured.mode.precision] / rate
            seconds = deadline.seconds_left()
        epochs = default_epochs(recipe, train_images=len(train), images_per_second=rate, seconds=seconds)
        chosen = {**chosen, "epochs": epochs.value}
        notes.append(epochs.reason)
    return plan.replace(**chosen), tuple(notes)


def with_default_execution(plan: Plan) -> Plan:
    """The plan in float32, contiguous memory, plain operators and one replica wherever its recipe leaves them open."""
    recipe = plan.recipe
    mode = ExecutionMode(
        recipe.precision or "float32",
        recipe.memory_format or "contiguous",
        recipe.cpu_replicas or 1,
        recipe.fused_kernels or False,
    )
    return plan.replace(**vars(mode))


def measure_throughput(classifier: Classifier, plan: Plan, batch: Batch, *, train_images: int = 0) -> Throughput:
    """Train copies of the classifier on one batch in each mode the recipe leaves open; return the fastest.

    The mode is cached by processor, network, recipe and batch shape; its speed is measured every time. Fused kernels
    are compiled for it where ``train_images`` make the training long enough.
    """
    recipe, library, notes = plan.recipe, None, ()
    image_passes = train_images * (recipe.epochs or useful_epochs(recipe, max(1, train_images)))
    if recipe.epochs is None and parse_duration(recipe.budget) < MIN_SECONDS_TO_COMPILE:
        image_passes = 0
    if fused_kernels_may_help(classifier, recipe, image_passes):
        library, why = open_kernels()
        notes = (why,) if why else ()
    path = runtime.cache_dir() / "throughput" / f"{_cache_key(classifier, plan, batch, library is not None)}.json"
    if path.exists():
        known = json.loads(path.read_text())
        return Throughput(*_time_modes([ExecutionMode(**known["mode"])], classifier, plan, batch), notes)
    trial = min(TRIAL_SECONDS, TRIAL_SHARE * parse_duration(recipe.budget))
    ends = time.perf_counter() + (3 if library is None else 4) * trial
    memory_formats = ("channels_last", "contiguous") if recipe.memory_format is None else (recipe.memory_format,)
    precisions = [recipe.precision] if recipe.precision else list(PRECISIONS)
    if recipe.precision is None:  # a few images show which one is emulated: it may be 20 times slower
        few = split_batch(batch, max(1, len(batch) // PRECISION_TRIAL_IMAGES))[0]
        with ExitStack() as stack:
            tried = [ExecutionMode(precision, "channels_last") for precision in PRECISIONS]
            trials = {mode.precision: _prepare_step(stack, classifier, plan, few, mode) for mode in tried}
            patience = (
                3 if runtime.has_bfloat16(classifier.device.type) else 1
            )  # it is worth the whole trial there
            times = runtime.time_interleaved(trials, 2, seconds=patience * trial)
        best = {name: min(each) for name, each in times.items() if each}
        # The fastest comes first: of a slow network no other may be timed within the trial.
        precisions = sorted((name for name in best if best[name] <= 2 * min(best.values())), key=best.__getitem__)
        affordable = max(16 * torch.get_num_threads(), int(MAX_TRIAL_STEP_SECONDS * len(few) / min(best.values())))
        if time.perf_counter() > ends - trial:  # one step takes too long to try others
            fastest = min(best, key=lambda name: best[name])
            mode = ExecutionMode(fastest, recipe.memory_format or "channels_last", recipe.cpu_replicas or 1)
            return Throughput(mode, len(few) / best[fastest])
        batch = split_batch(batch, math.ceil(len(batch) / affordable))[0]
    settled = (recipe.cpu_replicas or 1, recipe.fused_kernels or False)
    modes = [ExecutionMode(precision, layout, *settled) for precision in precisions for layout in memory_formats]
    mode, rate = _time_modes(modes, classifier, plan, batch)
    if library is not None:
        fused = replace(mode, memory_format=kernel_layout(classifier.network), fused_kernels=True)
        with suppress(GradientError):  # of an objective that needs a second derivative
            mode, rate = _time_modes([mode, fused], classifier, plan, batch)
    beside = plan.semi_supervised or plan.domain
    if recipe.cpu_replicas is None and replicas_may_help(classifier, recipe, plan.objective, beside):
        if time.perf_counter() > ends - trial:
            return Throughput(mode, rate, notes)  # a busy moment: nothing to remember
        replicated = replace(mode, cpu_replicas=torch.get_num_threads())
        mode, rate = _time_modes([mode, replicated], classifier, plan, batch)
    if time.perf_counter() > ends:
        return Throughput(mode, rate, notes)
    with suppress(OutputError):  # without a cache it is measured again
        write_json(path, {"mode": vars(mode)})
    return Throughput(mode, rate, notes)


def to_memory_format(classifier: Classifier, memory_format: str) -> Classifier:
    """The classifier with its kernels in this memory format, in place."""
    for tensor in (*classifier.parameters(), *classifier.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=MEMORY_FORMATS[memory_format])
    return classifier


def _time_modes(
    modes: Sequence[ExecutionMode], classifier: Classifier, plan: Plan, batch: Batch
) -> tuple[ExecutionMode, float]:
    """The mode with the fastest median step, and its images per second."""
    with ExitStack() as stack:
        stack.enter_context(runtime.keep_freed_memory())
        trials = {str(mode): _prepare_step(stack, classifier, plan, batch, mode) for mode in modes}
        seconds = min(TRIAL_SECONDS, TRIAL_SHARE * parse_duration(plan.recipe.budget))
        times = runtime.time_interleaved(trials, AUTOTUNE_STEPS, seconds=seconds, give_up=SLOW_STEP_FACTOR)
    mode = min((each for each in modes if times[str(each)]), key=lambda each: median(times[str(each)]))
    return mode, len(batch) / median(times[str(mode)])


def _prepare_step(
    stack: ExitStack, classifier: Classifier, plan: Plan, batch: Batch, mode: ExecutionMode
) -> Callable[[], None]:
    """One training step of a copy of the classifier."""
    own = to_memory_format(copy.deepcopy(classifier), mode.memory_format).train()
    optimizer = plan.build_optimizer(own)
    Freezer(own, plan.freezing, freeze_norms=plan.recipe.freeze_norms)(ALL_UNFROZEN)
    pixels = batch.pixels.contiguous(memory_format=MEMORY_FORMATS[mode.memory_format])
    batch, objective = replace(batch, pixels=pixels), plan.objective
    gradients = build_gradients(
        own,
        bfloat16=mode.precision == "bfloat16",
        pieces=plan.recipe.grad_accum_steps,
        replicas=mode.cpu_replicas,
        fused=mode.fused_kernels,
    )
    stack.enter_context(gradients)

    def step() -> None:
        loss = gradients(objective, batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def _cache_key(classifier: Classifier, plan: Plan, batch: Batch, fused: bool) -> str:
    """A hash of everything the speed depends on."""
    recipe = plan.recipe
    facts = (
        runtime.processor_name(),
        torch.backends.cpu.get_cpu_capability(),  # virtual machines of many kinds have one name
        str(classifier.device),
        torch.__version__,
        torch.get_num_threads(),
        repr(classifier.architecture),
        repr(plan.objective),
        tuple(batch.pixels.shape),
        recipe.precision,
        recipe.memory_format,
        recipe.cpu_replicas,
        recipe.fused_kernels,
        fused,
        recipe.grad_accum_steps,
        recipe.devices,
        recipe.optimizer,
        recipe.freeze,
    )
    return hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()
