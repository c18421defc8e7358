"""What becomes part of the layers before their weights are int8: batch norms, and the shift of the pixels."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..classifier import Classifier
from ..errors import BundleError
from ..layers import Int8Layer, SparseConv2d, SparseLinear, UseCounter, has_same_padding, norm_affine
from ..preprocessing import Normalise, Preprocessing
from .calibration import Span

PLAIN_FORWARDS = (nn.Conv2d.forward, nn.Linear.forward, SparseConv2d.forward, SparseLinear.forward)
"""Forward methods of the layers that int8 replaces: those that use their weights as torch's own do."""


MAX_SHIFT_EFFECT = 5e-4
"""Change of a logit, as a share of the largest, up to which pixels are moved onto levels."""


def quantizable_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that become int8, by name."""
    found = network.named_modules()
    return {
        name: layer
        for name, layer in found
        if isinstance(layer, nn.Conv2d | nn.Linear)
        and (type(layer).forward in PLAIN_FORWARDS or has_same_padding(layer))
    }


def fold_norms(network: nn.Module, folded: Mapping[str, str], lone: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and bias of each int8 layer: ``gamma / sqrt(v + eps) (W x - mean) + beta``, computed in float64."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in quantizable_layers(network).items():
        weight = layer.weight.detach().double()
        found[name] = weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    for norm, source in folded.items():
        factor, shift = norm_affine(network.get_submodule(norm))
        weight, bias = found[source]
        found[source] = weight * factor.view(-1, 1, 1, 1), bias * factor + shift
    for norm in lone:
        factor, shift = norm_affine(network.get_submodule(norm))
        found[norm] = factor.view(-1, 1, 1, 1), shift
    return {name: (weight.float(), bias.float()) for name, (weight, bias) in found.items()}


def check_folding(
    classifier: Classifier, weights: Mapping[Int8Layer, Tensor], pixels: Tensor, before: Tensor
) -> None:
    """Raise BundleError where folding changes the logits ``before``, the weights still in floats."""
    with float_weights(classifier, weights):
        after = classifier(pixels)
    if not torch.allclose(after, before, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise BundleError(
            "Folding the batch norms changes this network's logits (it may call a convolution or a norm twice), "
            "so it cannot be int8: choose another compressor."
        )


@dataclass(frozen=True)
class PixelLevels:
    """Pixels that are levels themselves: the layer that reads them, their range, and what its bias makes up for."""

    reader: str
    span: Span
    shift: float
    """The normalised pixels before, minus those after."""


def align_pixels(made: Classifier, few: Float[Tensor, "B C H W"]) -> PixelLevels | None:
    """Move the mean of a normalisation by half a level at most, so that every 8-bit pixel is a level.

    None, and nothing changes, where mean and deviation differ by channel, there are other steps, pixels are read
    by anything but one first layer, or the zeros that pad the image, which do not move, matter.
    """
    steps, network = [*made.preprocessing.steps], made.network
    names: dict[nn.Module, str] = {layer: name for name, layer in quantizable_layers(network).items()}
    entered: list[tuple[Tensor, Any]] = []
    called: list[tuple[str, bool]] = []
    uses = UseCounter()

    def enter(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        entered.append((given[0], uses.count.get(given[0], 0)))

    def call(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        called.append((names[layer], given[0] is entered[0][0]))

    hooks = [network.register_forward_pre_hook(enter), *(one.register_forward_pre_hook(call) for one in names)]
    try:
        with uses:
            made(few[:1])
    finally:
        for hook in hooks:
            hook.remove()
    if len(steps) != 1 or not isinstance(steps[0], Normalise) or not (called and called[0][1]):
        return None
    pixels, before = entered[0]
    if len(entered) > 1 or uses.count[pixels] != before + 1:
        return None
    (mean, *means), (std, *stds) = steps[0].statistics
    if any(other != mean for other in means) or any(other != std for other in stds):
        return None
    zero, reader = round(255 * mean), called[0][0]
    layer, shift = network.get_submodule(reader), (zero / 255 - mean) / std
    if not (0 <= zero <= 255 and isinstance(layer, nn.Conv2d)):
        return None
    wanted, as_before = made(few), made.preprocessing
    moved = Normalise([zero / 255] * len(pixels[0]), [std] * len(pixels[0]))
    made.preprocessing = Preprocessing([moved]).to(few.device)
    extra = (shift * layer.weight.flatten(1).sum(1)).view(-1, 1, 1)

    def make_up(_: nn.Module, __: object, result: Tensor) -> Tensor:
        return result + extra

    watching = layer.register_forward_hook(make_up)
    given = made(few)
    watching.remove()
    if not torch.allclose(given, wanted, rtol=0, atol=MAX_SHIFT_EFFECT * float(wanted.abs().max())):
        made.preprocessing = as_before
        return None
    return PixelLevels(reader, (-zero / 255 / std, (255 - zero) / 255 / std), shift)


@contextmanager
def float_weights(made: Classifier, weights: Mapping[Int8Layer, Tensor]) -> Iterator[None]:
    """Within it the network computes with these weights and unrounded activations."""
    assert made.network.rounding is not None
    made.network.rounding.observer = lambda *_: None
    for layer, weight in weights.items():
        layer.dequantise = lambda *_, weight=weight: weight
    try:
        yield
    finally:
        for layer in weights:
            del layer.dequantise
