"""Batch norms in eval mode become part of the convolutions before them: fewer passes over memory at inference."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .fused_norm import FoldedNorm
from .rounding import collect_tensors, is_query

MAX_FOLDING_ERROR = 1e-4
"""Change of an output, as a share of the largest, up to which batch norms are folded; float32 rounds it to about
1e-6."""

Module = TypeVar("Module", bound=nn.Module)


class UseCounter(TorchFunctionMode):
    """Counts how many operations use each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the tensors of one operation, and do it."""
        if not is_query(func):
            for one in collect_tensors((args, [*(kwargs or {}).values()])):
                self.count[one] = self.count[one] + 1 if one in self.count else 1
        return func(*args, **(kwargs or {}))


def match_norms(
    network: nn.Module, layers: Mapping[str, nn.Module], run: Callable[[], object]
) -> tuple[dict[str, str], list[str]]:
    """Batch norm -> the convolution of ``layers`` whose output it alone uses, and norms without one, in ``run()``."""
    names: dict[nn.Module, str] = {layer: name for name, layer in layers.items()}
    norms: dict[nn.Module, str] = {m: name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    made: list[tuple[Tensor, str]] = []
    asked: list[tuple[Tensor, str]] = []

    def after(layer: nn.Module, _: object, result: Tensor) -> None:
        made.append((result, names[layer]))

    def before(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        asked.append((given[0], norms[norm]))

    hooks = [layer.register_forward_hook(after) for layer in names if isinstance(layer, nn.Conv2d)]
    hooks += [norm.register_forward_pre_hook(before) for norm in norms]
    try:
        with UseCounter() as uses:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    sources = {norm: [name for result, name in made if result is given] for given, norm in asked}
    single = {norm for given, norm in asked if given in uses.count and uses.count[given] == 1}
    found = {norm: own[0] for norm, own in sources.items() if own and norm in single}
    return found, [norm for norm in sources if norm not in found]


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as a factor and a shift of each channel, in float64."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.detach().double()
    shift = -norm.running_mean.double() * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach().double()


def replicate(module: Module, kept: Iterable[Any] = ()) -> Module:
    """A copy with modules of its own, for another thread; parameters, buffers and what is ``kept`` are the same."""
    shared = (*module.parameters(), *module.buffers(), *kept)
    return copy.deepcopy(module, {id(one): one for one in shared})


@torch.inference_mode()
def fold_replica(module: Module, pixels: Tensor, kept: Iterable[Any] = ()) -> Module:
    """A replica whose batch norms are folded; without that where it changes outputs for ``pixels`` by more than
    rounding does (``MAX_FOLDING_ERROR``).
    """
    folded = replicate(module, kept)
    with torch.autocast(pixels.device.type, enabled=False):
        fold_batch_norms(folded, lambda: folded(pixels))
        for layer in folded.modules():
            if isinstance(layer, nn.Conv2d) and "weight" in layer._parameters:  # else reordered at each call
                kernel = layer.weight.contiguous(memory_format=torch.channels_last)
                layer.weight = nn.Parameter(kernel, requires_grad=False)
        before, after = module(pixels), folded(pixels)
    close = float((after - before).abs().max()) <= MAX_FOLDING_ERROR * float(before.abs().max())
    return folded if close else module


@torch.no_grad()
def fold_batch_norms(network: nn.Module, run: Callable[[], object]) -> None:
    """Fold batch norms into their convolutions, in place.

    ``run()`` is one pass through the network, in eval mode, by which it is seen what follows what. A convolution that
    is used twice, or whose output something else uses too, keeps its norm.
    """
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d) and "weight" in layer._parameters
    }
    matched, _ = match_norms(network, layers, run)
    sources = [*matched.values()]
    for name, source in matched.items():
        norm, layer = network.get_submodule(name), layers[source]
        then = _after_norm(norm)
        if then is None or sources.count(source) > 1:
            continue
        factor, shift = norm_affine(norm)
        bias = 0 if layer.bias is None else layer.bias.double()
        weight = layer.weight.double() * factor.view(-1, 1, 1, 1)
        layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
        layer.bias = nn.Parameter((bias * factor + shift).to(layer.weight.dtype), requires_grad=False)
        network.set_submodule(name, then)


def _after_norm(norm: nn.Module) -> nn.Module | None:
    """What is left of a batch norm once its factor and shift are elsewhere; None for a kind that is not known."""
    if norm.running_var is None:  # it normalises by the batch
        return None
    if type(norm).forward is nn.BatchNorm2d.forward:
        return FoldedNorm()
    drop, act = getattr(norm, "drop", None), getattr(norm, "act", None)  # timm's norms end with both
    return nn.Sequential(drop, act) if isinstance(drop, nn.Module) and isinstance(act, nn.Module) else None
