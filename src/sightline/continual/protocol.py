"""How well a strategy learns a stream of tasks: the accuracy on every task after every task."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray

from ..classifier import Classifier
from ..data import relabel
from ..errors import DataError
from ..inference import predict_logits
from ..runtime import permutation, resolve_device, seed_torch
from ..training import Recipe, build_classifier, optimise, resolve, start_training
from ..types import Dataset, Pixels, Splits
from .strategy import Past, Strategy, Task, reinitialise


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks that come one after the other.

    Arguments:
        name: what it is called.
        tasks: training and test images of each.
        kind: ``class``, new classes come and any may be asked for; ``task``, the same, but it is known of which task
            an image is; ``domain``, the classes stay and the images change.
    """

    name: str
    tasks: tuple[tuple[Dataset, Dataset], ...]
    kind: str = "class"

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes, in the order in which they come."""
        return tuple(dict.fromkeys(train.classes[k] for train, _ in self.tasks for k in np.unique(train.labels)))


def split_by_class(
    train: Dataset, test: Dataset, tasks: int, *, seed: int | None = None, kind: str = "class"
) -> Stream:
    """A stream of ``tasks`` tasks of equally many classes, in the given order or, with ``seed``, a random one.

    Raises DataError where the classes cannot be divided equally.
    """
    count = len(train.classes)
    if tasks < 2 or count % tasks:
        raise DataError(f"{count} classes cannot be divided into {tasks} tasks of equally many: choose a divisor.")
    order = np.arange(count) if seed is None else permutation(count, seed, 91)
    parts = []
    for classes in order.reshape(tasks, -1):
        own = [each.subset(np.isin(each.labels, classes)) for each in (train, test)]
        parts.append((own[0], own[1]))
    return Stream(f"{tasks} tasks of {count // tasks} classes", tuple(parts), kind)


@dataclass(frozen=True, eq=False)
class ChangedPixels:
    """The pixels of a store after a function ``(B H W C) -> (B H W C)``, uint8 both."""

    pixels: Pixels
    change: Callable[[UInt8[ndarray, "B H W C"]], UInt8[ndarray, "B H W C"]]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the store."""
        return self.pixels.shape

    def __getitem__(self, rows: Any, /) -> UInt8[ndarray, "B H W C"]:
        """The changed pixels of these rows."""
        return self.change(self.pixels[rows])


def change_pixels(
    train: Dataset, test: Dataset, changes: Sequence[Callable[[ndarray], ndarray]], name: str
) -> Stream:
    """A domain-incremental stream: the same images, changed in another way for each task."""

    def changed(images: Dataset, change: Callable[[ndarray], ndarray]) -> Dataset:
        return replace(images, pixels=ChangedPixels(images.pixels, change))

    return Stream(name, tuple((changed(train, one), changed(test, one)) for one in changes), "domain")


def permute_pixels(train: Dataset, test: Dataset, tasks: int, *, seed: int = 0) -> Stream:
    """Each task has its own order of the pixels, the first that of the images (Goodfellow et al. 2013)."""
    height, width, channels = train.geometry.size[0], train.geometry.size[1], train.geometry.channels

    def shuffle(order: ndarray) -> Callable[[ndarray], ndarray]:
        def change(pixels: ndarray) -> ndarray:
            return pixels.reshape(len(pixels), height * width, channels)[:, order].reshape(pixels.shape)

        return change

    orders = [np.arange(height * width), *(permutation(height * width, seed, 92, t) for t in range(1, tasks))]
    return change_pixels(train, test, [shuffle(order) for order in orders], f"{tasks} permutations of the pixels")


def split_by_column(train: Dataset, test: Dataset, column: str) -> Stream:
    """A domain-incremental stream of the values of a column, such as site or date, in ascending order.

    Raises DataError where there is no such column, or a single value.
    """
    if column not in train.columns:
        known = ", ".join(sorted(train.columns)) or "none"
        raise DataError(f"The images have no column '{column}'. There are: {known}.")
    values = np.unique(train.columns[column])
    if len(values) < 2:
        raise DataError(f"The column '{column}' has a single value, so there is no stream. Choose another column.")
    parts = [(train.columns[column] == one, test.columns[column] == one) for one in values]
    return Stream(f"column {column}", tuple((train.subset(a), test.subset(b)) for a, b in parts), "domain")


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
            "accuracy": self.accuracy.round(4).tolist(),
            "average_accuracy": self.average_accuracy,
            "forgetting": self.forgetting,
            "backward_transfer": self.backward_transfer,
            "forward_transfer": self.forward_transfer,
            "seconds": self.seconds.round(2).tolist(),
            "memory_bytes": self.memory_bytes,
        }


def learn_task(
    strategy: Strategy, task: Task, train: Callable[[Classifier, Any], None] | None = None
) -> tuple[Classifier, Past]:
    """Train ``task.classifier`` in place; returns the classifier that answers, and what to remember.

    ``train(classifier, method)`` carries the method out; default all the epochs of the plan.
    """
    if strategy.from_scratch:
        reinitialise(task.classifier, task.plan.recipe.seed)
    method = strategy.method(task)
    if method is not None:
        if train is not None:
            train(task.classifier, method)
        else:
            seed_torch(task.plan.recipe.seed)
            state = start_training(task.classifier, task.plan, method)
            optimise(state, method, validate=lambda: (0.0, 0.0))
    task.classifier.eval()
    remembered = strategy.remember(task)
    return strategy.answer(task, remembered), remembered


def run_stream(
    strategy: Strategy,
    stream: Stream,
    recipe: Recipe,
    *,
    memory_size: int = 500,
    online: bool = False,
    name: str = "",
    device: str = "auto",
) -> StreamResult:
    """Learn a stream with a strategy.

    Args:
        recipe: network, optimiser, learning rate, batch size, epochs of each task and seed: all must be given.
        memory_size: images that may be remembered, in all.
        online: whether each new image is seen once, in batches of half the recipe's size where images are replayed.
        name: the strategy's name in the result.
    """
    classes = stream.classes
    tasks = [tuple(relabel(part, classes, drop_unknown=True) for part in pair) for pair in stream.tasks]
    first = tasks[0][0]
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
            memory_size=memory_size,
            old_classes=old,
            groups=[*groups] if stream.kind == "task" else (),
            online=online,
        )
        answering, past = learn_task(strategy, task)
        seconds[number] = time.perf_counter() - began
        memory = max(memory, past.memory_bytes)
        open_to = [own if stream.kind == "task" else seen for own in every]
        matrix[number] = [_accuracy(answering, test, own) for (_, test), own in zip(tasks, open_to, strict=True)]
    return StreamResult(name or type(strategy).__name__, matrix, chance, seconds, memory)


def _accuracy(classifier: Classifier, images: Dataset, allowed: Sequence[int]) -> float:
    logits, labels = predict_logits(classifier, images)
    closed = torch.ones(logits.shape[1], dtype=torch.bool)
    closed[list(allowed)] = False
    return (logits.masked_fill(closed, float("-inf")).argmax(1) == labels).double().mean().item()
