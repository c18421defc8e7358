"""Class activation maps: which places of a late layer raised the target's logit, for networks that keep places.

The layer is chosen by itself: the last one that still tells at least 4 x 4 places apart, in a transformer the last
whose patches the answer depends on.
"""

import difflib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from .. import runtime
from ..classifier import Classifier
from ..errors import ChoiceError
from ..layers import Network
from ..models import ViT
from .base import (
    Explainer,
    as_leaf,
    deterministic_eval,
    explain_in_batches,
    gather_target_logits,
    require_logit_gradient,
)

MIN_MAP_SIDE = 4
"""Places on the shorter side that a map should have, to say where; one of 2 x 2 hardly can."""

MAX_EXTRA_TOKENS = 8
"""Tokens that are no patch, at most: one for the class, and registers."""

ModuleOutputs = dict[str, list[Tensor]]
"""What modules gave, by name: once a pass, or twice where the network also looks at the mirror image."""


def token_grid(tokens: int, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """(tokens that are no patch, patches down, patches across) of an image of ``size``; None where none fits."""
    for extra in range(min(MAX_EXTRA_TOKENS + 1, tokens - 1)):
        patches = tokens - extra
        for down in range(1, patches + 1):
            if patches % down == 0 and abs(down * size[1] - patches // down * size[0]) < max(size):
                return extra, down, patches // down
    return None


def as_feature_map(output: object, size: tuple[int, int]) -> Float[Tensor, "B C h w"] | None:
    """A module's output as a map of an image of ``size``, whatever the order of its axes; None for others."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    if output.ndim == 3 and (grid := token_grid(output.shape[1], size)) and grid[1] * grid[2] > 1:
        return output[:, grid[0] :].transpose(1, 2).unflatten(2, grid[1:])
    if output.ndim != 4:
        return None
    ours, theirs = (output.shape[2:4], output.shape[1:3])
    if _has_image_proportions(ours, size):
        return output
    return output.permute(0, 3, 1, 2) if _has_image_proportions(theirs, size) else None


def _has_image_proportions(sides: Sequence[int], size: tuple[int, int]) -> bool:
    """Whether these are the sides of a map of the image: more than one place, and nearly its proportions."""
    down, across = sides
    return down * across > 1 and abs(down * size[1] - across * size[0]) <= 4 * max(size)


@contextmanager
def record_outputs(network: Network, names: Sequence[str]) -> Iterator[ModuleOutputs]:
    """Within it, the outputs of these modules are kept, in the order they are finished."""
    seen: ModuleOutputs = {}
    modules = dict(network.named_modules())

    def keep(name: str):
        return lambda _, __, output: seen.setdefault(name, []).append(output)

    hooks = [modules[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def resize_to_image(
    network: nn.Module, maps: Float[Tensor, "B c h w"], size: tuple[int, int]
) -> Float[Tensor, "B c H W"]:
    """Maps enlarged to the image, bilinear; of an image that ``vit`` padded, the image's part."""
    whole = size
    if isinstance(network, ViT):
        whole = (maps.shape[2] * network.patch, maps.shape[3] * network.patch)
    return F.interpolate(maps, whole, mode="bilinear", align_corners=False)[:, :, : size[0], : size[1]]


@dataclass(frozen=True)
class _Cam(Explainer):
    """A map of a layer, its channels weighted by what they do for the target."""

    layer: str | None = None

    def __call__(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        """The weighted map, enlarged to the image, every channel alike.

        Raises ChoiceError for a layer that is not there or keeps no places, GradientError without a gradient.
        """
        require_logit_gradient(classifier, "Grad-CAM")
        layers = (self.layer,) if self.layer else choose_cam_layers(classifier, images.shape[1:])
        if self.layer and self.layer not in _module_names(classifier.network):
            check_cam_layer(classifier, self.layer, images.shape[1:])
        return explain_in_batches(lambda some, of: self._explain(classifier, layers, some, of), images, targets)

    def _explain(
        self, classifier: Classifier, layers: Sequence[str], images: Tensor, targets: Tensor
    ) -> Float[Tensor, "B C H W"]:
        size, total = (images.shape[2], images.shape[3]), torch.zeros_like(images[:, :1])
        with deterministic_eval(classifier), record_outputs(classifier.network, layers) as seen:
            score = gather_target_logits(classifier, as_leaf(images), targets).sum()
            outputs = [one for name in layers for one in seen.get(name, ())]
            if not outputs or any(as_feature_map(one, size) is None for one in outputs):
                check_cam_layer(classifier, layers[0], images.shape[1:])
            grads = iter(torch.autograd.grad(score, outputs, allow_unused=True, materialize_grads=True))
        for name in layers:
            owner = _owning_network(classifier.network, name)
            for look, output in enumerate(seen[name]):
                maps, slopes = as_feature_map(output.detach(), size), as_feature_map(next(grads), size)
                assert maps is not None
                assert slopes is not None
                found = resize_to_image(owner, (self.weights(maps, slopes) * maps).sum(1, keepdim=True), size)
                total += found.flip(3) if owner.flip_tta and look else found
        return total.expand_as(images)

    @abstractmethod
    def weights(
        self, maps: Float[Tensor, "B C h w"], slopes: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B C 1 1"]:
        """What each channel counts, from the maps and the gradient of the target's logit with respect to them."""


class GradCam(_Cam):
    """The maps of a late layer weighted by their mean gradients, signed (Selvaraju et al. 2017, arXiv 1610.02391).

    ``layer`` is a module's name; without it, the last that keeps the places of the image.
    """

    def weights(
        self, maps: Float[Tensor, "B C h w"], slopes: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B C 1 1"]:
        """The mean slope of each channel."""
        del maps
        return slopes.mean((2, 3), keepdim=True)


class GradCamPlusPlus(_Cam):
    """Grad-CAM that counts places where a channel helps, each by how much (Chattopadhay et al. 2018, 1710.11063).

    Better where a class is there several times. ``layer`` is a module's name; without it, as in Grad-CAM.
    """

    def weights(
        self, maps: Float[Tensor, "B C h w"], slopes: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B C 1 1"]:
        """``sum of alpha relu(g)`` with ``alpha = g^2 / (2 g^2 + sum(A) g^3)`` (eq. 19; exp(S) cancels)."""
        square = slopes.square()
        below = 2 * square + maps.sum((2, 3), keepdim=True) * square * slopes
        shares = torch.where(below != 0, square / torch.where(below != 0, below, 1), 0)
        return (shares * slopes.clamp(min=0)).sum((2, 3), keepdim=True)


def choose_cam_layers(classifier: Classifier, shape: Sequence[int]) -> tuple[str, ...]:
    """The layer that Grad-CAM looks at for images (C, H, W), by name; of an ensemble one in every member.

    Raises ChoiceError where no layer keeps the places of the image, as in a multilayer perceptron.
    """
    found = _probe_layers(classifier, shape)
    singles = [n for n, m in _networks(classifier.network).items() if not m.member_list()]
    chosen = tuple(name for single in singles if (name := _choose_layer(found, f"{single}." if single else "")))
    if not chosen:
        raise ChoiceError(
            f"The network {classifier.architecture.name} has no layer that keeps the places of an image, which "
            "gradcam needs: use --by integrated-gradients or --by occlusion."
        )
    return chosen


def check_cam_layer(classifier: Classifier, name: str, shape: Sequence[int]) -> None:
    """Raise ChoiceError, with a name near it, for a layer that is not there or keeps no places."""
    found = _probe_layers(classifier, shape)
    if name in found:
        return
    known = [each for each, _ in classifier.network.named_modules() if each]
    near = difflib.get_close_matches(name, known, n=1)
    last = ", ".join(f"'{each}'" for each in list(found)[-3:]) or "none"
    if name in known:
        raise ChoiceError(f"The layer '{name}' keeps no places of the image. Layers that do: {last}, for example.")
    hint = (
        f"Did you mean '{near[0]}'?" if near else f"Layers that keep the places of an image: {last}, for example."
    )
    raise ChoiceError(f"There is no layer called '{name}'. {hint}")


@dataclass(frozen=True)
class _MapLayer:
    """A module that keeps places: how many, and whether the answer depends on what it says of them."""

    tokens: bool
    shape: tuple[int, ...]
    used: bool
    inner: bool
    """Whether it is a branch of a block that goes on to a smaller map: what the others say is not in it."""


def _probe_layers(classifier: Classifier, shape: Sequence[int]) -> Mapping[str, _MapLayer]:
    """Every module that keeps places, in the order they are finished with an image of noise."""
    probe = torch.rand(1, *shape, generator=runtime.make_generator(0)).to(classifier.device)
    size = (shape[1], shape[2])
    with (
        deterministic_eval(classifier),
        record_outputs(classifier.network, _module_names(classifier.network)) as seen,
    ):
        logits = classifier(as_leaf(probe))
        kept = {
            name: outputs[-1] for name, outputs in seen.items() if as_feature_map(outputs[-1], size) is not None
        }
        if not kept:
            return {}
        weights = torch.randn(logits.shape, generator=runtime.make_generator(1)).to(logits)
        grads = torch.autograd.grad((logits * weights).sum(), [*kept.values()], allow_unused=True)
    narrowed = _block_map_sides(classifier.network, seen)
    found = {}
    for (name, output), grad in zip(kept.items(), grads, strict=True):
        slopes = None if grad is None else as_feature_map(grad, size)
        mapped = as_feature_map(output, size)
        assert mapped is not None
        used = slopes is not None and bool((slopes != 0).any())
        inner = any(
            name.startswith(f"{block}.") and sides != output.shape[2:] for block, sides in narrowed.items()
        )
        found[name] = _MapLayer(output.ndim == 3, tuple(mapped.shape[1:]), used, inner)
    return found


def _module_names(network: Network) -> list[str]:
    """Every module inside a network as it is now."""
    return [name for name, _ in network.named_modules() if name]


def _block_map_sides(network: Network, seen: ModuleOutputs) -> dict[str, torch.Size]:
    """Blocks, not mere lists of layers, and the sides of the maps that they give."""
    modules = dict(network.named_modules())
    return {
        name: outputs[-1].shape[2:]
        for name, outputs in seen.items()
        if not isinstance(modules[name], nn.Sequential)
        and isinstance(outputs[-1], Tensor)
        and outputs[-1].ndim == 4
    }


def _choose_layer(found: Mapping[str, _MapLayer], prefix: str) -> str | None:
    """The last roomy map of one network, or its largest; of tokens the last as wide that the answer depends on."""
    own = {name: kept for name, kept in found.items() if name.startswith(prefix)}
    if not own:
        return None
    last = next(reversed(own.values()))
    if last.tokens:
        same = [name for name, kept in own.items() if kept.tokens and kept.shape == last.shape and kept.used]
        return same[-1] if same else next(reversed(own))
    maps = {name: kept for name, kept in own.items() if not kept.tokens}
    outer = {name: kept for name, kept in maps.items() if not kept.inner} or maps
    side = {name: min(kept.shape[1:]) for name, kept in outer.items()}
    least = min(MIN_MAP_SIDE, max(side.values()))
    return [name for name, places in side.items() if places >= least][-1]


def _networks(network: Network) -> dict[str, Network]:
    """The network and the members inside it, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Network)}


def _owning_network(network: Network, layer: str) -> Network:
    """The single network that a layer belongs to."""
    inside = [name for name in _networks(network) if not name or layer.startswith(f"{name}.")]
    return _networks(network)[max(inside, key=len)]
