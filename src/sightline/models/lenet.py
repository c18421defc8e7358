"""LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998) as it is built today."""

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn

from ..choose import lookup
from ..errors import RecipeError
from ..layers import ImageSize, Network, he_normal, make_dropout

LENET_POOLS: dict[str, type[nn.AvgPool2d | nn.MaxPool2d]] = {
    "avg": nn.AvgPool2d,
    "max": nn.MaxPool2d,
}


class LeNet5(Network):
    """conv 6@5x5, pool, conv 16@5x5, pool, 120, 84, K; ReLU, no trainable pooling, dense C3."""

    def __init__(self, classes: int, channels: int, size: ImageSize, pool: str, dropout: float):
        super().__init__()
        # The original took 32x32: digits of 28x28 with 2 pixels of border.
        padding = 2 if min(size) < 32 else 0
        height, width = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in size)
        if min(height, width) < 1:
            raise RecipeError(
                f"lenet5 needs images of at least 12x12 pixels, not {size[0]}x{size[1]}: "
                "choose a larger --size, or --model mlp."
            )
        shrink = lookup(LENET_POOLS, pool, "pooling")
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 6, 5, padding=padding),
                relu1=nn.ReLU(),
                pool1=shrink(2),
                conv2=nn.Conv2d(6, 16, 5),
                relu2=nn.ReLU(),
                pool2=shrink(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(16 * height * width, 120),
                relu3=nn.ReLU(),
                dropout1=make_dropout(dropout),
                fc2=nn.Linear(120, 84),
                relu4=nn.ReLU(),
                dropout2=make_dropout(dropout),
            )
        )
        self.head = nn.Linear(84, classes)
        he_normal(self.features)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.head(self.features(pixels))


def lenet5(classes: int, channels: int, size: ImageSize, pool: str = "avg", dropout: float = 0.0) -> Network:
    """LeNet-5 with ReLU: the classic for digits, seconds to train (``pool``: avg or max)."""
    return LeNet5(classes, channels, size, pool, dropout)
