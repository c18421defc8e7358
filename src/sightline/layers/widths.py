"""Layers with fewer channels: what is left of a network when channels were taken out of it."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn

from .blocks import Network
from .sparse import get_layer
from .whitening import Whitening

ChannelIndices = Int[Tensor, " _"]
"""Of the channels that are kept, in order."""


def is_narrowable(layer: nn.Module) -> bool:
    """Whether channels can be taken out of a layer: out of convolutions, linear layers and batch norms.

    Not out of grouped convolutions, depthwise ones aside, nor out of a frozen whitening.
    """
    if isinstance(layer, nn.Conv2d):
        depthwise = layer.groups == layer.in_channels == layer.out_channels
        return not isinstance(layer, Whitening) and (layer.groups == 1 or depthwise)
    return isinstance(layer, nn.Linear | nn.BatchNorm2d)


def layer_widths(layer: nn.Module) -> list[int]:
    """(outputs, inputs) of a layer; a batch norm has one width."""
    if isinstance(layer, nn.BatchNorm2d):
        return [layer.num_features]
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    return [*(layer.weight.shape[:2] if layer.weight.ndim > 1 else layer.weight.shape)]


def keep_channels(
    layer: nn.Module, outputs: ChannelIndices | None = None, inputs: ChannelIndices | None = None
) -> None:
    """Leave these channels of a layer, in place; None leaves all."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = layer._parameters.get(name, layer._buffers.get(name))
        if tensor is None:
            continue
        if outputs is not None:
            _replace_tensor(layer, name, tensor.detach().index_select(0, outputs.to(tensor.device)))
        if inputs is not None and name == "weight" and tensor.ndim > 1:
            kept = layer.get_parameter("weight").detach()
            _replace_tensor(layer, name, kept.index_select(1, inputs.to(tensor.device)))
    _update_width_attributes(layer)


def _replace_tensor(layer: nn.Module, name: str, values: Tensor) -> None:
    """Exchange a parameter or a buffer for a smaller one of its kind."""
    old = layer._parameters.get(name)
    if old is None:
        layer._buffers[name] = values
    else:
        layer._parameters[name] = nn.Parameter(values, requires_grad=old.requires_grad)


def _update_width_attributes(layer: nn.Module) -> None:
    """Tell a layer its new widths."""
    if isinstance(layer, nn.BatchNorm2d):
        assert layer.running_mean is not None
        layer.num_features = len(layer.running_mean)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv2d):
        depthwise = layer.groups > 1
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
        if depthwise:
            layer.groups = layer.in_channels = layer.out_channels


def narrow_layers(network: Network, layers: Mapping[str, Sequence[int]]) -> Network:
    """The same network with these layers narrowed: name -> (outputs, inputs), of a batch norm (channels,).

    Raises ValueError for a layer that cannot have such widths.
    """
    for name, wanted in layers.items():
        layer = get_layer(network, name)
        if not is_narrowable(layer):
            raise ValueError(f"no channels can be taken out of '{name}'")
        own = layer_widths(layer)
        if len(wanted) != len(own) or not all(1 <= new <= old for new, old in zip(wanted, own, strict=True)):
            raise ValueError(f"'{name}' has the widths {own} and cannot have {[*wanted]}")
        first = [torch.arange(width) for width in wanted]  # weights come later: any channels will do
        keep_channels(layer, *first)
    return network
