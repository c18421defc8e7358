"""The changes a network can be rebuilt with: what a bundle may contain is known here.

A member is ``(network, arguments) -> network`` and changes structure only; the bundle's tensors are
loaded afterwards. The arguments are JSON.
"""

from collections.abc import Callable
from typing import no_type_check

import torch
from torch import nn

from ..errors import BundleError
from ..layers import (
    Network,
    WeightNoise,
    factorise_layers,
    keep_zeros,
    narrow_layers,
    noisy_weight_names,
    quantise_layers,
)


def get_head(network: Network) -> nn.Linear:
    """The layer whose outputs are the logits; raises BundleError where there is none, as in an ensemble."""
    try:
        return network.head
    except AttributeError as error:
        raise BundleError(
            f"{type(network).__name__} has no last layer of its own: start from a single network instead."
        ) from error


def expand_head(network: Network, classes: int) -> Network:
    """The same network with ``classes`` outputs: old rows are kept, new ones start at zero.

    A new class so begins with logit 0 for every image, and old logits do not change.
    Raises BundleError if that would lose classes.
    """
    old = get_head(network)
    if classes < old.out_features:
        raise BundleError(f"A head of {old.out_features} classes cannot grow to {classes}.")
    biased = old.bias is not None
    new = nn.Linear(old.in_features, classes, biased, device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.zero_()[: old.out_features] = old.weight
        if biased:
            new.bias.zero_()[: old.out_features] = old.bias
    network.head = new
    return network


def add_flip_tta(network: Network) -> Network:
    """The same network, whose answers in eval mode are the mean logits of an image and its mirror image.

    Training sees each image once. Tensors and their names stay as they are, so weights fit with and without.
    """
    network.flip_tta = True
    return network


@no_type_check
def add_weight_noise(network: Network, alpha: float = 0.25) -> Network:
    """The same network with noise in the weights of every layer, in training and in answers: see ``WeightNoise``.

    ``alpha`` is its strength at first, in deviations of each layer's weights; training changes it. The other
    tensors keep their names, so weights fit with and without. Raises ValueError for an impossible alpha.
    """
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha <= 10:
        raise ValueError(f"alpha is a number above 0 and at most 10, not {alpha}")
    if not (names := noisy_weight_names(network)):
        raise ValueError("the network has no layer whose weights could be disturbed")
    network.noise = WeightNoise(names, alpha)
    return network


SURGERY: dict[str, Callable[..., Network]] = {
    "grown_head": expand_head,
    "mirrored": add_flip_tta,
    "noise": add_weight_noise,
    "masked": keep_zeros,
    "widths": narrow_layers,
    "factors": factorise_layers,
    "quantised": quantise_layers,
}
