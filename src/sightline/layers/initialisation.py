"""Initial weights of convolutions and linear layers, by the variance they are drawn with.

``n_in`` and ``n_out`` are fan in and fan out: in a convolution ``kernel area * channels`` (of one group). Biases
become 0; norms and frozen whitenings are not changed. Values come from torch's global generator.
"""

import math
from collections.abc import Iterator

import torch
from torch import nn

from .whitening import Whitening


def glorot_uniform(module: nn.Module) -> None:
    """U(-a, a) with a = sqrt(6 / (n_in + n_out)): Glorot and Bengio 2010, equation 16."""
    for layer, n_in, n_out in _weight_layers(module):
        _draw_uniform(layer, 2 / (n_in + n_out))


def glorot_normal(module: nn.Module) -> None:
    """N(0, 2 / (n_in + n_out)): the variance of Glorot and Bengio 2010, equation 12."""
    for layer, n_in, n_out in _weight_layers(module):
        _draw_normal(layer, 2 / (n_in + n_out))


def he_uniform(module: nn.Module) -> None:
    """U(-a, a) with a = sqrt(6 / n_in): the variance of He et al. 2015 (arXiv 1502.01852), for ReLU."""
    for layer, n_in, _ in _weight_layers(module):
        _draw_uniform(layer, 2 / n_in)


def he_normal(module: nn.Module) -> None:
    """N(0, 2 / n_in): He et al. 2015 (arXiv 1502.01852), equation 10, for ReLU."""
    for layer, n_in, _ in _weight_layers(module):
        _draw_normal(layer, 2 / n_in)


def lecun_uniform(module: nn.Module) -> None:
    """U(-a, a) with a = sqrt(3 / n_in): the variance of LeCun et al. 1998, Efficient BackProp."""
    for layer, n_in, _ in _weight_layers(module):
        _draw_uniform(layer, 1 / n_in)


def lecun_normal(module: nn.Module) -> None:
    """N(0, 1 / n_in): LeCun et al. 1998, Efficient BackProp, equation 16."""
    for layer, n_in, _ in _weight_layers(module):
        _draw_normal(layer, 1 / n_in)


def _weight_layers(module: nn.Module) -> Iterator[tuple[nn.Conv2d | nn.Linear, int, int]]:
    """Each convolution and linear layer with its fan in and fan out."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not isinstance(layer, Whitening):
            weight = layer.weight
            groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
            yield layer, weight[0].numel(), weight[:, 0].numel() // groups


def _draw_uniform(layer: nn.Conv2d | nn.Linear, variance: float) -> None:
    bound = math.sqrt(3 * variance)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound)
    _clear_bias(layer)


def _draw_normal(layer: nn.Conv2d | nn.Linear, variance: float) -> None:
    with torch.no_grad():
        layer.weight.normal_(0, math.sqrt(variance))
    _clear_bias(layer)


def _clear_bias(layer: nn.Conv2d | nn.Linear) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
