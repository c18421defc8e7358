"""Residual networks for small images: He et al. 2015 (arXiv 1512.03385), section 4.2.

Tensor names are those of the widespread implementations (``conv1``, ``layer1.0.conv1``, ...), so that
their weights fit; only the last layer is ``head`` here, as everywhere.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import RecipeError
from .blocks import Network, Size, he_, is_large, pools

Stem = Literal["auto", "small", "large"]


class Block(nn.Module):
    """``relu(x + BN(conv(relu(BN(conv(x))))))``; shortcuts have no parameters (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.missing = stride, outputs - inputs

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Features, half the size where the stride is 2."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.missing:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
        return F.relu(y + x)


class ResNet(Network):
    """A stem, three stages of ``depth`` blocks with 16, 32 and 64 channels, the mean, the head."""

    def __init__(self, depth: int, classes: int, channels: int, size: Size, large: bool):
        super().__init__()
        self.conv1 = (
            nn.Conv2d(channels, 16, 7, 2, 3, bias=False) if large else nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(16)
        self.pools = pools(size) if large else nn.Identity()
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(depth)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(depth - 1)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(depth - 1)))
        self.head = nn.Linear(64, classes)
        he_(self)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        x = self.pools(F.relu(self.bn1(self.conv1(pixels))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.head(x.mean((2, 3)))


def _resnet(depth: int, classes: int, channels: int, size: Size, stem: Stem = "auto") -> Network:
    if stem not in ("auto", "small", "large"):
        raise RecipeError(f"stem is one of auto, small, large, not '{stem}'.")
    large = stem == "large" or (stem == "auto" and is_large(size))
    return ResNet(depth, classes, channels, size, large)


def resnet20(classes: int, channels: int, size: Size, stem: Stem = "auto") -> Network:
    """ResNet-20 for small images: a good first choice in colour (``stem``: auto, small or large)."""
    return _resnet(3, classes, channels, size, stem)


def resnet32(classes: int, channels: int, size: Size, stem: Stem = "auto") -> Network:
    """ResNet-32 for small images: deeper, 1.7 times the work of ResNet-20."""
    return _resnet(5, classes, channels, size, stem)


def resnet44(classes: int, channels: int, size: Size, stem: Stem = "auto") -> Network:
    """ResNet-44 for small images: deeper still, 2.4 times the work of ResNet-20."""
    return _resnet(7, classes, channels, size, stem)


def resnet56(classes: int, channels: int, size: Size, stem: Stem = "auto") -> Network:
    """ResNet-56 for small images: the most accurate of the four, 3.1 times the work of ResNet-20."""
    return _resnet(9, classes, channels, size, stem)
