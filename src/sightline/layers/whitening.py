"""A frozen first layer that decorrelates the pixels of small patches."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

WHITENING_EPS = 5e-4
"""Added to each eigenvalue, in squared units of the preprocessed pixels (arXiv 2404.00498)."""

MAX_WHITENED_PATCHES = 5_000_000
"""Patches, at most, from which the second moments are estimated."""


class Whitening(nn.Conv2d):
    """A convolution with the eigenvectors of image patches, each divided by ``sqrt(eigenvalue + eps)``.

    ``both_signs`` adds the negated filters, for a layer followed by an activation. The weight is a buffer: saved,
    never trained. Until ``fit`` it is the whitening of uncorrelated pixels of variance 1.
    """

    def __init__(self, channels: int, kernel: int, *, padding: int = 0, both_signs: bool, bias: bool):
        numbers = channels * kernel * kernel
        super().__init__(channels, numbers * (2 if both_signs else 1), kernel, padding=padding, bias=bias)
        self.both_signs = both_signs
        weight = self.weight
        del self.weight
        self.register_buffer("weight", torch.empty_like(weight, requires_grad=False))
        if not weight.is_meta:  # else torch would import its compiler for the identity
            self._set(torch.ones(numbers), torch.eye(numbers), WHITENING_EPS)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def _set(self, values: Float[Tensor, " D"], vectors: Float[Tensor, "D D"], eps: float) -> None:
        """Set the weight from eigenvalues and eigenvectors, one per column."""
        rows = (vectors / (values.clamp(min=0) + eps).sqrt()).T
        rows = torch.cat((rows, -rows)) if self.both_signs else rows
        self.weight.copy_(rows.reshape(self.weight.shape))

    @torch.no_grad()
    def fit(self, pixels: Float[Tensor, "B C H W"], eps: float = WHITENING_EPS) -> None:
        """Set the weight from the second moments of the patches of training images, in float64.

        The mean is not subtracted, as published: the pixels are normalised. ``eps`` keeps directions without
        variance small. At most about 5 million patches are used, from evenly spaced images, so the same images
        give the same weight.
        """
        values, vectors = torch.linalg.eigh(self.second_moments(pixels))
        values, vectors = values.flip(0), vectors.flip(1)
        # An eigenvector's sign is arbitrary, so its first large entry is made positive. The largest would not
        # do: entries come in pairs that are equal up to rounding.
        large = vectors.abs() >= 0.9 * vectors.abs().amax(0)
        vectors = vectors * vectors.gather(0, large.int().argmax(0, keepdim=True)).sign()
        self._set(values, vectors, eps)

    def second_moments(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "D D"]:
        """Mean of ``x x^T`` over the patches ``x``, zero padding included, in float64 on the CPU."""
        area = pixels.shape[2] * pixels.shape[3]
        pixels = pixels[:: max(1, len(pixels) * area // MAX_WHITENED_PATCHES)]
        total = torch.zeros(2 * (self.weight[0].numel(),), dtype=torch.float64)
        count = 0
        for chunk in pixels.split(max(1, 2**13 // area)):  # fits into the processor's cache
            patches = F.unfold(chunk.cpu().double(), self.kernel_size, padding=int(self.padding[0]))  # (B, D, N)
            total += (patches @ patches.transpose(1, 2)).sum(0)
            count += len(patches) * patches.shape[2]
        return total / count
