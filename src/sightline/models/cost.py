"""What an answer costs."""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..layers import ImageSize


def _layer_work(output: Tensor, _: Tensor, weight: Tensor, *__: Any, **___: Any) -> int:
    return output.numel() * weight[0].numel()


def _product_work(output: Tensor, left: Tensor, *_: Any, **__: Any) -> int:
    return output.numel() * left.shape[-1]


def _sum_and_product_work(output: Tensor, _: Tensor, left: Tensor, *__: Any, **___: Any) -> int:
    return output.numel() * left.shape[-1]


def _attention_work(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> int:
    """Queries times keys, then weights times values."""
    return query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


MULTIPLY_ADDS_BY_FUNCTION: Mapping[Callable[..., Any], Callable[..., int]] = {
    F.conv1d: _layer_work,
    F.conv2d: _layer_work,
    F.conv3d: _layer_work,
    F.linear: _layer_work,
    F.scaled_dot_product_attention: _attention_work,
    torch.matmul: _product_work,
    Tensor.matmul: _product_work,
    Tensor.__matmul__: _product_work,
    torch.mm: _product_work,
    Tensor.mm: _product_work,
    torch.bmm: _product_work,
    Tensor.bmm: _product_work,
    torch.addmm: _sum_and_product_work,
    torch.baddbmm: _sum_and_product_work,
}
"""What layers come down to: function -> ``(output, *its arguments) -> multiply-adds``."""


class _MultiplyAddCounter(TorchFunctionMode):
    """Sees every function of torch that is called within it."""

    # Not torch's counter: the level below, where that looks, loads the compiler, two seconds for nothing.
    total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in MULTIPLY_ADDS_BY_FUNCTION:
            self.total += MULTIPLY_ADDS_BY_FUNCTION[func](output, *args, **(kwargs or {}))
        return output


def count_multiply_adds(network: nn.Module, channels: int, size: ImageSize) -> int:
    """Multiplications with addition that the answer about one image of ``size`` takes, in eval mode.

    Convolutions, linear layers and the products of attention, exactly; norms, activations, pools and biases are
    not counted, as is usual. One multiply-add is two floating-point operations. The network stays as it is.
    """
    modes = [(module, module.training) for module in network.modules()]
    # Real numbers: torch's shape-only tensors load the compiler too.
    image = torch.zeros(1, channels, *size, device=next(chain(network.parameters(), network.buffers())).device)
    try:
        with torch.no_grad(), _MultiplyAddCounter() as counting:
            network.eval()(image)
    finally:
        for module, training in modes:
            module.training = training
    return counting.total


def learnt_tensors(network: nn.Module) -> list[Tensor]:
    """What a network has learnt: its parameters, and weights of 8 bits; statistics and scales are not."""
    return [*network.parameters(), *(b for b in network.buffers() if b.dtype == torch.int8)]
