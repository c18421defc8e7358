"""How fast a recipe trains here, and in which precision and memory layout: measured, then remembered."""

import copy
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import median

import torch

from .. import runtime
from ..classifier import Classifier
from ..errors import OutputError
from ..files import write_json
from ..types import Batch
from .objectives import Objective
from .optimizers import optimizer
from .recipe import Recipe

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

PRECISIONS = ("float32", "bfloat16")

FEW = 8
"""Images on which a precision shows whether it is emulated."""

ROUNDS = 4
"""Steps of each candidate, taken in turn."""


@dataclass(frozen=True)
class Pace:
    """What measured fastest, and how fast it was."""

    precision: str
    memory_format: str
    images_per_second: float


def measure(classifier: Classifier, recipe: Recipe, objective: Objective, batch: Batch) -> Pace:
    """Train copies of the classifier on one batch in each layout and precision the recipe leaves open.

    Remembered per machine, network and batch shape, so that it is paid once and a machine keeps its choice.
    """
    path = runtime.cache_dir() / "pace" / f"{_key(classifier, recipe, objective, batch)}.json"
    if path.exists():
        return Pace(**json.loads(path.read_text()))
    layouts = LAYOUTS if recipe.memory_format is None else (recipe.memory_format,)
    trials = {
        f"{precision} {layout}": _trial(classifier, recipe, objective, batch, precision, layout)
        for precision in _worth_trying(classifier, recipe, objective, batch)
        for layout in layouts
    }
    times = runtime.time_in_turn(trials, ROUNDS)
    chosen = min(times, key=lambda name: min(times[name]))  # the least disturbed call of each
    precision, layout = chosen.split()
    pace = Pace(precision, layout, len(batch) / median(times[chosen]))
    with suppress(OutputError):  # a cache that cannot be written only means measuring again
        write_json(path, vars(pace))
    return pace


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
    few = replace(batch, pixels=batch.pixels[:FEW], labels=batch.labels[:FEW], index=batch.index[:FEW])
    trials = {p: _trial(classifier, recipe, objective, few, p, "channels_last") for p in PRECISIONS}
    best = {name: min(times) for name, times in runtime.time_in_turn(trials, 2).items()}
    return [name for name in PRECISIONS if best[name] <= 2 * min(best.values())]


def _trial(
    classifier: Classifier, recipe: Recipe, objective: Objective, batch: Batch, precision: str, layout: str
) -> Callable[[], None]:
    """One training step of a copy of the classifier."""
    own = to_layout(copy.deepcopy(classifier), layout).train()
    moves = optimizer(own, recipe)
    batch = replace(batch, pixels=batch.pixels.contiguous(memory_format=LAYOUTS[layout]))

    def step() -> None:
        with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = objective(own, batch)
        loss.backward()
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
        recipe.optimizer,
    )
    return hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()
