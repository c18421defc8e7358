"""What a network is made of, from the pixels to the head: what freezing and layer-wise rates go by."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..layers import Network, get_head

HEAD_STAGE = "head"
"""Name of the last stage."""

NamedModule = tuple[str, nn.Module]


@dataclass(frozen=True, eq=False)
class NetworkStage:
    """Modules that are used one after the other, and train or rest together."""

    name: str
    """Where in the network its first weights are: ``conv1``, ``layer2``, ``features.conv2``, ``head``."""
    modules: tuple[nn.Module, ...]
    loose: tuple[nn.Parameter, ...] = ()
    """Parameters that belong to no module of a stage, such as an embedding of positions."""

    def parameters(self) -> list[nn.Parameter]:
        """All of its parameters, each once."""
        owned = (p for module in self.modules for p in module.parameters())
        return list(dict.fromkeys((*self.loose, *owned)))


def find_stages(network: Network) -> tuple[NetworkStage, ...]:
    """The network's stages in the order they are defined in, the head last; every parameter is in exactly one.

    Lists of layers are opened, blocks are not: ``conv1``, ``layer1``, ``layer2``, ``layer3``, ``head`` of a
    ResNet. A norm belongs to what it follows; what has no weights, to what comes next. Raises BundleError
    where there is no head.
    """
    last = get_head(network)
    groups: list[list[NamedModule]] = []
    waiting: list[NamedModule] = []
    for part in _parts_before_head(network, last):
        weights = [p.ndim for p in part[1].parameters()]
        if groups and weights and max(weights) <= 1:
            groups[-1] += [*waiting, part]
            waiting = []
        elif weights and max(weights) > 1:
            groups.append([*waiting, part])
            waiting = []
        else:
            waiting.append(part)
    named = [(_stage_name(group), tuple(module for _, module in group)) for group in groups]
    named.append((HEAD_STAGE, (*(module for _, module in waiting), last)))
    return _add_loose_parameters(network, [NetworkStage(*each) for each in named])


def _parts_before_head(network: Network, last: nn.Module) -> list[NamedModule]:
    """The network's parts before the head, its lists of layers taken apart."""
    parts = [*network.named_children()]
    while (place := _index_to_split(parts, last)) is not None:
        name, module = parts[place]
        parts[place : place + 1] = [(f"{name}.{inner}", child) for inner, child in module.named_children()]
    return [(name, module) for name, module in parts if module is not last]


def _index_to_split(parts: Sequence[NamedModule], last: nn.Module) -> int | None:
    """The first part that is no stage but holds several; None where there is none left."""
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
    """Whether it has weights, not only the biases and scales of norms."""
    return any(p.ndim > 1 for p in module.parameters())


def _is_layer(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _stage_name(group: Sequence[NamedModule]) -> str:
    return next(name for name, module in group if _has_weights(module))


def _add_loose_parameters(network: Network, found: Sequence[NetworkStage]) -> tuple[NetworkStage, ...]:
    """The stages, the first of them with the parameters that none of them has."""
    owned = {id(p) for stage in found for p in stage.parameters()}
    loose = tuple(p for p in network.parameters() if id(p) not in owned)
    first = NetworkStage(found[0].name, found[0].modules, loose)
    return (first, *found[1:])
