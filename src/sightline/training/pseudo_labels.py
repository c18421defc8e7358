"""Semi-supervised objectives: images without a label teach by the confident answers of the network itself.

The labelled batch has a pass of its own, so that batch norm sees what it sees in a plain run; the weakly and the
strongly augmented unlabelled images have another each. Targets and weights carry no gradient.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..batches import Batch
from ..checks import check_int, check_number
from ..classifier import Classifier
from ..errors import RecipeError
from ..types import Dataset
from .fit import TrainingState
from .hooks import BaseHook
from .losses import Objective, check_cuts
from .recipe import Recipe

COLLAPSE_SHARE = 0.9
"""Share of the pseudo-labels from which one class has swallowed the others; labels seldom are so unbalanced."""

ALIGNMENT_FLOOR = 1e-6
"""Added to the shares of classes before one is divided by another."""


class PseudoLabels(BaseHook):
    """What a run knows of its pseudo-labels: moving means of confidence and classes, and counts for the log.

    Args:
        classes: the K class names.
        shares: share of each class among the labelled images (K), to which predictions are aligned.
        momentum: of the moving means, in [0, 1).
    """

    def __init__(self, classes: tuple[str, ...], shares: Float[Tensor, " K"], momentum: float) -> None:
        self.classes, self.shares, self.momentum = classes, shares, momentum
        self.confidence = torch.tensor(1 / len(classes))
        """Moving mean of the largest probability, from 1/K."""
        self.variance = torch.tensor(1.0)
        self.predicted = torch.full((len(classes),), 1 / len(classes))
        """Moving mean of the probabilities, from 1/K each."""
        self.taken = torch.zeros(len(classes))
        """Weight of the pseudo-labels of each class in this epoch."""
        self.seen, self.progress, self.warned = 0, 0.0, False
        self.lock = threading.Lock()  # replicas count at once

    def to(self, device: torch.device) -> None:
        """Move the sums to the device of the logits, once."""
        if self.taken.device != device:
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(self, name, value.to(device))

    def follow_classes(self, probabilities: Float[Tensor, "B K"]) -> None:
        """Move the mean of the predictions towards those of a batch."""
        self.predicted = torch.lerp(probabilities.mean(0), self.predicted, self.momentum)

    def follow_confidence(self, confidence: Float[Tensor, " B"]) -> None:
        """Move mean and (unbiased) variance of the confidence towards those of a batch."""
        self.confidence = torch.lerp(confidence.mean(), self.confidence, self.momentum)
        if len(confidence) > 1:
            self.variance = torch.lerp(confidence.var(), self.variance, self.momentum)

    def align(self, probabilities: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """Predictions whose mean has the classes in the shares of the labelled images (ReMixMatch)."""
        return align_distribution(probabilities, self.shares, self.predicted)

    def count(self, labels: Int[Tensor, " B"], weights: Float[Tensor, " B"]) -> None:
        """Count pseudo-labels, for the log."""
        with self.lock:
            self.taken.index_add_(0, labels, weights.to(self.taken))
            self.seen += len(labels)

    def after_step(self, state: TrainingState) -> None:
        """Know how far the run is."""
        self.progress = state.step / max(1, state.total_steps)

    def after_epoch(self, state: TrainingState) -> None:
        """Say in the log which share of the unlabelled images counted, and as which classes."""
        total = self.taken.sum().item()
        if not self.seen:
            return
        shares = (self.taken / max(total, 1e-9)).tolist()
        order = np.argsort(shares)[::-1].tolist()
        shown = ", ".join(
            f"{self.classes[k]} {shares[k]:.0%}" for k in (order if len(order) <= 10 else order[:10])
        )
        state.epoch_note = f"  unlabelled {total / self.seen:.1%} taken" + (f" ({shown})" if total else "")
        first = order[0]
        if shares[first] > COLLAPSE_SHARE > self.shares[first] and total > len(self.classes) and not self.warned:
            self.warned = True
            state.remarks.append(
                f"In epoch {state.epoch}, {shares[first]:.0%} of the pseudo-labels were '{self.classes[first]}': the "
                "network mistakes other images for it. Give more labels, or leave --semi-supervised out."
            )
        self.taken.zero_()
        self.seen = 0

    def state_dict(self) -> dict[str, Any]:
        """The moving means and the counts of the current epoch."""
        names = ("confidence", "variance", "predicted", "taken")
        tensors = {name: vars(self)[name].detach().cpu().clone() for name in names}
        return tensors | {"seen": self.seen, "progress": self.progress, "warned": self.warned}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for name, value in saved.items():
            setattr(self, name, value.clone() if isinstance(value, Tensor) else value)


@dataclass(frozen=True)
class SemiSupervised(ABC):
    """A way to learn from images without a label.

    Arguments:
        weight: factor of the unlabelled loss; 0 is the training on labels alone, bit for bit.
        ratio: unlabelled images for each labelled one of a step.
    """

    weight: float = 1.0
    ratio: int = 3
    stochastic: ClassVar[bool] = False
    across_images: ClassVar[bool] = False
    """Whether an image's weight depends on the others of its batch, which then must not be cut."""
    two_views: ClassVar[bool] = True
    """Whether the network learns from a second, strongly augmented view."""
    momentum: ClassVar[float] = 0.99
    """Of the moving means; published 0.999, for a million steps."""

    def __post_init__(self) -> None:
        """Raise ValueError for a negative weight or a ratio below 1."""
        check_number("weight", self.weight, 0)
        check_int("ratio", self.ratio, 1)

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @property
    def min_confidence(self) -> float:
        """The confidence that a pseudo-label needs; 0 where none is needed."""
        return 0.0

    @property
    def cost(self) -> float:
        """The time of a step in units of one on its labelled images alone: a forward pass is a third of a step."""
        return 1 + self.ratio * (4 / 3 if self.two_views else 1) * bool(self.weight)

    @abstractmethod
    def judge(
        self, probabilities: Float[Tensor, "B K"], known: PseudoLabels
    ) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
        """The pseudo-label of each image and its weight in [0, 1], from the probabilities of the weak view."""

    def ramp(self, progress: float) -> float:
        """Factor of the weight when this share of the run is done."""
        del progress
        return 1.0


@dataclass(frozen=True)
class FixMatch(SemiSupervised):
    """Learn on the strong view what the network says of the weak one with confidence (Sohn et al. 2020, 2001.07685).

    Arguments:
        threshold: the confidence from which a pseudo-label counts; above 1 none does.
        align: whether predictions are first aligned with the shares of the classes (ReMixMatch).
    """

    threshold: float = 0.95
    align: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("threshold", self.threshold, 0, 2)

    @property
    def min_confidence(self) -> float:
        """The threshold."""
        return self.threshold

    @property
    def across_images(self) -> bool:  # type: ignore[override]
        """Only alignment looks at the batch."""
        return self.align

    def judge(
        self, probabilities: Float[Tensor, "B K"], known: PseudoLabels
    ) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
        """The most likely class, and 1 where it is likely enough."""
        if self.align:
            known.follow_classes(probabilities)
            probabilities = known.align(probabilities)
        confidence, labels = probabilities.max(1)
        return labels, (confidence >= self.threshold).to(confidence)


@dataclass(frozen=True)
class SoftMatch(SemiSupervised):
    """FixMatch with a weight in place of a threshold: less, the further a confidence is below the mean of all.

    Weights come from aligned predictions, labels from plain ones (Chen et al. 2023, arXiv 2301.10921).

    Arguments:
        n: how many times faster than the confidences spread the weight falls.
    """

    n: float = 2.0
    across_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("n", self.n, 0.1)

    def judge(
        self, probabilities: Float[Tensor, "B K"], known: PseudoLabels
    ) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
        """The most likely class; the weight falls below the mean confidence."""
        known.follow_classes(probabilities)
        confidence = known.align(probabilities).amax(1)
        known.follow_confidence(confidence)
        weights = truncated_gaussian(confidence, known.confidence, known.variance, self.n)
        return probabilities.argmax(1), weights


@dataclass(frozen=True)
class PseudoLabel(SemiSupervised):
    """Learn on the same view what the network says of it with confidence (Lee 2013); the weight grows to its full size.

    Arguments:
        threshold: the confidence from which a pseudo-label counts.
        warmup: share of the run in which the weight grows.
    """

    threshold: float = 0.95
    warmup: float = 0.4
    two_views: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("threshold", self.threshold, 0, 2)
        check_number("warmup", self.warmup, 0, 1)

    @property
    def min_confidence(self) -> float:
        """The threshold."""
        return self.threshold

    def judge(
        self, probabilities: Float[Tensor, "B K"], known: PseudoLabels
    ) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
        """The most likely class, and 1 where it is likely enough."""
        del known
        confidence, labels = probabilities.max(1)
        return labels, (confidence >= self.threshold).to(confidence)

    def ramp(self, progress: float) -> float:
        """In equal steps to 1."""
        return min(1.0, progress / self.warmup) if self.warmup else 1.0


class SemiSupervisedLoss(Objective):
    """The loss of the labels, plus the weighted cross-entropy of pseudo-labels on the batch ``beside``.

    ``beside`` has the weak views as pixels and the strong ones as ``view``; its labels are not read. The mean runs over
    all its images, whether their pseudo-label counts or not.
    """

    def __init__(self, labels: Objective, by: SemiSupervised, known: PseudoLabels) -> None:
        self.labels, self.by, self.known = labels, by, known
        self.stochastic = labels.stochastic
        self.across_images = labels.across_images or by.across_images

    @property
    def name(self) -> str:
        """The method's name."""
        return self.by.name

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch."""
        loss = self.labels(classifier, batch)
        if batch.beside is None or not self.by.weight:
            return loss
        beside = batch.beside
        if self.by.two_views:
            with torch.no_grad():
                weak = classifier(beside.pixels)
            strong = classifier(beside.pixels if beside.view is None else beside.view)
        else:
            weak = strong = classifier(beside.pixels)
        weight = self.by.weight * self.by.ramp(self.known.progress)
        return loss + weight * self.unlabelled_loss(weak.float(), strong.float())

    def unlabelled_loss(self, weak: Float[Tensor, "B K"], strong: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        """The loss of the strong logits by the pseudo-labels of the weak ones, which get no gradient."""
        self.known.to(weak.device)
        with torch.no_grad():
            labels, weights = self.by.judge(weak.detach().softmax(1), self.known)
            self.known.count(labels, weights)
        return pseudo_label_loss(strong, labels, weights)

    def validate(self, classifier: Classifier, dataset: Dataset) -> tuple[float, float]:
        """As the loss of the labels."""
        return self.labels.validate(classifier, dataset)


def ignore_unlabelled() -> None:
    """Learn from the labelled images alone."""


SEMI_SUPERVISED_METHODS: Mapping[str, Callable[..., SemiSupervised | None]] = {
    "none": ignore_unlabelled,
    "fixmatch": FixMatch,
    "softmatch": SoftMatch,
    "pseudo-label": PseudoLabel,
}
"""The words of ``semi_supervised``: ``fixmatch:threshold=0.9:ratio=7``."""


def pseudo_label_loss(
    logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"], weights: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    """The weighted cross-entropy, summed and divided by the number of all images."""
    return (weights * F.cross_entropy(logits, labels, reduction="none")).mean()


def align_distribution(
    probabilities: Float[Tensor, "B K"], shares: Float[Tensor, " K"], predicted: Float[Tensor, " K"]
) -> Float[Tensor, "B K"]:
    """The probabilities times (wanted share / mean prediction) of each class, again of sum 1."""
    moved = probabilities * (shares + ALIGNMENT_FLOOR) / (predicted + ALIGNMENT_FLOOR)
    return moved / moved.sum(1, keepdim=True)


def truncated_gaussian(
    confidence: Float[Tensor, " B"], mean: Float[Tensor, ""], variance: Float[Tensor, ""], n: float
) -> Float[Tensor, " B"]:
    """1 from the mean up; below it exp(-(confidence - mean)^2 / (2 variance / n^2))."""
    return torch.exp(-((confidence - mean).clamp_max(0) ** 2) * n**2 / (2 * variance))


def check_reachable(by: SemiSupervised, label_smoothing: float, classes: int) -> None:
    """Raise RecipeError where smoothed labels keep every confidence below the one that pseudo-labels need."""
    most = 1 - label_smoothing + label_smoothing / classes
    if label_smoothing and by.weight and by.min_confidence > most:
        raise RecipeError(
            f"With label_smoothing {label_smoothing:g} and {classes} classes a network's confidence tends to "
            f"{most:.3g}, and {by.name} takes pseudo-labels from {by.min_confidence:g}: leave out "
            f"--label-smoothing, or give a lower threshold, such as --semi-supervised fixmatch:threshold="
            f"{0.95 * most:.2g}."
        )


def check_semi_supervised(by: SemiSupervised, recipe: Recipe, *, trains: bool) -> None:
    """Raise RecipeError where a batch would be cut although weights depend on all of it, or no network ``trains``."""
    check_cuts(by, recipe.grad_accum_steps, recipe.cpu_replicas or 1, recipe.devices)
    if not trains:
        raise RecipeError(
            f"The recipe's method is '{recipe.method}', which trains no network, and semi_supervised is "
            f"'{recipe.semi_supervised}': leave one of them out."
        )
