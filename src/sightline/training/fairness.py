"""Balancing the loss: class weights, and groups of images (a column of a table) that should be answered equally well.

A mitigation changes which (group, class) subgroups are drawn how often, the weight of their errors, or both.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from ..batches import Batch
from ..checks import check_number, check_positive
from ..choose import suggest
from ..classifier import Classifier
from ..errors import RecipeError
from ..types import Dataset
from .fit import Hook, TrainingState
from .losses import Objective

BLANK_GROUP = "(blank)"
"""Name of the group of images whose cell in the column is empty."""

ClassWeighting = Callable[[Int[ndarray, " K"]], tuple[float, ...] | None]
"""Training images of each class (K) -> the weight of each class in the loss; None for no weights."""


@dataclass(frozen=True)
class UniformWeights:
    """No class weights."""

    def __call__(self, counts: Int[ndarray, " K"]) -> None:
        """None."""
        del counts


@dataclass(frozen=True)
class BalancedWeights:
    """N / (K n): every class has the same total weight; the mean over images is 1, absent classes get 0."""

    def __call__(self, counts: Int[ndarray, " K"]) -> tuple[float, ...]:
        """The weight of each class."""
        return _normalise_weights(counts, counts.astype(float))


@dataclass(frozen=True)
class EffectiveNumberWeights:
    """1 / the effective number of images, (1 - beta^n) / (1 - beta): Cui et al. 2019 (arXiv 1901.05555).

    ``beta`` 0 gives all classes the same weight, near 1 it is balanced; 0.999 is usual. The mean over images is 1.
    """

    beta: float = 0.999

    def __post_init__(self) -> None:
        """Raise ValueError outside [0, 1)."""
        check_number("beta", self.beta, 0, below=1)

    def __call__(self, counts: Int[ndarray, " K"]) -> tuple[float, ...]:
        """The weight of each class."""
        return _normalise_weights(counts, (1 - np.power(self.beta, counts)) / (1 - self.beta))


def _normalise_weights(counts: Int[ndarray, " K"], worth: ndarray) -> tuple[float, ...]:
    """1 / worth, scaled so that the mean over all images is 1; 0 where there are none."""
    weights = np.divide(1.0, worth, out=np.zeros(len(counts)), where=counts > 0)
    return tuple((weights * counts.sum() / (weights * counts).sum()).tolist())


@dataclass(frozen=True, eq=False)
class Subgroups:
    """Training images by group and class: M combinations that occur."""

    names: tuple[str, ...]
    """``group, class`` of each."""
    codes: Int[ndarray, " N"]
    """The subgroup of each training image."""
    weights: Float[ndarray, " M"]
    """P(group) P(class) / P(group, class): makes group and class independent (Kamiran and Calders 2012)."""
    groups: int
    """Number of groups."""

    @property
    def counts(self) -> Int[ndarray, " M"]:
        """Images of each subgroup."""
        return np.bincount(self.codes, minlength=len(self.names))


def find_subgroups(dataset: Dataset, column: str) -> Subgroups:
    """The subgroups of a column; raises RecipeError for an unknown column, or one with a single value."""
    if column not in dataset.columns:
        hint = suggest(column, dataset.columns)
        raise RecipeError(
            f"The recipe's fairness_column is '{column}', and the images have no such column. {hint}"
        )
    words = dataset.columns[column].astype(str)
    groups, group = np.unique(np.where(words == "", BLANK_GROUP, words), return_inverse=True)
    if len(groups) < 2:
        raise RecipeError(
            f"The recipe's fairness_column is '{column}', but all training images are of one group there, "
            f"'{groups[0]}', so there is nothing to balance. Leave it out, or add images of other groups."
        )
    kinds, code = np.unique(group * len(dataset.classes) + dataset.labels, return_inverse=True)
    of_group, of_class = np.divmod(kinds, len(dataset.classes))
    share = np.bincount(code) / len(code)
    weights = (np.bincount(group) / len(code))[of_group] * (dataset.counts / len(code))[of_class] / share
    names = tuple(f"{groups[g]}, {dataset.classes[k]}" for g, k in zip(of_group, of_class, strict=True))
    return Subgroups(names, code.astype(np.int64), weights, len(groups))


def subgroup_losses(
    inner: Objective, classifier: Classifier, batch: Batch
) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Of the subgroups in a batch: their numbers, mean losses and shares of the images."""
    assert batch.group is not None  # ``apply_mitigation`` puts the subgroup there
    logits = classifier(batch.pixels).float()
    present, counts = batch.group.unique(return_counts=True)
    rows = [batch.group == subgroup for subgroup in present]
    losses = torch.stack([inner.from_logits(logits[where], batch.labels[where]) for where in rows])
    return present, losses, counts / len(batch)


@dataclass(frozen=True, eq=False)
class ReweighedLoss(Objective):
    """An objective in which each subgroup has a weight; the mean weight of the training images is 1."""

    inner: Objective
    weights: Float[Tensor, " M"]

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The weighted mean loss over the batch."""
        present, losses, shares = subgroup_losses(self.inner, classifier, batch)
        return (self.weights.to(losses.device)[present] * shares) @ losses


class GroupDROLoss(Objective):
    """Group DRO: subgroups have weights q that grow where the loss is high (Sagawa et al. 2020, algorithm 1).

    q <- q exp(eta loss), normalised, after each step, so that the loss of a step is known before it: the q-weighted
    mean over the subgroups in the batch. It is also a hook, so that q is in the checkpoint.
    """

    def __init__(self, inner: Objective, subgroups: int, eta: float) -> None:
        self.inner, self.eta = inner, eta
        self.q = torch.full((subgroups,), 1 / subgroups, dtype=torch.float64)
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        """Losses of the current step; replicas add theirs."""

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The q-weighted mean loss."""
        present, losses, shares = subgroup_losses(self.inner, classifier, batch)
        self.pending.append((present, losses.detach(), shares * len(batch)))
        weights = self.q.to(losses.device, losses.dtype)[present]
        return weights @ losses / weights.sum()

    def after_step(self, state: TrainingState) -> None:
        """Let q grow by the losses of the step."""
        del state
        sums, counts = torch.zeros_like(self.q), torch.zeros_like(self.q)
        for present, losses, images in self.pending:
            place, many = present.cpu(), images.cpu().double()
            sums.index_add_(0, place, losses.cpu().double() * many)
            counts.index_add_(0, place, many)
        self.pending.clear()
        grown = self.q * torch.exp(self.eta * sums / counts.clamp_min(1))
        self.q = grown / grown.sum()

    def after_epoch(self, state: TrainingState) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """The weights of the subgroups."""
        return {"q": self.q}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the weights of the subgroups."""
        self.q = saved["q"]


class Mitigation(ABC):
    """A way to balance subgroups."""

    balanced: ClassVar[bool]
    """Whether every subgroup is drawn equally often."""
    single_process: ClassVar[bool] = False
    """Whether it has a state that several processes would not share."""

    @abstractmethod
    def objective(self, inner: Objective, subgroups: Subgroups, /) -> Objective:
        """The objective to minimise in place of ``inner``."""

    def require_logit_loss(self, inner: Objective, name: str) -> Objective:
        """``inner``; raises RecipeError where its loss cannot be computed for some of the images from logits."""
        if not inner.on_logits:
            raise RecipeError(
                f"fairness_method {name} weighs errors image by image, which {inner.name} does not allow: "
                "use --fairness-method balanced."
            )
        return inner


@dataclass(frozen=True)
class BalancedSampling(Mitigation):
    """Every subgroup equally often in the batches, rare ones repeatedly (Idrissi et al. 2022)."""

    balanced = True

    def objective(self, inner: Objective, subgroups: Subgroups) -> Objective:
        """The same."""
        del subgroups
        return inner


@dataclass(frozen=True)
class Reweighing(Mitigation):
    """Images have the weight P(group) P(class) / P(group, class) in the loss (Kamiran and Calders 2012)."""

    balanced = False

    def objective(self, inner: Objective, subgroups: Subgroups) -> Objective:
        """The weighted one."""
        weights = torch.from_numpy(subgroups.weights).float()
        return ReweighedLoss(self.require_logit_loss(inner, "reweighing"), weights)


@dataclass(frozen=True)
class GroupDRO(Mitigation):
    """Balanced subgroups whose weights grow where the loss is high: the worst one decides (Sagawa et al. 2020).

    ``eta`` is the step size of the weights, 0.01 in the paper; more regularisation, or fewer epochs, than usual
    help.
    """

    eta: float = 0.01
    balanced = True
    single_process = True

    def __post_init__(self) -> None:
        """Raise ValueError for an eta that is not above 0."""
        check_positive("eta", self.eta)

    def objective(self, inner: Objective, subgroups: Subgroups) -> Objective:
        """A new one with uniform weights."""
        return GroupDROLoss(self.require_logit_loss(inner, "group-dro"), len(subgroups.names), self.eta)


@dataclass(frozen=True, eq=False)
class FairnessPlan:
    """A mitigation applied to training images."""

    train: Dataset
    """The training images, with their subgroups in the column ``group``."""
    balanced: bool
    objective: Objective
    hooks: Mapping[str, Hook] = field(default_factory=dict)
    note: str = ""
    """How many images the rarest and the largest subgroup have."""


def apply_mitigation(
    mitigation: Mitigation, column: str | None, train: Dataset, objective: Objective
) -> FairnessPlan:
    """Training images, objective and hooks of a mitigation; unchanged where ``column`` is None.

    Raises RecipeError as ``find_subgroups`` does, or where the objective cannot be weighed.
    """
    if column is None:
        return FairnessPlan(train, False, objective)
    subgroups = find_subgroups(train, column)
    made = mitigation.objective(objective, subgroups)
    rare, common = int(subgroups.counts.argmin()), int(subgroups.counts.argmax())
    absent = subgroups.groups * len(train.classes) - len(subgroups.names)
    more = f"; {absent} combinations have no images, so nothing is learnt about them" if absent else ""
    return FairnessPlan(
        replace(train, columns={**train.columns, "group": subgroups.codes}),
        mitigation.balanced,
        made,
        {"groups": made} if isinstance(made, Hook) else {},
        f"Subgroups by '{column}' within each class are balanced: from {subgroups.counts[rare]:,} training images "
        f"({subgroups.names[rare]}) to {subgroups.counts[common]:,} ({subgroups.names[common]}){more}.",
    )
