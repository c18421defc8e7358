"""What pruning leaves of a layer: weights that are zero and stay zero, or fewer channels."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .blocks import Network
from .prototypes import PrototypeHead
from .whitening import Whitening


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
    if inputs is not None and isinstance(layer, PrototypeHead):
        _replace_tensor(layer, "centre", layer.centre.index_select(0, inputs.to(layer.centre.device)))
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
