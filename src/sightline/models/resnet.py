"""Residual networks (He et al. 2015, arXiv 1512.03385): those for small images of section 4.2, and ResNet-18.

Tensor names are those of the widespread implementations, of ResNet-18 torchvision's (``layer2.0.downsample.0``),
so that their weights can be loaded; only the last layer is called ``head``.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..choose import lookup
from ..errors import RecipeError
from ..layers import (
    ATTENTIONS,
    FusableSequential,
    ImageSize,
    Network,
    Whitening,
    downscaling_notes,
    init_he_fan_out,
    is_large,
    make_dropout,
    norm_act,
    stem_pools,
)

RESNET_STEMS = ("auto", "small", "large", "whitened")
"""small is 3x3; large 7x7 with stride 2 and pools; auto chooses by size; whitened adds a frozen whitening."""


class ResidualBlock(nn.Module):
    """``relu(x + attend(BN(conv(relu(BN(conv(x)))))))``; shortcuts have no parameters (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int, attention: str = "none"):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.attend = lookup(ATTENTIONS, attention, "attention")(outputs)
        self.stride, self.missing = stride, outputs - inputs

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Features, at half the size if the stride is 2."""
        y = self.conv2(norm_act(self.bn1, self.conv1(x)))
        if self.stride > 1 or self.missing:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
        return norm_act(self.bn2, y, attend=self.attend, add=x)


def has_strided_stem(stem: str, size: ImageSize) -> bool:
    """Whether the first convolution has a stride; raises RecipeError for an unknown stem."""
    if stem not in RESNET_STEMS:
        raise RecipeError(f"stem is one of {', '.join(RESNET_STEMS)}, not '{stem}'.")
    return stem == "large" or (stem != "small" and is_large(size))


def make_stem(channels: int, width: int, stem: str, large: bool) -> tuple[nn.Module, nn.Conv2d]:
    """A frozen whitening of 3x3 patches, or the identity, and the first convolution."""
    whiten: nn.Module = nn.Identity()
    if stem == "whitened":
        whiten = Whitening(channels, 3, padding=1, both_signs=False, bias=False)
        channels = channels * 9
    kernel, stride = (7, 2) if large else (3, 1)
    return whiten, nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)


class ResNet(Network):
    """A stem, three stages of ``depth`` blocks with 16, 32 and 64 channels, average pooling, the head."""

    def __init__(
        self, depth: int, classes: int, channels: int, size: ImageSize, stem: str, attention: str, dropout: float
    ):
        super().__init__()
        large = has_strided_stem(stem, size)
        self.notes = downscaling_notes(size) if large else ()
        self.whiten, self.conv1 = make_stem(channels, 16, stem, large)
        self.bn1 = nn.BatchNorm2d(16)
        self.pools = stem_pools(size) if large else nn.Identity()
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                ResidualBlock(inputs, outputs, stride, attention),
                *(ResidualBlock(outputs, outputs, 1, attention) for _ in range(depth - 1)),
            )
            for inputs, outputs, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.dropout = make_dropout(dropout)
        self.head = nn.Linear(64, classes)
        init_he_fan_out(self)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        x = self.pools(norm_act(self.bn1, self.conv1(self.whiten(pixels))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.head(self.dropout(x.mean((2, 3))))

    def init_from_data(self, pixels: Float[Tensor, "B C H W"]) -> None:
        """Set the whitening, where the stem has one, from the patches of these images."""
        if isinstance(self.whiten, Whitening):
            self.whiten.fit(pixels)


def resnet20(
    classes: int, channels: int, size: ImageSize, stem: str = "auto", attention: str = "none", dropout: float = 0.0
) -> Network:
    """ResNet-20 for small images: a good first choice in colour."""
    return ResNet(3, classes, channels, size, stem, attention, dropout)


def resnet32(
    classes: int, channels: int, size: ImageSize, stem: str = "auto", attention: str = "none", dropout: float = 0.0
) -> Network:
    """ResNet-32 for small images: deeper, 1.7 times the multiply-adds of ResNet-20."""
    return ResNet(5, classes, channels, size, stem, attention, dropout)


def resnet44(
    classes: int, channels: int, size: ImageSize, stem: str = "auto", attention: str = "none", dropout: float = 0.0
) -> Network:
    """ResNet-44 for small images: deeper still, 2.4 times the multiply-adds of ResNet-20."""
    return ResNet(7, classes, channels, size, stem, attention, dropout)


def resnet56(
    classes: int, channels: int, size: ImageSize, stem: str = "auto", attention: str = "none", dropout: float = 0.0
) -> Network:
    """ResNet-56 for small images: best of the four after long training, 3.1 times ResNet-20's multiply-adds."""
    return ResNet(9, classes, channels, size, stem, attention, dropout)


RESNET18_WIDTHS = (64, 128, 256, 512)


class ProjectionBlock(nn.Module):
    """``relu(shortcut(x) + attend(BN(conv(relu(BN(conv(x)))))))``; where shapes change, 1x1 and BN (option B)."""

    def __init__(self, inputs: int, outputs: int, stride: int, attention: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.attend = lookup(ATTENTIONS, attention, "attention")(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = FusableSequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Features, at half the size if the stride is 2."""
        y = self.conv2(norm_act(self.bn1, self.conv1(x)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return norm_act(self.bn2, y, attend=self.attend, add=shortcut)


class ResNet18(Network):
    """A stem, four stages of two blocks with 64, 128, 256 and 512 channels, average pooling, the head."""

    def __init__(self, classes: int, channels: int, size: ImageSize, stem: str, attention: str, dropout: float):
        super().__init__()
        large = has_strided_stem(stem, size)
        self.whiten, self.conv1 = make_stem(channels, RESNET18_WIDTHS[0], stem, large)
        self.bn1 = nn.BatchNorm2d(RESNET18_WIDTHS[0])
        self.pools = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                ProjectionBlock(i, o, 1 if i == o else 2, attention), ProjectionBlock(o, o, 1, attention)
            )
            for i, o in pairwise((RESNET18_WIDTHS[0], *RESNET18_WIDTHS))
        )
        self.dropout = make_dropout(dropout)
        self.head = nn.Linear(RESNET18_WIDTHS[-1], classes)
        init_he_fan_out(self)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        x = self.pools(norm_act(self.bn1, self.conv1(self.whiten(pixels))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.head(self.dropout(x.mean((2, 3))))

    def init_from_data(self, pixels: Float[Tensor, "B C H W"]) -> None:
        """Set the whitening, where the stem has one, from the patches of these images."""
        if isinstance(self.whiten, Whitening):
            self.whiten.fit(pixels)


def resnet18(
    classes: int, channels: int, size: ImageSize, stem: str = "auto", attention: str = "none", dropout: float = 0.0
) -> Network:
    """ResNet-18: 11 million parameters, 14 times ResNet-20's multiply-adds, better after long training."""
    return ResNet18(classes, channels, size, stem, attention, dropout)
