"""The multilayer perceptron: what a network without any notion of an image gives."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from ..errors import RecipeError
from ..layers import ImageSize, Network, he_normal, make_dropout


class MLP(Network):
    """Flatten, then hidden layers with ReLU, then the head."""

    def __init__(self, inputs: int, hidden: Sequence[int], classes: int, dropout: float):
        super().__init__()
        layers: list[nn.Module] = []
        widths = [inputs, *hidden]
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), make_dropout(dropout)]
        self.hidden = nn.Sequential(*layers)
        he_normal(self.hidden)
        self.head = nn.Linear(widths[-1], classes)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.head(self.hidden(pixels.flatten(1)))


def mlp(
    classes: int, channels: int, size: ImageSize, hidden: Sequence[int] = (256, 128), dropout: float = 0.0
) -> Network:
    """Small multilayer perceptron: fast, and blind to where a pixel is."""
    if any(width < 1 for width in hidden):
        raise RecipeError(f"hidden lists the width of each layer, 1 or more, not {list(hidden)}.")
    return MLP(channels * size[0] * size[1], hidden, classes, dropout)
