"""How well a strategy learns a stream of tasks: the accuracy on every task after every task."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from ..classifier import Classifier
from ..data import relabel
from ..inference import predict_logits
from ..runtime import resolve_device, seed_torch
from ..training import Recipe, build_classifier, optimise, resolve, start_training
from ..types import Dataset, Splits
from .strategy import Past, Strategy, Task
from .streams import Stream


@dataclass(frozen=True, eq=False)
class StreamResult:
    """What a strategy did on a stream.

    ``accuracy[i, j]`` is that on the test images of task j after learning task i; ``chance[j]`` that of the classifier
    before any training.
    """

    strategy: str
    accuracy: Float[ndarray, "T T"]
    chance: Float[ndarray, " T"]
    seconds: Float[ndarray, " T"]
    memory_bytes: int
    """Largest memory between two tasks: remembered pixels, sums and Fisher information."""
    validation: float | None = None
    """Mean accuracy over the validation images of all tasks after the last; None where the stream has none."""

    @property
    def average_accuracy(self) -> float:
        """Mean accuracy over all tasks after the last (Lopez-Paz and Ranzato 2017: ACC)."""
        return float(self.accuracy[-1].mean())

    @property
    def forgetting(self) -> float:
        """Mean over all tasks but the last: the best accuracy it ever had minus that at the end (Chaudhry 2018)."""
        return float((self.accuracy[:-1, :-1].max(0) - self.accuracy[-1, :-1]).mean())

    @property
    def backward_transfer(self) -> float:
        """Mean over all tasks but the last: accuracy at the end minus that just after learning it (BWT)."""
        return float((self.accuracy[-1] - self.accuracy.diagonal())[:-1].mean())

    @property
    def forward_transfer(self) -> float:
        """Mean over all tasks but the first: accuracy just before learning it minus ``chance`` (FWT)."""
        before = np.diag(self.accuracy, 1)
        return float((before - self.chance[1:]).mean())

    def as_json(self) -> dict[str, Any]:
        """All numbers, JSON-ready."""
        return {
            "strategy": self.strategy,
            "accuracy": self.accuracy.round(5).tolist(),
            "chance": self.chance.round(5).tolist(),
            "average_accuracy": self.average_accuracy,
            "forgetting": self.forgetting,
            "backward_transfer": self.backward_transfer,
            "forward_transfer": self.forward_transfer,
            "seconds": self.seconds.round(2).tolist(),
            "memory_bytes": self.memory_bytes,
            "validation": self.validation,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "StreamResult":
        """The result of which ``as_json`` gave the numbers."""
        accuracy, chance, seconds = (
            np.array(value[name], np.float64) for name in ("accuracy", "chance", "seconds")
        )
        return cls(value["strategy"], accuracy, chance, seconds, value["memory_bytes"], value["validation"])


def learn_task(
    strategy: Strategy, task: Task, train: Callable[[Classifier, Any], None] | None = None
) -> tuple[Classifier, Past]:
    """Train ``task.classifier`` in place; returns the classifier that answers, and what to remember.

    ``train(classifier, method)`` carries the method out; default all the epochs of the plan.
    """
    strategy.begin(task)
    method = strategy.method(task)
    if method is not None:
        if train is not None:
            train(task.classifier, method)
        else:
            seed_torch(task.plan.recipe.seed)
            state = start_training(task.classifier, task.plan, method)
            optimise(state, method, validate=lambda: (0.0, 0.0))
        strategy.finish(task)
    task.classifier.eval()
    remembered = strategy.remember(task)
    return strategy.answer(task, remembered), remembered


def run_stream(
    strategy: Strategy,
    stream: Stream,
    recipe: Recipe,
    *,
    memory_size: int = 500,
    memory_per_class: bool = False,
    online: bool = False,
    name: str = "",
    device: str = "auto",
) -> StreamResult:
    """Learn a stream with a strategy.

    Args:
        recipe: network, optimiser, learning rate, batch size, epochs of each task and seed: all must be given.
        memory_size: images that may be remembered, in all.
        memory_per_class: whether that is the number for each class seen so far.
        online: whether each new image is seen once, in batches of half the recipe's size where images are replayed.
        name: the strategy's name in the result.
    """
    classes = stream.classes
    tasks = [tuple(relabel(part, classes, drop_unknown=True) for part in pair) for pair in stream.tasks]
    held_out = [relabel(images, classes, drop_unknown=True) for images in stream.validation]
    first, validation = tasks[0][0], None
    plan = resolve(recipe.replace(size=first.geometry.size[0], channels=first.geometry.channels)).fit_to(first)
    device_found = resolve_device(device)
    classifier, _ = build_classifier(plan, Splits(first, first, first), device_found)
    past = Past(images=first.subset(np.zeros(0, np.int64)), tasks=np.zeros(0, np.int64))
    groups: list[list[int]] = []
    matrix, seconds, memory = np.zeros((len(tasks), len(tasks))), np.zeros(len(tasks)), 0
    every = [np.unique(train.labels).tolist() for train, _ in tasks]
    allowed = every if stream.kind == "task" else [list(range(len(classes)))] * len(tasks)
    chance = np.array([_accuracy(classifier, test, own) for (_, test), own in zip(tasks, allowed, strict=True)])
    for number, (train, _) in enumerate(tasks):
        began = time.perf_counter()
        old = sorted({k for group in groups for k in group})
        groups.append(every[number])
        seen = sorted({*old, *every[number]})
        task = Task(
            classifier=classifier,
            previous=None if number == 0 else copy.deepcopy(classifier),
            new=train,
            past=past,
            plan=strategy.adjust(plan),
            memory_size=memory_size * len(seen) if memory_per_class else memory_size,
            old_classes=old,
            groups=[*groups] if stream.kind == "task" else (),
            online=online,
        )
        answering, past = learn_task(strategy, task)
        seconds[number] = time.perf_counter() - began
        memory = max(memory, past.memory_bytes)
        open_to = [own if stream.kind == "task" else seen for own in every]
        matrix[number] = [_accuracy(answering, test, own) for (_, test), own in zip(tasks, open_to, strict=True)]
        if held_out and number + 1 == len(tasks):
            pairs = zip(held_out, open_to, strict=True)
            validation = float(np.mean([_accuracy(answering, images, own) for images, own in pairs]))
    return StreamResult(name or type(strategy).__name__, matrix, chance, seconds, memory, validation)


def _accuracy(classifier: Classifier, images: Dataset, allowed: Sequence[int]) -> float:
    logits, labels = predict_logits(classifier, images)
    closed = torch.ones(logits.shape[1], dtype=torch.bool)
    closed[list(allowed)] = False
    return (logits.masked_fill(closed, float("-inf")).argmax(1) == labels).double().mean().item()
