"""What training minimises: ``(classifier, batch) -> loss ()``.

To add an objective, subclass ``Objective`` (or ``LogitLoss``, where only logits and labels matter) and name it in
``OBJECTIVES`` in ``objectives.py``. Losses on logits see softmax(z) only through log-sums, so that a confident answer
loses no digits: 1 - p is never computed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..batches import Batch
from ..checks import check_number, check_positive
from ..classifier import Classifier
from ..errors import RecipeError
from ..inference import validate
from ..types import Dataset

Labels = Int[Tensor, " B"] | Float[Tensor, "B K"]
"""Hard labels, or a distribution over the classes for each image (mixup)."""


class Objective(ABC):
    """How wrong a classifier is on a batch.

    The attributes say what a way of training must know of it; each has a default.
    """

    stochastic: bool = False
    """Draws random numbers: replicas, which run at once, would draw them in no fixed order, so they are refused."""
    across_images: bool = False
    """Compares the images of a batch with one another, so a batch must not be cut: gradient accumulation, replicas
    and several processes are refused."""
    min_class_images: ClassVar[int] = 1
    """Training images that every class must have."""
    on_logits: ClassVar[bool] = False
    """Needs only logits and labels: ``from_logits`` computes it."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @property
    def head(self) -> tuple[str, Mapping[str, Any]] | None:
        """The change of structure that gives a network the last layer it needs, and its arguments; None for any."""
        return None

    @abstractmethod
    def __call__(self, classifier: Classifier, batch: Batch, /) -> Float[Tensor, ""]:
        """The mean loss over the batch."""

    def from_logits(self, logits: Float[Tensor, "B K"], labels: Labels) -> Float[Tensor, ""]:
        """The mean loss of these logits, where ``on_logits``; else TypeError."""
        del logits, labels
        raise TypeError(f"{self.name} needs more than logits and labels")

    def validate(self, classifier: Classifier, dataset: Dataset) -> tuple[float, float]:
        """(loss, accuracy) on validation images, by which epochs are compared: mean cross-entropy and accuracy."""
        return validate(classifier, dataset)


@dataclass(frozen=True)
class FunctionObjective(Objective):
    """A plain function ``(classifier, batch) -> loss ()`` as an objective."""

    function: Callable[[Classifier, Batch], Float[Tensor, ""]]

    @property
    def name(self) -> str:
        """The function's own name."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch."""
        return self.function(classifier, batch)


ObjectiveLike = Objective | Callable[[Classifier, Batch], Float[Tensor, ""]]
"""An objective, or a plain function ``(classifier, batch) -> loss ()``."""


def as_objective(given: ObjectiveLike) -> Objective:
    """An objective unchanged; a plain function as one."""
    return given if isinstance(given, Objective) else FunctionObjective(given)


@dataclass(frozen=True, kw_only=True)
class LogitLoss(Objective):
    """An objective of logits and labels, computed in float32 at any precision of the network.

    A member writes ``per_sample``, the loss of each image. ``class_weights`` (one for each class) multiply the
    loss of each image; the sum is divided by the number of images, not of weights, so that the losses of pieces of
    a batch add up to that of the batch.
    """

    class_weights: tuple[float, ...] | None = None
    on_logits: ClassVar[bool] = True

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch."""
        return self.from_logits(classifier(batch.pixels).float(), batch.labels)

    def from_logits(self, logits: Float[Tensor, "B K"], labels: Labels) -> Float[Tensor, ""]:
        """The mean loss of these logits, for hard or soft labels."""
        if self.class_weights is None:
            return soft_target_loss(self.per_sample, logits, labels).mean()
        weights = torch.tensor(self.class_weights, device=logits.device, dtype=logits.dtype)
        return soft_target_loss(lambda z, k: weights[k] * self.per_sample(z, k), logits, labels).mean()

    def per_sample(self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The loss of each image, for hard labels; a member that overrides ``from_logits`` may do without."""
        raise NotImplementedError(f"{type(self).__name__} must define per_sample or from_logits.")


@dataclass(frozen=True)
class CrossEntropy(LogitLoss):
    """-sum_c q_c log softmax(z)_c, mean over the batch, q the label mixed with the uniform distribution.

    ``label_smoothing`` is the share of the uniform one (Szegedy et al. 2016, section 7). Soft labels work too.
    """

    label_smoothing: float = 0.0

    def from_logits(self, logits: Float[Tensor, "B K"], labels: Labels) -> Float[Tensor, ""]:
        """The mean cross-entropy."""
        if self.class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        weights = torch.tensor(self.class_weights, device=logits.device, dtype=logits.dtype)
        total = F.cross_entropy(logits, labels, weights, label_smoothing=self.label_smoothing, reduction="sum")
        return total / len(logits)


@dataclass(frozen=True)
class Focal(LogitLoss):
    """-(1 - p_k)^gamma log p_k: cross-entropy in which easy images count less than hard ones.

    ``gamma`` 0 is cross-entropy; 2 is usual (Lin et al. 2017, arXiv 1708.02002, for several classes).
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        """Raise ValueError for a negative gamma."""
        check_number("gamma", self.gamma, 0)

    def per_sample(self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The focal loss of each image."""
        entropy = F.cross_entropy(logits, labels, reduction="none")
        if not self.gamma:
            return entropy
        log_other = _mask_true_class(logits, labels).logsumexp(1) - logits.logsumexp(1)
        return torch.exp(self.gamma * log_other) * entropy


@dataclass(frozen=True)
class M3CE(LogitLoss):
    """(1 + p_r - p_k)^gamma, in [0, 2^gamma]: the max-margin minimum classification error.

    k is the true class and r its strongest rival, argmax over j != k (of equals the first), which counts as
    constant in the gradient; 1 + p_r - p_k = exp(logaddexp(logsumexp over j != k of log p_j, log p_r)). Bounded and
    robust to label errors, but its gradient vanishes on answers that are very wrong, and classes other than k and
    r are pushed up while p_r > p_k: train with m3ce-cec.
    """

    gamma: float = 3.0

    def __post_init__(self) -> None:
        """Raise ValueError for a gamma below 1."""
        check_number("gamma", self.gamma, 1)

    def per_sample(self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The M3CE of each image."""
        others = _mask_true_class(logits.log_softmax(1), labels)
        rival = others.gather(1, others.argmax(1, keepdim=True)).squeeze(1)
        return torch.exp(self.gamma * torch.logaddexp(others.logsumexp(1), rival))


@dataclass(frozen=True)
class M3CECEc(LogitLoss):
    """Cross-entropy + weight * M3CE: the margin's pull, and a gradient on gross errors.

    At ``lambda_safe(gamma)``, 1/12 for the usual gamma of 3, and below, no class is ever pushed against the
    cross-entropy. Label smoothing applies to the cross-entropy only: M3CE needs to know the one true class.
    """

    weight: float = 1.0
    gamma: float = 3.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for a negative weight or a gamma below 1."""
        check_number("weight", self.weight, 0)
        check_number("gamma", self.gamma, 1)

    def from_logits(self, logits: Float[Tensor, "B K"], labels: Labels) -> Float[Tensor, ""]:
        """The mean of both terms."""
        entropy = CrossEntropy(label_smoothing=self.label_smoothing, class_weights=self.class_weights)
        margin = M3CE(gamma=self.gamma, class_weights=self.class_weights)
        return entropy.from_logits(logits, labels) + self.weight * margin.from_logits(logits, labels)


@dataclass(frozen=True)
class M3CECEcNormalised(M3CECEc):
    """(1 - weight) * cross-entropy + weight * M3CE: m3ce-cec at weight / (1 - weight), on another scale."""

    weight: float = 0.5

    def __post_init__(self) -> None:
        """Raise ValueError for a weight outside [0, 1) or a gamma below 1."""
        super().__post_init__()
        if self.weight >= 1:
            raise ValueError(f"weight must be below 1, not {self.weight}: for M3CE alone choose m3ce")

    def from_logits(self, logits: Float[Tensor, "B K"], labels: Labels) -> Float[Tensor, ""]:
        """The mean of both terms."""
        unscaled = M3CECEc(
            weight=self.weight / (1 - self.weight),
            gamma=self.gamma,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
        )
        return (1 - self.weight) * unscaled.from_logits(logits, labels)


@dataclass(frozen=True)
class MCE(LogitLoss):
    """sigmoid(xi d + theta), d = -z_k + 1/eta log(mean over j != k of exp(eta z_j)): a smooth count of the errors.

    d is the distance from the true class's logit up to the soft maximum of the others, which for a large ``eta`` is
    the maximum (Juang and Katagiri 1992; Juang, Chou and Lee 1997). It saturates on both sides: start from weights
    that already know something.
    """

    eta: float = 1.0
    xi: float = 1.0
    theta: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError where eta or xi is not above 0, or theta is no number."""
        check_positive("eta", self.eta)
        check_positive("xi", self.xi)
        check_number("theta", self.theta)

    def per_sample(self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The smooth error of each image."""
        own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
        count = torch.tensor(float(logits.shape[1] - 1))
        mean = (self.eta * _mask_true_class(logits, labels)).logsumexp(1) - count.log()
        return torch.sigmoid(self.xi * (mean / self.eta - own) + self.theta)


@dataclass(frozen=True)
class LargeMarginMCE(MCE):
    """sigmoid(xi (d + margin) + theta): MCE that also counts correct answers within ``margin`` (Yu et al. 2008)."""

    margin: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for a negative margin."""
        super().__post_init__()
        check_number("margin", self.margin, 0)

    def per_sample(self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The smooth error of each image at that margin."""
        return MCE(eta=self.eta, xi=self.xi, theta=self.theta + self.xi * self.margin).per_sample(logits, labels)


@dataclass(frozen=True, eq=False)
class DistillationLoss(Objective):
    """alpha T^2 KL(softmax(z_teacher / T) || softmax(z / T)) + (1 - alpha) loss(z, labels), mean over the batch.

    T^2 keeps the gradient of the first term as large as that of the second while logits are small compared with T
    (Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2); else it is up to T times as large. The teacher
    sees the pixels that the student sees, augmentation included, in eval mode and without gradients.
    """

    teacher: Classifier
    labels: Objective = field(default_factory=CrossEntropy)
    """The loss of the labels, hard or soft."""
    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        """Raise ValueError for a temperature or alpha that cannot be."""
        check_distillation(self.temperature, self.alpha)
        self.teacher.eval()
        object.__setattr__(self, "stochastic", self.labels.stochastic)

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch."""
        with torch.no_grad():
            target = self.teacher(batch.pixels).float()
        logits = classifier(batch.pixels).float()
        pull = kl_divergence(logits / self.temperature, target / self.temperature).mean() * self.temperature**2
        if self.alpha == 1:
            return pull
        # a loss that is not of logits makes pixels of its own
        on_logits = self.labels.on_logits
        own = self.labels.from_logits(logits, batch.labels) if on_logits else self.labels(classifier, batch)
        return self.alpha * pull + (1 - self.alpha) * own


def kl_divergence(logits: Float[Tensor, "B K"], target: Tensor) -> Float[Tensor, " B"]:
    """KL(softmax(target) || softmax(logits)) of each image; both sides have gradients."""
    return F.kl_div(logits.log_softmax(1), target.log_softmax(1), reduction="none", log_target=True).sum(1)


def soft_target_loss(
    criterion: Callable[[Tensor, Tensor], Tensor], logits: Float[Tensor, "B K"], labels: Labels
) -> Float[Tensor, " B"]:
    """The criterion of hard labels; of soft ones (mixup) sum_c q_c criterion(z, c), over the classes of each."""
    if labels.ndim == 1:
        return criterion(logits, labels)
    images, classes = labels.nonzero(as_tuple=True)
    losses = labels[images, classes] * criterion(logits[images], classes)
    return logits.new_zeros(len(logits)).index_add(0, images, losses)


def lambda_safe(gamma: float = 3.0) -> float:
    """The largest weight at which M3CE never reverses a cross-entropy gradient: 1 / (gamma 2^(gamma - 1)).

    >>> round(lambda_safe(3), 4)
    0.0833
    """
    return 1 / (gamma * 2 ** (gamma - 1))


def check_cuts(objective: Any, pieces: int, replicas: int, devices: int) -> None:
    """Raise RecipeError where a batch would be cut although the objective, or a term of it, does not allow it.

    ``objective`` has ``name``, ``stochastic`` and ``across_images``.
    """
    if objective.stochastic and replicas > 1:
        raise RecipeError(
            f"The objective {objective.name} draws random numbers, which replicas would draw in no fixed order: leave "
            "out --cpu-replicas."
        )
    if not objective.across_images:
        return
    for flag, count in (("grad-accum-steps", pieces), ("cpu-replicas", replicas), ("devices", devices)):
        if count > 1:
            raise RecipeError(
                f"The objective {objective.name} compares the images of a batch with one another, so a batch cannot be "
                f"cut: leave out --{flag}."
            )


def check_distillation(temperature: object, alpha: object) -> None:
    """Raise ValueError for a temperature that is not above 0, or an alpha (the teacher's share) outside [0, 1]."""
    check_positive("temperature", temperature)
    check_number("alpha", alpha, 0, 1)


def _mask_true_class(logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"]) -> Float[Tensor, "B K"]:
    """The logits with the true class's at minus infinity."""
    return logits.scatter(1, labels.unsqueeze(1), float("-inf"))
