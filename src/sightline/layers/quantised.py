"""int8: weights as 8-bit codes, activations rounded to 256 levels wherever integers will be computed with.

A weight is ``codes * step * gain`` with int8 codes of 7 or 8 bits and one step for each output channel, symmetric;
an activation becomes ``(q - zero) * scale`` with ``q = clamp(round(x / scale) + zero, 0, 255)``, affine, one
scale for the whole tensor (Jacob et al. 2018, arXiv 1712.05877, equations 1 and 12). All of it is computed in
floats here; an exported file does the same in integers. Codes stay as they are: refinement trains gains and
biases, one for each output channel as in batch norm, through the rounding as if it were not there
(straight-through).
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
from .prototypes import PrototypeHead

MAX_WEIGHT_CODE = {7: 64, 8: 127}
"""The largest code of a weight of so many bits.

Processors without VNNI multiply two pairs of codes at a time and add the products in 16 bits, where the sum stays
at 32,767: 255 * 127 * 2 is too much, and answers go wrong without a word; 255 * 64 * 2 is not.
"""

MAX_ACTIVATION_CODE = 255
"""The largest code of an activation."""


def dequantise_codes(codes: Int8[Tensor, "..."], scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``codes * scale``: what the codes of a weight stand for."""
    return codes.to(scale.dtype) * scale


class Int8Conv2d(nn.Conv2d):
    """A convolution whose weight is int8 codes; it always has a bias."""

    codes: Tensor
    step: Tensor
    gain: nn.Parameter
    dequantise: Callable[[Tensor, Tensor], Tensor] = staticmethod(dequantise_codes)
    """What makes a weight of codes; an exporter puts its own way to write it here."""

    def __init__(self, inputs: int, outputs: int, kernel: Any, **arguments: Any):
        super().__init__(inputs, outputs, kernel, **arguments)
        _replace_weight_by_codes(self)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """What the codes stand for."""
        return self.dequantise(self.codes, self.step * self.gain)


class Int8Linear(nn.Linear):
    """A linear layer whose weight is int8 codes; it always has a bias."""

    codes: Tensor
    step: Tensor
    gain: nn.Parameter
    dequantise: Callable[[Tensor, Tensor], Tensor] = staticmethod(dequantise_codes)
    """What makes a weight of codes; an exporter puts its own way to write it here."""

    def __init__(self, inputs: int, outputs: int, **arguments: Any):
        super().__init__(inputs, outputs, **arguments)
        _replace_weight_by_codes(self)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """What the codes stand for."""
        return self.dequantise(self.codes, self.step * self.gain)


Int8Layer = Int8Conv2d | Int8Linear


def _replace_weight_by_codes(layer: nn.Conv2d | nn.Linear) -> None:
    """Codes, steps and gains in place of the weight that torch's own layer has made."""
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
    """Take the nearest codes of a weight: the step of each output channel is max |w| over the largest code."""
    most, largest = MAX_WEIGHT_CODE[bits], weight.flatten(1).abs().amax(1).view(layer.step.shape)
    layer.step.copy_(torch.where(largest > 0, largest / most, 1.0))
    layer.codes.copy_((weight / layer.step).round().clamp(-most, most).to(torch.int8))
    layer.gain.fill_(1)
    assert layer.bias is not None
    layer.bias.copy_(bias)


def fake_quantise_activation(
    x: Float[Tensor, "..."], scale: Float[Tensor, ""], zero: Int32[Tensor, ""]
) -> Float[Tensor, "..."]:
    """The nearest of the levels ``(q - zero) * scale``, q from 0 to 255; gradients pass where x is within them."""
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, MAX_ACTIVATION_CODE)


class ActivationGrid(nn.Module):
    """The 256 levels of one activation: ``(q - zero) * scale``, q from 0 to 255. 0 is always one of them."""

    scale: Tensor
    zero: Tensor
    fake_quantise: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(fake_quantise_activation)
    """What rounds; an exporter puts its own way to write it here."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero", torch.zeros((), dtype=torch.int32))

    def set_range(self, low: float, high: float) -> None:
        """Put the levels from ``low`` to ``high``, widened to hold 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / MAX_ACTIVATION_CODE or 1.0
        self.scale.fill_(scale)
        self.zero.fill_(min(MAX_ACTIVATION_CODE, max(0, round(-low / scale))))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The nearest levels."""
        return self.fake_quantise(x, self.scale, self.zero)


SiteObserver = Callable[[int, Tensor], object]
"""Is told of a site and the values it would round."""


class ActivationRounding(nn.Module):
    """Rounds the activations of a network where an integer computer would: at its *sites*, numbered as they come.

    A site is the input of a convolution or linear layer, and the result of one (after its ReLU), of a sum or
    product of features, of a concatenation or of a mean pool.
    """

    def __init__(self, sites: int):
        super().__init__()
        self.grids = nn.ModuleList(ActivationGrid() for _ in range(sites))
        self.observer: SiteObserver | None = None
        """Where it is set nothing is rounded, and it is told what would be: how sites are found and calibrated."""

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
            raise ValueError("the network goes another way than it was calibrated on (in training, perhaps)")
        return self.grids[site](x)


ON_LEVELS, ANY_VALUE = -1, -2
"""States of an activation: on levels already, or of any value. A number from 0 is its site, where it waits for its
ReLU, or for whoever uses it first, to be rounded."""

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
"""Sums and products of two feature maps; what is written in place is made anew."""

CAT_FUNCTIONS = frozenset({torch.cat, torch.concat})

MEAN_POOL_FUNCTIONS = frozenset({F.avg_pool2d, F.adaptive_avg_pool2d})

RELU_FUNCTIONS = frozenset({F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_, F.relu6, F.hardtanh})
"""What an integer computer does by clamping, for nothing."""

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
"""Values that were levels stay levels."""

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
"""What asks about a tensor and computes nothing with it."""


class _RoundingMode(TorchFunctionMode):
    """Sees every function of torch within it, and has activations rounded before integers work with them."""

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
        """Whether an integer computer does this: sums, products and joints are of feature maps only."""
        if func in LAYER_FUNCTIONS or func in MEAN_POOL_FUNCTIONS:
            return True
        joint = 2 if func in JOIN_FUNCTIONS else len(args[0]) if func in CAT_FUNCTIONS and args else 0
        return bool(joint) and len(known) == joint and all(one.ndim == 4 for one in known)

    def _next_site(self) -> int:
        self.sites += 1
        return self.sites - 1

    def _rounded(self, x: Tensor) -> Tensor:
        """An activation on levels; a weight as it is."""
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
        """What waited to be rounded, rounded; any other value as it is."""
        return self._rounded(x) if x in self.state and self.state[x] >= 0 else x

    def _mark(self, made: Any, state: int) -> Any:
        for one in collect_tensors(made):
            if one.is_floating_point():
                self.state[one] = state
        return made


def is_query(func: Any) -> bool:
    """Whether a function asks about a tensor and computes nothing with it, as the reading of its shape."""
    return func in QUERY_FUNCTIONS or isinstance(func, MethodWrapperType)


def collect_tensors(value: Any) -> list[Tensor]:
    """The tensors in arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    return [one for part in value for one in collect_tensors(part)] if type(value) in (list, tuple) else []


def _map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Arguments with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_map_tensors(part, change) for part in value) if type(value) in (list, tuple) else value


def int8_like(layer: nn.Module) -> Int8Layer:
    """An int8 layer of the same form, without numbers; of a batch norm, the 1x1 convolution that it is."""
    if isinstance(layer, nn.BatchNorm2d):
        width = layer.num_features
        return Int8Conv2d(width, width, 1, groups=width)
    if isinstance(layer, PrototypeHead):
        raise ValueError("a head of class means normalises its features in floats")
    if isinstance(layer, nn.Linear):
        return Int8Linear(layer.in_features, layer.out_features)
    if not isinstance(layer, nn.Conv2d):
        raise ValueError(f"a {type(layer).__name__} is no layer with a weight")
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


def _get_layer_or_fail(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the network has no layer '{name}'") from error


def replace_layer(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` where the network has the layer of this name."""
    parent, _, own = name.rpartition(".")
    network.get_submodule(parent).add_module(own, layer)


def norm_replacement(norm: nn.Module, *first: nn.Module) -> nn.Module:
    """What takes the place of a batch norm: ``first``, then what was inside it (timm puts activations there)."""
    parts = [*first, *norm.children()] or [nn.Identity()]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def quantise_layers(network, layers: Sequence[str], folded: Sequence[str], lone: Sequence[str], sites: int):
    """The same network in int8, without numbers: ``ActivationRounding`` at so many sites, and int8 layers.

    ``layers`` are convolutions and linear layers; ``folded`` batch norms are part of the convolution before them
    and go; ``lone`` ones, which follow no convolution, become 1x1 convolutions of each channel by itself. Raises
    ValueError for what cannot be, or is int8 already.
    """
    if network.rounding is not None:
        raise ValueError("its weights are int8 already")
    if network.noise is not None:
        raise ValueError("the noise in its weights is trained in floats: leave it out")
    check_int("sites", sites, 0, 100_000)
    device = next(network.parameters()).device
    for name in layers:
        replace_layer(network, name, int8_like(_get_layer_or_fail(network, name)).to(device))
    for name in folded:
        replace_layer(network, name, norm_replacement(_get_layer_or_fail(network, name)))
    for name in lone:
        norm = _get_layer_or_fail(network, name)
        replace_layer(network, name, norm_replacement(norm, int8_like(norm)).to(device))
    network.rounding = ActivationRounding(sites).to(device)
    return network
