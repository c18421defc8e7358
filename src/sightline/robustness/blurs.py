"""Corruptions that blur: defocus, glass, motion and zoom."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from ..augmentation import affine_matrices, gaussian_blur, resample, warp
from .corruption_kernels import Levels, draw_uniform, length_scale

DISC_OVERSAMPLING = 11
"""Points along the side of a pixel at which it is seen whether they lie inside a disc."""

# (radius in pixels, deviation of the blur that takes its edge away). The published kernel holds whole pixels,
# which cannot be scaled; this one holds shares of them. At severity 4 of small images the second number is 0.4
# instead of 0.2, which gives the published kernel's spread.
DEFOCUS_LEVELS = Levels(
    ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.4), (1.5, 0.1)),
    ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
)
# (deviation of the blur before and after, reach in pixels). Ours: the published swaps of whole pixels have the
# same spread at 224, but cannot be scaled, and at 32 their five levels are not in order.
GLASS_LEVELS = Levels(
    ((0.3, 0.5), (0.33, 0.75), (0.36, 1.0), (0.4, 1.25), (0.4, 1.5)),
    ((0.7, 1.4), (0.9, 2.0), (1.0, 3.5), (1.1, 4.2), (1.5, 5.7)),
)
# (radius, deviation), in pixels. At severity 4 of small images 2.25 instead of 2, which shows what 3 does.
MOTION_LEVELS = Levels(
    ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.25), (9, 2.5)),
    ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0)),
)
# (steps, size of a step): the factors are 1, 1 + step, 1 + 2 step, ...
ZOOM_LEVELS = Levels(
    ((6, 0.01), (11, 0.01), (16, 0.01), (21, 0.01), (26, 0.01)),
    ((11, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03)),
)


def defocus_blur(
    images: Float[Tensor, "B C H W"], severity: int, generator: Generator
) -> Float[Tensor, "B C H W"]:
    """Out of focus: every point becomes a disc."""
    del generator
    radius, edge = DEFOCUS_LEVELS.at(images, severity)
    return convolve(images, disc_kernel(radius * length_scale(images), edge * length_scale(images))[None])


def glass_blur(images: Float[Tensor, "B C H W"], severity: int, generator: Generator) -> Float[Tensor, "B C H W"]:
    """Seen through frosted glass: every pixel shows a place near it."""
    sigma, reach = GLASS_LEVELS.at(images, severity)
    width = torch.tensor([sigma * length_scale(images)])
    count, _, height, wide = images.shape
    shifts = (2 * draw_uniform((count, height, wide, 2), generator, images) - 1) * (reach * length_scale(images))
    moved = displace(gaussian_blur(images, width), shifts)
    return gaussian_blur(moved, width).clamp_(0, 1)


def motion_blur(images: Float[Tensor, "B C H W"], severity: int, generator: Generator) -> Float[Tensor, "B C H W"]:
    """The camera moved: a trail that fades, in a direction of each image's own, within 45 degrees of level."""
    radius, sigma = MOTION_LEVELS.at(images, severity)
    angles = (draw_uniform((len(images),), generator, images) - 0.5) * (math.pi / 2)
    return convolve(images, motion_kernels(angles, radius * length_scale(images), sigma * length_scale(images)))


def zoom_blur(images: Float[Tensor, "B C H W"], severity: int, generator: Generator) -> Float[Tensor, "B C H W"]:
    """The camera moved closer: the mean of the image at growing enlargements."""
    del generator
    steps, step = ZOOM_LEVELS.at(images, severity)
    total = 2 * images  # as it is, and enlarged by 1
    for number in range(1, steps):
        size = 1 / (1 + number * step)
        total = total + warp(images, affine_matrices(xx=size, yy=size, count=len(images)), "edge")
    return (total / (steps + 1)).clamp_(0, 1)


def convolve(images: Float[Tensor, "B C H W"], kernels: Float[Tensor, "b k k"]) -> Float[Tensor, "B C H W"]:
    """Each image convolved with its kernel (b is B, or 1 for all), mirrored at its borders; cut to [0, 1].

    k is odd. In the frequencies: as fast for a wide kernel as for a narrow one.
    """
    reach = kernels.shape[-1] // 2
    mode = "reflect" if reach < min(images.shape[-2:]) else "replicate"
    padded = F.pad(images.float(), (reach,) * 4, mode=mode)
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels.to(padded), s=size)[:, None]
    return torch.fft.irfft2(spectrum, s=size)[..., 2 * reach :, 2 * reach :].clamp(0, 1)


def disc_kernel(radius: float, edge: float) -> Float[Tensor, "k k"]:
    """A disc of this radius, each pixel its share of the area, blurred by a Gaussian of deviation ``edge``."""
    reach = max(1, math.ceil(radius + 3 * edge))
    side = 2 * reach + 1
    fine = (torch.arange(side * DISC_OVERSAMPLING, dtype=torch.float64) + 0.5) / DISC_OVERSAMPLING - side / 2
    inside = (fine[:, None] ** 2 + fine**2 <= radius**2).double()
    area = F.avg_pool2d(inside[None, None], DISC_OVERSAMPLING)[0, 0]
    apart = torch.arange(side, dtype=torch.float64)
    gauss = torch.exp(-0.5 * ((apart[:, None] - apart) / max(edge, 1e-3)) ** 2)
    blurred = gauss @ area @ gauss
    return (blurred / blurred.sum()).float()


def motion_kernels(angles: Float[Tensor, " B"], radius: float, sigma: float) -> Float[Tensor, "B k k"]:
    """Half a Gaussian of deviation ``sigma`` in each direction (radians), cut at 2 ``radius``; sum 1.

    As ImageMagick's motion blur, whose taps are whole pixels apart, but placed between pixels.
    """
    taps = torch.arange(1 + max(1, math.ceil(min(2 * radius, 4 * sigma))), device=angles.device)
    weights = torch.exp(-0.5 * (taps / sigma) ** 2)
    places = torch.arange(-int(taps[-1]), int(taps[-1]) + 1, device=angles.device)
    rows, columns = (
        (1 - (places - (taps * part(angles)[:, None])[..., None]).abs()).clamp(min=0)
        for part in (torch.sin, torch.cos)
    )
    return torch.einsum("t,bti,btj->bij", weights / weights.sum(), rows, columns)


def displace(images: Float[Tensor, "B C H W"], shifts: Float[Tensor, "B H W 2"]) -> Float[Tensor, "B C H W"]:
    """Each pixel shows the place (x, y) pixels from it, bilinear, borders continued."""
    height, width = images.shape[-2:]
    x, y = ((2 * torch.arange(side, device=images.device) + 1) / side - 1 for side in (width, height))
    places = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
    return resample(images, places + shifts * torch.tensor([2 / width, 2 / height], device=images.device), "edge")
