"""Training for another world: labelled source images, and target images without labels beside them.

Source and target go through the network in one pass, so batch norm sees both. A weight of 0 is the plain training, bit
for bit, because then no target image is read.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..batches import Batch
from ..checks import check_number, check_positive
from ..choose import choose
from ..classifier import Classifier
from ..data import load_dataset
from ..errors import RecipeError
from ..inference import predict_logits
from ..sources import find_unlabelled
from ..types import Dataset, Splits
from .fit import EpochMetrics, TrainingState, gradient_step
from .gradients import Gradients
from .hooks import BaseHook
from .losses import Objective, check_cuts
from .recipe import Recipe

MMD_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Widths of the kernels of MMD, as multiples of the median heuristic."""

DISCRIMINATOR_WIDTH = 256
"""Units of the hidden layer that tells source from target."""

MAX_WATCHED_IMAGES = 1000
"""Target images on which the answers at the end are described."""


class Pass(NamedTuple):
    """What a network says of a batch."""

    features: Float[Tensor, "B D"]
    logits: Float[Tensor, "B K"]


@dataclass(frozen=True)
class DomainTerm(ABC):
    """A term of the loss that makes the answers on target images better, without their labels.

    A member is a frozen dataclass; one line in ``DOMAIN_TERMS`` makes it a word of ``--adapt``.
    """

    weight: float = 1.0
    """Factor of the term; 0 is the plain training."""
    stochastic = False
    across_images = True
    """A term compares images of the batch with one another, so the batch must not be cut."""

    def __post_init__(self) -> None:
        """Raise ValueError for a negative weight."""
        check_number("weight", self.weight, 0)

    @property
    def cost(self) -> float:
        """The time of a step in units of one on source images alone."""
        return 1.0 + bool(self.weight)

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def build_modules(self, width: int) -> dict[str, nn.Module]:
        """The modules it trains, for features of this width; never in the bundle. Default: none."""
        del width
        return {}

    @abstractmethod
    def __call__(
        self, source: Pass, target: Pass, modules: Mapping[str, nn.Module], progress: float
    ) -> Float[Tensor, ""]:
        """The term, when the share ``progress`` of the run is done."""


@dataclass(frozen=True)
class MCC(DomainTerm):
    """Minimum class confusion (Jin et al. 2020, arXiv 1912.03699): no class is confused with another on the target."""

    temperature: float = 2.5

    def __post_init__(self) -> None:
        """Raise ValueError for a temperature that is not above 0."""
        super().__post_init__()
        check_positive("temperature", self.temperature)

    def __call__(
        self, source: Pass, target: Pass, modules: Mapping[str, nn.Module], progress: float
    ) -> Float[Tensor, ""]:
        """Class confusion of the target's logits."""
        del source, modules, progress
        return class_confusion(target.logits, self.temperature)


@dataclass(frozen=True)
class CORAL(DomainTerm):
    """Deep CORAL (Sun and Saenko 2016, arXiv 1607.01719): features of both domains have one covariance."""

    def __call__(
        self, source: Pass, target: Pass, modules: Mapping[str, nn.Module], progress: float
    ) -> Float[Tensor, ""]:
        """Distance of the covariances."""
        del modules, progress
        return covariance_distance(source.features, target.features)


@dataclass(frozen=True)
class MMD(DomainTerm):
    """Maximum mean discrepancy of the features (Long et al. 2015, arXiv 1502.02791, on the last layer's input)."""

    def __call__(
        self, source: Pass, target: Pass, modules: Mapping[str, nn.Module], progress: float
    ) -> Float[Tensor, ""]:
        """The squared discrepancy, biased, of five kernels around the median heuristic."""
        del modules, progress
        with torch.no_grad():
            both = torch.cat([source.features, target.features])
            base = 1 / torch.pdist(both).square().median().clamp_min(1e-12)
        return squared_discrepancy(source.features, target.features, [base * one for one in MMD_FACTORS])


@dataclass(frozen=True)
class DANN(DomainTerm):
    """Domain-adversarial training (Ganin et al. 2016, arXiv 1505.07818).

    A discriminator learns to tell the domains apart by their features; reversed, its gradient makes these alike.
    """

    def build_modules(self, width: int) -> dict[str, nn.Module]:
        """The discriminator."""
        hidden = DISCRIMINATOR_WIDTH
        return {"discriminator": nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))}

    def __call__(
        self, source: Pass, target: Pass, modules: Mapping[str, nn.Module], progress: float
    ) -> Float[Tensor, ""]:
        """The discriminator's cross-entropy, each domain half of it."""
        strength, losses = reversal_strength(progress), []
        for features, domain in ((source.features, 1.0), (target.features, 0.0)):
            answers = modules["discriminator"](reverse_gradient(features, strength))
            losses.append(F.binary_cross_entropy_with_logits(answers, torch.full_like(answers, domain)))
        return (losses[0] + losses[1]) / 2


def ignore_target() -> None:
    """No term: learn from the source alone."""


DOMAIN_TERMS: Mapping[str, Callable[..., DomainTerm | None]] = {
    "none": ignore_target,
    "mcc": MCC,
    "coral": CORAL,
    "mmd": MMD,
    "dann": DANN,
}
"""The words of ``adapt``, with arguments after colons: ``mcc:temperature=2:weight=0.5``."""


def class_confusion(logits: Float[Tensor, "B K"], temperature: float) -> Float[Tensor, ""]:
    """Share of class confusion in [0, (K - 1) / K]: images that are certain weigh more."""
    p = (logits / temperature).softmax(1)
    with torch.no_grad():
        certainty = 1 + torch.exp((p * (p + 1e-5).log()).sum(1))
        weights = len(p) * certainty / certainty.sum()
    confusion = p.T @ (weights[:, None] * p)
    confusion = confusion / confusion.sum(1, keepdim=True)
    return 1 - confusion.diagonal().mean()


def covariance_distance(source: Float[Tensor, "B D"], target: Float[Tensor, "C D"]) -> Float[Tensor, ""]:
    """||C_S - C_T||_F^2 / (4 D^2), covariances with n - 1: the documented formula, without a term of means."""
    distance = source.T.cov() - target.T.cov()
    return distance.square().sum() / (4 * source.shape[1] ** 2)


def squared_discrepancy(
    source: Float[Tensor, "B D"], target: Float[Tensor, "C D"], gammas: list[Any]
) -> Float[Tensor, ""]:
    """MMD^2, biased, of the sum of the kernels exp(-gamma |a - b|^2)."""

    def mean_kernel(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
        apart = (a[:, None] - b).square().sum(2)
        return torch.stack([torch.exp(-gamma * apart).mean() for gamma in gammas]).sum()

    return mean_kernel(source, source) + mean_kernel(target, target) - 2 * mean_kernel(source, target)


def reversal_strength(progress: float) -> float:
    """How strongly the gradient is reversed, when this share of the run is done: 2 / (1 + exp(-10 p)) - 1.

    >>> round(reversal_strength(0.1), 8)
    0.46211716
    """
    return 2 / (1 + math.exp(-10 * progress)) - 1


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, strength: float) -> Tensor:  # type: ignore[override]
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grads[0], None


def reverse_gradient(features: Float[Tensor, "B D"], strength: float) -> Float[Tensor, "B D"]:
    """The features; their gradient is multiplied by ``-strength``."""
    return _Reversal.apply(features, strength)  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class DomainLoss(Objective):
    """The loss of the source's labels + weight * the term, from one pass over the batch and the one ``beside`` it.

    ``beside`` has target images; their labels are not read.
    """

    labels: Objective
    term: DomainTerm
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    progress: float = 0.0
    """Share of the run that is done."""

    def __post_init__(self) -> None:
        """Raise RecipeError where the loss of the labels needs more than logits."""
        if not self.labels.on_logits:
            raise RecipeError(
                f"--adapt needs a loss of logits and labels, and {self.labels.name} is not one: leave out --adapt, or "
                "choose --loss cross-entropy."
            )
        object.__setattr__(self, "stochastic", self.labels.stochastic or self.term.stochastic)
        object.__setattr__(self, "across_images", self.labels.across_images or self.term.across_images)

    @property
    def name(self) -> str:
        """The term's."""
        return self.term.name

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch."""
        assert batch.beside is not None
        pixels, count = torch.cat([batch.pixels, batch.beside.pixels]), len(batch)
        features, logits = (each.float() for each in classifier.features_and_logits(pixels))
        source, target = Pass(features[:count], logits[:count]), Pass(features[count:], logits[count:])
        loss = self.labels.from_logits(source.logits, batch.labels)
        return loss + self.term.weight * self.term(source, target, self.modules, self.progress)

    def validate(self, classifier: Classifier, dataset: Dataset) -> tuple[float, float]:
        """As the loss of the labels."""
        return self.labels.validate(classifier, dataset)


def domain_step(state: TrainingState, gradients: Gradients, objective: Objective, batch: Batch) -> Tensor:
    """A step of ``DomainLoss``, which is told how much of the run is done."""
    assert isinstance(objective, DomainLoss)
    share = state.step / max(1, state.total_steps)
    return gradient_step(state, gradients, replace(objective, progress=share), batch)


def rank_by_epoch(metrics: EpochMetrics) -> tuple[float, ...]:
    """The last epoch is the best: source images cannot say which is the best on the target."""
    return (float(metrics.epoch),)


class TargetWatcher(BaseHook):
    """Says at the end what the answers on target images look like, by which a collapse is seen."""

    def __init__(self, images: Dataset) -> None:
        self.images = images.subset(np.arange(min(len(images), MAX_WATCHED_IMAGES)))

    def after_epoch(self, state: TrainingState) -> None:
        """Add a remark after the last epoch."""
        if state.epoch < state.epochs and not state.stop:
            return
        p = predict_logits(state.classifier, self.images)[0].softmax(1)
        entropy, mean = torch.special.entr(p).sum(1).mean().item(), p.mean(0)
        top = int(mean.argmax())
        state.remarks.append(
            f"On {len(p):,} target images, whose labels were not used, the answers have a mean entropy of "
            f"{entropy:.2f} nats, their mean one of {torch.special.entr(mean).sum().item():.2f} of "
            f"{math.log(len(mean)):.2f}; most often '{state.classifier.classes[top]}', {mean[top]:.0%}. This is no "
            "proof that they are right: label some (sightline evaluate RUN IMAGES)."
        )


def parse_domain_term(recipe: Recipe) -> DomainTerm | None:
    """The term that the recipe's ``adapt`` names; None without. Raises RecipeError where it does not fit the rest."""
    term = choose(DOMAIN_TERMS, recipe.adapt or "none", "domain adaptation")
    if (term is None) != (recipe.target is None):
        raise RecipeError(
            f"The recipe's adapt is '{recipe.adapt}', which needs target images without labels: give --target FOLDER."
            if term is not None
            else f"The recipe's target is '{recipe.target}', which is used by --adapt: give --adapt mcc, coral or dann."
        )
    if term is None:
        return None
    check_cuts(term, recipe.grad_accum_steps, recipe.cpu_replicas or 1, recipe.devices)
    for name, unfit, remedy in (
        ("method", recipe.method not in (None, "gradient"), "--method gradient"),
        ("semi_supervised", recipe.semi_supervised not in (None, "none"), "one of the two"),
        ("progressive_from", recipe.progressive_from is not None, "one size from the beginning"),
    ):
        if unfit:
            raise RecipeError(f"The recipe's {name} is '{vars(recipe)[name]}', and --adapt needs {remedy}.")
    return term


def find_target(recipe: Recipe, splits: Splits) -> tuple[Dataset, tuple[str, ...]]:
    """The recipe's target images without labels, each once, in the order of their bytes; and notes.

    Copies of validation and test images are left out and named. Neither names nor folders count. Raises RecipeError
    where there are fewer than a batch.
    """
    assert recipe.target is not None
    found = load_dataset(find_unlabelled(recipe.target), splits.train.geometry)
    found = found.subset(np.unique(found.digests, return_index=True)[1])
    held_out = np.isin(found.digests, np.concatenate([splits.val.digests, splits.test.digests]))
    notes = [
        f"{len(found) - held_out.sum():,} target images without labels are learned from (--adapt {recipe.adapt})."
    ]
    if held_out.any():
        first = found.files[np.flatnonzero(held_out)[0]]
        notes.append(
            f"{held_out.sum():,} target images are copies of validation or test images (the first is '{first}'): left "
            "out."
        )
    found = found.subset(~held_out)
    if len(found) < (recipe.batch_size or 2):
        raise RecipeError(
            f"The target '{recipe.target}' has {len(found)} images, and a step takes {recipe.batch_size}: give more "
            "images, or a smaller --batch-size."
        )
    return found, tuple(notes)
