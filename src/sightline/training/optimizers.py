"""How weights move: the optimisers."""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import unwrap
from typing import Any

import torch
from torch import nn

from ..choose import choose
from ..classifier import Classifier
from ..models import find_stages
from .recipe import Recipe


def parameter_groups(module: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Two groups of parameters: matrices and kernels decay; biases and norms (one dimension) do not.

    ``lr_factor`` is a factor on the rate that the loop sets. With a ``layer_decay`` d there are two groups for
    each stage of the network, from the head (factor 1) back to the pixels: d, d^2, ...; likewise where stages
    rest, because torch's fused SGD wants the parameters of a group to take their first step together.
    """
    found = []
    for number, parameters in enumerate(_parameters_by_stage(module, recipe)):
        trained, slower = [p for p in parameters if p.requires_grad], recipe.layer_decay**number
        large, small = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        found += [
            {"params": large, "weight_decay": recipe.weight_decay, "lr_factor": slower},
            {"params": small, "weight_decay": 0.0, "lr_factor": slower * recipe.bias_lr},
        ]
    return found


def _parameters_by_stage(module: nn.Module, recipe: Recipe) -> list[list[nn.Parameter]]:
    """The parameters of each stage from the head back; all together where they learn alike."""
    if (recipe.layer_decay == 1 and recipe.freeze == "none") or not isinstance(module, Classifier):
        return [[*module.parameters()]]
    return [stage.parameters() for stage in reversed(find_stages(module.network))]


def _without_compile(kind: type[torch.optim.Optimizer]) -> type[Any]:
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


_SGD, _Adam, _AdamW = map(_without_compile, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW))


class _DecoupledSGD(_SGD):
    """SGD that shrinks the weights by lr times the decay before the step (Loshchilov & Hutter 2019, alg. 1)."""

    @torch.no_grad()
    def step(self) -> None:
        """One step; the decay does not pass through the momentum."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]  # what rests does not decay either
            if group["decoupled"] and moved:
                torch._foreach_mul_(moved, 1 - group["lr"] * group["decoupled"])
        super().step()


def _sgd(
    module: nn.Module, recipe: Recipe, lr: float, *, fused: bool, nesterov: bool = True, decoupled: bool = False
) -> torch.optim.Optimizer:
    """Momentum, Nesterov's unless told otherwise; the decay is added to the gradient (L2) or decoupled."""
    parameters = parameter_groups(module, recipe)
    settings: dict[str, Any] = {
        "lr": lr,
        "momentum": recipe.momentum,
        "nesterov": nesterov and recipe.momentum > 0,
    }
    if not decoupled:
        return _SGD(parameters, fused=fused, **settings)
    apart = [group | {"decoupled": group["weight_decay"], "weight_decay": 0.0} for group in parameters]
    return _DecoupledSGD(apart, fused=fused, **settings)


def _adam(
    module: nn.Module, recipe: Recipe, lr: float, *, fused: bool, beta2: float = 0.999
) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015); the decay is added to the gradient (L2)."""
    return _Adam(parameter_groups(module, recipe), lr=lr, betas=(recipe.momentum, beta2), fused=fused)


def _adamw(
    module: nn.Module, recipe: Recipe, lr: float, *, fused: bool, beta2: float = 0.999
) -> torch.optim.Optimizer:
    """Adam with decoupled decay (Loshchilov & Hutter 2019)."""
    return _AdamW(parameter_groups(module, recipe), lr=lr, betas=(recipe.momentum, beta2), fused=fused)


OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}
"""Name -> ``(module, recipe, lr, fused=..., **arguments) -> optimiser``."""

DEFAULT_LR: Mapping[str, float] = {"sgd": 0.1, "adam": 2e-3, "adamw": 2e-3}
"""Peak learning rates per 128 images of a batch; scaled linearly (Goyal et al. 2017) below and above."""


def build_optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over ``module``; fused where torch has the kernel.

    Raises ChoiceError where the recipe's word names none.
    """
    fused = all(p.device.type in {"cpu", "cuda"} for p in module.parameters())
    assert recipe.lr is not None
    family = {name: partial(make, module, recipe, recipe.lr, fused=fused) for name, make in OPTIMIZERS.items()}
    return choose(family, recipe.optimizer, "optimiser")
