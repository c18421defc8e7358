"""airbench: 94 % on CIFAR-10 in seconds on a GPU (Jordan 2024, arXiv 2404.00498).

A frozen whitening convolution, three groups of two convolutions that are initialised as the identity, batch norm
without a scale, a head without a bias. Below 96 pixels it is the published network; larger images are pooled
first.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import RecipeError
from ..layers import ImageSize, Network, Whitening, is_large, make_dropout, max_pool2, norm_act, stem_pools

LOGIT_SCALE = 1 / 9
"""Factor on the logits, applied to the features, which is equivalent for a head without a bias."""


class BiasNorm(nn.BatchNorm2d):
    """Batch norm with a trained bias and a weight that stays 1 (a buffer)."""

    def __init__(self, width: int, momentum: float, eps: float):
        super().__init__(width, eps, momentum)
        del self.weight
        self.register_buffer("weight", torch.ones(width))

    def reset_parameters(self) -> None:
        """Reset running statistics and bias to their initial values."""
        self.reset_running_stats()
        nn.init.zeros_(self.bias)


class ConvGroup(nn.Module):
    """conv 3x3, max pool 2, norm, GELU, conv 3x3, norm, GELU."""

    def __init__(self, inputs: int, outputs: int, momentum: float, eps: float):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = BiasNorm(outputs, momentum, eps)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = BiasNorm(outputs, momentum, eps)
        for convolution in (self.conv1, self.conv2):
            # The first outputs repeat the inputs, as in a residual network.
            nn.init.dirac_(convolution.weight.data[: convolution.in_channels])

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Features at half the size."""
        x = norm_act(self.norm1, max_pool2(self.conv1(x)), act=F.gelu)
        return norm_act(self.norm2, self.conv2(x), act=F.gelu)


class FastCNN(Network):
    """Whitening, GELU, three groups, global max pooling, the head."""

    def __init__(
        self,
        classes: int,
        channels: int,
        size: ImageSize,
        widths: Sequence[int],
        *,
        momentum: float,
        eps: float,
        dropout: float,
    ):
        super().__init__()
        self.whiten = Whitening(channels, 2, both_signs=True, bias=True)
        self.pools = nn.Sequential(nn.MaxPool2d(2), stem_pools(size)) if is_large(size) else nn.Identity()
        steps = pairwise([self.whiten.out_channels, *widths])
        self.groups = nn.Sequential(*(ConvGroup(i, o, momentum, eps) for i, o in steps))
        self.dropout = make_dropout(dropout)
        self.head = nn.Linear(widths[-1], classes, bias=False)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        x = self.groups(self.pools(F.gelu(self.whiten(pixels))))
        # At 32x32 this is the published 3x3 max pool; other sizes then need no other weights.
        x = F.adaptive_max_pool2d(x, 1).flatten(1)
        return self.head(self.dropout(x) * LOGIT_SCALE)

    def init_from_data(self, pixels: Float[Tensor, "B C H W"]) -> None:
        """Set the whitening from the patches of these images."""
        self.whiten.fit(pixels)


def fastcnn(
    classes: int,
    channels: int,
    size: ImageSize,
    widths: Sequence[int] = (64, 256, 256),
    width: float = 1.0,
    momentum: float = 0.4,
    eps: float = 1e-5,
    dropout: float = 0.0,
) -> Network:
    """Speed network for small images: a frozen whitening, three groups of two convolutions, no shortcuts.

    ``widths`` are the channels of the groups, ``width`` a factor on them; ``momentum`` and ``eps`` are batch
    norm's. ``momentum`` is the weight of the new batch in the running statistics (the paper's 0.6 is the weight of
    the old). ``eps`` is larger than the paper's 1e-12, which divides a nearly
    constant channel of a small batch by almost zero.
    """
    if min(size) < 9:
        raise RecipeError(
            f"fastcnn needs images of at least 9x9 pixels, not {size[0]}x{size[1]}: "
            "choose a larger --size, or --model mlp."
        )
    scaled = [round(w * width) for w in widths]
    if not scaled or min(scaled) < 1:
        raise RecipeError(f"widths times width must be 1 or more in each group, not {scaled}.")
    if not 0 < momentum <= 1:
        raise RecipeError(f"momentum goes from above 0 to 1, not {momentum}.")
    return FastCNN(classes, channels, size, scaled, momentum=momentum, eps=eps, dropout=dropout)
