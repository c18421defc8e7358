"""The stages of a network, from the pixels to the head: the units of freezing and layer-wise learning rates."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..layers import Network, get_head

HEAD_STAGE = "head"
"""Name of the last stage."""

NamedModule = tuple[str, nn.Module]


@dataclass(frozen=True, eq=False)
class NetworkStage:
    """Consecutive modules that are trained or frozen together."""

    name: str
    """The module with its first weights: ``conv1``, ``layer2``, ``features.conv2``, ``head``."""
    modules: tuple[nn.Module, ...]
    loose: tuple[nn.Parameter, ...] = ()
    """Parameters outside all modules of a stage, such as positional embeddings; they belong to the first stage."""

    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the stage, each once."""
        owned = (p for module in self.modules for p in module.parameters())
        return list(dict.fromkeys((*self.loose, *owned)))


def find_stages(network: Network) -> tuple[NetworkStage, ...]:
    """The network's stages in order of definition, the head last; every parameter is in exactly one of them.

    Lists of layers are split, blocks are not: a ResNet has ``conv1``, ``layer1``, ``layer2``, ``layer3``,
    ``head``. A norm belongs to the layer before it; a module without weights belongs to the next stage. Raises
    BundleError where there is no head.
    """
    last = get_head(network)
    groups: list[list[NamedModule]] = []
    waiting: list[NamedModule] = []
    parts = [*network.named_children()]
    while (place := _index_to_split(parts, last)) is not None:
        name, module = parts[place]
        parts[place : place + 1] = [(f"{name}.{inner}", child) for inner, child in module.named_children()]
    for part in parts:
        if part[1] is last:
            continue
        weights = [p.ndim for p in part[1].parameters()]
        if groups and weights and max(weights) <= 1:
            groups[-1] += [*waiting, part]
            waiting = []
        elif weights and max(weights) > 1:
            groups.append([*waiting, part])
            waiting = []
        else:
            waiting.append(part)
    names = [next(name for name, module in group if _has_weights(module)) for group in groups]
    modules = [tuple(module for _, module in group) for group in groups]
    modules.append((*(module for _, module in waiting), last))
    owned = {id(p) for stage in modules for module in stage for p in module.parameters()}
    loose = tuple(p for p in network.parameters() if id(p) not in owned)
    stages = zip([*names, HEAD_STAGE], modules, strict=True)
    return tuple(NetworkStage(*stage, () if place else loose) for place, stage in enumerate(stages))


def _index_to_split(parts: Sequence[NamedModule], last: nn.Module) -> int | None:
    """Index of the first part that holds several stages; None where every part is in one stage."""
    inside = [module is not last and any(m is last for m in module.modules()) for _, module in parts]
    weighty = [i for i, (_, m) in enumerate(parts) if m is not last and _has_weights(m) and not _is_layer(m)]
    lists = [i for i in weighty if isinstance(parts[i][1], nn.Sequential | nn.ModuleList)]
    for i, (_, module) in enumerate(parts):
        if inside[i] or (i in lists and any(_is_layer(m) and _has_weights(m) for m in module.children())):
            return i
    if len(lists) == 1:
        return lists[0]
    only = [i for i, (_, m) in enumerate(parts) if m is not last and _has_weights(m)]
    return only[0] if len(only) == 1 and weighty == only else None


def _has_weights(module: nn.Module) -> bool:
    """Whether a module has matrices or kernels, not only biases and the scales of norms."""
    return any(p.ndim > 1 for p in module.parameters())


def _is_layer(module: nn.Module) -> bool:
    return next(module.children(), None) is None
