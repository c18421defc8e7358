"""Low rank: a layer whose weights are nearly a product of smaller ones becomes these."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from .. import progress
from ..checks import check_positive
from ..choose import suggest
from ..classifier import Classifier
from ..errors import RecipeError
from ..layers import FactorisedLayer, Network, factorise_layers
from ..models import compressible_layers, copy_network, count_parameters
from ..types import Splits
from .changing import example_input
from .decomposition import DECOMPOSITIONS, Decomposition, rank_for_energy

DEFAULT_ENERGY = 0.95
"""Share of the squared weights that is kept where nothing else is asked."""

BLOCKED_BY_PRUNING = {
    "masked": "Its weights hold zeros, which factors would fill: factorise first, and prune then."
}

LEVEL_SEARCH_STEPS = 30
"""Halvings of the search for a level."""


@dataclass(frozen=True, eq=False)
class FactorisableLayer:
    """A layer that can be taken apart."""

    layer: nn.Conv2d | nn.Linear
    kind: str
    decomposition: Decomposition
    by_energy: bool

    def ranks(self, level: float) -> list[int]:
        """By the share ``level`` of the energy in each spectrum, or of the layer's numbers."""
        if self.by_energy:
            return [rank_for_energy(values, level) for values in self.decomposition.spectra]
        shape = self.layer.weight.shape
        return [max(1, int(level * shape.numel() / self.decomposition.parameter_count(shape, 1)))]

    def saving(self, ranks: list[int]) -> int:
        """Numbers fewer than now, at these ranks; 0 where there would be none."""
        shape = self.layer.weight.shape
        return max(0, shape.numel() - self.decomposition.parameter_count(shape, *ranks))


@dataclass(frozen=True)
class LowRank:
    """Layers become factors: linear ones and 1x1 convolutions by SVD, other convolutions ``by`` a way.

    ``by`` is ``svd`` (they stay), ``tucker``, ``cp`` or ``spatial``. Ranks keep the share ``energy`` of each
    layer's squared weights (0.95 unless told), or leave the share ``budget`` of the network's parameters, at one
    level of energy for all; with ``cp``, which has no spectrum, each layer keeps the same share of its own. Layers
    that would not shrink stay, and so does the last one.
    """

    by: str = "svd"
    energy: float | None = None
    budget: float | None = None

    heals: ClassVar[bool] = True
    """A training should follow."""

    def __post_init__(self) -> None:
        """Raise ValueError for a way or a share that cannot be, and for two that contradict each other."""
        if self.by not in DECOMPOSITIONS:
            raise ValueError(f"there is no way '{self.by}'. {suggest(str(self.by), DECOMPOSITIONS)}")
        for name in ("energy", "budget"):
            if vars(self)[name] is not None:
                check_positive(name, vars(self)[name], 1)
        if self.energy is not None and self.budget is not None:
            raise ValueError("ranks go by energy or by budget: give one of them")
        if self.by == "cp" and self.budget is None:
            raise ValueError("cp has no spectrum to take an energy of: give a budget, such as budget=0.5")

    def __call__(self, classifier: Classifier, data: Splits | None = None) -> Classifier:
        """The classifier with layers in factors: see ``models.factors``. Images are not looked at.

        Raises RecipeError for a network that was factorised or pruned before, that no layer would shrink of, or
        that cannot be brought within the budget.
        """
        del data
        network = copy_network(classifier.network, classifier.architecture, "factors", after=BLOCKED_BY_PRUNING)
        pixels = example_input(classifier)
        found = {name: self._factorisable(layer) for name, layer in compressible_layers(network, pixels).items()}
        known = {name: one for name, one in found.items() if one is not None}
        level = _find_level(network, known, self.budget) if self.budget else self.energy or DEFAULT_ENERGY
        ranks = {name: one.ranks(level) for name, one in known.items()}
        plan = {name: {"kind": known[name].kind, "ranks": r} for name, r in ranks.items() if known[name].saving(r)}
        if not plan:
            raise RecipeError(
                "No layer of this network would shrink: ask for less energy, give a budget, or choose another way."
            )
        made = factorise_layers(network, plan)
        with progress.progress_bar("Taking layers apart", len(plan)) as advance:
            for name in plan:
                fill_factors(made.get_submodule(name), known[name].layer, known[name].decomposition)
                advance()
        _check_forward(made, pixels)
        return classifier.with_network(made, "factors", {"layers": plan})

    def _factorisable(self, layer: nn.Conv2d | nn.Linear) -> FactorisableLayer | None:
        """How a layer would be taken apart, if at all."""
        flat = isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1)
        kind = "svd" if flat else self.by
        grouped = isinstance(layer, nn.Conv2d) and (layer.groups != 1 or layer.padding_mode != "zeros")
        if grouped or (kind == "svd" and not flat):
            return None
        return FactorisableLayer(
            layer, kind, DECOMPOSITIONS[kind](layer.weight.detach()), by_energy=self.by != "cp"
        )


@torch.no_grad()
def fill_factors(made: nn.Module, layer: nn.Conv2d | nn.Linear, parts: Decomposition) -> None:
    """Put what a layer was into the factors in its place."""
    assert isinstance(made, FactorisedLayer)
    small = [*made.children()]
    for each, weight in zip(small, parts.factor_weights(*made.ranks), strict=True):
        each.get_parameter("weight").copy_(weight)
    if layer.bias is not None:
        small[-1].get_parameter("bias").copy_(layer.bias)


@torch.no_grad()
def _check_forward(network: Network, pixels: torch.Tensor) -> None:
    """Raise RecipeError for a network that uses the weights of its layers without calling them."""
    try:
        network.logits(pixels)
    except (AttributeError, RuntimeError) as error:
        raise RecipeError(
            "This network uses the weights of its layers in a way of its own, so they cannot become factors: "
            "choose another compressor."
        ) from error


def _find_level(network: Network, known: Mapping[str, FactorisableLayer], budget: float) -> float:
    """The highest level at which the parameters are within the budget; RecipeError where there is none."""
    whole = count_parameters(network)

    def left(level: float) -> float:
        return 1 - sum(one.saving(one.ranks(level)) for one in known.values()) / whole

    low, high = 0.0, 1.0
    if (least := left(low)) > budget:
        raise RecipeError(
            f"With rank 1 in every layer {least:.1%} of the parameters are left, more than the budget of "
            f"{budget:.1%}: give at least {int(least * 100 + 1) / 100}, or choose another way."
        )
    if left(high) <= budget:
        return high
    for _ in range(LEVEL_SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) <= budget else (low, middle)
    return low
