"""What corruptions are made of: severities, lengths that scale with the image, kernels, clouds and frost."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from ..augmentation import LUMA_WEIGHTS, resample
from ..errors import ChoiceError

SEVERITIES = (1, 2, 3, 4, 5)

MIN_LARGE_SIDE = 96
"""Shorter side, in pixels, from which images are corrupted as in ImageNet-C; smaller ones as in CIFAR-10-C."""

PUBLISHED_SIDES = (32, 224)
"""Sides of the images of CIFAR-10-C and ImageNet-C, for which the published lengths hold, in pixels."""

DISC_OVERSAMPLING = 11
"""Points along the side of a pixel that are tested for lying inside a disc."""

FROST_COLOUR = (0.86, 0.94, 1.0)
"""Red, green and blue of the brightest frost."""

Parameters = TypeVar("Parameters")


@dataclass(frozen=True)
class Levels(Generic[Parameters]):
    """A corruption's parameters at severity 1 to 5, for images of 32 pixels and of 224."""

    small: tuple[Parameters, ...]
    large: tuple[Parameters, ...]


@dataclass(frozen=True)
class Corruption(ABC):
    """``(images, severity, generator) -> images``: pixels (B C H W) in [0, 1], grey or colour, of any size.

    To add one, write a frozen dataclass with ``levels`` and ``run``, and name it in ``CORRUPTIONS``.
    """

    levels: ClassVar[Levels[Any]]

    def __call__(
        self, images: Float[Tensor, "B C H W"], severity: int, generator: Generator
    ) -> Float[Tensor, "B C H W"]:
        """The corrupted images; what is drawn comes from ``generator``, on the CPU.

        Raises ChoiceError for a severity other than 1 to 5.
        """
        if severity not in SEVERITIES:
            raise ChoiceError(f"A severity is a whole number from 1 to 5, not {severity}.")
        large = min(images.shape[-2:]) >= MIN_LARGE_SIDE
        return self.run(images, (self.levels.large if large else self.levels.small)[severity - 1], generator)

    @abstractmethod
    def run(self, images: Float[Tensor, "B C H W"], level: Any, generator: Generator) -> Float[Tensor, "B C H W"]:
        """The images corrupted with the parameters of one severity."""


def length_scale(images: Float[Tensor, "B C H W"]) -> float:
    """Pixels of these images per pixel of the published ones: every length is multiplied by it."""
    side = min(images.shape[-2:])
    return side / PUBLISHED_SIDES[side >= MIN_LARGE_SIDE]


def draw_normal(shape: tuple[int, ...] | torch.Size, generator: Generator, like: Tensor) -> Tensor:
    """Standard normal numbers, drawn on the CPU, on the device of ``like``."""
    return torch.randn(shape, generator=generator).to(like.device)


def draw_uniform(shape: tuple[int, ...] | torch.Size, generator: Generator, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), drawn on the CPU, on the device of ``like``."""
    return torch.rand(shape, generator=generator).to(like.device)


def convolve(images: Float[Tensor, "B C H W"], kernels: Float[Tensor, "b k k"]) -> Float[Tensor, "B C H W"]:
    """Each image convolved with its kernel (b is B, or 1 for all), mirrored at its borders, clipped to [0, 1].

    k is odd. It multiplies spectra, so a wide kernel costs no more than a narrow one.
    """
    reach = kernels.shape[-1] // 2
    mode = "reflect" if reach < min(images.shape[-2:]) else "replicate"
    padded = F.pad(images.float(), (reach,) * 4, mode=mode)
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels.to(padded), s=size)[:, None]
    return torch.fft.irfft2(spectrum, s=size)[..., 2 * reach :, 2 * reach :].clamp(0, 1)


def disc_kernel(radius: float, edge: float) -> Float[Tensor, "k k"]:
    """A disc, each pixel its share of the area, blurred by a Gaussian of deviation ``edge``; both in pixels."""
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


def frost_pattern(images: Float[Tensor, "B C H W"], generator: Generator) -> Float[Tensor, "B C H W"]:
    """Frost for each image in [0, 1]: needles in three directions, thicker in clouds; blue-white on colour."""
    count, channels, height, width = images.shape
    side = min(height, width)
    clouds = plasma_clouds(count, (height, width), 2.0, generator).to(images.device)
    first = draw_uniform((count,), generator, images) * math.pi
    needles = torch.zeros_like(clouds)
    for turn in (0, 1, 2):  # ice grows in steps of 60 degrees
        seeds = (draw_uniform((count, 1, height, width), generator, images) < 1.6 / side).float()
        trail = motion_kernels(first + turn * (math.pi / 3), side / 5, side / 12)
        needles = torch.maximum(needles, convolve(seeds, trail + trail.flip(1, 2)))
    needles = needles / needles.amax((2, 3), keepdim=True).clamp(min=1e-6)
    white = (0.25 + 0.45 * clouds + 0.75 * needles * (0.35 + 0.65 * clouds)).clamp(0, 1)
    return white if channels == 1 else white * torch.tensor(FROST_COLOUR, device=images.device).view(1, 3, 1, 1)


def plasma_clouds(count: int, size: tuple[int, int] | torch.Size, decay: float, generator: Generator) -> Tensor:
    """Clouds (count 1 H W) in [0, 1] by the diamond-square algorithm on a torus, cropped to ``size`` (H, W).

    Detail half as large is weaker by ``decay`` squared, as in the published code.
    """
    field, step = torch.zeros(count, 1, 1), 1.0
    while field.shape[-1] < max(size):
        side = field.shape[-1]
        bumps = step * (2 * torch.rand(3, count, side, side, generator=generator) - 1)
        right, below = field.roll(-1, 2), field.roll(-1, 1)
        middle = (field + right + below + right.roll(-1, 1)) / 4 + bumps[0]
        upper = (middle + middle.roll(1, 1) + field + right) / 4 + bumps[1]
        left = (middle + middle.roll(1, 2) + field + below) / 4 + bumps[2]
        grown = torch.stack([torch.stack([field, upper], -1), torch.stack([left, middle], -1)], 2)
        field, step = grown.reshape(count, 2 * side, 2 * side), step / decay**2
    field = field - field.amin((1, 2), keepdim=True)
    field = field / field.amax((1, 2), keepdim=True).clamp(min=1e-12)
    return field[:, None, : size[0], : size[1]]


def luminance(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """The luminance of colour images; grey images unchanged."""
    if images.shape[1] == 1:
        return images
    return torch.einsum("bchw,c->bhw", images, torch.tensor(LUMA_WEIGHTS, device=images.device))[:, None]
