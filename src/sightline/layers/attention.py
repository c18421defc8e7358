"""Attention inside a convolutional block: which channels matter for this image, and where.

Each takes features ``(B C H W)`` and gives them back weighted, every factor in (0, 1).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcite(nn.Module):
    """A factor for each channel: ``x * sigmoid(W2 act(W1 mean(x)))`` (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, channels: int, hidden: int, activation: Callable[[Tensor], Tensor] = F.relu):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.activation = activation

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The same features, channels weighted."""
        scale = self.fc2(self.activation(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(scale)


class CBAM(nn.Module):
    """A factor for each channel, then one for each place (Woo et al. 2018, arXiv 1807.06521, eq. 2 and 3).

    ``x' = x * sigmoid(MLP(mean) + MLP(max))``, over places; then ``x' * sigmoid(conv 7x7([mean, max]))``, over
    channels.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.where = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The same features, channels and places weighted."""
        seen = (x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
        mean, most = (self.fc2(F.relu(self.fc1(each))) for each in seen)
        x = x * torch.sigmoid(mean + most)
        places = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.where(places))


def no_attention(channels: int) -> nn.Module:
    """Every channel as it is."""
    del channels
    return nn.Identity()


def se_block(channels: int) -> nn.Module:
    """Squeeze and excite, with a 16th of the channels between, 4 at least."""
    return SqueezeExcite(channels, max(4, channels // 16))


def cbam_block(channels: int) -> nn.Module:
    """CBAM, with a 16th of the channels between, 4 at least."""
    return CBAM(channels, max(4, channels // 16))


ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {"none": no_attention, "se": se_block, "cbam": cbam_block}
"""Name -> ``(channels) -> block``; what ``attention=`` of the residual networks chooses from."""
