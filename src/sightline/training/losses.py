"""What training minimises: ``(classifier, Batch) -> loss ()``. To add one, write it and name it in OBJECTIVES."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checks import check_number, check_positive
from ..classifier import Classifier
from ..types import Batch
from .adversarial import FastAdversarial, PGDAdversarial, Trades
from .criteria import (
    PerSampleLoss,
    cross_entropy_per_sample,
    focal_per_sample,
    m3ce_per_sample,
    mce_per_sample,
    mean_cross_entropy,
    soft_target_loss,
)


@runtime_checkable
class Objective(Protocol):
    """A value that says how wrong a classifier is on a batch."""

    def __call__(self, classifier: Classifier, batch: Batch, /) -> Float[Tensor, ""]:
        """The mean loss over the batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class LogitLoss(ABC):
    """An objective that needs the network's answers only, in float32 whatever the network's precision.

    ``class_weights`` multiply each class's terms; the sum is divided by the number of images, not of weights,
    so that pieces of a batch add up to the batch.
    """

    class_weights: tuple[float, ...] | None = None

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch."""
        return self.from_logits(classifier(batch.pixels).float(), batch.labels)

    @abstractmethod
    def from_logits(
        self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"] | Float[Tensor, "B K"]
    ) -> Float[Tensor, ""]:
        """The mean loss of these logits, for hard or soft labels."""

    def weighted_mean(
        self,
        criterion: PerSampleLoss,
        logits: Float[Tensor, "B K"],
        labels: Int[Tensor, " B"] | Float[Tensor, "B K"],
    ) -> Float[Tensor, ""]:
        """The mean of a criterion, weighted by class."""
        if self.class_weights is None:
            return soft_target_loss(criterion, logits, labels).mean()
        weights = torch.tensor(self.class_weights, device=logits.device, dtype=logits.dtype)
        return soft_target_loss(lambda z, k: weights[k] * criterion(z, k), logits, labels).mean()


@dataclass(frozen=True)
class CrossEntropy(LogitLoss):
    """-sum_c q_c log softmax(z)_c, mean over the batch, q the label mixed with the uniform distribution.

    ``label_smoothing`` is the share of the uniform one (Szegedy et al. 2016, section 7). Soft labels work too.
    """

    label_smoothing: float = 0.0

    def from_logits(
        self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"] | Float[Tensor, "B K"]
    ) -> Float[Tensor, ""]:
        """The mean cross-entropy."""
        return mean_cross_entropy(logits, labels, self.class_weights, self.label_smoothing)


@dataclass(frozen=True)
class Focal(LogitLoss):
    """Cross-entropy that turns from easy images to hard ones: -(1 - p_k)^gamma log p_k.

    ``gamma`` 0 is cross-entropy; 2 is usual (Lin et al. 2017, arXiv 1708.02002).
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        """Raise ValueError for a negative gamma."""
        check_number("gamma", self.gamma, 0)

    def from_logits(
        self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"] | Float[Tensor, "B K"]
    ) -> Float[Tensor, ""]:
        """The mean focal loss."""
        criterion = partial(focal_per_sample, gamma=self.gamma) if self.gamma else cross_entropy_per_sample
        return self.weighted_mean(criterion, logits, labels)


@dataclass(frozen=True)
class M3CE(LogitLoss):
    """Max-margin minimum classification error: (1 + p_r - p_k)^gamma, r the strongest rival; bounded, robust.

    It ignores answers that are very wrong (its gradient vanishes there): m3ce-cec is the one to train with.
    """

    gamma: float = 3.0

    def __post_init__(self) -> None:
        """Raise ValueError for a gamma below 1."""
        check_number("gamma", self.gamma, 1)

    def from_logits(
        self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"] | Float[Tensor, "B K"]
    ) -> Float[Tensor, ""]:
        """The mean M3CE."""
        return self.weighted_mean(partial(m3ce_per_sample, gamma=self.gamma), logits, labels)


@dataclass(frozen=True)
class M3CECEc(LogitLoss):
    """Cross-entropy + weight * M3CE: the margin's pull, and a gradient on gross errors.

    At ``lambda_safe(gamma)``, 1/12 for the usual gamma of 3, and below, no class is ever pushed against the
    cross-entropy. Label smoothing is for the cross-entropy's part: M3CE needs to know the one right class.
    """

    weight: float = 1.0
    gamma: float = 3.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for a negative weight or a gamma below 1."""
        check_number("weight", self.weight, 0)
        check_number("gamma", self.gamma, 1)

    def from_logits(
        self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"] | Float[Tensor, "B K"]
    ) -> Float[Tensor, ""]:
        """The mean of both parts."""
        entropy = CrossEntropy(label_smoothing=self.label_smoothing, class_weights=self.class_weights)
        margin = M3CE(gamma=self.gamma, class_weights=self.class_weights)
        return entropy.from_logits(logits, labels) + self.weight * margin.from_logits(logits, labels)


@dataclass(frozen=True)
class M3CECEcNormalised(LogitLoss):
    """(1 - weight) * cross-entropy + weight * M3CE: m3ce-cec at weight / (1 - weight), on another scale."""

    weight: float = 0.5
    gamma: float = 3.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for a weight outside [0, 1) or a gamma below 1."""
        check_number("weight", self.weight, 0)
        if self.weight >= 1:
            raise ValueError(f"weight must be below 1, not {self.weight}: for M3CE alone choose m3ce")
        check_number("gamma", self.gamma, 1)

    def from_logits(
        self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"] | Float[Tensor, "B K"]
    ) -> Float[Tensor, ""]:
        """The mean of both parts."""
        sums = M3CECEc(
            weight=self.weight / (1 - self.weight),
            gamma=self.gamma,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
        )
        return (1 - self.weight) * sums.from_logits(logits, labels)


@dataclass(frozen=True)
class MCE(LogitLoss):
    """Minimum classification error: a smooth count of the errors, sigmoid(xi d + theta).

    d is how far the other classes' soft maximum (``eta``) is above the true class's logit (Juang and Katagiri
    1992). It saturates on both sides: start from weights that already know something.
    """

    eta: float = 1.0
    xi: float = 1.0
    theta: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError where eta or xi is not above 0, or theta is no number."""
        check_positive("eta", self.eta)
        check_positive("xi", self.xi)
        check_number("theta", self.theta)

    def from_logits(
        self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"] | Float[Tensor, "B K"]
    ) -> Float[Tensor, ""]:
        """The mean smooth error."""
        criterion = partial(mce_per_sample, eta=self.eta, xi=self.xi, theta=self.theta)
        return self.weighted_mean(criterion, logits, labels)


@dataclass(frozen=True)
class LargeMarginMCE(MCE):
    """MCE that also counts answers right by less than ``margin``: sigmoid(xi (d + margin)) (Yu et al. 2008)."""

    margin: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for a negative margin."""
        super().__post_init__()
        check_number("margin", self.margin, 0)

    def from_logits(
        self, logits: Float[Tensor, "B K"], labels: Int[Tensor, " B"] | Float[Tensor, "B K"]
    ) -> Float[Tensor, ""]:
        """The mean smooth error at that margin."""
        criterion = partial(mce_per_sample, eta=self.eta, xi=self.xi, theta=self.theta + self.xi * self.margin)
        return self.weighted_mean(criterion, logits, labels)


OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "cross-entropy": CrossEntropy,
    "focal": Focal,
    "m3ce": M3CE,
    "m3ce-cec": M3CECEc,
    "m3ce-cec-normalised": M3CECEcNormalised,
    "mce": MCE,
    "large-margin-mce": LargeMarginMCE,
    "adversarial": PGDAdversarial,
    "fast-adversarial": FastAdversarial,
    "trades": Trades,
}
"""Name -> the loss, its own arguments after colons: ``focal:gamma=3``."""


def lambda_safe(gamma: float = 3.0) -> float:
    """The largest weight at which M3CE never turns a cross-entropy gradient round: 1 / (gamma 2^(gamma - 1)).

    >>> round(lambda_safe(3), 4)
    0.0833
    """
    return 1 / (gamma * 2 ** (gamma - 1))
