"""AlexNet (Krizhevsky, Sutskever, Hinton 2012) as in torchvision, and a variant for small images.

Tensor names are torchvision's (``features.0.weight``, ..., ``classifier.4.weight``), so that its weights can be
loaded; only its last layer, ``classifier.6``, is called ``head``.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ..layers import (
    ImageSize,
    Network,
    downscaling_notes,
    he_normal,
    is_large,
    make_dropout,
    scale_widths,
    stem_pools,
    upsample_to_side,
)

ALEXNET_MIN_SIDE = 64
"""Shorter side, in pixels, to which ``alexnet`` enlarges smaller images; its strides need at least 63."""


class AlexNet(Network):
    """Convolutions, adaptive average pooling to a grid, two hidden layers with dropout before each, the head."""

    key_prefixes = (("classifier.6.", "head."),)

    def __init__(
        self,
        features: nn.Sequential,
        channels: int,
        grid: int,
        hidden: Sequence[int],
        classes: int,
        *,
        dropout: float,
        least: int,
    ):
        super().__init__()
        first, second = hidden
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.classifier = nn.Sequential(
            make_dropout(dropout),
            nn.Linear(channels * grid * grid, first),
            nn.ReLU(),
            make_dropout(dropout),
            nn.Linear(first, second),
            nn.ReLU(),
        )
        self.least = least
        he_normal(self)
        self.head = nn.Linear(second, classes)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        x = self.avgpool(self.features(upsample_to_side(pixels, self.least)))
        return self.head(self.classifier(x.flatten(1)))


def alexnet(classes: int, channels: int, size: ImageSize, dropout: float = 0.5, width: float = 1.0) -> Network:
    """AlexNet as in torchvision: 61 million parameters, designed for images of 224 pixels.

    Smaller images are enlarged to a shorter side of 64 pixels. ``width`` is a factor on all channels.
    """
    a, b, c, d, e, *hidden = scale_widths((64, 192, 384, 256, 256, 4096, 4096), width)
    features = nn.Sequential(
        nn.Conv2d(channels, a, 11, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(a, b, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(b, c, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(c, d, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(d, e, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    )
    network = AlexNet(features, e, 6, hidden, classes, dropout=dropout, least=ALEXNET_MIN_SIDE)
    if min(size) < ALEXNET_MIN_SIDE:
        network.notes = (
            f"alexnet enlarges images of {size[0]} x {size[1]} pixels to a shorter side of {ALEXNET_MIN_SIDE}: "
            "it is designed for 224. alexnet-small is designed for small images.",
        )
    return network


def alexnet_small(
    classes: int, channels: int, size: ImageSize, dropout: float = 0.5, width: float = 1.0
) -> Network:
    """AlexNet for small images: 3x3 filters, three pools, hidden layers of 1,024 and 512.

    ``width`` is a factor on all channels.
    """
    a, b, c, d, e, *hidden = scale_widths((64, 192, 384, 256, 256, 1024, 512), width)
    large = is_large(size)
    features = nn.Sequential(
        nn.Conv2d(channels, a, 3, 2 if large else 1, 1),
        nn.ReLU(),
        stem_pools(size) if large else nn.Identity(),
        _ceil_pool(),
        nn.Conv2d(a, b, 3, padding=1),
        nn.ReLU(),
        _ceil_pool(),
        nn.Conv2d(b, c, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(c, d, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(d, e, 3, padding=1),
        nn.ReLU(),
        _ceil_pool(),
    )
    network = AlexNet(features, e, 4, hidden, classes, dropout=dropout, least=1)
    network.notes = downscaling_notes(size)
    return network


def _ceil_pool() -> nn.MaxPool2d:
    """Halves the size, rounded up, so that small images never vanish: 28 pixels become a grid of 4."""
    return nn.MaxPool2d(2, ceil_mode=True)
