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
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

MOST = {7: 64, 8: 127}
"""The largest code of a weight of so many bits.

Processors without VNNI multiply two pairs of codes at a time and add the products in 16 bits, where the sum stays
at 32,767: 255 * 127 * 2 is too much, and answers go wrong without a word; 255 * 64 * 2 is not.
"""

LEVELS = 255
"""The largest code of an activation."""


def dequantised(codes: Int8[Tensor, "..."], scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``codes * scale``: what the codes of a weight stand for."""
    return codes.to(scale.dtype) * scale


class Int8Conv2d(nn.Conv2d):
    """A convolution whose weight is int8 codes; it always has a bias."""

    codes: Tensor
    step: Tensor
    gain: nn.Parameter
    dequantise: Callable[[Tensor, Tensor], Tensor] = staticmethod(dequantised)
    """What makes a weight of codes; an exporter puts its own way to write it here."""

    def __init__(self, inputs: int, outputs: int, kernel: Any, **arguments: Any):
        super().__init__(inputs, outputs, kernel, **arguments)
        _hold_codes(self)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """What the codes stand for."""
        return self.dequantise(self.codes, self.step * self.gain)


class Int8Linear(nn.Linear):
    """A linear layer whose weight is int8 codes; it always has a bias."""

    codes: Tensor
    step: Tensor
    gain: nn.Parameter
    dequantise: Callable[[Tensor, Tensor], Tensor] = staticmethod(dequantised)
    """What makes a weight of codes; an exporter puts its own way to write it here."""

    def __init__(self, inputs: int, outputs: int, **arguments: Any):
        super().__init__(inputs, outputs, **arguments)
        _hold_codes(self)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """What the codes stand for."""
        return self.dequantise(self.codes, self.step * self.gain)


Int8Layer = Int8Conv2d | Int8Linear


def _hold_codes(layer: nn.Conv2d | nn.Linear) -> None:
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
def fill(layer: Int8Layer, weight: Float[Tensor, "O ..."], bias: Float[Tensor, " O"], bits: int = 7) -> None:
    """Take the nearest codes of a weight: the step of each output channel is max |w| over the largest code."""
    most, largest = MOST[bits], weight.flatten(1).abs().amax(1).view(layer.step.shape)
    layer.step.copy_(torch.where(largest > 0, largest / most, 1.0))
    layer.codes.copy_((weight / layer.step).round().clamp(-most, most).to(torch.int8))
    layer.gain.fill_(1)
    assert layer.bias is not None
    layer.bias.copy_(bias)


def nearest(x: Float[Tensor, "..."], scale: Float[Tensor, ""], zero: Int32[Tensor, ""]) -> Float[Tensor, "..."]:
    """The nearest of the levels ``(q - zero) * scale``, q from 0 to 255; gradients pass where x is within them."""
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, LEVELS)


class Grid(nn.Module):
    """The 256 levels of one activation: ``(q - zero) * scale``, q from 0 to 255. 0 is always one of them."""

    scale: Tensor
    zero: Tensor
    nearest: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(nearest)
    """What rounds; an exporter puts its own way to write it here."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero", torch.zeros((), dtype=torch.int32))

    def span(self, low: float, high: float) -> None:
        """Put the levels from ``low`` to ``high``, widened to hold 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / LEVELS or 1.0
        self.scale.fill_(scale)
        self.zero.fill_(min(LEVELS, max(0, round(-low / scale))))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The nearest levels."""
        return self.nearest(x, self.scale, self.zero)


Note = Callable[[int, Tensor], object]
"""Is told of a site and the values it would round."""


class Rounding(nn.Module):
    """Rounds the activations of a network where an integer computer would: at its *sites*, numbered as they come.

    A site is the input of a convolution or linear layer, and the result of one (after its ReLU), of a sum or
    product of features, of a concatenation or of a mean pool.
    """

    def __init__(self, sites: int):
        super().__init__()
        self.grids = nn.ModuleList(Grid() for _ in range(sites))
        self.note: Note | None = None
        """Where it is set nothing is rounded, and it is told what would be: how sites are found and calibrated."""

    def answer(self, look: Callable[[Tensor], Tensor], pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """``look(pixels)``, a pass through the network, with rounded activations."""
        with _Walk(self._round) as walk:
            walk.state[pixels] = FLOAT
            return look(pixels)

    def _round(self, site: int, x: Tensor) -> Tensor:
        if self.note is not None:
            self.note(site, x)
            return x
        if site >= len(self.grids):
            raise ValueError("the network goes another way than it was calibrated on (in training, perhaps)")
        return self.grids[site](x)


ROUND, FLOAT = -1, -2
"""States of an activation: on levels already, or of any value. A number from 0 is its site, where it waits for its
ReLU, or for whoever uses it first, to be rounded."""

LAYERS = frozenset({F.conv2d, F.linear})

JOINS = {
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

CATS = frozenset({torch.cat, torch.concat})

MEANS = frozenset({F.avg_pool2d, F.adaptive_avg_pool2d})

RELUS = frozenset({F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_, F.relu6, F.hardtanh})
"""What an integer computer does by clamping, for nothing."""

KEEPING = frozenset(
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

LOOKS = frozenset(
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


class _Walk(TorchFunctionMode):
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
        known = [one for one in tensors_in((args, [*kwargs.values()])) if one in self.state]
        if not known or looks(func):
            return func(*args, **kwargs)
        if func in RELUS:
            return self._mark(func(*args, **kwargs), self.state[known[0]])
        integers = self._in_integers(func, known, args)
        change = self._settled if integers else self._waiting
        args, kwargs = _each(args, change), {name: _each(one, change) for name, one in kwargs.items()}
        if integers:
            return self._mark(JOINS.get(func, func)(*args, **kwargs), self._next_site())
        known = [one for one in tensors_in((args, [*kwargs.values()])) if one in self.state]
        keeps = func in KEEPING and self.state[known[0]] == ROUND
        return self._mark(func(*args, **kwargs), ROUND if keeps else FLOAT)

    def _in_integers(self, func: Any, known: Sequence[Tensor], args: Sequence[Any]) -> bool:
        """Whether an integer computer does this: sums, products and joints are of feature maps only."""
        if func in LAYERS or func in MEANS:
            return True
        joint = 2 if func in JOINS else len(args[0]) if func in CATS and args else 0
        return bool(joint) and len(known) == joint and all(one.ndim == 4 for one in known)

    def _next_site(self) -> int:
        self.sites += 1
        return self.sites - 1

    def _settled(self, x: Tensor) -> Tensor:
        """An activation on levels; a weight as it is."""
        if x not in self.state or self.state[x] == ROUND:
            return x
        if x not in self.rounded:
            site = self.state[x] if self.state[x] >= 0 else self._next_site()
            made = self._mark(self.rounding(site, x), ROUND)
            if made is x:
                return x
            self.rounded[x] = made
        return self.rounded[x]

    def _waiting(self, x: Tensor) -> Tensor:
        """What waited to be rounded, rounded; any other value as it is."""
        return self._settled(x) if x in self.state and self.state[x] >= 0 else x

    def _mark(self, made: Any, state: int) -> Any:
        for one in tensors_in(made):
            if one.is_floating_point():
                self.state[one] = state
        return made


def looks(func: Any) -> bool:
    """Whether a function asks about a tensor and computes nothing with it, as the reading of its shape."""
    return func in LOOKS or isinstance(func, MethodWrapperType)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    return [one for part in value for one in tensors_in(part)] if type(value) in (list, tuple) else []


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Arguments with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_each(part, change) for part in value) if type(value) in (list, tuple) else value


def like(layer: nn.Module) -> Int8Layer:
    """An int8 layer of the same form, without numbers; of a batch norm, the 1x1 convolution that it is."""
    if isinstance(layer, nn.BatchNorm2d):
        width = layer.num_features
        return Int8Conv2d(width, width, 1, groups=width)
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


def _layer(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the network has no layer '{name}'") from error


def put(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put ``layer`` where the network has the layer of this name."""
    parent, _, own = name.rpartition(".")
    network.get_submodule(parent).add_module(own, layer)


def after_norm(norm: nn.Module, *first: nn.Module) -> nn.Module:
    """What takes the place of a batch norm: ``first``, then what was inside it (timm puts activations there)."""
    parts = [*first, *norm.children()] or [nn.Identity()]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


@no_type_check
def quantised(network, layers: Sequence[str], folded: Sequence[str], lone: Sequence[str], sites: int):
    """The same network in int8, without numbers: ``Rounding`` at so many sites, and int8 layers.

    ``layers`` are convolutions and linear layers; ``folded`` batch norms are part of the convolution before them
    and go; ``lone`` ones, which follow no convolution, become 1x1 convolutions of each channel by itself. Raises
    ValueError for what cannot be, or is int8 already.
    """
    if network.rounding is not None:
        raise ValueError("its weights are int8 already")
    if network.noise is not None:
        raise ValueError("the noise in its weights is trained in floats: leave it out")
    if not isinstance(sites, int) or not 0 <= sites <= 100_000:
        raise ValueError(f"sites is the number of places where activations are rounded, not {sites}")
    device = next(network.parameters()).device
    for name in layers:
        put(network, name, like(_layer(network, name)).to(device))
    for name in folded:
        put(network, name, after_norm(_layer(network, name)))
    for name in lone:
        norm = _layer(network, name)
        put(network, name, after_norm(norm, like(norm)).to(device))
    network.rounding = Rounding(sites).to(device)
    return network
