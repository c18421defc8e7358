"""What a way of learning more is given, and what it must say: ``Strategy``.

A strategy trains a classifier whose last layer already has every class, on new images and on what is remembered of
old ones. It is one frozen value in ``STRATEGIES``.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, nn

from .. import runtime
from ..batches import Batch
from ..classifier import Classifier
from ..data import Shuffle, batch_order, concat, to_tensor
from ..ensembles import update_bn
from ..errors import RecipeError
from ..inference import embed
from ..layers import Network, get_head, head_kind
from ..models import UNCOMPRESSIBLE_NETWORKS, build, expand_head, replace_head
from ..training import MEMORY_FORMATS, Method, Plan
from ..types import Dataset
from .exemplars import balanced_sample
from .statistics import FeatureStatistics, RidgeStatistics

_NEW, _PAST = 81, 82  # separate streams of random numbers of one seed

NEVER = -1e4
"""Logit of a class of which no image was seen."""

MAX_MIXED_IMAGES = 512
"""Images that batch-norm statistics or a tuned head are computed on: a few seconds of photos on a processor."""

HEAD_SURGERY = frozenset({"grown_head", "head", "prototypes", "cosine"})
"""Changes that concern the last layer alone: a later one of them undoes an earlier."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Past:
    """What is remembered of the images learned before."""

    images: Dataset
    """Remembered images, labelled with the classes of the classifier to be trained; perhaps none."""
    tasks: Int[ndarray, " N"]
    """The task, from 0, in which each of them was new."""
    seen: int = 0
    """Images that were learned so far, remembered or not."""
    logits: Float[Tensor, "N k"] | None = None
    """What the classifier answered when it had learned the image's task, NaN for classes that came later."""
    statistics: FeatureStatistics | None = None
    """Sums over the features of all images so far."""
    ridge: RidgeStatistics | None = None
    """Sums over random features of all images so far."""
    fisher: Mapping[str, Tensor] = field(default_factory=dict)
    """By parameter the sum of diagonal Fisher informations; with ``.anchor`` of their products with the weights."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the remembered pixels, sums and Fisher information, without those of names and logits."""
        sums = (array for one in (self.statistics, self.ridge) if one is not None for array in vars(one).values())
        return (
            len(self) * int(np.prod(self.images.pixels.shape[1:]))
            + sum(array.nbytes for array in sums if isinstance(array, ndarray))
            + sum(4 * value.numel() for value in self.fisher.values())
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """New images, and all that a strategy needs to learn them."""

    classifier: Classifier
    """Knows every class, rows of new ones are 0; trained in place."""
    previous: Classifier | None
    """The classifier before this task, with its classes of that time; None for the first task."""
    new: Dataset
    """New images with labels of ``classifier.classes``."""
    past: Past
    plan: Plan
    """Batch size, learning rate, epochs, seed and augmentation."""
    memory_size: int
    """Images that may be remembered, in all."""
    old_classes: Sequence[int] = ()
    """The classes learned before: columns of the logits of both classifiers."""
    groups: Sequence[Sequence[int]] = ()
    """In task-incremental learning the classes of each task so far, this one's last; else empty: any class may come."""
    embed: Callable[[Classifier, Dataset], Float[ndarray, "N D"]] = embed
    """Computes the features of images."""
    online: bool = False
    """Whether every new image is seen once: an epoch is one pass over the new images, however many are remembered."""

    @property
    def new_classes(self) -> Int[ndarray, " k"]:
        """The classes of the new images."""
        return np.unique(self.new.labels)

    def columns(self, labels: Int[Tensor, " B"]) -> Tensor | None:
        """Which classes each image may be taken for (B K); None for all."""
        if not self.groups:
            return None
        table = torch.zeros(len(self.classifier.classes), len(self.classifier.classes), dtype=torch.bool)
        for group in self.groups:
            table[torch.tensor(list(group))[:, None], torch.tensor(list(group))] = True
        return table[labels]

    def cross_entropy(self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """The mean cross-entropy over the classes that each image may be taken for."""
        allowed = self.columns(labels)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, float("-inf"))
        return F.cross_entropy(logits, labels)

    def plain_loss(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean cross-entropy of the new images of a batch."""
        return self.cross_entropy(classifier(batch.pixels).float(), batch.labels)


class Strategy(ABC):
    """A way to learn more: how to train, what to remember, and which head answers."""

    needs_images: ClassVar[bool] = False
    """Whether it needs images of the old classes: it cannot work where only sums are remembered."""
    from_scratch: ClassVar[bool] = False
    """Whether training starts from new random weights."""
    computes_head: ClassVar[bool] = False
    """Whether the last layer is computed from sums over features, and the rest of the network stays."""
    repeats_training: ClassVar[bool] = False
    """Whether ``learn`` trains by the recipe of the run, as ``train`` would with all images."""

    def adjust(self, plan: Plan) -> Plan:
        """The plan by which this strategy trains, from that of the task; the same unless its source has its own."""
        return plan

    def check_sums(self, ridge: RidgeStatistics | None) -> None:
        """Raise RecipeError where it cannot work with the sums that are kept of old images, ``ridge`` among them."""
        del ridge

    def begin(self, task: Task) -> None:
        """Change the weights before training, in place: new random ones where training starts from scratch."""
        if self.from_scratch:
            reinitialise(task.classifier, task.plan.recipe.seed)

    @abstractmethod
    def method(self, task: Task) -> Method | None:
        """How the classifier is trained by gradient; None where it is not."""

    def finish(self, task: Task) -> None:
        """Change the trained classifier, in place: batch norms get the statistics of old and new images together."""
        if self.needs_images and not self.from_scratch and len(task.past):
            update_bn(task.classifier, mix_images(task))

    def remember(self, task: Task) -> Past:
        """What to remember for the next task, after training; images are a balanced sample."""
        return remember_images(task, balanced_sample)

    def answer(self, task: Task, remembered: Past) -> Classifier:
        """The classifier that answers, given what ``remember`` returned; the trained one unless a head is computed."""
        del remembered
        return task.classifier


@dataclass(frozen=True)
class Keep(Strategy):
    """No training: the last layer is unchanged; a class that others were merged into has their mean row."""

    def method(self, task: Task) -> None:
        """Nothing to train."""
        del task


def mix_images(task: Task) -> Dataset:
    """Up to ``MAX_MIXED_IMAGES`` remembered and new images, each class equally often where it has enough."""
    images = concat([task.past.images, task.new])
    size = max(MAX_MIXED_IMAGES, len(np.unique(images.labels)))
    return images.subset(balanced_sample(images.labels, size, task.plan.recipe.seed))


def remember_images(task: Task, choose: Callable[[Int[ndarray, " N"], int, int], Int[ndarray, " n"]]) -> Past:
    """The memory with some of the new images: ``choose(labels, size, seed)`` gives positions among old and new."""
    if not task.memory_size:
        empty = task.new.subset(np.zeros(0, np.int64))
        return replace(task.past, images=empty, tasks=np.zeros(0, np.int64), logits=None)
    pool = concat([task.past.images, task.new]) if len(task.past) else task.new
    number = 1 + max(task.past.tasks, default=-1)
    tasks = np.concatenate([task.past.tasks, np.full(len(task.new), number)])
    kept = choose(pool.labels, task.memory_size, task.plan.recipe.seed)
    seen = task.past.seen + len(task.new)
    return replace(task.past, images=pool.subset(kept), tasks=tasks[kept], seen=seen, logits=None)


def grow(classifier: Classifier, classes: Sequence[str]) -> Classifier:
    """A copy that knows ``classes``, the old ones first; new ones have logit 0 for every image."""
    network = expand_head(_copy_trainable(classifier), len(classes))
    return _with_head(classifier, network, classes)


def with_new_head(
    classifier: Classifier, classes: Sequence[str], kind: str = "linear", **arguments: Any
) -> Classifier:
    """A copy with a last layer of this kind of ``layers.HEADS``, all 0, in place of its own."""
    network = replace_head(_copy_trainable(classifier), len(classes), kind, **arguments)
    return _with_head(classifier, network, classes)


def fill_head(
    classifier: Classifier, rows: Sequence[int], weight: Float[Tensor, "k D"], bias: Float[Tensor, " k"]
) -> None:
    """Set these rows of the last layer, in place; classes of other rows are never answered."""
    head = get_head(classifier.network)
    with torch.no_grad():
        head.weight.zero_()[list(rows)] = weight.to(head.weight)
        head.bias.fill_(NEVER)[list(rows)] = bias.to(head.bias)


def regroup_head(classifier: Classifier, classes: Sequence[str], groups: Sequence[Sequence[int]]) -> Classifier:
    """A copy that knows ``classes``: the head's row of each is the mean of the old rows in its group."""
    network = _copy_trainable(classifier)
    old = get_head(network)
    kind, arguments = head_kind(old)
    state = {name: value.detach().clone() for name, value in old.state_dict().items()}
    head = get_head(replace_head(network, len(classes), kind, **arguments))
    for name in {"weight", "bias"} & state.keys():
        state[name] = torch.stack([state[name][list(group)].mean(0) for group in groups])
    head.load_state_dict(state)
    return _with_head(classifier, network, classes)


def _copy_trainable(classifier: Classifier) -> Network:
    """A copy of the network; RecipeError where it cannot be trained on."""
    architecture = classifier.architecture
    if architecture.name in UNCOMPRESSIBLE_NETWORKS or not classifier.differentiable:
        raise RecipeError(
            f"A classifier of the kind '{architecture.name}' cannot learn more: name a run of a single network."
        )
    if any(name == "quantised" for name, _ in architecture.surgery):
        raise RecipeError(
            "An int8 classifier cannot learn more: name the run it was made of, and apply int8 to the result."
        )
    return copy.deepcopy(classifier.network)


def _with_head(classifier: Classifier, network: Network, classes: Sequence[str]) -> Classifier:
    """The classifier of a network whose last layer is new; one surgery describes the head and replaces earlier ones."""
    kind, arguments = head_kind(get_head(network))
    given = {"classes": len(classes), "kind": kind, **arguments}
    found = classifier.with_network(network, "head", given)
    surgery = [*found.architecture.surgery[:-1]]
    while surgery and surgery[-1][0] in HEAD_SURGERY:
        surgery.pop()
    found.architecture = replace(found.architecture, surgery=(*surgery, ("head", given)))
    found.classes = tuple(classes)
    return found


def reinitialise(classifier: Classifier, seed: int) -> None:
    """Give the whole network new random weights, or the published ones it began with, in place."""
    runtime.seed_torch(seed)
    fresh = build(classifier.architecture)
    fresh.load_published()
    for module in get_head(fresh).modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    classifier.network.load_state_dict(fresh.state_dict())


def new_batches(
    task: Task, share: float = 1.0, pool: Dataset | None = None
) -> tuple[Callable[[int, int], Iterator[Batch]], int]:
    """Batches of new images, each with a batch of remembered ones ``beside`` it where ``share`` is below 1; and how
    many an epoch has.

    ``share`` is the new images' share of a step, ``pool`` what others are drawn from, by default the remembered
    images: they are drawn with equal chances for each class. Where each new image is not to be seen once only, an epoch
    is a pass over the larger of the two sets. The last batch is filled with images of the first.
    """
    recipe, past = task.plan.recipe, task.past.images if pool is None else pool
    assert recipe.batch_size is not None
    size = max(1, round(recipe.batch_size * share)) if len(past) or task.online else recipe.batch_size
    beside = max(1, recipe.batch_size - size) if len(past) and share < 1 else 0
    steps = -(-len(task.new) // size)
    if beside and not task.online:
        steps = max(steps, -(-len(past) // beside))

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        order = batch_order(task.new.labels, Shuffle(recipe.seed, epoch, balanced=not task.online))
        if (
            len(order) > size if task.online else beside
        ):  # a last batch of few images would weigh as much as a full one
            order = np.resize(order, max(steps * size, len(order)))
        for step in range(start, steps):
            batch = make_batch(task, task.new, order[step * size : (step + 1) * size], epoch, step, _NEW)
            if beside:
                drawn = draw_balanced(past.labels, beside, recipe.seed, epoch, step)
                batch = replace(batch, beside=make_batch(task, past, drawn, epoch, step, _PAST))
            yield batch

    return batches, steps


def make_batch(
    task: Task, images: Dataset, positions: Int[ndarray, " B"], epoch: int, step: int, stream: int
) -> Batch:
    """These images as an augmented batch; ``stream`` keeps the random numbers of new and old images apart."""
    recipe, device = task.plan.recipe, task.classifier.device
    index = torch.from_numpy(positions)
    batch = Batch(
        pixels=to_tensor(images[positions], device).contiguous(
            memory_format=MEMORY_FORMATS[recipe.memory_format or "contiguous"]
        ),
        labels=torch.from_numpy(images.labels[positions]).to(device),
        index=index.to(device),
        classes=len(images.classes),
        epoch=epoch,
    )
    return task.plan.augment(batch, runtime.make_generator(recipe.seed, epoch, step, stream))


def draw_balanced(labels: Int[ndarray, " N"], count: int, seed: int, *counters: int) -> Int[ndarray, " n"]:
    """``count`` random positions with equal chances for each class, each as seldom repeated as can be."""
    order = runtime.permutation(len(labels), seed, *counters, _PAST)
    classes = np.unique(labels)
    turn = np.empty(len(labels), np.int64)  # how many of its class come before it
    for name in classes:
        own = order[labels[order] == name]
        turn[own] = np.arange(len(own))
    by_turn = order[np.argsort(turn[order], kind="stable")]
    return np.resize(by_turn, count)
