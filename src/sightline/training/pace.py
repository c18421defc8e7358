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
from .freezing import Rest
from .gradients import cut, draws, gradients
from .objectives import Objective
from .optimizers import optimizer
from .recipe import Recipe
from .robust import Robust

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

PRECISIONS = ("float32", "bfloat16")

FEW = 8
"""Images on which a precision shows whether it is emulated."""

ROUNDS = 4
"""Steps of each candidate, taken in turn."""

LATE = 10**9
"""An epoch in which everything learns that ever will: a budget is reckoned by the slowest epochs."""


@dataclass(frozen=True)
class Way:
    """How a step is worked."""

    precision: str
    memory_format: str
    replicas: int = 1

    def __str__(self) -> str:
        shared = f", {self.replicas} replicas of one thread each" if self.replicas > 1 else ""
        return f"{self.precision}, {self.memory_format}{shared}"

    def set(self, recipe: Recipe) -> Recipe:
        """The recipe, worked this way."""
        return recipe.replace(**vars(self))


@dataclass(frozen=True)
class Pace:
    """What measured fastest, and how fast it was."""

    way: Way
    images_per_second: float


def settled(recipe: Recipe) -> bool:
    """Whether the recipe leaves nothing of the way open."""
    return None not in (recipe.precision, recipe.memory_format, recipe.replicas)


def settle(recipe: Recipe) -> Recipe:
    """The recipe with the plainest way wherever it says nothing."""
    plain = Way(recipe.precision or "float32", recipe.memory_format or "contiguous", recipe.replicas or 1)
    return plain.set(recipe)


def measure(classifier: Classifier, recipe: Recipe, objective: Objective, batch: Batch) -> Pace:
    """Train copies of the classifier on one batch in each way the recipe leaves open.

    Remembered per machine, network and batch shape, so that it is paid once and a machine keeps its choice.
    """
    path = runtime.cache_dir() / "pace" / f"{_key(classifier, recipe, objective, batch)}.json"
    if path.exists():
        known = json.loads(path.read_text())
        return Pace(Way(**known["way"]), known["images_per_second"])
    layouts = tuple(LAYOUTS) if recipe.memory_format is None else (recipe.memory_format,)
    precisions = _worth_trying(classifier, recipe, objective, batch)
    ways = [Way(p, layout, recipe.replicas or 1) for p in precisions for layout in layouts]
    way, rate = _fastest(ways, classifier, recipe, objective, batch)
    if recipe.replicas is None and (others := _replicated(way, classifier, recipe, objective)):
        way, rate = _fastest([way, *others], classifier, recipe, objective, batch)
    with suppress(OutputError):  # a cache that cannot be written only means measuring again
        write_json(path, {"way": vars(way), "images_per_second": rate})
    return Pace(way, rate)


def _replicated(way: Way, classifier: Classifier, recipe: Recipe, objective: Objective) -> list[Way]:
    """The same way in as many replicas as there are threads, where that may help and is exactly repeatable."""
    threads = torch.get_num_threads()
    fits = (recipe.batch_size or 0) >= 16 * threads and recipe.processes == 1
    if classifier.device.type != "cpu" or threads == 1 or not fits:
        return []
    if draws(classifier) or isinstance(objective, Robust):
        return []
    return [replace(way, replicas=threads)]


def _fastest(
    ways: Sequence[Way], classifier: Classifier, recipe: Recipe, objective: Objective, batch: Batch
) -> tuple[Way, float]:
    """The way whose least disturbed step was quickest, and its usual images per second."""
    with ExitStack() as stack:
        stack.enter_context(runtime.keeping_memory())
        trials = {str(way): _trial(stack, classifier, recipe, objective, batch, way) for way in ways}
        times = runtime.time_in_turn(trials, ROUNDS)
    way = min(ways, key=lambda each: min(times[str(each)]))
    return way, len(batch) / median(times[str(way)])


def to_layout(classifier: Classifier, layout: str) -> Classifier:
    """The classifier with its kernels in this memory layout, in place."""
    for tensor in (*classifier.parameters(), *classifier.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=LAYOUTS[layout])
    return classifier


def _worth_trying(classifier: Classifier, recipe: Recipe, objective: Objective, batch: Batch) -> list[str]:
    """The precisions that are not hopeless on a few images: an emulated one may be 20 times slower."""
    if recipe.precision is not None:
        return [recipe.precision]
    few = cut(batch, max(1, len(batch) // FEW))[0]
    with ExitStack() as stack:
        ways = [Way(precision, "channels_last") for precision in PRECISIONS]
        trials = {w.precision: _trial(stack, classifier, recipe, objective, few, w) for w in ways}
        best = {name: min(times) for name, times in runtime.time_in_turn(trials, 2).items()}
    return [name for name in PRECISIONS if best[name] <= 2 * min(best.values())]


def _trial(
    stack: ExitStack, classifier: Classifier, recipe: Recipe, objective: Objective, batch: Batch, way: Way
) -> Callable[[], None]:
    """One training step of a copy of the classifier."""
    own = to_layout(copy.deepcopy(classifier), way.memory_format).train()
    moves = optimizer(own, recipe)
    Rest(own, recipe)(LATE)
    batch = replace(batch, pixels=batch.pixels.contiguous(memory_format=LAYOUTS[way.memory_format]))
    worked = gradients(own, bfloat16=way.precision == "bfloat16", pieces=recipe.accumulate, replicas=way.replicas)
    stack.enter_context(worked)

    def step() -> None:
        loss = worked(objective, batch)
        moves.step()
        moves.zero_grad(set_to_none=True)
        loss.item()

    return step


def _key(classifier: Classifier, recipe: Recipe, objective: Objective, batch: Batch) -> str:
    """Everything the speed depends on."""
    facts = (
        runtime.processor(),
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
