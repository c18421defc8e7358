"""What the parameters of a member may be, and how they are drawn: per image, on the CPU, in float64.

Drawn there, a batch on any device is augmented alike, and nothing waits for the device.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

BorderFill = Literal["zero", "edge"]
"""What appears where the picture ends: black, or its border continued."""

CROP_TRIES = 10
"""Boxes drawn for each image until one fits into it, as torchvision does."""


def uniform_per_image(count: int, low: float, high: float, generator: Generator) -> Float[Tensor, " B"]:
    """One number in [low, high) for each image."""
    return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)


def draw_bernoulli(count: int, p: float, generator: Generator) -> Bool[Tensor, " B"]:
    """True for each image with probability ``p``."""
    return torch.rand(count, generator=generator) < p


def draw_boxes(
    count: int, least: float, most: float, aspect: float, generator: Generator
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """``TRIES`` boxes for each image: (heights, widths) as shares of the sides.

    The area is uniform in [least, most] of the image's, the ratio of the shares log-uniform in [1/aspect, aspect].
    """
    drawn = torch.rand(2, count, CROP_TRIES, generator=generator, dtype=torch.float64)
    areas = least + (most - least) * drawn[0]
    ratios = torch.exp((2 * drawn[1] - 1) * math.log(aspect))
    return (areas / ratios).sqrt(), (areas * ratios).sqrt()


def per_image(values: Float[Tensor, " B"], pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 1 1"]:
    """One number per image, ready to meet its pixels: on their device, of their dtype."""
    return values.to(pixels.dtype).to(pixels.device, non_blocking=True).view(-1, 1, 1, 1)
