"""Channel groups: the channels of several layers that can only be removed together."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .. import runtime
from ..layers import Network, is_narrowable, keep_channels
from ..models import get_head

LAYER_SIDES = ("outputs", "inputs")
"""Sides of a layer; the channels of a batch norm are its outputs."""


@dataclass(frozen=True, eq=False)
class ChannelSite:
    """A place where channels of a group occur: the outputs or the inputs of a layer."""

    layer: str
    side: str
    places: Int[Tensor, " n"]
    """Index in the layer, of each entry."""
    channels: Int[Tensor, " n"]
    """Index in the group, of each entry: after a flattening several entries belong to one channel."""


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that can only be removed together, because they are added, normalised or concatenated."""

    count: int
    """Channels, counted in the first layer that produces them."""
    sites: tuple[ChannelSite, ...]


RemovedChannels = Sequence[Bool[Tensor, " _"]]
"""For each group, a mask of the channels to remove."""


def find_channel_groups(network: Network, pixels: Float[Tensor, "B C H W"]) -> list[ChannelGroup]:
    """The groups of channels whose removal changes the logits exactly as setting them to zero would.

    Torch-Pruning traces which layers share channels (Fang et al. 2023, arXiv 2301.12900). Every group it finds is
    tested with random weights, and dropped if removing it and zeroing it give different logits. The classes, and
    channels in layer norms, grouped convolutions or bare parameters, are never removed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own
        import torch_pruning

        work = copy.deepcopy(network).requires_grad_()
        names: dict[nn.Module, str] = {module: name for name, module in work.named_modules()}
        graph = torch_pruning.DependencyGraph()
        with torch.enable_grad():
            logits: Any = lambda module, given: module.logits(given)  # noqa: E731
            graph.build_dependency(work, pixels, logits, verbose=False)
        traced = [_as_channel_group(graph, each, names) for each in graph.get_all_groups([get_head(work)])]
    found = [group for group in traced if group is not None and group.count > 1]
    return _removable_groups(_randomise(copy.deepcopy(network).double()), found, pixels.double())


def keep_one_per_layer(
    group: ChannelGroup, gone: Bool[Tensor, " n"], worth: Float[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """The mask ``gone``, except the most important channel of each layer that would lose all of the group."""
    left = gone.clone()
    for site in group.sites:
        if left[site.channels].all():
            left[site.channels[worth[site.channels].argmax()]] = False
    return left


def remove_channels(network: Network, groups: Sequence[ChannelGroup], gone: RemovedChannels) -> Network:
    """A copy of the network without the channels in ``gone``."""
    small = copy.deepcopy(network)
    for (layer, side), places in _removed_places(groups, gone).items():
        module = small.get_submodule(layer)
        every = _layer_width(module, side)
        left = torch.ones(every, dtype=torch.bool)
        left[places] = False
        keep_channels(module, **{side: left.nonzero().squeeze(1)})
    return small


@torch.no_grad()
def zero_channels(network: Network, groups: Sequence[ChannelGroup], gone: RemovedChannels) -> Network:
    """A copy of the network in which the channels in ``gone`` are zero."""
    quiet = copy.deepcopy(network)
    for (layer, side), places in _removed_places(groups, gone).items():
        if side == "outputs":
            module = quiet.get_submodule(layer)
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if name in ("weight", "bias"):
                    tensor[places] = 0
    return quiet


@torch.no_grad()
def layer_multiply_adds(network: Network, pixels: Float[Tensor, "B C H W"]) -> dict[str, int]:
    """Multiply-adds for one image in each convolution and linear layer that can be narrowed, by name."""
    names = {layer: name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    found = dict.fromkeys((name for layer, name in names.items() if is_narrowable(layer)), 0)

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        found[names[layer]] += output.numel() * layer.weight[0].numel()

    watching = [network.get_submodule(name).register_forward_hook(count) for name in found]
    network(pixels[:1])
    for one in watching:
        one.remove()
    return found


def saved_multiply_adds(
    network: Network, works: Mapping[str, int], groups: Sequence[ChannelGroup], gone: RemovedChannels
) -> int:
    """Multiply-adds for one image saved without these channels: a layer's are proportional to outputs x inputs."""
    left = dict(works)
    for (layer, side), places in _removed_places(groups, gone).items():
        if layer in left:
            width = _layer_width(network.get_submodule(layer), side)
            left[layer] = left[layer] // width * (width - len(places))
    return sum(works.values()) - sum(left.values())


def _removed_places(
    groups: Sequence[ChannelGroup], gone: RemovedChannels
) -> dict[tuple[str, str], Int[Tensor, " _"]]:
    """(layer, side) -> the indices to remove from it."""
    found: dict[tuple[str, str], Tensor] = {}
    for group, out in zip(groups, gone, strict=True):
        for site in group.sites if out.any() else ():
            places = site.places[out[site.channels]]
            before = found.get((site.layer, site.side), places[:0])
            found[site.layer, site.side] = torch.cat([before, places]).unique()
    return {where: places for where, places in found.items() if len(places)}


def _layer_width(module: nn.Module, side: str) -> int:
    """Channels of a layer on one side."""
    if isinstance(module, nn.BatchNorm2d):
        return module.num_features
    assert isinstance(module, nn.Conv2d | nn.Linear)
    return module.weight.shape[LAYER_SIDES.index(side)]


def _as_channel_group(graph: Any, traced: Any, names: Mapping[nn.Module, str]) -> ChannelGroup | None:
    """A traced group as a ChannelGroup; None where it includes something that cannot be narrowed."""
    from torch_pruning.ops import OPTYPE

    sites = []
    for item in traced:
        target = item.dep.target
        if target.type in (OPTYPE.PARAMETER, OPTYPE.OUTPUT):
            return None
        if target.module not in names:  # a function without weights
            continue
        if not is_narrowable(target.module) or None in item.root_idxs:
            return None
        side = LAYER_SIDES[not graph.is_out_channel_pruning_fn(item.dep.handler)]
        places, channels = torch.tensor(item.idxs), torch.tensor(item.root_idxs)
        sites.append(ChannelSite(names[target.module], side, places, channels))
    return ChannelGroup(len(traced[0].idxs), tuple(sites))


def _removable_groups(network: Network, groups: Sequence[ChannelGroup], pixels: Tensor) -> list[ChannelGroup]:
    """The groups that can be removed, by testing all together and halving where that fails."""
    if not groups or _is_removable(network, groups, pixels):
        return [*groups]
    if len(groups) == 1:
        return []
    middle = len(groups) // 2
    return [
        *_removable_groups(network, groups[:middle], pixels),
        *_removable_groups(network, groups[middle:], pixels),
    ]


@torch.no_grad()
def _is_removable(network: Network, groups: Sequence[ChannelGroup], pixels: Tensor) -> bool:
    """Whether removing half of the channels gives the logits of zeroing the same half, to 1e-6."""
    chance = runtime.make_generator(0)
    ranks = [torch.randperm(group.count, generator=chance) for group in groups]
    gone = [
        keep_one_per_layer(group, rank < group.count // 2, rank.float())
        for group, rank in zip(groups, ranks, strict=True)
    ]
    try:
        left = remove_channels(network, groups, gone).logits(pixels)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
        return False
    quiet = zero_channels(network, groups, gone).logits(pixels)
    return bool(((left - quiet).abs() <= 1e-6 * quiet.abs().max()).all())


@torch.no_grad()
def _randomise(network: Network) -> Network:
    """Fill the network with random weights and statistics, so that no channel is zero by chance."""
    chance = runtime.make_generator(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=chance)
            module.running_var.uniform_(0.5, 1.5, generator=chance)
    for weight in network.parameters():
        spread = (2 / weight[0].numel()) ** 0.5 if weight.ndim > 1 else 0.5
        weight.normal_(0, spread, generator=chance)
    return network
