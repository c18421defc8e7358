"""The enhanced network of the source papers, fully specified: residual, batch norm, dropout, multi-scale.

Ten weighted layers (parallel branches count as one, projections not at all). Each idea can be
switched off, so that its effect can be measured.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..layers import (
    FusableSequential,
    ImageSize,
    Network,
    init_he_fan_out,
    is_large,
    make_dropout,
    norm_act,
    stem_pools,
)


def _norm_or_identity(width: int, on: bool) -> nn.Module:
    return nn.BatchNorm2d(width) if on else nn.Identity()


class MultiScale(nn.Module):
    """``relu(BN(concat[conv 3x3, conv 5x5, conv 7x7]))``: half, a quarter, a quarter of the outputs."""

    def __init__(self, inputs: int, outputs: int, stride: int, batch_norm: bool, multi_scale: bool):
        super().__init__()
        quarter = outputs // 4
        shares = {3: outputs - 2 * quarter, 5: quarter, 7: quarter} if multi_scale else {3: outputs}
        self.branches = nn.ModuleList(
            nn.Conv2d(inputs, width, kernel, stride, kernel // 2, bias=not batch_norm)
            for kernel, width in shares.items()
        )
        self.norm = _norm_or_identity(outputs, batch_norm)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Features of each filter size, concatenated."""
        parts = [branch(x) for branch in self.branches]
        return norm_act(self.norm, torch.cat(parts, 1))


class MultiScaleBlock(nn.Module):
    """``relu(BN(conv 3x3(MultiScale(x))) + shortcut(x))``; the shortcut is a projection where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, residual: bool, batch_norm: bool, scales: bool):
        super().__init__()
        self.scales = MultiScale(inputs, outputs, stride, batch_norm, scales)
        self.conv = nn.Conv2d(outputs, outputs, 3, padding=1, bias=not batch_norm)
        self.norm = _norm_or_identity(outputs, batch_norm)
        self.shortcut: nn.Module | None = nn.Identity() if residual else None
        if residual and (inputs != outputs or stride != 1):
            self.shortcut = FusableSequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=not batch_norm), _norm_or_identity(outputs, batch_norm)
            )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Features, at half the size if the stride is 2."""
        y = self.conv(self.scales(x))
        return norm_act(self.norm, y, add=None if self.shortcut is None else self.shortcut(x))


class EnhancedNetwork(Network):
    """A multi-scale stem, four blocks, average pooling, dropout, the head."""

    def __init__(
        self,
        classes: int,
        channels: int,
        size: ImageSize,
        *,
        residual: bool,
        batch_norm: bool,
        dropout: float,
        multi_scale: bool,
    ):
        super().__init__()
        large = is_large(size)
        self.stem = MultiScale(channels, 32, 2 if large else 1, batch_norm, multi_scale)
        self.pools = stem_pools(size) if large else nn.Identity()
        self.blocks = nn.Sequential(
            *(
                MultiScaleBlock(i, o, stride, residual=residual, batch_norm=batch_norm, scales=multi_scale)
                for i, o, stride in ((32, 32, 1), (32, 64, 2), (64, 128, 2), (128, 128, 1))
            )
        )
        self.dropout = make_dropout(dropout)
        self.head = nn.Linear(128, classes)
        self._initialise()

    def _initialise(self) -> None:
        init_he_fan_out(self)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        for block in self.blocks:
            # A block starts as its shortcut; without a shortcut, a zero here would make the network constant.
            if (
                isinstance(block, MultiScaleBlock)
                and block.shortcut is not None
                and isinstance(block.norm, nn.BatchNorm2d)
            ):
                nn.init.zeros_(block.norm.weight)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        x = self.blocks(self.pools(self.stem(pixels)))
        return self.head(self.dropout(x.mean((2, 3))))


def enhanced(
    classes: int,
    channels: int,
    size: ImageSize,
    residual: bool = True,
    batch_norm: bool = True,
    dropout: float = 0.5,
    multi_scale: bool = True,
) -> Network:
    """Enhanced network: residual, batch norm, dropout and multi-scale filters, each with a switch."""
    return EnhancedNetwork(
        classes,
        channels,
        size,
        residual=residual,
        batch_norm=batch_norm,
        dropout=dropout,
        multi_scale=multi_scale,
    )
