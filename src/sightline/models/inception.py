"""The small Inception for CIFAR-10 of Zhang et al. 2017 (arXiv 1611.03530, appendix A).

Filters of different sizes are applied to the same features (Szegedy et al. 2015, arXiv 1409.4842). Batch norm has
a shift and no scale, as in the paper: 1,649,402 parameters.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import (
    FusableSequential,
    ImageSize,
    Network,
    downscaling_notes,
    init_he_fan_out,
    is_large,
    make_dropout,
    scale_widths,
    stem_pools,
)
from .fastcnn import BiasNorm

INCEPTION_STAGES = (((32, 32), (32, 48)), ((112, 48), (96, 64), (80, 80), (48, 96)), ((176, 160), (176, 160)))
"""Output channels of the 1x1 and of the 3x3 convolution of each module, stage by stage."""

INCEPTION_DOWN_WIDTHS = (80, 96)
"""Output channels of the 3x3 convolution with stride 2 after the first and the second stage."""


def _conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, norm, ReLU."""
    return FusableSequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        BiasNorm(outputs, momentum=0.1, eps=1e-5),
        nn.ReLU(),
    )


class InceptionModule(nn.Module):
    """``concat[conv 1x1, conv 3x3]``."""

    def __init__(self, inputs: int, ones: int, threes: int):
        super().__init__()
        self.ones, self.threes = _conv_norm_relu(inputs, ones, 1), _conv_norm_relu(inputs, threes, 3)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H W"]:
        """1x1 and 3x3 features, concatenated."""
        return torch.cat([self.ones(x), self.threes(x)], 1)


class InceptionDownsample(nn.Module):
    """``concat[conv 3x3 with stride 2, max pool 3x3 with stride 2]``."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.threes = _conv_norm_relu(inputs, outputs, 3, 2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Features at half the size: convolved and max pooled."""
        return torch.cat([self.threes(x), F.max_pool2d(x, 3, 2, 1)], 1)


class Inception(Network):
    """A 3x3 stem, modules in three stages, average pooling, the head."""

    def __init__(self, classes: int, channels: int, size: ImageSize, dropout: float, width: float):
        super().__init__()
        self.notes = downscaling_notes(size)
        large = is_large(size)
        (inputs,) = scale_widths((96,), width)
        self.stem = _conv_norm_relu(channels, inputs, 3, 2 if large else 1)
        self.pools = stem_pools(size) if large else nn.Identity()
        modules: list[nn.Module] = []
        for stage, down in zip(INCEPTION_STAGES, (*INCEPTION_DOWN_WIDTHS, None), strict=True):
            for pair in stage:
                ones, threes = scale_widths(pair, width)
                modules.append(InceptionModule(inputs, ones, threes))
                inputs = ones + threes
            if down is not None:
                (new,) = scale_widths((down,), width)
                modules.append(InceptionDownsample(inputs, new))
                inputs += new
        self.features = nn.Sequential(*modules)
        self.dropout = make_dropout(dropout)
        self.head = nn.Linear(inputs, classes)
        init_he_fan_out(self)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        x = self.features(self.pools(self.stem(pixels)))
        return self.head(self.dropout(x.mean((2, 3))))


def inception(classes: int, channels: int, size: ImageSize, dropout: float = 0.0, width: float = 1.0) -> Network:
    """Small Inception: filters of 1x1 and 3x3 side by side (width: a factor on the channels)."""
    return Inception(classes, channels, size, dropout, width)
