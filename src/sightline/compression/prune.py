"""Magnitude pruning: the smallest weights become zero, and stay zero."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from ..checks import check_number
from ..choose import suggest
from ..classifier import Classifier
from ..errors import RecipeError
from ..layers import keep_zeros
from ..models import compressible_layers, copy_network
from ..types import Splits
from .changing import example_input


@torch.no_grad()
def smallest_weights(weights: Tensor, amount: float) -> Bool[Tensor, "..."]:
    """Where the share ``amount`` of the numbers is that are smallest in magnitude, to the nearest whole number."""
    magnitudes = weights.abs().flatten()
    if not (count := round(amount * len(magnitudes))):
        return torch.zeros_like(weights, dtype=torch.bool)
    last = magnitudes.kthvalue(count).values
    chosen = magnitudes < last
    equal = (magnitudes == last).nonzero().squeeze(1)
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen.view(weights.shape)


def prune_per_layer(weights: Sequence[Tensor], amount: float) -> list[Bool[Tensor, "..."]]:
    """The same share of each layer."""
    return [smallest_weights(weight, amount) for weight in weights]


def prune_globally(weights: Sequence[Tensor], amount: float) -> list[Bool[Tensor, "..."]]:
    """One threshold for all: layers of small weights give more."""
    chosen = smallest_weights(torch.cat([weight.flatten() for weight in weights]), amount)
    parts = chosen.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]


PRUNING_SCOPES: Mapping[str, Callable[[Sequence[Tensor], float], list[Bool[Tensor, "..."]]]] = {
    "global": prune_globally,
    "layer": prune_per_layer,
}
"""Name -> ``(weights of each layer, amount) -> where they become zero``."""


@dataclass(frozen=True)
class Prune:
    """The share ``amount`` of the weights, the smallest in magnitude, becomes zero (Han et al. 2015).

    ``scope`` is ``global``, one threshold for all layers (arXiv 1506.02626), or ``layer``, the same share of each.
    Biases, norms, a frozen whitening and the last layer, which is small and decides, stay whole.
    """

    amount: float = 0.5
    scope: str = "global"

    heals: ClassVar[bool] = True
    """A training should follow."""

    def __post_init__(self) -> None:
        """Raise ValueError for a share or a scope that cannot be."""
        check_number("amount", self.amount, above=0, below=1)
        if self.scope not in PRUNING_SCOPES:
            raise ValueError(f"there is no scope '{self.scope}'. {suggest(str(self.scope), PRUNING_SCOPES)}")

    def __call__(self, classifier: Classifier, data: Splits | None = None) -> Classifier:
        """The classifier with its smallest weights at zero, for good: see ``models.masks``.

        Images are not looked at. Raises RecipeError for a network that was pruned before, has nothing to prune, or
        would lose a whole layer.
        """
        del data
        network = copy_network(classifier.network, classifier.architecture, "masked")
        found = compressible_layers(network, example_input(classifier))
        if not found:
            raise RecipeError("This network has no layer to prune but its last one: choose another compressor.")
        chosen = PRUNING_SCOPES[self.scope]([layer.weight.detach() for layer in found.values()], self.amount)
        for (name, layer), gone in zip(found.items(), chosen, strict=True):
            if gone.all():
                raise RecipeError(
                    f"Pruning {self.amount:.1%} would leave nothing of the layer '{name}': take less, or "
                    "scope=layer for the same share of each."
                )
            layer.weight.data[gone] = 0
        return classifier.with_network(keep_zeros(network, [*found]), "masked", {"layers": [*found]})
