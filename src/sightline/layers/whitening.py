"""A frozen first layer after which the colours of neighbouring pixels no longer go together."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

WHITENING_EPS = 5e-4
"""Added to each eigenvalue, in squared units of the preprocessed pixels (arXiv 2404.00498)."""

MAX_WHITENED_PATCHES = 5_000_000
"""Patches from which the second moments are estimated, at most."""


class Whitening(nn.Conv2d):
    """A convolution with the eigenvectors of the patches, each divided by ``sqrt(eigenvalue + eps)``.

    ``both_signs`` adds the negatives, for a layer followed by an activation. The weight is a buffer:
    saved, never trained. Until ``fit`` it is the whitening of pixels that are white already.
    """

    def __init__(self, channels: int, kernel: int, *, padding: int = 0, both_signs: bool, bias: bool):
        numbers = channels * kernel * kernel
        super().__init__(channels, numbers * (2 if both_signs else 1), kernel, padding=padding, bias=bias)
        self.both_signs = both_signs
        weight = self.weight
        del self.weight
        self.register_buffer("weight", torch.empty_like(weight, requires_grad=False))
        self._set(torch.ones(numbers), torch.eye(numbers), WHITENING_EPS)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def _set(self, values: Float[Tensor, " D"], vectors: Float[Tensor, "D D"], eps: float) -> None:
        """From eigenvalues and eigenvectors (one a column)."""
        rows = (vectors / (values.clamp(min=0) + eps).sqrt()).T
        rows = torch.cat((rows, -rows)) if self.both_signs else rows
        self.weight.copy_(rows.reshape(self.weight.shape))

    @torch.no_grad()
    def fit(self, pixels: Float[Tensor, "B C H W"], eps: float = WHITENING_EPS) -> None:
        """Take the weight from the second moments of the patches of training images, in float64.

        The mean is not taken off, as published: the pixels are normalised. Directions without variance
        are left small, by ``eps``. The same images give the same weight; no more than about 5 million
        patches are looked at, from images spread evenly over those given.
        """
        values, vectors = torch.linalg.eigh(self.second_moments(pixels))
        values, vectors = values.flip(0), vectors.flip(1)
        # An eigenvector's sign is free: its first large entry is made positive. The largest will not do: entries
        # for images' patches come in pairs, equal but for rounding.
        large = vectors.abs() >= 0.9 * vectors.abs().amax(0)
        vectors = vectors * vectors.gather(0, large.int().argmax(0, keepdim=True)).sign()
        self._set(values, vectors, eps)

    def second_moments(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "D D"]:
        """Mean of ``x x^T`` over the patches ``x`` the layer sees, borders included, in float64 on the CPU."""
        area = pixels.shape[2] * pixels.shape[3]
        pixels = pixels[:: max(1, len(pixels) * area // MAX_WHITENED_PATCHES)]
        total = torch.zeros(2 * (self.weight[0].numel(),), dtype=torch.float64)
        count = 0
        for chunk in pixels.split(max(1, 2**13 // area)):  # small enough for the cache
            patches = F.unfold(chunk.cpu().double(), self.kernel_size, padding=int(self.padding[0]))  # (B, D, N)
            total += (patches @ patches.transpose(1, 2)).sum(0)
            count += len(patches) * patches.shape[2]
        return total / count
