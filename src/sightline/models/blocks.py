"""What small-image networks are made of."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ..errors import RecipeError
from .whitening import Whitening

Size = Sequence[int]
"""(height, width) of the images, in pixels."""

LARGE = 96
"""Shorter side, in pixels, from which a network begins by shrinking."""


class Network(nn.Module, ABC):
    """``pixels (B C H W) -> logits (B K)``, with its last layer at ``head``."""

    head: nn.Linear

    mirrored: bool = False
    """Whether answers in eval mode are the mean over an image and its mirror image."""

    @abstractmethod
    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Raw scores of each class, seen once."""

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Raw scores of each class."""
        if self.mirrored and not self.training:
            return (self.logits(pixels) + self.logits(pixels.flip(3))) / 2
        return self.logits(pixels)

    def adapt(self, pixels: Float[Tensor, "B C H W"]) -> None:
        """Set what depends on the data from preprocessed training images; most networks need nothing."""


def is_large(size: Size) -> bool:
    """Whether images of this size are shrunk before the network proper."""
    return min(size) >= LARGE


def pools(size: Size) -> nn.Sequential:
    """2x2 max pools that, after a stride-2 stem, leave a shorter side of at most 64 pixels."""
    side, layers = (min(size) + 1) // 2, []
    while side > 64:
        side, layers = side // 2, [*layers, nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


def dropout_of(share: float) -> nn.Dropout:
    """Dropout with this share of zeros in training; raises RecipeError outside [0, 1)."""
    if not 0 <= share < 1:
        raise RecipeError(f"dropout goes from 0 to below 1, not {share}.")
    return nn.Dropout(share)


def he_(module: nn.Module) -> None:
    """Initialise every convolution below ``module`` by He et al. 2015 (arXiv 1502.01852), fan out."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and not isinstance(layer, Whitening):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
