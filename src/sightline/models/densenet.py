"""DenseNet-BC for small images: Huang et al. 2017 (arXiv 1608.06993), sections 3 and 4.2.

The input of a layer is the features of all layers before it, to which it adds ``growth`` channels. Bottlenecks
(B), 1x1 convolutions before each layer, and compression (C), which halves the channels between stages, limit the
cost.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_int
from ..errors import RecipeError
from ..layers import (
    ImageSize,
    Network,
    downscaling_notes,
    init_he_fan_out,
    is_large,
    make_dropout,
    norm_act,
    stem_pools,
)

BOTTLENECK_FACTOR = 4
"""Channels of a bottleneck as a multiple of ``growth``."""


class DenseLayer(nn.Module):
    """``concat[x, conv 3x3(relu(BN(conv 1x1(relu(BN(x))))))]``."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, BOTTLENECK_FACTOR * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(BOTTLENECK_FACTOR * growth)
        self.conv2 = nn.Conv2d(BOTTLENECK_FACTOR * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H W"]:
        """The input and ``growth`` new channels."""
        new = self.conv2(norm_act(self.norm2, self.conv1(norm_act(self.norm1, x))))
        return torch.cat([x, new], 1)


class Transition(nn.Module):
    """``mean 2x2(conv 1x1(relu(BN(x))))``."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Fewer channels and half the size, rounded up."""
        return F.avg_pool2d(self.conv(norm_act(self.norm, x)), 2, ceil_mode=True)


class DenseNet(Network):
    """A stem, three stages of layers with transitions between them, batch norm, average pooling, the head."""

    def __init__(self, classes: int, channels: int, size: ImageSize, depth: int, growth: int, dropout: float):
        super().__init__()
        self.notes = downscaling_notes(size)
        large, width = is_large(size), 2 * growth
        self.stem = nn.Conv2d(channels, width, 3, 2 if large else 1, 1, bias=False)
        self.pools = stem_pools(size) if large else nn.Identity()
        layers: list[nn.Module] = []
        for stage in range(3):
            for _ in range((depth - 4) // 6):
                layers.append(DenseLayer(width, growth))
                width += growth
            if stage < 2:
                layers.append(Transition(width, width // 2))
                width //= 2
        self.features = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = make_dropout(dropout)
        self.head = nn.Linear(width, classes)
        init_he_fan_out(self)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        x = norm_act(self.norm, self.features(self.pools(self.stem(pixels))))
        return self.head(self.dropout(x.mean((2, 3))))


def densenet(
    classes: int, channels: int, size: ImageSize, depth: int = 100, growth: int = 12, dropout: float = 0.0
) -> Network:
    """DenseNet-BC: every layer gets the features of all layers before it; few parameters, many multiply-adds.

    ``depth`` counts the weighted layers, 4 more than a multiple of 6; ``growth`` is the channels a layer adds.
    """
    check_int("growth", growth, 1, error=RecipeError)
    if check_int("depth", depth, 10, error=RecipeError) % 6 != 4:
        raise RecipeError(f"depth is 4 more than a multiple of 6 (22, 40, 100), not {depth}.")
    return DenseNet(classes, channels, size, depth, growth, dropout)
