"""ResNet-18 (He et al. 2015, arXiv 1512.03385): as published for large images, the usual variant for small ones.

Tensor names are torchvision's (``layer2.0.downsample.0``, ...), so that its weights fit; only the last layer is
``head`` here, as everywhere.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..choose import lookup
from ..layers import ATTENTIONS, ImageSize, Network, Whitening, init_he_fan_out, make_dropout
from .resnet import has_strided_stem, make_stem

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
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Features, half the size where the stride is 2."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.attend(self.bn2(self.conv2(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(Network):
    """A stem, four stages of two blocks with 64, 128, 256 and 512 channels, the mean, the head."""

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
        x = self.pools(F.relu(self.bn1(self.conv1(self.whiten(pixels)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.head(self.dropout(x.mean((2, 3))))

    def init_from_data(self, pixels: Float[Tensor, "B C H W"]) -> None:
        """Whiten the patches of these images, where the stem asks for it."""
        if isinstance(self.whiten, Whitening):
            self.whiten.fit(pixels)


def resnet18(
    classes: int, channels: int, size: ImageSize, stem: str = "auto", attention: str = "none", dropout: float = 0.0
) -> Network:
    """ResNet-18: eleven million parameters, 14 times the work of ResNet-20, better after long training."""
    return ResNet18(classes, channels, size, stem, attention, dropout)
