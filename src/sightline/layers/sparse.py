"""Weights that are zero and stay so: what magnitude pruning leaves of a layer."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .blocks import Network


class SparseConv2d(nn.Conv2d):
    """A convolution whose zero weights stay zero."""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """As any convolution; see ``held``."""
        return self._conv_forward(input, mask_zeros(self.weight) if self.training else self.weight, self.bias)


class SparseLinear(nn.Linear):
    """A linear layer whose zero weights stay zero."""

    def forward(self, input: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D2"]:
        """As any linear layer; see ``held``."""
        return nn.functional.linear(input, mask_zeros(self.weight) if self.training else self.weight, self.bias)


SPARSE_LAYERS: Mapping[type[nn.Module], type[SparseConv2d | SparseLinear]] = {
    nn.Conv2d: SparseConv2d,
    nn.Linear: SparseLinear,
}
"""What a layer becomes. Subclasses compute with their weights in ways of their own, and are left alone."""


def mask_zeros(weight: Tensor) -> Tensor:
    """``weight * mask``, where the mask is whether a weight is other than zero.

    A zero so has no gradient: momentum, decay and averages of zeros are zeros, and no optimiser moves it. The
    mask is in the weights themselves, so that it is saved, copied and averaged with them; answers need it not.
    """
    return weight * (weight != 0)


def get_layer(network: Network, name: str) -> nn.Module:
    """A layer by its name; raises ValueError where there is none."""
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the network has no layer '{name}'") from error


def keep_zeros(network: Network, layers: Sequence[str]) -> Network:
    """The same network, in which weights of these layers that are zero stay zero in training.

    Tensors and their names stay as they are. Raises ValueError for a layer that has no weights to hold.
    """
    for name in layers:
        layer = get_layer(network, name)
        if type(layer) not in SPARSE_LAYERS:
            raise ValueError(f"'{name}' is no plain convolution or linear layer")
        layer.__class__ = SPARSE_LAYERS[type(layer)]  # the same object: whoever holds it, still does
    return network


@torch.no_grad()
def count_zeros(network: nn.Module) -> tuple[int, int]:
    """How many weights of the layers that hold their zeros are zero, and how many they are."""
    layers = [layer for layer in network.modules() if isinstance(layer, SparseConv2d | SparseLinear)]
    return sum(int((one.weight == 0).sum()) for one in layers), sum(one.weight.numel() for one in layers)
