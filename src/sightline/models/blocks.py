"""What small-image networks are made of."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

Size = Sequence[int]
"""(height, width) of the images, in pixels."""

LARGE = 96
"""Shorter side, in pixels, from which a network begins by shrinking."""


class Network(nn.Module, ABC):
    """``pixels (B C H W) -> logits (B K)``, with its last layer at ``head``."""

    head: nn.Linear

    @abstractmethod
    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Raw scores of each class."""


def is_large(size: Size) -> bool:
    """Whether images of this size are shrunk before the network proper."""
    return min(size) >= LARGE


def pools(size: Size) -> nn.Sequential:
    """2x2 max pools that, after a stride-2 stem, leave a shorter side of at most 64 pixels."""
    side, layers = (min(size) + 1) // 2, []
    while side > 64:
        side, layers = side // 2, [*layers, nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


def he_(module: nn.Module) -> None:
    """Initialise every convolution below ``module`` by He et al. 2015 (arXiv 1502.01852), fan out."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
