"""Old and new images learned together by several strategies, each measured on the same held-out images."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from .. import progress
from ..classifier import Classifier
from ..data import concat
from ..errors import Interrupted
from ..features import embed_cached
from ..files import explain_write_errors
from ..inference import predict_logits
from ..metrics import paired_difference, wilson
from ..training import Method, Plan, Recipe, SilentRunFolder, default_network, fit_temperature, refine, resolve
from ..types import Dataset, Interval, Splits
from .exemplars import balanced_sample
from .protocol import learn_task
from .strategy import Past, Strategy, Task

REPLAY_STEPS, LARGE_REPLAY_STEPS = 200, 60
"""Steps of a training, for small images and for those of ``LARGE_SIDE`` pixels and more."""

LARGE_SIDE = 128

LEARNING_RATE_FACTOR = 0.2
"""Peak learning rate of a network that was trained before, as a multiple of that of its first training."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """One way to learn the new images, and how it does on images it was not trained on."""

    strategy: str
    seconds: float
    old: Interval | None
    """Accuracy on test images of the classes known before; None where there are none."""
    new: Interval | None
    """Accuracy on test images among the new ones."""
    change: Interval | None
    """Old accuracy afterwards minus before, on the same images: below 0 is forgetting."""
    negative_flips: int
    """Old test images that were right and are wrong now."""
    validation: float
    """Mean recall over the classes on validation images, by which strategies are compared."""
    flipped: Int[ndarray, " F"] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Positions of the negative flips among the old test images."""

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        intervals = {name: getattr(self, name) for name in ("old", "new", "change")}
        return {
            "strategy": self.strategy,
            "seconds": round(self.seconds, 2),
            **{name: one.as_json() if one else None for name, one in intervals.items()},
            "negative_flips": self.negative_flips,
            "validation_balanced_accuracy": self.validation,
        }


@dataclass(frozen=True, eq=False)
class Lesson:
    """Old and new images with the classes after learning, and the classifier that learns them."""

    old: Splits
    new: Splits
    classifier: Classifier
    """The old classifier with a head for all classes; the rows of new ones are 0."""
    previous: Classifier
    """The classifier before its head grew: it knows only the old classes, by their new names."""
    before: Classifier
    """The unchanged classifier, to compare with; renamed classes have their new names."""
    old_classes: tuple[int, ...]
    """The classes known before, by their new numbers."""
    recipe: Recipe
    """The recipe of the original run."""
    memory_size: int
    """Old images that may be shown again."""
    seed: int = 0

    @property
    def splits(self) -> Splits:
        """Old and new images together."""
        old, new = self.old, self.new

        def join(*parts: Dataset) -> Dataset:
            return concat([part for part in parts if len(part)] or parts[:1])

        return Splits(join(old.train, new.train), join(old.val, new.val), join(old.test, new.test))


def learn_by(strategy: Strategy, name: str, lesson: Lesson, work: Path) -> tuple[Outcome, Classifier, Past]:
    """Learn by one strategy; returns how it does, the classifier, calibrated, and what it remembers.

    A training goes on from the checkpoint in ``work`` where there is one.
    """
    began = time.perf_counter()
    splits, classifier = lesson.splits, copy.deepcopy(lesson.classifier)
    plan, old = learning_plan(lesson.recipe, splits.train, lesson.seed), lesson.old.train.labelled
    kept = old
    if not strategy.from_scratch and len(old) > lesson.memory_size:
        kept = old.subset(balanced_sample(old.labels, lesson.memory_size, lesson.seed))
    new, nothing = lesson.new.train.labelled, kept.subset(np.zeros(0, np.int64))
    if not len(new):  # classes were merged, or images forgotten, and no image is new
        new, kept = old if strategy.computes_head else kept, nothing
    past = Past(images=kept, tasks=np.zeros(len(kept), np.int64), fisher=lesson.before.memory.fisher)
    task = Task(
        classifier=classifier,
        previous=lesson.previous,
        new=new,
        past=past,
        plan=plan,
        memory_size=lesson.memory_size,
        old_classes=lesson.old_classes,
        embed=lambda one, images: embed_cached(one, images, quiet=True),
    )
    if strategy.computes_head and len(kept):  # its sums are over all old images
        none = replace(past, images=nothing, tasks=past.tasks[:0])
        task = replace(task, past=strategy.remember(replace(task, new=old, past=none)))
    steps = REPLAY_STEPS if max(splits.train.geometry.size) < LARGE_SIDE else LARGE_REPLAY_STEPS
    if (method := strategy.method(task)) is not None:
        epochs = max(1, round(steps / method.steps_per_epoch))
        if strategy.from_scratch:
            epochs = lesson.recipe.epochs or 5 * epochs
        task = replace(task, plan=plan.replace(epochs=epochs))

    def train(trained: Classifier, how: Method) -> None:
        folder = SilentRunFolder(work)
        with explain_write_errors(work):
            work.mkdir(parents=True, exist_ok=True)
        balanced = replace(how, validate=balanced_validation)
        try:
            refine(trained, task.plan, splits, balanced, folder, resume=folder.checkpoint.is_file())
        except Interrupted as error:
            raise Interrupted("Stopped; nothing is lost. Repeat the same command to continue.") from error

    answering, past = learn_task(strategy, task, train)
    answering.temperature = round(fit_temperature(*predict_logits(answering, splits.val)), 6)
    seconds = time.perf_counter() - began
    before = are_right(lesson.before, lesson.old.test)
    after, new_right = are_right(answering, lesson.old.test), are_right(answering, lesson.new.test)
    flipped = np.flatnonzero(before & ~after)
    outcome = Outcome(
        strategy=name,
        seconds=seconds,
        old=wilson(int(after.sum()), len(after)) if len(after) else None,
        new=wilson(int(new_right.sum()), len(new_right)) if len(new_right) else None,
        change=paired_difference(after, before) if len(after) else None,
        negative_flips=len(flipped),
        validation=balanced_validation(answering, splits.val)[1],
        flipped=flipped,
    )
    progress.notify(describe_outcome(outcome))
    return outcome, answering, past


def learning_plan(recipe: Recipe, train: Dataset, seed: int) -> Plan:
    """How a network that was trained by ``recipe`` is trained further: at a fifth of its rate, in smaller batches."""
    base = recipe.replace(
        weights=None, method="gradient", freeze="none", progressive_from=None, ema_decay=0.0, patience=0, devices=1,
        split_seed=recipe.data_seed, seed=seed, epochs=None, batch_size=min(64, recipe.batch_size or 32),
        schedule="cosine", warmup=0.1, clip_grad=recipe.clip_grad or 1.0, cpu_replicas=1,
        precision=recipe.precision or "float32", memory_format=recipe.memory_format or "contiguous",
        lr=None if recipe.lr is None else float(f"{recipe.lr * LEARNING_RATE_FACTOR:.4g}"),
    )  # fmt: skip
    plan = resolve(base)
    chosen = default_network(plan, train_images=len(train))
    open_fields = {one.field: one.value for one in chosen if one.field in {"augment", "batch_size", "lr"}}
    return plan.replace(**open_fields).fit_to(train)


def balanced_validation(classifier: Classifier, images: Dataset) -> tuple[float, float]:
    """(loss, accuracy), both means over the classes of means over their images: old classes count as much as new."""
    logits, labels = predict_logits(classifier, images)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    weights = class_balance(labels.numpy())
    correct = (logits.argmax(1) == labels).double().numpy()
    return float((losses.numpy() * weights).sum()), float((correct * weights).sum())


def class_balance(labels: Int[ndarray, " N"]) -> Float[ndarray, " N"]:
    """Weights that add up to 1, equal in sum for each class that has images."""
    _, code, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[code])


def are_right(classifier: Classifier, images: Dataset) -> Bool[ndarray, " N"]:
    """Whether each image is classified correctly, by class name; an empty array for no images."""
    if not len(images):
        return np.zeros(0, bool)
    logits, _ = predict_logits(classifier, images)
    names = np.array(classifier.classes)[logits.argmax(1).numpy()]
    return names == np.array(images.classes)[images.labels]


def describe_outcome(one: Outcome) -> str:
    """A sentence about one strategy."""
    old = "" if one.old is None else f"old classes {one.old.value:.1%}, "
    new = "" if one.new is None else f"new images {one.new.value:.1%}, "
    return f"{one.strategy}: {old}{new}{one.negative_flips:,} newly wrong, {one.seconds:.1f} s."


def choose_outcome(outcomes: Sequence[Outcome], classifiers: Mapping[str, Classifier], val: Dataset) -> Outcome:
    """The strategy of the highest balanced validation accuracy; an earlier one unless the gain is beyond noise.

    (Paired, by one standard error.)
    """
    weights = class_balance(val.labels) * len(val)
    right = {name: are_right(one, val).astype(float) for name, one in classifiers.items()}
    best = outcomes[0]
    for one in outcomes[1:]:
        gain = (right[one.strategy] - right[best.strategy]) * weights
        if gain.mean() > gain.std() / max(1, len(val)) ** 0.5:
            best = one
    return best
