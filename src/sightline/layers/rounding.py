"""Activations rounded to 256 levels wherever a computer will use integers.

An activation becomes ``(q - zero) * scale`` with ``q = clamp(round(x / scale) + zero, 0, 255)``, affine, one scale
for the whole tensor (Jacob et al. 2018, arXiv 1712.05877, equations 1 and 12). It is computed in floats; gradients
pass through the rounding unchanged (straight-through).
"""

from collections.abc import Callable, Sequence
from types import MethodWrapperType
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

MAX_ACTIVATION_CODE = 255
"""The largest code of an activation."""


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


ON_LEVELS, ANY_VALUE, PADDED_LEVELS = -1, -2, -3
"""States of an activation: already rounded, of any value, or rounded and then padded with levels, which needs no
rounding but has a site, because earlier releases rounded it again. A number from 0 is the site at which it will be
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
        state = self.state[known[0]] if known else ANY_VALUE
        if state in (ON_LEVELS, PADDED_LEVELS) and func in VALUE_KEEPING_FUNCTIONS:
            return self._mark(func(*args, **kwargs), state)
        if state in (ON_LEVELS, PADDED_LEVELS) and func is F.pad and _pads_by_levels(*args, **kwargs):
            return self._mark(func(*args, **kwargs), PADDED_LEVELS)
        return self._mark(func(*args, **kwargs), ANY_VALUE)

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
        if self.state[x] == PADDED_LEVELS:
            self._next_site()
            self.state[x] = ON_LEVELS
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


def _pads_by_levels(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> bool:
    """Whether ``F.pad``, called so, adds levels around images: zeros, or values of the tensor itself.

    Added channels are rounded again, so that a runtime adds them to others in integers.
    """
    del x
    return len(pad) <= 4 and (mode != "constant" or not value)


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
