"""What pruning leaves of a layer: weights that are zero and stay zero, or fewer channels."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .blocks import Network
from .heads import PreparedHead
from .quantised import get_layer
from .whitening import Whitening


class SparseConv2d(nn.Conv2d):
    """A convolution whose zero weights stay zero."""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """The convolution; in training zero weights get no gradient (``mask_zeros``)."""
        return self._conv_forward(input, mask_zeros(self.weight) if self.training else self.weight, self.bias)


class SparseLinear(nn.Linear):
    """A linear layer whose zero weights stay zero."""

    def forward(self, input: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D2"]:
        """The linear layer; in training zero weights get no gradient (``mask_zeros``)."""
        return nn.functional.linear(input, mask_zeros(self.weight) if self.training else self.weight, self.bias)


SPARSE_LAYERS: Mapping[type[nn.Module], type[SparseConv2d | SparseLinear]] = {
    nn.Conv2d: SparseConv2d,
    nn.Linear: SparseLinear,
}
"""Layer type -> the type that keeps its zeros. Subclasses use their weights in other ways and are left out."""


def mask_zeros(weight: Tensor) -> Tensor:
    """``weight * (weight != 0)``, which gives zero weights a gradient of zero.

    Momentum, weight decay and averages of zeros are zero, so no optimiser moves them. The mask is the weights
    themselves, so it is saved, copied and averaged with them; at inference it is not needed.
    """
    return weight * (weight != 0)


def keep_zeros(network: Network, layers: Sequence[str]) -> Network:
    """The same network, in which zero weights of these layers stay zero in training.

    Tensors keep their names and values. Raises ValueError for anything but plain convolutions and linear layers.
    """
    for name in layers:
        layer = get_layer(network, name)
        if type(layer) not in SPARSE_LAYERS:
            raise ValueError(f"'{name}' is not a plain convolution or linear layer")
        layer.__class__ = SPARSE_LAYERS[type(layer)]  # the same object, so references to it stay valid
    return network


ChannelIndices = Int[Tensor, " _"]
"""Indices of the channels to keep, in order."""


def is_narrowable(layer: nn.Module) -> bool:
    """Whether channels can be removed from a layer: a convolution, a linear layer or a batch norm.

    Grouped convolutions other than depthwise ones and frozen whitenings cannot be narrowed.
    """
    if isinstance(layer, nn.Conv2d):
        depthwise = layer.groups == layer.in_channels == layer.out_channels
        return not isinstance(layer, Whitening) and (layer.groups == 1 or depthwise)
    return isinstance(layer, nn.Linear | nn.BatchNorm2d)


def layer_widths(layer: nn.Module) -> list[int]:
    """[outputs, inputs] of a layer; [channels] of a batch norm."""
    if isinstance(layer, nn.BatchNorm2d):
        return [layer.num_features]
    if isinstance(layer, PreparedHead):
        return [layer.out_features, layer.in_features]
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return [*(layer.weight.shape[:2] if layer.weight.ndim > 1 else layer.weight.shape)]


def keep_channels(
    layer: nn.Module, outputs: ChannelIndices | None = None, inputs: ChannelIndices | None = None
) -> None:
    """Remove all other output and input channels of a layer, in place; None keeps all."""
    if inputs is not None and isinstance(layer, PreparedHead):
        layer.keep_inputs(inputs.to(layer.weight.device))
        inputs = None
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = layer._parameters.get(name, layer._buffers.get(name))
        if tensor is None:
            continue
        if outputs is not None:
            _replace_tensor(layer, name, tensor.detach().index_select(0, outputs.to(tensor.device)))
        if inputs is not None and name == "weight" and tensor.ndim > 1:
            kept = layer.get_parameter("weight").detach()
            _replace_tensor(layer, name, kept.index_select(1, inputs.to(tensor.device)))
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_mean is not None
        layer.num_features = len(layer.running_mean)
    elif isinstance(layer, PreparedHead):
        layer.out_features = len(layer.weight)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv2d):
        depthwise = layer.groups > 1
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
        if depthwise:
            layer.groups = layer.in_channels = layer.out_channels


def _replace_tensor(layer: nn.Module, name: str, values: Tensor) -> None:
    """Replace a parameter or a buffer by one of another shape."""
    old = layer._parameters.get(name)
    if old is None:
        layer._buffers[name] = values
    else:
        layer._parameters[name] = nn.Parameter(values, requires_grad=old.requires_grad)


def narrow_layers(network: Network, layers: Mapping[str, Sequence[int]]) -> Network:
    """The same network with fewer channels: ``layers`` maps names to [outputs, inputs], of a batch norm
    [channels].

    Raises ValueError for a layer that cannot have these widths.
    """
    for name, wanted in layers.items():
        layer = get_layer(network, name)
        if not is_narrowable(layer):
            raise ValueError(f"no channels can be removed from '{name}'")
        own = layer_widths(layer)
        if len(wanted) != len(own) or not all(1 <= new <= old for new, old in zip(wanted, own, strict=True)):
            raise ValueError(f"'{name}' has the widths {own} and cannot have {[*wanted]}")
        first = [torch.arange(width) for width in wanted]  # the weights are loaded later, so any channels will do
        keep_channels(layer, *first)
    return network
