"""int8: weights as 8-bit codes, and activations rounded to 256 levels wherever a computer will use integers.

A weight is ``codes * step * gain`` with int8 codes of 7 or 8 bits and one step for each output channel, symmetric;
an activation becomes ``(q - zero) * scale`` with ``q = clamp(round(x / scale) + zero, 0, 255)``, affine, one scale
for the whole tensor (Jacob et al. 2018, arXiv 1712.05877, equations 1 and 12). Here everything is computed in
floats; an exported file does the same in integers. Codes are never trained: fine-tuning trains a gain and a bias
per output channel, as in batch norm, and gradients pass through the rounding unchanged (straight-through).
"""

from collections.abc import Callable, Sequence
from types import MethodWrapperType
from typing import Any

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..checks import check_int
from .heads import PreparedHead

MAX_WEIGHT_CODE = {7: 64, 8: 127}
"""Bits of a weight -> its largest code.

Processors without VNNI multiply two pairs of codes and add the products in 16 bits, which saturate at 32,767:
255 * 127 * 2 overflows silently and gives wrong answers, 255 * 64 * 2 does not.
"""

MAX_ACTIVATION_CODE = 255
"""The largest code of an activation."""


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


def fake_quantise_activation(
    x: Float[Tensor, "..."], scale: Float[Tensor, ""], zero: Int32[Tensor, ""]
) -> Float[Tensor, "..."]:
    """The nearest level ``(q - zero) * scale``, q in [0, 255]; the gradient is 1 where x is within the levels."""
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, MAX_ACTIVATION_CODE)


class ActivationGrid(nn.Module):
    """The 256 levels of one activation: ``(q - zero) * scale``, q from 0 to 255; 0 is always a level."""

    scale: Tensor
    zero: Tensor
    fake_quantise: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(fake_quantise_activation)
    """``(x, scale, zero) -> rounded x``; an exporter replaces it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero", torch.zeros((), dtype=torch.int32))

    def set_range(self, low: float, high: float) -> None:
        """Spread the levels over ``low`` to ``high``, extended to include 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / MAX_ACTIVATION_CODE or 1.0
        self.scale.fill_(scale)
        self.zero.fill_(min(MAX_ACTIVATION_CODE, max(0, round(-low / scale))))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The nearest level of every value."""
        return self.fake_quantise(x, self.scale, self.zero)


SiteObserver = Callable[[int, Tensor], object]
"""``(site, values) -> ignored``: called with what a site would round."""


class ActivationRounding(nn.Module):
    """Rounds the activations of a network at its *sites*, numbered in the order of a pass.

    A site is the input of a convolution or linear layer, and the result of one (after its ReLU), of a sum or
    product of features, of a concatenation or of a mean pool.
    """

    def __init__(self, sites: int):
        super().__init__()
        self.grids = nn.ModuleList(ActivationGrid() for _ in range(sites))
        self.observer: SiteObserver | None = None
        """If set, it is called in place of rounding: this is how sites are counted and calibrated."""

    def forward_rounded(
        self, look: Callable[[Tensor], Tensor], pixels: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B K"]:
        """``look(pixels)``, a pass through the network, with rounded activations."""
        with _RoundingMode(self._round) as walk:
            walk.state[pixels] = ANY_VALUE
            return look(pixels)

    def _round(self, site: int, x: Tensor) -> Tensor:
        if self.observer is not None:
            self.observer(site, x)
            return x
        if site >= len(self.grids):
            raise ValueError(
                "the network takes another path than the one it was calibrated on (in training mode, perhaps)"
            )
        return self.grids[site](x)


ON_LEVELS, ANY_VALUE = -1, -2
"""States of an activation: already rounded, or of any value. A number from 0 is the site at which it will be
rounded, after its ReLU or before its first use."""

LAYER_FUNCTIONS = frozenset({F.conv2d, F.linear})

JOIN_FUNCTIONS = {
    torch.add: torch.add,
    Tensor.add: torch.add,
    Tensor.add_: torch.add,
    Tensor.__add__: torch.add,
    Tensor.__iadd__: torch.add,
    torch.mul: torch.mul,
    Tensor.mul: torch.mul,
    Tensor.mul_: torch.mul,
    Tensor.__mul__: torch.mul,
    Tensor.__imul__: torch.mul,
}
"""Sums and products of two feature maps; in-place variants are replaced by ordinary ones."""

CAT_FUNCTIONS = frozenset({torch.cat, torch.concat})

MEAN_POOL_FUNCTIONS = frozenset({F.avg_pool2d, F.adaptive_avg_pool2d})

RELU_FUNCTIONS = frozenset({F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_, F.relu6, F.hardtanh})
"""Activations that integer arithmetic gets from clamping, at no cost."""

VALUE_KEEPING_FUNCTIONS = frozenset(
    {
        F.max_pool2d,
        F.adaptive_max_pool2d,
        F.dropout,
        torch.flatten,
        Tensor.flatten,
        Tensor.unflatten,
        torch.reshape,
        Tensor.reshape,
        Tensor.view,
        torch.transpose,
        Tensor.transpose,
        Tensor.permute,
        Tensor.squeeze,
        Tensor.unsqueeze,
        Tensor.contiguous,
        Tensor.__getitem__,
        Tensor.unbind,
        Tensor.chunk,
        Tensor.split,
    }
)
"""Functions whose results are levels when their inputs are."""

QUERY_FUNCTIONS = frozenset(
    {
        Tensor.size,
        Tensor.dim,
        Tensor.numel,
        Tensor.stride,
        Tensor.__len__,
        Tensor.__hash__,
        Tensor.is_contiguous,
        Tensor.is_floating_point,
        torch.is_floating_point,
        Tensor.register_hook,
        Tensor.retain_grad,
    }
)
"""Functions that ask about a tensor and compute nothing with it."""


class _RoundingMode(TorchFunctionMode):
    """Intercepts every torch function and rounds activations before a layer that computes in integers."""

    # Networks are code, and only running them tells what follows what; a compiler's graph would lose their layers.

    def __init__(self, rounding: Callable[[int, Tensor], Tensor]):
        super().__init__()
        self.rounding = rounding
        self.state = WeakTensorKeyDictionary()
        self.rounded = WeakTensorKeyDictionary()
        self.sites = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = [one for one in collect_tensors((args, [*kwargs.values()])) if one in self.state]
        if not known or is_query(func):
            return func(*args, **kwargs)
        if func in RELU_FUNCTIONS:
            return self._mark(func(*args, **kwargs), self.state[known[0]])
        integers = self._computes_in_integers(func, known, args)
        change = self._rounded if integers else self._rounded_if_waiting
        args, kwargs = (
            _map_tensors(args, change),
            {name: _map_tensors(one, change) for name, one in kwargs.items()},
        )
        if integers:
            return self._mark(JOIN_FUNCTIONS.get(func, func)(*args, **kwargs), self._next_site())
        known = [one for one in collect_tensors((args, [*kwargs.values()])) if one in self.state]
        keeps = func in VALUE_KEEPING_FUNCTIONS and self.state[known[0]] == ON_LEVELS
        return self._mark(func(*args, **kwargs), ON_LEVELS if keeps else ANY_VALUE)

    def _computes_in_integers(self, func: Any, known: Sequence[Tensor], args: Sequence[Any]) -> bool:
        """Whether this is computed in integers: a layer, a mean pool, or a join of feature maps."""
        if func in LAYER_FUNCTIONS or func in MEAN_POOL_FUNCTIONS:
            return True
        joint = 2 if func in JOIN_FUNCTIONS else len(args[0]) if func in CAT_FUNCTIONS and args else 0
        return bool(joint) and len(known) == joint and all(one.ndim == 4 for one in known)

    def _next_site(self) -> int:
        self.sites += 1
        return self.sites - 1

    def _rounded(self, x: Tensor) -> Tensor:
        """The activation, rounded; anything else unchanged."""
        if x not in self.state or self.state[x] == ON_LEVELS:
            return x
        if x not in self.rounded:
            site = self.state[x] if self.state[x] >= 0 else self._next_site()
            made = self._mark(self.rounding(site, x), ON_LEVELS)
            if made is x:
                return x
            self.rounded[x] = made
        return self.rounded[x]

    def _rounded_if_waiting(self, x: Tensor) -> Tensor:
        """The activation, rounded if it has a site; anything else unchanged."""
        return self._rounded(x) if x in self.state and self.state[x] >= 0 else x

    def _mark(self, made: Any, state: int) -> Any:
        for one in collect_tensors(made):
            if one.is_floating_point():
                self.state[one] = state
        return made


def is_query(func: Any) -> bool:
    """Whether a function only asks about a tensor, as reading its shape does."""
    return func in QUERY_FUNCTIONS or isinstance(func, MethodWrapperType)


def collect_tensors(value: Any) -> list[Tensor]:
    """All tensors in arguments or results, through lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    return [one for part in value for one in collect_tensors(part)] if type(value) in (list, tuple) else []


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Arguments with ``change`` applied to every tensor."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_map_tensors(part, change) for part in value) if type(value) in (list, tuple) else value


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
    return Int8Conv2d(
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
