"""How fast a recipe trains here, and in which precision, layout and replicas: measured, then remembered."""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from statistics import median

import torch

from .. import runtime
from ..classifier import Classifier
from ..errors import OutputError
from ..files import write_json
from ..types import Batch
from .adversarial import AdversarialLoss
from .freezing import Freezer
from .gradients import build_gradients, is_stochastic, split_batch
from .losses import Objective
from .optimizers import build_optimizer
from .recipe import Recipe

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

PRECISIONS = ("float32", "bfloat16")

PRECISION_TRIAL_IMAGES = 8
"""Images on which a precision shows whether it is emulated."""

AUTOTUNE_STEPS = 4
"""Steps of each candidate, taken in turn."""

ALL_UNFROZEN = 10**9
"""An epoch in which everything learns that ever will: a budget is reckoned by the slowest epochs."""


@dataclass(frozen=True)
class ExecutionMode:
    """How a step is worked."""

    precision: str
    memory_format: str
    replicas: int = 1

    def __str__(self) -> str:
        shared = f", {self.replicas} replicas of one thread each" if self.replicas > 1 else ""
        return f"{self.precision}, {self.memory_format}{shared}"

    def apply_to(self, recipe: Recipe) -> Recipe:
        """The recipe, worked this way."""
        return recipe.replace(**vars(self))


@dataclass(frozen=True)
class Throughput:
    """What measured fastest, and how fast it was."""

    mode: ExecutionMode
    images_per_second: float


def has_execution_mode(recipe: Recipe) -> bool:
    """Whether the recipe leaves nothing of the way open."""
    return None not in (recipe.precision, recipe.memory_format, recipe.replicas)


def with_default_execution(recipe: Recipe) -> Recipe:
    """The recipe with the plainest way wherever it says nothing."""
    plain = ExecutionMode(
        recipe.precision or "float32", recipe.memory_format or "contiguous", recipe.replicas or 1
    )
    return plain.apply_to(recipe)


def measure_throughput(classifier: Classifier, recipe: Recipe, objective: Objective, batch: Batch) -> Throughput:
    """Train copies of the classifier on one batch in each way the recipe leaves open.

    Remembered per machine, network and batch shape, so that it is paid once and a machine keeps its choice.
    """
    path = runtime.cache_dir() / "pace" / f"{_cache_key(classifier, recipe, objective, batch)}.json"
    if path.exists():
        known = json.loads(path.read_text())
        return Throughput(ExecutionMode(**known["way"]), known["images_per_second"])
    layouts = tuple(MEMORY_FORMATS) if recipe.memory_format is None else (recipe.memory_format,)
    precisions = _candidate_precisions(classifier, recipe, objective, batch)
    ways = [ExecutionMode(p, layout, recipe.replicas or 1) for p in precisions for layout in layouts]
    way, rate = _time_modes(ways, classifier, recipe, objective, batch)
    if recipe.replicas is None and (others := _replica_modes(way, classifier, recipe, objective)):
        way, rate = _time_modes([way, *others], classifier, recipe, objective, batch)
    with suppress(OutputError):  # a cache that cannot be written only means measuring again
        write_json(path, {"way": vars(way), "images_per_second": rate})
    return Throughput(way, rate)


def _replica_modes(
    way: ExecutionMode, classifier: Classifier, recipe: Recipe, objective: Objective
) -> list[ExecutionMode]:
    """The same way in as many replicas as there are threads, where that may help and is exactly repeatable."""
    threads = torch.get_num_threads()
    fits = (recipe.batch_size or 0) >= 16 * threads and recipe.processes == 1
    if classifier.device.type != "cpu" or threads == 1 or not fits:
        return []
    if is_stochastic(classifier) or isinstance(objective, AdversarialLoss):
        return []
    return [replace(way, replicas=threads)]


def _time_modes(
    ways: Sequence[ExecutionMode], classifier: Classifier, recipe: Recipe, objective: Objective, batch: Batch
) -> tuple[ExecutionMode, float]:
    """The way whose least disturbed step was quickest, and its usual images per second."""
    with ExitStack() as stack:
        stack.enter_context(runtime.keep_freed_memory())
        trials = {str(way): _prepare_step(stack, classifier, recipe, objective, batch, way) for way in ways}
        times = runtime.time_interleaved(trials, AUTOTUNE_STEPS)
    way = min(ways, key=lambda each: min(times[str(each)]))
    return way, len(batch) / median(times[str(way)])


def to_memory_format(classifier: Classifier, layout: str) -> Classifier:
    """The classifier with its kernels in this memory layout, in place."""
    for tensor in (*classifier.parameters(), *classifier.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=MEMORY_FORMATS[layout])
    return classifier


def _candidate_precisions(classifier: Classifier, recipe: Recipe, objective: Objective, batch: Batch) -> list[str]:
    """The precisions that are not hopeless on a few images: an emulated one may be 20 times slower."""
    if recipe.precision is not None:
        return [recipe.precision]
    few = split_batch(batch, max(1, len(batch) // PRECISION_TRIAL_IMAGES))[0]
    with ExitStack() as stack:
        ways = [ExecutionMode(precision, "channels_last") for precision in PRECISIONS]
        trials = {w.precision: _prepare_step(stack, classifier, recipe, objective, few, w) for w in ways}
        best = {name: min(times) for name, times in runtime.time_interleaved(trials, 2).items()}
    return [name for name in PRECISIONS if best[name] <= 2 * min(best.values())]


def _prepare_step(
    stack: ExitStack,
    classifier: Classifier,
    recipe: Recipe,
    objective: Objective,
    batch: Batch,
    way: ExecutionMode,
) -> Callable[[], None]:
    """One training step of a copy of the classifier."""
    own = to_memory_format(copy.deepcopy(classifier), way.memory_format).train()
    moves = build_optimizer(own, recipe)
    Freezer(own, recipe)(ALL_UNFROZEN)
    batch = replace(batch, pixels=batch.pixels.contiguous(memory_format=MEMORY_FORMATS[way.memory_format]))
    worked = build_gradients(
        own, bfloat16=way.precision == "bfloat16", pieces=recipe.accumulate, replicas=way.replicas
    )
    stack.enter_context(worked)

    def step() -> None:
        loss = worked(objective, batch)
        moves.step()
        moves.zero_grad(set_to_none=True)
        loss.item()

    return step


def _cache_key(classifier: Classifier, recipe: Recipe, objective: Objective, batch: Batch) -> str:
    """Everything the speed depends on."""
    facts = (
        runtime.processor_name(),
        str(classifier.device),
        torch.__version__,
        torch.get_num_threads(),
        repr(classifier.architecture),
        repr(objective),
        tuple(batch.pixels.shape),
        recipe.precision,
        recipe.memory_format,
        recipe.replicas,
        recipe.accumulate,
        recipe.processes,
        recipe.optimizer,
        recipe.freeze,
    )
    return hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()
