"""How weights move: optimisers, and schedules of their learning rate."""

import math
from collections.abc import Callable, Mapping
from inspect import unwrap
from typing import Any

import torch
from torch import nn

from .recipe import Recipe


def groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups of parameters: matrices and kernels decay; biases and norms (one dimension) do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _plain(kind: type[torch.optim.Optimizer]) -> type[Any]:
    """Torch's optimiser without the decorators that serve torch.compile.

    They import the compiler when first called, which doubles the time from the command to the first step.
    """
    return type(
        kind.__name__,
        (kind,),
        {
            "add_param_group": unwrap(kind.add_param_group),
            "state_dict": unwrap(kind.state_dict),
            "zero_grad": unwrap(kind.zero_grad),
            "step": torch.no_grad()(unwrap(kind.step)),
        },
    )


_SGD, _AdamW = _plain(torch.optim.SGD), _plain(torch.optim.AdamW)


def _sgd(module: nn.Module, recipe: Recipe, lr: float, *, fused: bool) -> torch.optim.Optimizer:
    return _SGD(
        groups(module, recipe.weight_decay),
        lr=lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=fused,
    )


def _adamw(module: nn.Module, recipe: Recipe, lr: float, *, fused: bool) -> torch.optim.Optimizer:
    return _AdamW(groups(module, recipe.weight_decay), lr=lr, betas=(recipe.momentum, 0.999), fused=fused)


OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {"sgd": _sgd, "adamw": _adamw}

DEFAULT_LR: Mapping[str, float] = {"sgd": 0.1, "adamw": 2e-3}
"""Peak learning rates per 128 images of a batch; scaled linearly (Goyal et al. 2017) below and above."""


def optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over ``module``; fused where torch has the kernel."""
    fused = all(p.device.type in {"cpu", "cuda"} for p in module.parameters())
    assert recipe.lr is not None
    return OPTIMIZERS[recipe.optimizer](module, recipe, recipe.lr, fused=fused)


Schedule = Callable[[float], float]
"""Share of the run that is done, in [0, 1] -> factor on the peak learning rate, in [0, 1]."""


def one_cycle(warmup: float) -> Schedule:
    """From 1/25 of the peak up along a cosine for ``warmup``, then down to 1e-4 of it (Smith & Topin 2018)."""

    def factor(done: float) -> float:
        if done < warmup:
            return _between(1 / 25, 1.0, done / warmup)
        return _between(1.0, 1e-4, (done - warmup) / (1 - warmup))

    return factor


def cosine(warmup: float) -> Schedule:
    """Linear rise for ``warmup``, then (1 + cos(pi t)) / 2 (Loshchilov & Hutter 2017, eq. 5)."""
    return _after_rise(warmup, lambda t: _between(1.0, 0.0, t))


def constant(warmup: float) -> Schedule:
    """Linear rise for ``warmup``, then the peak."""
    return _after_rise(warmup, lambda _: 1.0)


SCHEDULES: Mapping[str, Callable[[float], Schedule]] = {
    "one-cycle": one_cycle,
    "cosine": cosine,
    "constant": constant,
}


def _after_rise(warmup: float, then: Schedule) -> Schedule:
    return lambda done: done / warmup if done < warmup else then((done - warmup) / (1 - warmup))


def _between(start: float, end: float, t: float) -> float:
    """Cosine interpolation, flat at both ends."""
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2
