"""How fast a recipe trains here, and in which precision and memory layout: measured, then remembered."""

import copy
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

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

SAMPLE = 32
"""Images the candidates are compared on: an emulated precision is 20 times slower and must not stall."""


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
    path = runtime.cache_dir() / "pace" / f"{_key(classifier, recipe, batch)}.json"
    if path.exists():
        return Pace(**json.loads(path.read_text()))
    sample = replace(batch, pixels=batch.pixels[:SAMPLE], labels=batch.labels[:SAMPLE], index=batch.index[:SAMPLE])
    trials = {
        f"{precision} {layout}": _trial(classifier, recipe, objective, sample, precision, layout)
        for precision in (("float32", "bfloat16") if recipe.precision is None else (recipe.precision,))
        for layout in (LAYOUTS if recipe.memory_format is None else (recipe.memory_format,))
    }
    precision, layout = runtime.fastest(trials)[0].split()
    whole = {"whole": _trial(classifier, recipe, objective, batch, precision, layout)}
    pace = Pace(precision, layout, len(batch) / runtime.fastest(whole)[1])
    with suppress(OutputError):  # a cache that cannot be written only means measuring again
        write_json(path, vars(pace))
    return pace


def to_layout(classifier: Classifier, layout: str) -> Classifier:
    """The classifier with its kernels in this memory layout, in place."""
    for tensor in (*classifier.parameters(), *classifier.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=LAYOUTS[layout])
    return classifier


def _trial(
    classifier: Classifier, recipe: Recipe, objective: Objective, batch: Batch, precision: str, layout: str
) -> Callable[[], None]:
    ours: list[tuple[Classifier, torch.optim.Optimizer]] = []

    def step() -> None:
        if not ours:  # copied when first called: only one candidate's state is alive at a time on the first round
            own = to_layout(copy.deepcopy(classifier), layout).train()
            ours.append((own, optimizer(own, recipe)))
        own, moves = ours[0]
        with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = objective(own, batch)
        loss.backward()
        moves.step()
        moves.zero_grad(set_to_none=True)
        loss.item()

    return step


def _key(classifier: Classifier, recipe: Recipe, batch: Batch) -> str:
    """Everything the speed depends on."""
    facts = (
        runtime.processor(),
        str(classifier.device),
        torch.__version__,
        torch.get_num_threads(),
        repr(classifier.architecture),
        tuple(batch.pixels.shape),
        recipe.precision,
        recipe.memory_format,
        recipe.optimizer,
    )
    return hashlib.blake2b(repr(facts).encode(), digest_size=12).hexdigest()
