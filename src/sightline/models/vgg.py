"""VGG with batch norm (Simonyan and Zisserman 2014, arXiv 1409.1556), in its usual form for small images.

The convolutions and their names are those of torchvision's ``vgg11_bn``. Two hidden layers of 512 follow in place
of 4,096, as in chenyaofo/pytorch-cifar-models, whose weights can be loaded. Only their last layer,
``classifier.6``, is called ``head``.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ..layers import (
    ImageSize,
    Network,
    downscaling_notes,
    he_normal,
    init_he_fan_out,
    is_large,
    make_dropout,
    scale_widths,
    stem_pools,
)

VGG_WIDTHS = (64, 128, 256, 512, 512)
"""Channels of each stage, which ends with a pool."""


class VGG(Network):
    """Five stages of 3x3 convolutions, average pooling, two hidden layers, the head."""

    key_prefixes = (("classifier.6.", "head."),)

    def __init__(
        self, repeats: tuple[int, ...], classes: int, channels: int, size: ImageSize, dropout: float, width: float
    ):
        super().__init__()
        self.notes = downscaling_notes(size)
        widths = scale_widths(VGG_WIDTHS, width)
        layers: list[nn.Module] = []
        for outputs, count in zip(widths, repeats, strict=True):
            for _ in range(count):
                large = not layers and is_large(size)
                convolution = nn.Conv2d(channels, outputs, 3, 2 if large else 1, 1)
                relu = nn.Sequential(nn.ReLU(), *stem_pools(size)) if large else nn.ReLU()
                layers += [convolution, nn.BatchNorm2d(outputs), relu]
                channels = outputs
            # Rounded up, so that 28 pixels survive five pools; at 32 pixels it is the ordinary pool.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        init_he_fan_out(self.features)
        (hidden,) = scale_widths((512,), width)
        self.classifier = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.ReLU(),
            make_dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            make_dropout(dropout),
        )
        he_normal(self.classifier)
        self.head = nn.Linear(hidden, classes)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.head(self.classifier(self.features(pixels).mean((2, 3))))


def vgg11(classes: int, channels: int, size: ImageSize, dropout: float = 0.5, width: float = 1.0) -> Network:
    """VGG-11 with batch norm: eight 3x3 convolutions one after the other (width: a factor on the channels)."""
    return VGG((1, 1, 2, 2, 2), classes, channels, size, dropout, width)


def vgg13(classes: int, channels: int, size: ImageSize, dropout: float = 0.5, width: float = 1.0) -> Network:
    """VGG-13 with batch norm: ten 3x3 convolutions, 1.5 times the multiply-adds of VGG-11."""
    return VGG((2, 2, 2, 2, 2), classes, channels, size, dropout, width)


def vgg16(classes: int, channels: int, size: ImageSize, dropout: float = 0.5, width: float = 1.0) -> Network:
    """VGG-16 with batch norm: thirteen 3x3 convolutions, 15 million parameters."""
    return VGG((2, 2, 3, 3, 3), classes, channels, size, dropout, width)
