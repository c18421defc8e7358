"""Training so that groups fare alike: a column's values within each class are the cells that count the same.

A mitigation changes the batches (which cells are drawn how often), the objective (what their errors weigh), or
both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from ..checks import check_positive
from ..choose import choose, suggest
from ..classifier import Classifier
from ..errors import RecipeError
from ..types import Batch, Dataset
from .fit import Hook, TrainingState
from .losses import LogitLoss, Objective
from .recipe import Recipe

BLANK_GROUP = "(blank)"
"""What an empty cell of a column is called."""


@dataclass(frozen=True, eq=False)
class Subgroups:
    """Training images by group and class: M combinations that occur."""

    names: tuple[str, ...]
    """``group, class`` of each."""
    codes: Int[ndarray, " N"]
    """The cell of each training image."""
    weights: Float[ndarray, " M"]
    """P(group) P(class) / P(group, class): what makes group and class independent (Kamiran and Calders 2012)."""

    @property
    def counts(self) -> Int[ndarray, " M"]:
        """Images of each cell."""
        return np.bincount(self.codes, minlength=len(self.names))


def find_subgroups(dataset: Dataset, column: str) -> Subgroups:
    """The cells of a column; raises RecipeError where there is no such column, or a single value in it."""
    if column not in dataset.columns:
        hint = suggest(column, dataset.columns)
        raise RecipeError(f"The recipe's fair is '{column}', and the images have no such column. {hint}")
    words = dataset.columns[column].astype(str)
    groups, group = np.unique(np.where(words == "", BLANK_GROUP, words), return_inverse=True)
    if len(groups) < 2:
        raise RecipeError(
            f"The recipe's fair is '{column}', and all training images are of one group there, '{groups[0]}': "
            "there is nothing to make alike. Leave it out, or add images of others."
        )
    kinds, code = np.unique(group * len(dataset.classes) + dataset.labels, return_inverse=True)
    of_group, of_class = np.divmod(kinds, len(dataset.classes))
    share = np.bincount(code) / len(code)
    weights = (np.bincount(group) / len(code))[of_group] * (dataset.counts / len(code))[of_class] / share
    names = tuple(f"{groups[g]}, {dataset.classes[k]}" for g, k in zip(of_group, of_class, strict=True))
    return Subgroups(names, code.astype(np.int64), weights)


def subgroup_losses(
    inner: LogitLoss, classifier: Classifier, batch: Batch
) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Of the cells in a batch: their numbers, mean losses and shares of the images."""
    assert batch.group is not None  # the images of a mitigation have their cells as groups
    logits = classifier(batch.pixels).float()
    present, counts = batch.group.unique(return_counts=True)
    rows = [batch.group == cell for cell in present]
    losses = torch.stack([inner.from_logits(logits[where], batch.labels[where]) for where in rows])
    return present, losses, counts / len(batch)


@dataclass(frozen=True, eq=False)
class ReweighedLoss:
    """An objective in which the errors of each cell have a weight; the mean weight of training images is 1."""

    inner: LogitLoss
    weights: Float[Tensor, " M"]

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The weighted mean loss over the batch."""
        present, losses, shares = subgroup_losses(self.inner, classifier, batch)
        return (self.weights.to(losses.device)[present] * shares) @ losses


class GroupDROLoss:
    """Group DRO: cells weigh q, and q grows where the loss is high (Sagawa et al. 2020, algorithm 1).

    q <- q exp(eta loss), normalised, after each step, so that what a step minimises is known before it; the loss
    is the q-weighted mean over the cells in the batch. An objective that is also a hook: q is in the checkpoint.
    """

    def __init__(self, inner: LogitLoss, cells: int, eta: float) -> None:
        self.inner, self.eta = inner, eta
        self.q = torch.full((cells,), 1 / cells, dtype=torch.float64)
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        """What the step under way found; replicas add theirs."""

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
        """The weights of the cells."""
        return {"q": self.q}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up the saved weights."""
        self.q = saved["q"]


@runtime_checkable
class Mitigation(Protocol):
    """A way to make cells count alike."""

    @property
    def balanced(self) -> bool:
        """Whether every cell is drawn equally often."""
        ...

    def objective(self, inner: Objective, cells: Subgroups, /) -> Objective:
        """The objective to minimise in place of ``inner``."""
        ...


@dataclass(frozen=True)
class BalancedSampling:
    """Every group of every class equally often in the batches, rare ones repeatedly (Idrissi et al. 2022)."""

    balanced: bool = True

    def objective(self, inner: Objective, cells: Subgroups) -> Objective:
        """The same."""
        del cells
        return inner


@dataclass(frozen=True)
class Reweighing:
    """Images weigh P(group) P(class) / P(group, class) in the loss (Kamiran and Calders 2012)."""

    balanced: bool = False

    def objective(self, inner: Objective, cells: Subgroups) -> Objective:
        """The weighted one."""
        return ReweighedLoss(_require_logit_loss(inner, "reweighing"), torch.from_numpy(cells.weights).float())


@dataclass(frozen=True)
class GroupDRO:
    """Balanced cells whose weights grow where the loss is high: the worst cell decides (Sagawa et al. 2020).

    ``eta`` is the step of the weights, 0.01 as in the paper; more regularisation, or fewer epochs, than usual
    help.
    """

    eta: float = 0.01
    balanced: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for an eta that is not above 0."""
        check_positive("eta", self.eta)

    def objective(self, inner: Objective, cells: Subgroups) -> Objective:
        """A fresh one, its weights all alike."""
        return GroupDROLoss(_require_logit_loss(inner, "group-dro"), len(cells.names), self.eta)


MITIGATIONS: Mapping[str, Callable[..., Mitigation]] = {
    "balanced": BalancedSampling,
    "reweighing": Reweighing,
    "group-dro": GroupDRO,
}
"""The words of ``fair_by``."""


def _require_logit_loss(inner: Objective, name: str) -> LogitLoss:
    if not isinstance(inner, LogitLoss):
        raise RecipeError(
            f"fair_by {name} weighs errors, and {type(inner).__name__} cannot be weighed image by image: "
            "use --fair-by balanced."
        )
    return inner


@dataclass(frozen=True, eq=False)
class FairnessPlan:
    """A recipe's mitigation on its training images."""

    train: Dataset
    """The training images, with their cells in the column ``group``."""
    balanced: bool
    objective: Objective
    hooks: Mapping[str, Hook]


def build_fairness(recipe: Recipe, train: Dataset, objective: Objective) -> FairnessPlan:
    """Training images, objective and hooks as ``fair`` and ``fair_by`` say; unchanged without ``fair``."""
    if recipe.fair is None:
        return FairnessPlan(train, False, objective, {})
    mitigation, cells = parse_mitigation(recipe), find_subgroups(train, recipe.fair)
    made = mitigation.objective(objective, cells)
    hooks: dict[str, Hook] = {"groups": made} if isinstance(made, Hook) else {}
    marked = replace(train, columns={**train.columns, "group": cells.codes})
    return FairnessPlan(marked, mitigation.balanced, made, hooks)


def parse_mitigation(recipe: Recipe) -> Mitigation:
    """The recipe's ``fair_by``; raises ChoiceError for an unknown one, RecipeError where it cannot be used."""
    found = choose(MITIGATIONS, recipe.fair_by, "way to be fair")
    if recipe.fair is not None and isinstance(found, GroupDRO) and recipe.processes > 1:
        raise RecipeError("group-dro keeps one set of weights: use --processes 1, or --fair-by balanced.")
    return found


def describe_fairness(recipe: Recipe, train: Dataset, objective: Objective) -> tuple[str, ...]:
    """What is worth saying of the recipe's groups before the first step; RecipeError as in ``find_subgroups``."""
    if recipe.fair is None:
        return ()
    build_fairness(recipe, train, objective)
    cells = find_subgroups(train, recipe.fair)
    rare, common = int(cells.counts.argmin()), int(cells.counts.argmax())
    kinds = len(np.unique(train.columns[recipe.fair].astype(str))) * len(train.classes)
    absent = kinds - len(cells.names)
    more = f"; {absent} combinations have none, and stay unknown" if absent else ""
    return (
        f"Groups by '{recipe.fair}' within each class, made alike by {recipe.fair_by}: from "
        f"{cells.counts[rare]:,} "
        f"training images ({cells.names[rare]}) to {cells.counts[common]:,} ({cells.names[common]}){more}.",
    )
