"""What the world does to images: the fifteen corruptions of CIFAR-10-C and ImageNet-C, at five severities.

Hendrycks and Dietterich 2019 (arXiv 1903.12261), with the parameters of their published code. A member is
``(images, severity, generator) -> images``: pixels (B C H W) in [0, 1], grey or colour, of any size.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from ..augmentation import gaussian_blur, warp
from ..preprocessing import compress_jpeg
from .blurs import defocus_blur, displace, glass_blur, motion_blur, zoom_blur
from .corruption_kernels import Levels, draw_normal, draw_uniform, length_scale
from .weather import fog, frost, snow

GAUSSIAN_LEVELS = Levels((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))
SHOT_LEVELS = Levels((500, 250, 100, 75, 50), (60, 25, 12, 5, 3))
IMPULSE_LEVELS = Levels((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))
BRIGHTNESS_LEVELS = Levels((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))
CONTRAST_LEVELS = Levels((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))
PIXELATE_LEVELS = Levels((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))
JPEG_LEVELS = Levels((80, 65, 58, 50, 40), (25, 18, 15, 10, 7))
# (how far corners move, how far pixels move, in pixels, and over how many pixels neighbours move together). The
# last three bend as published, by alpha and sigma; the published first two bend nothing at 32 pixels, and turn the
# image more than the last ones do.
ELASTIC_LEVELS = Levels(
    ((0.64, 0.1, 2.2), (0.8, 0.15, 2.0), (0.96, 0.22, 1.92), (0.96, 0.41, 1.28), (0.96, 0.54, 0.96)),
    ((3.0, 0.5, 3.0), (4.0, 0.65, 2.7), (4.48, 0.81, 2.24), (4.48, 1.14, 2.24), (4.48, 1.95, 2.24)),
)


def gaussian_noise(
    images: Float[Tensor, "B C H W"], severity: int, generator: Generator
) -> Float[Tensor, "B C H W"]:
    """The noise of a sensor in low light."""
    sigma = GAUSSIAN_LEVELS.at(images, severity)
    return (images + sigma * draw_normal(images.shape, generator, images)).clamp_(0, 1)


def shot_noise(images: Float[Tensor, "B C H W"], severity: int, generator: Generator) -> Float[Tensor, "B C H W"]:
    """The noise of few photons: Poisson, so brighter places are noisier."""
    photons = SHOT_LEVELS.at(images, severity)
    return torch.poisson((images * photons).cpu(), generator).to(images.device).div_(photons).clamp_(0, 1)


def impulse_noise(
    images: Float[Tensor, "B C H W"], severity: int, generator: Generator
) -> Float[Tensor, "B C H W"]:
    """Values that are lost, or full: salt and pepper."""
    share = IMPULSE_LEVELS.at(images, severity)
    drawn = draw_uniform(images.shape, generator, images)
    return images.masked_fill(drawn < share / 2, 0).masked_fill_(drawn >= 1 - share / 2, 1)


def brightness(images: Float[Tensor, "B C H W"], severity: int, generator: Generator) -> Float[Tensor, "B C H W"]:
    """A brighter day: the value of HSV raised."""
    del generator
    value = images.amax(1, keepdim=True)
    raised = (value + BRIGHTNESS_LEVELS.at(images, severity)).clamp(max=1)
    return torch.where(value > 0, images * (raised / value.clamp(min=1e-12)), raised).clamp_(0, 1)


def reduce_contrast(
    images: Float[Tensor, "B C H W"], severity: int, generator: Generator
) -> Float[Tensor, "B C H W"]:
    """Flat light: each channel drawn towards its mean."""
    del generator
    means = images.mean((2, 3), keepdim=True)
    return torch.lerp(means, images, CONTRAST_LEVELS.at(images, severity)).clamp_(0, 1)


def elastic(images: Float[Tensor, "B C H W"], severity: int, generator: Generator) -> Float[Tensor, "B C H W"]:
    """Bent: three corners moved, then every pixel a little, together with its neighbours."""
    corners, reach, together = (number * length_scale(images) for number in ELASTIC_LEVELS.at(images, severity))
    turned = warp(images, _bend(images, corners, generator), "edge")
    drawn = 2 * draw_uniform((len(images), 2, *images.shape[-2:]), generator, images) - 1
    # Smoothed, uniform numbers of deviation 1/sqrt(3) keep that over 2 sigma sqrt(pi).
    shifts = gaussian_blur(drawn, torch.tensor([together])) * (
        reach * math.sqrt(3) * 2 * together * math.sqrt(math.pi)
    )
    return displace(turned, shifts.permute(0, 2, 3, 1))


def pixelate(images: Float[Tensor, "B C H W"], severity: int, generator: Generator) -> Float[Tensor, "B C H W"]:
    """Shrunk, and enlarged without smoothing."""
    del generator
    height, width = images.shape[-2:]
    share = PIXELATE_LEVELS.at(images, severity)
    down, across = (_boxes(side, max(1, int(side * share))).to(images) for side in (height, width))
    small = down @ images.contiguous() @ across.T
    return F.interpolate(small, (height, width), mode="nearest-exact").clamp_(0, 1)


def jpeg(images: Float[Tensor, "B C H W"], severity: int, generator: Generator) -> Float[Tensor, "B C H W"]:
    """Compressed hard."""
    del generator
    return compress_jpeg(images, JPEG_LEVELS.at(images, severity))


def _boxes(side: int, size: int) -> Float[Tensor, "n N"]:
    """A matrix that shrinks a line of pixels: each new one is the mean of those whose centres lie in its box."""
    step = side / size
    apart = (torch.arange(side) + 0.5) - (torch.arange(size)[:, None] + 0.5) * step
    inside = ((apart > -step / 2) & (apart <= step / 2)).float()
    return inside / inside.sum(1, keepdim=True)


def _bend(images: Tensor, reach: float, generator: Generator) -> Float[Tensor, "B 2 3"]:
    """Matrices for ``warp`` that bring three points near the corners to where they were before they moved."""
    height, width = images.shape[-2:]
    third = min(height, width) // 3
    points = torch.tensor([[third, third], [third, -third], [-third, -third]], dtype=torch.float64)
    moves = (2 * torch.rand(len(images), 3, 2, generator=generator, dtype=torch.float64) - 1) * reach
    there = torch.cat([points + moves, torch.ones(len(images), 3, 1, dtype=torch.float64)], 2)
    return torch.linalg.solve(there, points.expand(len(images), 3, 2)).transpose(1, 2)


Corruption = Callable[[Float[Tensor, "B C H W"], int, Generator], Float[Tensor, "B C H W"]]

CORRUPTIONS: dict[str, Corruption] = {
    "gaussian-noise": gaussian_noise,
    "shot-noise": shot_noise,
    "impulse-noise": impulse_noise,
    "defocus-blur": defocus_blur,
    "glass-blur": glass_blur,
    "motion-blur": motion_blur,
    "zoom-blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": reduce_contrast,
    "elastic": elastic,
    "pixelate": pixelate,
    "jpeg": jpeg,
}
"""In the order of the papers: noise, blur, weather, digital."""
