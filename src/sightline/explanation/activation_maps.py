"""Maps from inside the network: class activation maps of a late layer, and attention rollout of a transformer.

Grad-CAM's layer is chosen automatically: the last one that still distinguishes at least 4 x 4 places; in a transformer
the last one whose patches the answer depends on.
"""

import difflib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .. import runtime
from ..classifier import Classifier, frozen_eval
from ..errors import ChoiceError
from ..layers import Network
from .base import Explainer, as_leaf, gather_target_logits

MIN_MAP_SIDE = 4
"""Places on the shorter side of a map, at least, where a layer has as many; 2 x 2 hardly say where."""

MAX_EXTRA_TOKENS = 8
"""Tokens that are no patch (class token, registers), at most."""

ModuleOutputs = dict[str, list[Tensor]]
"""Outputs of modules by name, one per pass; two where the network also looks at the flipped image."""


def token_grid(tokens: int, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """(tokens that are no patch, rows and columns of patches) for images of ``size`` (H, W); None where none fits."""
    for extra in range(min(MAX_EXTRA_TOKENS + 1, tokens - 1)):
        patches = tokens - extra
        for down in range(1, patches + 1):
            if patches % down == 0 and abs(down * size[1] - patches // down * size[0]) < max(size):
                return extra, down, patches // down
    return None


def as_feature_map(output: object, size: tuple[int, int]) -> Float[Tensor, "B C h w"] | None:
    """A module's output as a map of an image of ``size`` (H, W); None for other outputs.

    Tokens are laid out by their patches. A 4-dimensional output may have its channels first or last; the sides of
    a map are more than one place and have nearly the image's proportions.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    if output.ndim == 3 and (grid := token_grid(output.shape[1], size)) and grid[1] * grid[2] > 1:
        return output[:, grid[0] :].transpose(1, 2).unflatten(2, grid[1:])
    if output.ndim != 4:
        return None
    for (down, across), order in ((output.shape[2:4], (0, 1, 2, 3)), (output.shape[1:3], (0, 3, 1, 2))):
        if down * across > 1 and abs(down * size[1] - across * size[0]) <= 4 * max(size):
            return output.permute(order)
    return None


@contextmanager
def record_outputs(network: Network, names: Sequence[str]) -> Iterator[ModuleOutputs]:
    """Within it, the outputs of these modules are recorded, in the order in which they are computed."""
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
    """Maps enlarged to the image, bilinear; where the network pads images to whole patches, the image's part."""
    whole, patch = size, getattr(network, "patch", None)
    if isinstance(patch, int):
        whole = (maps.shape[2] * patch, maps.shape[3] * patch)
    return F.interpolate(maps, whole, mode="bilinear", align_corners=False)[:, :, : size[0], : size[1]]


@dataclass(frozen=True)
class _Cam(Explainer):
    """The maps of a layer, its channels weighted by their effect on the target."""

    layer: str | None = None

    def prepare(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> tuple[str, ...]:
        """The layers, one of each member of an ensemble; ChoiceError for a layer that is missing or keeps no places."""
        if self.layer is None:
            return choose_cam_layers(classifier, images.shape[1:])
        if self.layer not in dict(classifier.network.named_modules()):
            check_cam_layer(classifier, self.layer, images.shape[1:])
        return (self.layer,)

    def run(
        self,
        classifier: Classifier,
        images: Float[Tensor, "B C H W"],
        targets: Int[Tensor, " B"],
        prepared: tuple[str, ...],
    ) -> Float[Tensor, "B C H W"]:
        """The weighted map, enlarged to the image, the same for every channel."""
        size, total = (images.shape[2], images.shape[3]), torch.zeros_like(images[:, :1])
        with record_outputs(classifier.network, prepared) as seen:
            score = gather_target_logits(classifier, as_leaf(images), targets).sum()
            outputs = [one for name in prepared for one in seen.get(name, ())]
            if not outputs or any(as_feature_map(one, size) is None for one in outputs):
                check_cam_layer(classifier, prepared[0], images.shape[1:])
            grads = iter(torch.autograd.grad(score, outputs, allow_unused=True, materialize_grads=True))
        networks = _networks(classifier.network)
        for name in prepared:
            inside = [inner for inner in networks if not inner or name.startswith(f"{inner}.")]
            owner = networks[max(inside, key=len)]
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
        """The weight of each channel, from the maps and the gradient of the target's logit with respect to them."""


class GradCam(_Cam):
    """The maps of a late layer weighted by their mean gradients, signed (Selvaraju et al. 2017, arXiv 1610.02391).

    ``layer`` is a module's name; by default the last one that keeps the places of the image.
    """

    def weights(
        self, maps: Float[Tensor, "B C h w"], slopes: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B C 1 1"]:
        """The mean slope of each channel."""
        del maps
        return slopes.mean((2, 3), keepdim=True)


class GradCamPlusPlus(_Cam):
    """Grad-CAM with the weight of each place by how much its channel helps (Chattopadhay et al. 2018, 1710.11063).

    Better for several objects of a class. ``layer`` is a module's name, by default as in Grad-CAM.
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
    """The layer that Grad-CAM uses for images (C, H, W), by name; for an ensemble one in every member.

    It is the last map of at least 4 x 4 places or else the largest, outside of blocks that go on to a smaller map;
    in a transformer the last tokens of full width that the answer depends on. Raises ChoiceError where no layer
    keeps the places of the image, as in a multilayer perceptron.
    """
    found, layers = _probe_layers(classifier, shape), []
    for member, network in _networks(classifier.network).items():
        own = {name: one for name, one in found.items() if name.startswith(f"{member}." if member else "")}
        if network.member_list() or not own:
            continue
        last, final = next(reversed(own.items()))
        if final.tokens:
            same = [name for name, one in own.items() if one.tokens and one.shape == final.shape and one.used]
            layers.append(same[-1] if same else last)
            continue
        maps = {name: one for name, one in own.items() if not one.tokens}
        outer = {name: one for name, one in maps.items() if not one.inner} or maps
        side = {name: min(one.shape[1:]) for name, one in outer.items()}
        least = min(MIN_MAP_SIDE, max(side.values()))
        layers.append([name for name, places in side.items() if places >= least][-1])
    if not layers:
        raise ChoiceError(
            f"The network {classifier.architecture.name} has no layer that keeps the places of an image, which "
            "gradcam needs: use --by integrated-gradients or --by occlusion."
        )
    return tuple(layers)


def check_cam_layer(classifier: Classifier, name: str, shape: Sequence[int]) -> None:
    """Raise ChoiceError, with a similar name, for a layer that is missing or keeps no places."""
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
    """A module whose output is a map of the image."""

    tokens: bool
    shape: tuple[int, ...]
    """(C, h, w)."""
    used: bool
    """Whether the answer depends on this output."""
    inner: bool
    """Whether it is a branch of a block that goes on to a smaller map, so that other branches are missing in it."""


def _probe_layers(classifier: Classifier, shape: Sequence[int]) -> Mapping[str, _MapLayer]:
    """Every module that keeps places, in the order in which an image of noise passes them."""
    network, size = classifier.network, (shape[1], shape[2])
    modules = {name: module for name, module in network.named_modules() if name}
    probe = torch.rand(1, *shape, generator=runtime.make_generator(0)).to(classifier.device)
    with frozen_eval(classifier, weight_noise=False), record_outputs(network, list(modules)) as seen:
        logits = classifier(as_leaf(probe))
        kept = {
            name: outputs[-1] for name, outputs in seen.items() if as_feature_map(outputs[-1], size) is not None
        }
        if not kept:
            return {}
        weights = torch.randn(logits.shape, generator=runtime.make_generator(1)).to(logits)
        grads = torch.autograd.grad((logits * weights).sum(), [*kept.values()], allow_unused=True)
    blocks = {  # not mere lists of layers
        name: outputs[-1].shape[2:]
        for name, outputs in seen.items()
        if not isinstance(modules[name], nn.Sequential)
        and isinstance(outputs[-1], Tensor)
        and outputs[-1].ndim == 4
    }
    found = {}
    for (name, output), grad in zip(kept.items(), grads, strict=True):
        slopes = None if grad is None else as_feature_map(grad, size)
        mapped = as_feature_map(output, size)
        assert mapped is not None
        used = slopes is not None and bool((slopes != 0).any())
        inner = any(name.startswith(f"{block}.") and sides != output.shape[2:] for block, sides in blocks.items())
        found[name] = _MapLayer(output.ndim == 3, tuple(mapped.shape[1:]), used, inner)
    return found


def _networks(network: Network) -> dict[str, Network]:
    """The network and the members inside it, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Network)}


ATTENTION_BATCH_SIZE = 16
"""Images per pass, because the attention of all layers and heads is held in memory at once."""


class _AttentionRecorder(TorchFunctionMode):
    """Within it, attention is computed step by step and recorded: ``softmax(q k^T / sqrt(d))`` of each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **more: Any
    ) -> Tensor:
        scale = more.get("scale") or query.shape[-1] ** -0.5
        logits = query @ key.transpose(-2, -1) * scale
        if attn_mask is not None:
            logits = (
                logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
            )
        self.seen.append(logits.softmax(-1))
        return self.seen[-1] @ value


@dataclass(frozen=True)
class AttentionRollout(Explainer):
    """The product over layers of (attention + identity) / 2 (Abnar and Zuidema 2020, arXiv 2005.00928).

    The same for every target: it says where the network looked, not for what. With ``gradient``, attention is
    weighted by its effect on the target (Chefer et al. 2021, arXiv 2103.15679). 0 is an even share, 1 twice as
    much.
    """

    gradient: bool = False

    batch_size: ClassVar[int] = ATTENTION_BATCH_SIZE

    def prepare(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> None:
        """Raise ChoiceError for an ensemble."""
        del images
        if classifier.network.member_list():
            raise ChoiceError("Attention rollout is for a single network: explain the members of the ensemble.")

    def run(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"], prepared: Any
    ) -> Float[Tensor, "B C H W"]:
        """Each place's share over an even one, minus 1; ChoiceError for a network without such attention."""
        del prepared
        with _AttentionRecorder() as attending:
            score = gather_target_logits(classifier, as_leaf(images), targets).sum()
            seen = attending.seen
            skipped = _patch_grid(seen, images)[0]
            grads = torch.autograd.grad(score, seen) if self.gradient else [None] * len(seen)
        looks = 2 if classifier.network.flip_tta else 1  # flip augmentation attends to each image twice
        count, size = len(seen) // looks, (images.shape[2], images.shape[3])
        maps = []
        for look in range(looks):
            chosen = slice(look * count, (look + 1) * count)
            rolled = _roll_out(seen[chosen], grads[chosen])
            row = rolled[:, 0, skipped:] if skipped else rolled.mean(1)
            _, *grid = _patch_grid(seen, images)
            whole = resize_to_image(classifier.network, row.unflatten(1, grid)[:, None], size)
            maps.append(whole.flip(3) if look else whole)
        shares = torch.stack(maps).mean(0)
        return (shares / shares.mean((2, 3), keepdim=True).clamp(min=1e-30) - 1).expand_as(images)


def _patch_grid(seen: Sequence[Tensor], images: Float[Tensor, "B C H W"]) -> tuple[int, int, int]:
    """(tokens that are no patch, rows and columns of patches); ChoiceError for a network without patches."""
    tokens = {(one.shape[0], *one.shape[2:]) for one in seen}
    grid = token_grid(seen[0].shape[-1], (images.shape[2], images.shape[3])) if len(tokens) == 1 else None
    if grid is None or seen[0].shape[0] != len(images):
        raise ChoiceError(
            "Attention rollout follows attention between the patches of a vision transformer, and this network has "
            "none: use --by gradcam, or a network such as vit."
        )
    return grid


def _roll_out(seen: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Float[Tensor, "B T T"]:
    """The share of each input token in each output token."""
    tokens = seen[0].shape[-1]
    whole = torch.eye(tokens, device=seen[0].device).expand(len(seen[0]), -1, -1)
    for attention, grad in zip(seen, grads, strict=True):
        weights = attention.detach().float()
        if grad is None:
            whole = (weights.mean(1) @ whole + whole) / 2
        else:
            whole = whole + (weights * grad).clamp(min=0).mean(1) @ whole
    return whole if grads[0] is None else whole - torch.eye(tokens, device=whole.device)
