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
from ..training import (
    Method,
    Plan,
    Recipe,
    SilentRunFolder,
    default_network,
    fit_temperature,
    refine,
    resolve,
    train_on_splits,
)
from ..types import Dataset, Interval, Splits
from .exemplars import balanced_sample
from .memory import Sums
from .protocol import learn_task
from .strategy import Past, Strategy, Task

REPLAY_STEPS, LARGE_REPLAY_STEPS = 200, 60
"""Steps of a training, for small images and for those of ``LARGE_SIDE`` pixels and more."""

LARGE_SIDE = 128

MIN_BATCH = 8
"""Images of a step where few are new, or none and only sums are known."""

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
    validation: float | None
    """Mean recall over the classes on validation images, by which strategies are compared; None without any."""
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
    sums: Sums | None = None
    """Where the old images are gone, the sums over them, with the classes after learning."""
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
    began, splits = time.perf_counter(), lesson.splits
    folder = SilentRunFolder(work)
    with explain_write_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    again = folder.checkpoint.is_file()
    task = make_task(strategy, lesson)

    def train(trained: Classifier, how: Method) -> None:
        refine(trained, task.plan, splits, replace(how, validate=balanced_validation), folder, resume=again)

    try:
        if strategy.repeats_training:
            recipe = lesson.recipe.replace(data=None, seed=lesson.seed, devices=1)
            run = train_on_splits(splits, recipe, folder, device=task.classifier.device, resume=again)
            answering, past = run.classifier, task.past
        else:
            answering, past = learn_task(strategy, task, train)
    except Interrupted as error:
        raise Interrupted("Stopped; nothing is lost. Repeat the same command to continue.") from error
    if len(splits.val):
        answering.temperature = round(fit_temperature(*predict_logits(answering, splits.val)), 6)
    outcome = _measure(name, answering, lesson, time.perf_counter() - began)
    progress.notify(describe_outcome(outcome))
    return outcome, answering, past


def make_task(strategy: Strategy, lesson: Lesson) -> Task:
    """What a strategy is given to learn a lesson: for computed heads sums over all old images, for others a memory."""
    splits, sums = lesson.splits, lesson.sums
    old, new = lesson.old.train.labelled, lesson.new.train.labelled
    kept, nothing = old, old.subset(np.zeros(0, np.int64))
    if not strategy.from_scratch and len(old) > lesson.memory_size:
        kept = old.subset(balanced_sample(old.labels, lesson.memory_size, lesson.seed))
    if not len(new):  # classes were merged, or images forgotten, and no image is new
        new, kept = old if strategy.computes_head else kept, nothing
    past = Past(images=kept, tasks=np.zeros(len(kept), np.int64), fisher=lesson.before.memory.fisher)
    plan = learning_plan(lesson.recipe, splits.train, lesson.seed)
    task = Task(
        classifier=copy.deepcopy(lesson.classifier),
        previous=lesson.previous,
        new=new,
        past=past,
        plan=plan,
        memory_size=lesson.memory_size,
        old_classes=lesson.old_classes,
        embed=lambda one, images: embed_cached(one, images, quiet=True),
    )
    if strategy.computes_head:
        past = replace(past, images=nothing, tasks=past.tasks[:0])
        if sums is not None:
            past = replace(past, statistics=sums.statistics, ridge=sums.ridge)
            return replace(task, new=lesson.new.train.labelled, past=past)
        return replace(task, past=strategy.remember(replace(task, new=old, past=past)) if len(kept) else past)
    if strategy.repeats_training:
        return task
    task = replace(task, plan=strategy.adjust(plan.replace(epochs=1)))
    if (method := strategy.method(task)) is None or strategy.from_scratch:
        return task
    steps = REPLAY_STEPS if max(splits.train.geometry.size) < LARGE_SIDE else LARGE_REPLAY_STEPS
    return replace(task, plan=task.plan.replace(epochs=max(1, round(steps / method.steps_per_epoch))))


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
    chosen = default_network(plan, train_images=max(2 * MIN_BATCH, len(train)))
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


def _measure(name: str, classifier: Classifier, lesson: Lesson, seconds: float) -> Outcome:
    before = are_right(lesson.before, lesson.old.test)
    old, new = are_right(classifier, lesson.old.test), are_right(classifier, lesson.new.test)
    flipped = np.flatnonzero(before & ~old)
    return Outcome(
        strategy=name,
        seconds=seconds,
        old=wilson(int(old.sum()), len(old)) if len(old) else None,
        new=wilson(int(new.sum()), len(new)) if len(new) else None,
        change=paired_difference(old, before) if len(old) else None,
        negative_flips=len(flipped),
        validation=balanced_validation(classifier, lesson.splits.val)[1] if len(lesson.splits.val) else None,
        flipped=flipped,
    )


def describe_outcome(one: Outcome) -> str:
    """A sentence about one strategy."""
    old = "" if one.old is None else f"old classes {one.old.value:.1%}, "
    new = "" if one.new is None else f"new images {one.new.value:.1%}, "
    return f"{one.strategy}: {old}{new}{one.negative_flips:,} newly wrong, {one.seconds:.1f} s."


def choose_outcome(outcomes: Sequence[Outcome], classifiers: Mapping[str, Classifier], val: Dataset) -> Outcome:
    """The way of the highest balanced validation accuracy; an earlier, simpler one unless that is better beyond noise.

    (Paired, by one standard error.) Without validation images it is the first.
    """
    if not len(val):
        return outcomes[0]
    weights = class_balance(val.labels) * len(val)
    right = {name: are_right(one, val).astype(float) for name, one in classifiers.items()}
    best = outcomes[0]
    for one in outcomes[1:]:
        gain = (right[one.strategy] - right[best.strategy]) * weights
        if gain.mean() > gain.std() / max(1, len(val)) ** 0.5:
            best = one
    return best
