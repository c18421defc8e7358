"""The stages of a network, and the changes of its structure that a bundle may name.

A change is ``(network, **arguments) -> network`` with JSON arguments; the bundle's tensors are loaded afterwards.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..checks import check_positive
from ..choose import lookup
from ..errors import BundleError, RecipeError
from ..layers import (
    HEADS,
    SPARSE_LAYERS,
    CosineHead,
    Network,
    PreparedHead,
    PrototypeHead,
    WeightNoise,
    get_head,
    noisy_weight_names,
)
from .registry import Architecture

SURGERY_VERBS = {"masked": "pruned", "widths": "narrowed", "factors": "factorised"}
"""Surgery -> what was done to a network that has it."""

UNCOMPRESSIBLE_NETWORKS = {
    "ensemble": "An ensemble is compressed member by member: compress each classifier, then combine them again.",
    "estimator": "A scikit-learn estimator has no network to compress: train a network and compress that.",
}
"""Networks without weights of their own, and what to do instead."""

BLOCKING_SURGERY = {
    "noise": "Its weights carry noise, which would undo it: compress a classifier trained without weight_noise.",
    "quantised": "Its weights are int8 already: compress the float classifier first, and apply int8 last.",
}
"""Surgery that no other may follow, and why."""


def copy_network(
    network: Network, architecture: Architecture, change: str, after: Mapping[str, str] | None = None
) -> Network:
    """A copy of ``network`` on the CPU and in eval mode, on which the surgery ``change`` may be carried out.

    ``after`` adds surgeries to ``BLOCKING_SURGERY``: name -> why ``change`` cannot follow it. Raises RecipeError
    where the network has had ``change`` before, has had a blocking one, or has no weights of its own.
    """
    if architecture.name in UNCOMPRESSIBLE_NETWORKS:
        raise RecipeError(UNCOMPRESSIBLE_NETWORKS[architecture.name])
    names = [name for name, _ in architecture.surgery]
    if change in names:
        raise RecipeError(
            f"This classifier was {SURGERY_VERBS[change]} already. To do it with other settings, start from the "
            "classifier it was made from."
        )
    for name in names:
        if reason := {**BLOCKING_SURGERY, **(after or {})}.get(name):
            raise RecipeError(reason)
    return copy.deepcopy(network).cpu().eval()


@torch.no_grad()
def compressible_layers(network: Network, pixels: Float[Tensor, "B C H W"]) -> dict[str, nn.Conv2d | nn.Linear]:
    """The plain convolutions and linear layers that a pass over ``pixels`` calls, by name, without the head.

    The head is left out because features are its input and classes are added to it. So are frozen layers and those
    that compute with their weights in another way (subclasses).
    """
    last, found = get_head(network), dict[str, nn.Conv2d | nn.Linear]()
    names = {
        layer: name
        for name, layer in network.named_modules()
        if type(layer) in SPARSE_LAYERS and layer is not last
    }

    def record(layer: nn.Module, *_: object) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        found[names[layer]] = layer

    watching = [layer.register_forward_hook(record) for layer in names]
    network.logits(pixels)
    for one in watching:
        one.remove()
    return found


def expand_head(network: Network, classes: int) -> Network:
    """The same network with ``classes`` outputs: old rows of the head are kept, new ones are zero.

    New classes have logit 0 for every image, and the logits of old classes do not change. Raises BundleError if
    ``classes`` is less than the network has.
    """
    old = get_head(network)
    if classes < old.out_features:
        raise BundleError(f"A head of {old.out_features} classes cannot grow to {classes}.")
    biased = old.bias is not None
    if isinstance(old, PreparedHead):
        new = old.same_kind(classes).to(old.weight)
    else:
        new = nn.Linear(old.in_features, classes, biased, device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.zero_()[: old.out_features] = old.weight
        if biased:
            new.bias.zero_()[: old.out_features] = old.bias
    network.head = new
    return network


def replace_head(
    network: Network,
    classes: int,
    kind: str = "linear",
    normalise: bool | None = None,
    projections: int | None = None,
    bias: bool | None = None,
    scale: float | None = None,
) -> Network:
    """The same network with a new last layer for ``classes`` classes, a member of ``layers.HEADS``; its weights are 0.

    The other arguments are those of the member; None where it has no such argument. Raises BundleError where the
    network has no last layer of its own, ChoiceError for an unknown kind.
    """
    old = get_head(network)
    given = {"normalise": normalise, "projections": projections, "bias": bias, "scale": scale}
    arguments = {name: value for name, value in given.items() if value is not None}
    new = lookup(HEADS, kind, "kind of last layer")(old.in_features, classes, **arguments)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    network.head = new.to(old.weight.device, old.weight.dtype).train(network.training)
    return network


def add_prototype_head(network: Network, normalise: bool = True) -> Network:
    """The same network with a ``PrototypeHead`` in place of its last layer; its ``fit`` computes the means.

    Raises BundleError where the network has no last layer of its own.
    """
    old = get_head(network)
    new = PrototypeHead(old.in_features, old.out_features, normalise=normalise)
    network.head = new.to(old.weight.device, old.weight.dtype).train(network.training)
    return network


def add_cosine_head(network: Network, scale: float = 16.0) -> Network:
    """The same network with a ``CosineHead`` of random directions in place of its last layer.

    Raises BundleError where the network has no last layer of its own.
    """
    old = get_head(network)
    new = CosineHead(old.in_features, old.out_features, scale=scale)
    network.head = new.to(old.weight.device, old.weight.dtype).train(network.training)
    return network


def add_flip_tta(network: Network) -> Network:
    """The same network, returning in eval mode the mean logits of an image and its mirror image.

    Training is not changed. Tensors keep their names, so weights can be loaded with and without.
    """
    network.flip_tta = True
    return network


def add_weight_noise(network: Network, alpha: float = 0.25) -> Network:
    """The same network with noise in the weights of every layer, in training and at inference: see ``WeightNoise``.

    ``alpha`` is its initial strength, in standard deviations of each layer's weights; it is trained. Other tensors keep
    their names, so weights can be loaded with and without. Raises ValueError for an alpha outside (0, 10].
    """
    check_positive("alpha", alpha, 10)
    if not (names := noisy_weight_names(network)):
        raise ValueError("the network has no layer that could have noise in its weights")
    network.noise = WeightNoise(names, alpha)
    return network


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
