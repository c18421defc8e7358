"""Inverted residuals: MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) and EfficientNet-B0 (Tan and Le 2019,
arXiv 1905.11946, without stochastic depth).

A block expands the channels by a 1x1 convolution, applies a depthwise convolution and projects back. Tensor names
are torchvision's, so that its weights can be loaded; only its last layer, ``classifier.1``, is called ``head``.
From 96 pixels on the strides are the published ones; below, the first two are 1, as usual for small images.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import (
    FusableSequential,
    ImageSize,
    Network,
    SqueezeExcite,
    conv_norm,
    init_he_fan_out,
    is_large,
    make_dropout,
    scale_widths,
)

MOBILENET_V2_STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 3, 32, 3, 2),
    (6, 3, 64, 4, 2),
    (6, 3, 96, 3, 1),
    (6, 3, 160, 3, 2),
    (6, 3, 320, 1, 1),
)
"""Stages of MobileNetV2, table 2: expansion, kernel size, channels, blocks, stride of the first block."""

EFFICIENTNET_B0_STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
"""Stages of EfficientNet-B0, table 1."""


class InvertedResidual(nn.Module):
    """MobileNetV2's block: ReLU6, with no activation after the last convolution."""

    def __init__(self, inputs: int, outputs: int, widening: int, kernel: int, stride: int):
        super().__init__()
        hidden = inputs * widening
        widen = [conv_norm(inputs, hidden, 1, then=nn.ReLU6)] if widening > 1 else []
        self.conv = FusableSequential(
            *widen,
            conv_norm(hidden, hidden, kernel, stride, groups=hidden, then=nn.ReLU6),
            *conv_norm(hidden, outputs, 1, then=None),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Features, at half the size if the stride is 2."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MBConv(nn.Module):
    """EfficientNet's block: SiLU, with squeeze and excitation before the last convolution."""

    def __init__(self, inputs: int, outputs: int, widening: int, kernel: int, stride: int):
        super().__init__()
        hidden = inputs * widening
        widen = [conv_norm(inputs, hidden, 1, then=nn.SiLU)] if widening > 1 else []
        self.block = nn.Sequential(
            *widen,
            conv_norm(hidden, hidden, kernel, stride, groups=hidden, then=nn.SiLU),
            SqueezeExcite(hidden, max(1, inputs // 4), F.silu),
            conv_norm(hidden, outputs, 1, then=None),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Features, at half the size if the stride is 2."""
        return x + self.block(x) if self.residual else self.block(x)


class MobileNet(Network):
    """A stem, blocks, a last 1x1 convolution, average pooling, the head."""

    key_prefixes = (("classifier.1.", "head."),)

    def __init__(self, features: nn.Sequential, width: int, classes: int, dropout: float):
        super().__init__()
        self.features = features
        self.dropout = make_dropout(dropout)
        self.head = nn.Linear(width, classes)
        init_he_fan_out(self)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.head(self.dropout(self.features(pixels).mean((2, 3))))


def _round_channels(width: float) -> int:
    """The nearest multiple of 8, at least 8 and at least nine tenths of ``width``."""
    near = max(8, int(width + 4) // 8 * 8)
    return near if near >= 0.9 * width else near + 8


def _make_stages(
    kind: type[InvertedResidual] | type[MBConv],
    table: tuple[tuple[int, ...], ...],
    inputs: int,
    width: float,
    large: bool,
) -> tuple[list[list[nn.Module]], int]:
    """The blocks of each stage, and the channels after the last one."""
    stages: list[list[nn.Module]] = []
    for number, (widening, kernel, channels, count, stride) in enumerate(table):
        outputs, blocks = _round_channels(channels * width), list[nn.Module]()
        for repeat in range(count):
            first = stride if repeat == 0 and (large or number > 1) else 1
            blocks.append(kind(inputs, outputs, widening, kernel, first))
            inputs = outputs
        stages.append(blocks)
    return stages, inputs


def mobilenet(classes: int, channels: int, size: ImageSize, dropout: float = 0.2, width: float = 1.0) -> Network:
    """MobileNetV2: inverted residuals, few multiply-adds for its size (width: a factor on the channels)."""
    scale_widths((1280,), width)
    large, stem, last = is_large(size), _round_channels(32 * width), _round_channels(1280 * max(1.0, width))
    stages, inputs = _make_stages(InvertedResidual, MOBILENET_V2_STAGES, stem, width, large)
    features = nn.Sequential(
        conv_norm(channels, stem, 3, 2 if large else 1, then=nn.ReLU6),
        *(block for stage in stages for block in stage),
        conv_norm(inputs, last, 1, then=nn.ReLU6),
    )
    return MobileNet(features, last, classes, dropout)


def efficientnet(
    classes: int, channels: int, size: ImageSize, dropout: float = 0.2, width: float = 1.0
) -> Network:
    """EfficientNet-B0: inverted residuals with squeeze and excitation (width: a factor on the channels)."""
    scale_widths((1280,), width)
    large, stem = is_large(size), _round_channels(32 * width)
    stages, inputs = _make_stages(MBConv, EFFICIENTNET_B0_STAGES, stem, width, large)
    features = nn.Sequential(
        conv_norm(channels, stem, 3, 2 if large else 1, then=nn.SiLU),
        *(nn.Sequential(*blocks) for blocks in stages),
        conv_norm(inputs, 4 * inputs, 1, then=nn.SiLU),
    )
    return MobileNet(features, 4 * inputs, classes, dropout)
