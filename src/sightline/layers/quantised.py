"""int8 layers: weights as 8-bit codes; ``rounding`` does the same for activations.

A weight is ``codes * step * gain`` with int8 codes of 7 or 8 bits and one step for each output channel, symmetric
(Jacob et al. 2018, arXiv 1712.05877). Here everything is computed in floats; an exported file does the same in
integers. Codes are never trained: fine-tuning trains a gain and a bias per output channel, as in batch norm.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_int
from .heads import PreparedHead
from .rounding import ActivationRounding

MAX_WEIGHT_CODE = {7: 64, 8: 127}
"""Bits of a weight -> its largest code.

Processors without VNNI multiply two pairs of codes and add the products in 16 bits, which saturate at 32,767:
255 * 127 * 2 overflows silently and gives wrong answers, 255 * 64 * 2 does not.
"""


def dequantise_codes(codes: Int8[Tensor, "..."], scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``codes * scale``: the weight that the codes represent."""
    return codes.to(scale.dtype) * scale


class Int8Conv2d(nn.Conv2d):
    """A convolution whose weight is int8 codes; it always has a bias."""

    codes: Tensor
    step: Tensor
    gain: nn.Parameter
    dequantise: Callable[[Tensor, Tensor], Tensor] = staticmethod(dequantise_codes)
    """``(codes, scale) -> weight``; an exporter replaces it."""

    def __init__(self, inputs: int, outputs: int, kernel: Any, **arguments: Any):
        super().__init__(inputs, outputs, kernel, **arguments)
        _replace_weight_by_codes(self)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight that the codes represent."""
        return self.dequantise(self.codes, self.step * self.gain)


class Int8SameConv2d(Int8Conv2d):
    """An int8 convolution with TensorFlow's padding."""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """The convolution of the padded input."""
        return super().forward(F.pad(input, same_margin(self, input.shape[-2:])))


class Int8Linear(nn.Linear):
    """A linear layer whose weight is int8 codes; it always has a bias."""

    codes: Tensor
    step: Tensor
    gain: nn.Parameter
    dequantise: Callable[[Tensor, Tensor], Tensor] = staticmethod(dequantise_codes)
    """``(codes, scale) -> weight``; an exporter replaces it."""

    def __init__(self, inputs: int, outputs: int, **arguments: Any):
        super().__init__(inputs, outputs, **arguments)
        _replace_weight_by_codes(self)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight that the codes represent."""
        return self.dequantise(self.codes, self.step * self.gain)


Int8Layer = Int8Conv2d | Int8Linear


def _replace_weight_by_codes(layer: nn.Conv2d | nn.Linear) -> None:
    """Replace the weight that torch's constructor made by codes, steps and gains."""
    weight = layer._parameters.pop("weight")
    assert weight is not None
    single = (len(weight), *(1,) * (weight.ndim - 1))
    layer.register_buffer("codes", torch.zeros(weight.shape, dtype=torch.int8, device=weight.device))
    layer.register_buffer("step", torch.ones(single, device=weight.device))
    layer.register_parameter("gain", nn.Parameter(torch.ones(single, device=weight.device)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


@torch.no_grad()
def quantise_weight(
    layer: Int8Layer, weight: Float[Tensor, "O ..."], bias: Float[Tensor, " O"], bits: int = 7
) -> None:
    """Set the layer to the nearest codes of a weight; the step of an output channel is max |w| / largest code."""
    most, largest = MAX_WEIGHT_CODE[bits], weight.flatten(1).abs().amax(1).view(layer.step.shape)
    layer.step.copy_(torch.where(largest > 0, largest / most, 1.0))
    layer.codes.copy_((weight / layer.step).round().clamp(-most, most).to(torch.int8))
    layer.gain.fill_(1)
    assert layer.bias is not None
    layer.bias.copy_(bias)


def int8_like(layer: nn.Module) -> Int8Layer:
    """An int8 layer of the same shape, its codes not set; for a batch norm, a depthwise 1x1 convolution."""
    if isinstance(layer, nn.BatchNorm2d):
        width = layer.num_features
        return Int8Conv2d(width, width, 1, groups=width)
    if isinstance(layer, PreparedHead):
        raise ValueError("this head prepares its features in floats")
    if isinstance(layer, nn.Linear):
        return Int8Linear(layer.in_features, layer.out_features)
    if not isinstance(layer, nn.Conv2d):
        raise ValueError(f"a {type(layer).__name__} has no weight to quantise")
    kind = Int8SameConv2d if has_same_padding(layer) else Int8Conv2d
    return kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        padding_mode=layer.padding_mode,
    )


def get_layer(network: nn.Module, name: str) -> nn.Module:
    """The layer of this name; raises ValueError where the network has none."""
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the network has no layer '{name}'") from error


def replace_layer(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the layer of this name by ``layer``."""
    parent, _, own = name.rpartition(".")
    network.get_submodule(parent).add_module(own, layer)


def norm_replacement(norm: nn.Module, *first: nn.Module) -> nn.Module:
    """What replaces a batch norm: ``first``, then the norm's children (timm puts activations there)."""
    parts = [*first, *norm.children()] or [nn.Identity()]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def quantise_layers(network, layers: Sequence[str], folded: Sequence[str], lone: Sequence[str], sites: int):
    """The same network with int8 layers, their codes not set, and ``ActivationRounding`` at ``sites`` places.

    ``layers`` names convolutions and linear layers; ``folded`` batch norms that are merged into the convolution
    before them and removed; ``lone`` batch norms, which follow no convolution and become depthwise 1x1
    convolutions. Raises ValueError for a network that is int8 already or has noise in its weights, and for layers
    without a weight.
    """
    if network.rounding is not None:
        raise ValueError("its weights are int8 already")
    if network.noise is not None:
        raise ValueError("the noise in its weights is trained in floats: train without weight_noise")
    check_int("sites", sites, 0, 100_000)
    device = next(network.parameters()).device
    for name in layers:
        replace_layer(network, name, int8_like(get_layer(network, name)).to(device))
    for name in folded:
        replace_layer(network, name, norm_replacement(get_layer(network, name)))
    for name in lone:
        norm = get_layer(network, name)
        replace_layer(network, name, norm_replacement(norm, int8_like(norm)).to(device))
    network.rounding = ActivationRounding(sites).to(device)
    return network


def has_same_padding(conv: nn.Module) -> bool:
    """Whether a convolution is timm's ``Conv2dSame``, which pads when it is called; ``padding`` does not show it."""
    return type(conv).__name__ == "Conv2dSame"  # timm is imported in one place only


def same_margin(conv: nn.Conv2d, size: Sequence[int]) -> tuple[int, int, int, int]:
    """Pixels that padding "SAME" adds left, right, above and below an image of ``size`` (height, width), for ``F.pad``.

    As many outputs as inputs per stride; one pixel more on the right and below.
    """
    down, across = (
        max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
        for side, kernel, stride, dilation in zip(size, conv.kernel_size, conv.stride, conv.dilation, strict=True)
    )
    return across // 2, across - across // 2, down // 2, down - down // 2
