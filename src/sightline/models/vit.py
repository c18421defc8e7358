"""A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): patches become tokens that attend to
each other.

Pre-norm blocks. Tensor names are timm's, so that the weights of its plain ``vit_*`` and ``deit_*`` networks can be
loaded where patch, depth, width and heads agree.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_int
from ..errors import RecipeError
from ..layers import ImageSize, Network, is_large, make_dropout

VIT_POOLS = ("mean", "class")
"""The input of the head: the mean over the patches, or a class token."""


class SelfAttention(nn.Module):
    """Multi-head self-attention: ``softmax(q k^T / sqrt(D / heads)) v`` in each head, then a projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Tokens after attention."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, D / heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """``W2 gelu(W1 x)`` with a hidden layer four times as wide."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Tokens, each transformed on its own."""
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    """``x + attention(LN(x))``, then ``x + mlp(LN(x))``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Tokens after attention and the feed-forward layer."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(Network):
    """Patch and position embeddings, blocks, a norm, mean or class token, the head."""

    def __init__(
        self,
        classes: int,
        channels: int,
        size: ImageSize,
        *,
        patch: int,
        depth: int,
        width: int,
        heads: int,
        pool: str,
        dropout: float,
    ):
        super().__init__()
        self.patch, self.grid = patch, _patch_grid(size, patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if pool == "class" else None
        tokens = self.grid[0] * self.grid[1] + (pool == "class")
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.dropout = make_dropout(dropout)
        self.head = nn.Linear(width, classes)
        self._initialise()

    def _initialise(self) -> None:
        """Weights and positions from a truncated normal of standard deviation 0.02, biases 0, as published."""
        given: list[Tensor] = [self.pos_embed, *([] if self.cls_token is None else [self.cls_token])]
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                given.append(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        for weight in given:
            nn.init.trunc_normal_(weight, std=0.02)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        grid = _patch_grid(pixels.shape[2:], self.patch)
        missing = [count * self.patch - side for count, side in zip(grid, pixels.shape[2:], strict=True)]
        if any(missing):
            pixels = F.pad(pixels, (0, missing[1], 0, missing[0]))
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)  # (B, T, D)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        x = self.norm(self.blocks(x + self.positions(grid)))
        return self.head(self.dropout(x.mean(1) if self.cls_token is None else x[:, 0]))

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 T D"]:
        """Position embeddings, resampled for a grid of another size."""
        if grid == self.grid:
            return self.pos_embed
        own, places = self.pos_embed.split([int(self.cls_token is not None), self.grid[0] * self.grid[1]], 1)
        table = places.transpose(1, 2).unflatten(2, self.grid)  # (1, D, h, w)
        table = F.interpolate(table, grid, mode="bilinear", antialias=True)
        return torch.cat([own, table.flatten(2).transpose(1, 2)], 1)


def _patch_grid(size: ImageSize, patch: int) -> tuple[int, int]:
    """Patches (down, across) that cover an image."""
    return -(-size[0] // patch), -(-size[1] // patch)


def vit(
    classes: int,
    channels: int,
    size: ImageSize,
    patch: int | None = None,
    depth: int = 6,
    width: int = 192,
    heads: int = 3,
    pool: str = "mean",
    dropout: float = 0.0,
) -> Network:
    """Small vision transformer: patches that attend to each other; it needs many images or pretrained weights.

    ``patch`` is the side of a patch in pixels (4; 16 from 96 pixels on); images are padded to whole patches.
    ``width`` is shared by ``heads``; ``pool`` is mean or class.
    """
    patch = (16 if is_large(size) else 4) if patch is None else patch
    for name, value in (("patch", patch), ("depth", depth), ("width", width), ("heads", heads)):
        check_int(name, value, 1, error=RecipeError)
    if width % heads:
        raise RecipeError(f"width is a multiple of heads, {heads}, not {width}.")
    if pool not in VIT_POOLS:
        raise RecipeError(f"pool is {' or '.join(VIT_POOLS)}, not '{pool}'.")
    network = ViT(
        classes, channels, size, patch=patch, depth=depth, width=width, heads=heads, pool=pool, dropout=dropout
    )
    down, across = network.grid
    if (down * patch, across * patch) != tuple(size):
        network.notes = (
            f"vit pads images of {size[0]} x {size[1]} pixels to {down * patch} x {across * patch}, "
            f"whole patches of {patch} x {patch}.",
        )
    return network
