"""Corruptions by weather: snow, frost and fog, all of them drawn, none a photograph."""

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from ..augmentation import LUMA_WEIGHTS
from .blurs import convolve, motion_kernels
from .corruption_kernels import Levels, draw_normal, draw_uniform, length_scale

# (mean and deviation of the flakes, their enlargement, what is none below, radius and deviation of their fall, how
# much of the image stays)
SNOW_LEVELS = Levels(
    (
        (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    (
        (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
)
# (weight of the image, weight of the frost). Ours, because the frost is ours.
FROST_LEVELS = Levels(
    ((1.0, 0.2), (0.95, 0.3), (0.9, 0.4), (0.85, 0.5), (0.75, 0.6)),
    ((0.9, 0.4), (0.8, 0.55), (0.7, 0.7), (0.65, 0.8), (0.6, 0.9)),
)
# (thickness, how fast its detail fades)
FOG_LEVELS = Levels(
    ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
    ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
)

FROST_COLOUR = (0.86, 0.94, 1.0)
"""Red, green and blue of the brightest frost."""


def snow(images: Float[Tensor, "B C H W"], severity: int, generator: Generator) -> Float[Tensor, "B C H W"]:
    """Falling flakes, streaked by their fall, and everything whitened."""
    mean, spread, enlarged, least, radius, sigma, stays = SNOW_LEVELS.at(images, severity)
    size = length_scale(images)
    count, _, height, width = images.shape
    factor = max(1.0, enlarged * size)
    drawn = draw_normal((count, 1, math.ceil(height / factor), math.ceil(width / factor)), generator, images)
    flakes = F.interpolate(drawn * spread + mean, (height, width), mode="bilinear")
    flakes = flakes.clamp(0, 1).masked_fill_(flakes < least, 0)
    angles = (draw_uniform((count,), generator, images) - 1.5) * (math.pi / 2)
    flakes = convolve(flakes, motion_kernels(angles, radius * size, sigma * size))
    white = torch.maximum(images, luminance(images) * 1.5 + 0.5)
    return (stays * images + (1 - stays) * white + flakes + flakes.rot90(2, (2, 3))).clamp_(0, 1)


def frost(images: Float[Tensor, "B C H W"], severity: int, generator: Generator) -> Float[Tensor, "B C H W"]:
    """Ice on the glass: needles that grow in three directions, thicker where clouds are."""
    kept, added = FROST_LEVELS.at(images, severity)
    return (kept * images + added * frost_pattern(images, generator)).clamp_(0, 1)


def fog(images: Float[Tensor, "B C H W"], severity: int, generator: Generator) -> Float[Tensor, "B C H W"]:
    """Clouds before everything, as bright as the image is."""
    thick, fades = FOG_LEVELS.at(images, severity)
    clouds = plasma_clouds(len(images), images.shape[-2:], fades, generator).to(images.device)
    brightest = images.amax((1, 2, 3), keepdim=True)
    return ((images + thick * clouds) * (brightest / (brightest + thick))).clamp_(0, 1)


def frost_pattern(images: Float[Tensor, "B C H W"], generator: Generator) -> Float[Tensor, "B C H W"]:
    """Frost for each image, in [0, 1]: blue-white on colour, white on grey."""
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


def plasma_clouds(count: int, size: tuple[int, int] | torch.Size, fades: float, generator: Generator) -> Tensor:
    """Clouds (count 1 H W) in [0, 1] by the diamond-square algorithm on a torus, cut to ``size``.

    Detail half as large is weaker by ``fades`` squared, as in the published code.
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
        field, step = grown.reshape(count, 2 * side, 2 * side), step / fades**2
    field = field - field.amin((1, 2), keepdim=True)
    field = field / field.amax((1, 2), keepdim=True).clamp(min=1e-12)
    return field[:, None, : size[0], : size[1]]


def luminance(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """Luminance of colour images; grey ones as they are."""
    if images.shape[1] == 1:
        return images
    return torch.einsum("bchw,c->bhw", images, torch.tensor(LUMA_WEIGHTS, device=images.device))[:, None]
