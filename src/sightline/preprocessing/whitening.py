"""ZCA whitening as a linear operator inside the classifier: full where that is affordable, low-rank above."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DataError
from .statistics import (
    MAX_COVARIANCE_IMAGES,
    SPARE,
    SWEEPS,
    ImageRows,
    PixelTransform,
    compute_all_directions,
    compute_leading_directions,
)
from .steps import PreprocessingStep

MAX_FULL_ZCA_VALUES = 4096
"""Values per image up to which the whole matrix is stored: 64 x 64 grey, 36 x 36 RGB."""

MAX_ZCA_DIRECTIONS = 512
"""Directions whitened above that limit, or fewer where they would take more room than the matrix at the limit."""


class Zca(PreprocessingStep):
    """``W (x - mean)``, ``W = U diag(1 / sqrt(s + eps)) U^T``, of the pixels' eigenvectors U and variances s.

    Decorrelates pixels and, of all maps that do so, changes them least. ``eps`` is a variance in units of the
    input ([0, 1] pixels where the step is the first) and limits how much noise is amplified. With ``rank`` k, U
    and s are the k leading ones, and all other directions are divided by ``sqrt(rest + eps)``, where rest is their
    mean variance, as in probabilistic PCA (Tipping and Bishop 1999). Raises ValueError for impossible arguments.
    """

    mean: Tensor
    matrix: Tensor
    basis: Tensor
    variances: Tensor
    rest: Tensor

    def __init__(self, shape: Sequence[int], eps: float, rank: int | None = None):
        super().__init__()
        if len(shape) != 3 or not all(isinstance(side, int) and 0 < side <= 4096 for side in shape):
            raise ValueError(f"shape is (channels, height, width), not {shape}")
        if not 0 < eps < math.inf:
            raise ValueError(f"eps is a number above 0, not {eps}")
        self.shape, self.eps, self.rank, size = tuple(shape), float(eps), rank, math.prod(shape)
        self.register_buffer("mean", torch.zeros(size))
        if rank is None:
            if size > MAX_FULL_ZCA_VALUES:
                raise ValueError(f"{size} values per image are too many for a whole matrix")
            self.register_buffer("matrix", torch.zeros(size, size))
            return
        if not 0 < rank <= min(size, max_zca_rank(size)):
            raise ValueError(
                f"rank is at most {min(size, max_zca_rank(size))} for {size} values per image, not {rank}"
            )
        self.register_buffer("basis", torch.zeros(size, rank))
        self.register_buffer("variances", torch.zeros(rank))
        self.register_buffer("rest", torch.zeros(()))

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Whitened pixels; raises DataError for another shape than the fitted one."""
        if tuple(pixels.shape[1:]) != self.shape:
            raise DataError(
                f"These images are {_format_shape(pixels.shape[1:])} (channels, height, width) and the whitening "
                f"is for {_format_shape(self.shape)}: decode them with the classifier's geometry."
            )
        # In bfloat16 the small differences that whitening enlarges would be lost.
        with torch.autocast(pixels.device.type, enabled=False):
            centred = pixels.flatten(1).to(self.mean.dtype) - self.mean
            if self.rank is None:
                return _reshape_like(centred @ self.matrix, pixels)
            rest = (self.rest + self.eps).rsqrt()
            return _reshape_like(
                _scale_directions(centred, self.basis, (self.variances + self.eps).rsqrt(), rest), pixels
            )

    def inverse(self, whitened: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The pixels that ``forward`` maps to ``whitened``; computed in float64."""
        values, mean = whitened.flatten(1).double(), self.mean.double()
        if self.rank is None:
            pixels = torch.linalg.solve(self.matrix.double(), values, left=False)
        else:
            rest = (self.rest.double() + self.eps).sqrt()
            pixels = _scale_directions(
                values, self.basis.double(), (self.variances.double() + self.eps).sqrt(), rest
            )
        return _reshape_like(pixels + mean, whitened)

    def config(self) -> dict[str, Any]:
        """Shape (C, H, W), eps and rank; the matrix is in the state_dict."""
        return {"shape": list(self.shape), "eps": self.eps, "rank": self.rank}

    def extra_repr(self) -> str:
        """The arguments, in ``repr``."""
        return f"shape={self.shape}, eps={self.eps}, rank={self.rank}"


def _scale_directions(values: Tensor, basis: Tensor, gains: Tensor, rest: Tensor) -> Tensor:
    """Rows times ``gains`` along the basis and times ``rest`` across it."""
    return values * rest + (values @ basis * (gains - rest)) @ basis.T


def _reshape_like(rows: Tensor, pixels: Tensor) -> Tensor:
    """Rows (B D) in the shape, dtype and memory format of ``pixels``."""
    last = pixels.is_contiguous(memory_format=torch.channels_last) and not pixels.is_contiguous()
    shaped = rows.view(pixels.shape).to(pixels.dtype)
    return shaped.contiguous(memory_format=torch.channels_last) if last else shaped


def fit_zca(images: ImageRows, change: PixelTransform, eps: float, rank: int | None) -> Zca:
    """The whitening fitted to these images after ``change``, with the directions of ``plan_zca``."""
    height, width, channels = images[:1].shape[1:] if len(images) else (1, 1, 1)
    rank = plan_zca(channels * height * width, len(images), rank).rank
    step = Zca((channels, height, width), eps, rank)
    if rank is None:
        found = compute_all_directions(images, change)
        step.matrix.copy_((found.vectors * (found.variances + eps).rsqrt()) @ found.vectors.T)
    else:
        found = compute_leading_directions(images, change, rank)
        step.basis.copy_(found.vectors)
        step.variances.copy_(found.variances)
        step.rest.fill_(found.residual_variance)
    step.mean.copy_(found.mean)
    return step


# cost


@dataclass(frozen=True)
class ZcaCost:
    """Estimated cost of fitting a whitening, and its size in the classifier."""

    memory: float
    """Bytes while fitting."""
    seconds: float
    """On one core of 20 GFLOP/s in float64, twice that in float32."""
    stored: float
    """Bytes in the classifier."""
    rank: int | None
    """Directions; None is all of them in one matrix."""


def plan_zca(size: int, count: int, rank: int | None = None) -> ZcaCost:
    """The cost of whitening ``count`` images of ``size`` values, and the rank that is used.

    All directions up to ``MAX_FULL_ZCA_VALUES`` values; above, or where a ``rank`` is asked for, the leading ones.
    """
    if rank is None and size <= MAX_FULL_ZCA_VALUES:
        return full_zca_cost(size, count)
    rank = max(1, min(rank or min(MAX_ZCA_DIRECTIONS, count - 1), max_zca_rank(size), size))
    images, width = min(count, MAX_COVARIANCE_IMAGES), min(rank + SPARE, size)
    seconds = (4 * SWEEPS + 2) * images * size * width / 40e9 + SWEEPS * 4 * size * width**2 / 20e9
    return ZcaCost(32 * size * width, seconds, 4 * size * rank, rank)


def full_zca_cost(size: int, count: int) -> ZcaCost:
    """The cost of the whole matrix, affordable or not."""
    seconds = (min(count, MAX_COVARIANCE_IMAGES) * size**2 + 12 * size**3) / 20e9
    return ZcaCost(4 * 8 * size**2, seconds, 4 * size**2, None)


def max_zca_rank(size: int) -> int:
    """The most directions that take no more room than the whole matrix at the limit."""
    return max(1, MAX_FULL_ZCA_VALUES**2 // size)


def describe_zca(shape: tuple[int, int, int], count: int, rank: int | None) -> str:
    """A sentence on the cost of whitening images of (H, W, C), and of the whole matrix where that is too much."""
    size = math.prod(shape)
    cost = plan_zca(size, count, rank)
    price = (
        f"about {_format_bytes(cost.memory)} of memory and {_format_seconds(cost.seconds)} to fit, "
        f"{_format_bytes(cost.stored)} stored"
    )
    if cost.rank is None:
        return f"ZCA whitens {size:,} values per image by one matrix: {price}."
    done = f"ZCA whitens the {cost.rank:,} leading directions of {size:,} and scales the others alike: {price}."
    if size <= MAX_FULL_ZCA_VALUES:
        return done
    full = full_zca_cost(size, count)
    side = math.isqrt(MAX_FULL_ZCA_VALUES // shape[2])
    return (
        f"{done} All of them would take about {_format_bytes(full.memory)} and {_format_seconds(full.seconds)}; "
        f"for that, images of at most {side} x {side} pixels (--size {side})."
    )


def _format_shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _format_bytes(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{max(number / 1e6, 1):,.0f} MB"


def _format_seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:,.0f} minutes" if seconds < 6000 else f"{seconds / 3600:,.0f} hours"
