"""Adversarial training: losses on attacked images, so that answers hold within eps of the training images.

The attack sees the classifier in eval mode, as its users and attackers will (the code of TRADES does so, that of
Wong et al. does not), and leaves every module and weight unchanged: norms gather statistics only from the images
trained on. It draws from torch's global generator, whose state is in the checkpoint. eps and step are in pixels of
[0, 1].
"""

from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..attacks import (
    BALLS,
    PGD,
    check_norm,
    cross_entropy_loss,
    gradient_ascent,
    random_like,
    require_gradient,
)
from ..batches import Batch
from ..checks import check_int, check_number, check_positive
from ..classifier import Classifier, frozen_eval
from ..data import iterate_batches
from ..types import Dataset
from .losses import CrossEntropy, Labels, Objective, kl_divergence

TRAIN_A_NETWORK = "Train a network instead: --model lenet5, for example."

MAX_ATTACKED_VAL_IMAGES = 1000
"""Validation images that are attacked after an epoch, evenly spaced."""


@dataclass(frozen=True)
class AdversarialLoss(Objective):
    """A loss on images attacked within ``eps``; epochs are compared by attacked validation images.

    eps rises in equal steps over the first ``warmup_epochs`` epochs: from random weights a large eps may leave
    nothing to learn.
    """

    eps: float = 8 / 255
    warmup_epochs: int = field(default=0, kw_only=True)
    norm: str = field(default="linf", kw_only=True)
    label_smoothing: float = field(default=0.0, kw_only=True)
    class_weights: tuple[float, ...] | None = field(default=None, kw_only=True)

    stochastic = True

    def __post_init__(self) -> None:
        """Raise ValueError or ChoiceError for an impossible field."""
        check_training_eps(self.eps, self.norm)
        check_int("warmup_epochs", self.warmup_epochs, 0)

    def eps_fraction(self, batch: Batch) -> float:
        """The fraction of eps that the batch's epoch uses."""
        return min(1.0, (batch.epoch + 1) / (self.warmup_epochs + 1))

    @abstractmethod
    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch."""

    def cross_entropy(
        self, classifier: Classifier, pixels: Float[Tensor, "B C H W"], labels: Labels
    ) -> Float[Tensor, ""]:
        """The mean cross-entropy of these pixels, in float32."""
        loss = CrossEntropy(label_smoothing=self.label_smoothing, class_weights=self.class_weights)
        return loss.from_logits(classifier(pixels).float(), labels)

    def validate(self, classifier: Classifier, dataset: Dataset) -> tuple[float, float]:
        """Mean cross-entropy and accuracy under PGD-10 on at most 1,000 of the images, always the same ones."""
        attack = PGD(steps=10, norm=self.norm, early_stop=False)
        some = dataset.subset(
            np.unique(np.linspace(0, len(dataset) - 1, MAX_ATTACKED_VAL_IMAGES).round().astype(np.int64))
        )
        loss, hits = 0.0, 0
        classifier.eval()
        for batch in iterate_batches(some, 250, device=classifier.device):
            with torch.no_grad():
                logits = classifier(attack(classifier, batch.pixels, batch.labels, self.eps)).float()
            loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
            hits += int((logits.argmax(1) == batch.labels).sum())
        return loss / len(some), hits / len(some)


@dataclass(frozen=True)
class PGDAdversarial(AdversarialLoss):
    """Cross-entropy of images attacked by PGD: the strongest plain defence (Madry et al. 2018).

    The attack takes ``steps`` steps of ``step`` pixels (2.5 eps / steps where not given) from a random start.
    ``clean`` is the weight of the unchanged images, 1 - clean that of the attacked ones. A training step costs
    ``steps`` + 1 passes.
    """

    steps: int = 7
    step: float | None = None
    clean: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError or ChoiceError for an impossible field."""
        super().__post_init__()
        check_int("steps", self.steps, 1)
        if self.step is not None:
            check_positive("step", self.step)
        check_number("clean", self.clean, 0, below=1)

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch."""
        require_gradient(classifier, "Adversarial training", TRAIN_A_NETWORK)
        fraction = self.eps_fraction(batch)
        ball = BALLS[self.norm](batch.pixels, fraction * self.eps)
        size = fraction * (self.step or 2.5 * self.eps / self.steps)
        with frozen_eval(classifier):
            start = ball.random(None)
            attacked = gradient_ascent(
                classifier, ball, start, batch.labels, cross_entropy_loss, size=size, steps=self.steps
            )
        loss = self.cross_entropy(classifier, attacked, batch.labels)
        if not self.clean:
            return loss
        return (1 - self.clean) * loss + self.clean * self.cross_entropy(classifier, batch.pixels, batch.labels)


@dataclass(frozen=True)
class FastAdversarial(AdversarialLoss):
    """Cross-entropy of images attacked by one step from a random start: two passes a step (Wong et al. 2020).

    ``step`` is in units of eps. ``noise`` is how far the start is drawn, in units of eps: 1 stays in the ball, as
    published; 2 is N-FGSM (de Jorge et al. 2022, with step 1), which leaves it and is not projected back, against
    overfitting to a single step. Check the accuracy under PGD: a network can overfit to a single step.
    """

    step: float = 1.25
    noise: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError or ChoiceError for an impossible field."""
        super().__post_init__()
        check_positive("step", self.step)
        check_number("noise", self.noise, 0)

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch."""
        require_gradient(classifier, "Adversarial training", TRAIN_A_NETWORK)
        near, eps = BALLS[self.norm], self.eps_fraction(batch) * self.eps
        # outside the ball the only projection is the one to [0, 1]
        far = eps * (1.0 if self.noise <= 1 else self.noise + self.step)
        with frozen_eval(classifier):
            start = near(batch.pixels, self.noise * eps).random(None)
            attacked = gradient_ascent(
                classifier,
                near(batch.pixels, far),
                start,
                batch.labels,
                cross_entropy_loss,
                size=self.step * eps,
                steps=1,
            )
        return self.cross_entropy(classifier, attacked, batch.labels)


@dataclass(frozen=True)
class Trades(AdversarialLoss):
    """Cross-entropy of the images + beta KL(answers to them || answers to attacked ones): Zhang et al. 2019.

    The attack raises the divergence, from a start of normal noise of 0.001. A large ``beta`` trades accuracy for
    robustness: 6 is usual for photographs, 1 for digits. Class weights multiply both terms. A training step costs
    ``steps`` + 3 passes.
    """

    steps: int = 10
    beta: float = 6.0
    step: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError or ChoiceError for an impossible field."""
        super().__post_init__()
        check_int("steps", self.steps, 1)
        check_positive("beta", self.beta)
        if self.step is not None:
            check_positive("step", self.step)

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch."""
        require_gradient(classifier, "TRADES", TRAIN_A_NETWORK)
        fraction = self.eps_fraction(batch)
        ball = BALLS[self.norm](batch.pixels, fraction * self.eps)
        size = fraction * (self.step or 2.5 * self.eps / self.steps)
        with frozen_eval(classifier):
            with torch.no_grad():
                target = classifier(batch.pixels).float()
            start = ball.project(random_like(batch.pixels, None, normal=True).mul_(1e-3).add_(batch.pixels))
            attacked = gradient_ascent(classifier, ball, start, target, kl_divergence, size=size, steps=self.steps)
        logits = classifier(batch.pixels).float()
        pull = kl_divergence(classifier(attacked).float(), logits)
        if self.class_weights is not None:
            weights = torch.tensor(self.class_weights, device=pull.device, dtype=pull.dtype)
            hard = batch.labels.ndim == 1
            pull = pull * (weights[batch.labels] if hard else batch.labels.to(pull.dtype) @ weights)
        loss = CrossEntropy(label_smoothing=self.label_smoothing, class_weights=self.class_weights)
        return loss.from_logits(logits, batch.labels) + self.beta * pull.mean()


def check_training_eps(eps: object, norm: str) -> None:
    """Raise ValueError for an eps that cannot be trained with, ChoiceError for an unknown norm."""
    check_norm(norm)
    most = 1 if norm == "linf" else float("inf")
    if not isinstance(eps, int | float) or not 0 < eps <= most:
        hint = f"; for {eps} of 255 grey values write {eps}/255" if isinstance(eps, int) and eps > 1 else ""
        raise ValueError(f"eps must be above 0 and at most {most} (pixels go from 0 to 1), not {eps!r}{hint}")
