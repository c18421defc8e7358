"""Statistics of training images, measured in a stream: channels, covariance, leading eigenvectors."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from .. import progress
from ..errors import DataError
from .steps import STD_FLOOR

CHUNK_VALUES = 1 << 20
"""Pixel values read at a time."""

MAX_COVARIANCE_IMAGES = 100_000
"""Images, evenly spaced, that a covariance is measured on at most: more do not change it."""

SWEEPS, SPARE = 3, 16
"""Subspace iteration: multiplications by the covariance, and directions beyond the wanted ones."""


@runtime_checkable
class ImageRows(Protocol):
    """Images by row, as statistics read them: a dataset, a memory map or an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> UInt8[ndarray, "B H W C"]: ...


PixelTransform = Callable[[Tensor], Tensor]
"""Pixels in [0, 1] (B C H W) -> the values to measure."""


def iterate_chunks(
    images: ImageRows, change: PixelTransform, stride: int = 1
) -> Iterator[Float[Tensor, "n C H W"]]:
    """Every ``stride``-th image as float32 after ``change``, about a million values at a time."""
    if not len(images):
        raise DataError("There are no training images to measure: the training split is empty.")
    step = stride * max(1, CHUNK_VALUES // images[:1].size)
    starts = range(0, len(images), step)
    with progress.progress_bar("Measuring pixels", len(starts)) as advance:
        for start in starts:
            chunk = np.ascontiguousarray(images[start : start + step : stride])
            with torch.no_grad():
                pixels = change(torch.from_numpy(chunk).permute(0, 3, 1, 2).float() / 255)
            yield pixels
            advance()


def measure_channels(images: ImageRows) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population std of each channel over all pixels, in [0, 1] units, exact.

    Needs about 16 MB of memory in addition to one chunk of images.
    """
    if not len(images):
        raise DataError("There are no training images to measure: the training split is empty.")
    count, sums = 0, np.zeros((2, images[:1].shape[-1]), np.int64)
    chunk = max(1, CHUNK_VALUES // images[:1].size)
    for start in range(0, len(images), chunk):
        values = torch.from_numpy(np.ascontiguousarray(images[start : start + chunk])).flatten(0, 2).int()
        count += len(values)
        sums += torch.stack([values.sum(0), values.square().sum(0)]).numpy()
    moments = [(int(one), int(two)) for one, two in sums.T]
    variances = [(count * two - one * one) / count**2 for one, two in moments]
    means = tuple(one / count / 255 for one, _ in moments)
    return means, tuple(max(math.sqrt(variance) / 255, STD_FLOOR) for variance in variances)


def measure_transformed_channels(
    images: ImageRows, change: PixelTransform
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population std of each channel after earlier steps, in float64."""
    count, sums = 0, torch.zeros(2, images[:1].shape[-1], dtype=torch.float64)
    for pixels in iterate_chunks(images, change):
        values = pixels.double()
        count += values.shape[0] * values.shape[2] * values.shape[3]
        sums += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
    mean = sums[0] / count
    std = (sums[1] / count - mean.square()).clamp_min(0).sqrt().clamp_min(STD_FLOOR)
    return tuple(mean.tolist()), tuple(std.tolist())


@dataclass(frozen=True, eq=False)
class PrincipalDirections:
    """The eigenvectors of a covariance, the leading ones first or all of them."""

    mean: Float[Tensor, " D"]
    vectors: Float[Tensor, "D k"]
    variances: Float[Tensor, " k"]
    residual_variance: float
    """Mean variance of the directions left out; 0 where there are none."""


def compute_all_directions(images: ImageRows, change: PixelTransform) -> PrincipalDirections:
    """Every eigenvector of the covariance (divided by n), in float64. Holds about four D x D matrices."""
    from scipy.linalg import get_blas_funcs

    syrk: Any = get_blas_funcs("syrk", dtype=np.float64)
    height, width, channels = images[:1].shape[1:]
    size = change(torch.zeros(1, channels, height, width)).numel()
    count, total = 0, torch.zeros(size, dtype=torch.float64)
    products = np.zeros((size, size), order="F")
    for pixels in iterate_chunks(images, change, _covariance_stride(images)):
        rows = pixels.flatten(1).double()
        count += len(rows)
        total += rows.sum(0)
        # One triangle of X^T X: half the work of a product. The other one of a transpose is this one.
        products = syrk(1.0, rows.numpy().T, beta=1.0, c=products, overwrite_c=1)
    mean = total / count
    covariance = torch.from_numpy(products.T).div_(count).sub_(torch.outer(mean, mean))
    variances, vectors = torch.linalg.eigh(covariance, UPLO="L")
    return PrincipalDirections(mean, vectors, variances.clamp_min(0), 0.0)


def compute_leading_directions(images: ImageRows, change: PixelTransform, rank: int) -> PrincipalDirections:
    """About the ``rank`` leading eigenvectors of the covariance, without ever forming it.

    Subspace iteration from a random start, then Rayleigh-Ritz (Halko, Martinsson and Tropp 2011, section 4.5 and
    algorithm 5.1): five passes over the images; exact where ``rank`` is D.
    """
    stride = _covariance_stride(images)

    def centred() -> Iterator[Tensor]:
        return (pixels.flatten(1) - mean for pixels in iterate_chunks(images, change, stride))

    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for pixels in iterate_chunks(images, change, stride):
        rows = pixels.flatten(1).double()
        count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)
    trace = float((squares / count - (total / count).square()).clamp_min(0).sum())
    mean = (total / count).float()
    width = min(rank + SPARE, len(mean))
    basis = torch.randn(len(mean), width, generator=torch.Generator().manual_seed(0))
    for _ in range(SWEEPS):
        product = torch.zeros(len(mean), width, dtype=torch.float64)
        for rows in centred():
            product += rows.T @ (rows @ basis)
        basis = torch.linalg.qr(product)[0].float()
    small = torch.zeros(width, width, dtype=torch.float64)
    for rows in centred():
        seen = (rows @ basis).double()
        small += seen.T @ seen
    variances, turns = torch.linalg.eigh(small / count)
    variances, turns = variances[-rank:].flip(0).clamp_min(0), turns[:, -rank:].flip(1)
    left = len(mean) - rank
    rest = max(trace - float(variances.sum()), 0.0) / left if left else 0.0
    return PrincipalDirections(total / count, basis.double() @ turns, variances, rest)


def _covariance_stride(images: ImageRows) -> int:
    return max(1, -(-len(images) // MAX_COVARIANCE_IMAGES))
