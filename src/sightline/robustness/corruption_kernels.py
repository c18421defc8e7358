"""How strong a corruption is: five severities, for small images and for large ones, lengths in pixels scaled."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ..errors import ChoiceError

SEVERITIES = (1, 2, 3, 4, 5)

MIN_LARGE_SIDE = 96
"""Shorter side, in pixels, from which an image is corrupted as ImageNet-C is; smaller ones as CIFAR-10-C."""

PUBLISHED_SIDES = (32, 224)
"""Sides of the images of CIFAR-10-C and of ImageNet-C, for which their lengths are given."""

Parameters = TypeVar("Parameters")


@dataclass(frozen=True)
class Levels(Generic[Parameters]):
    """A corruption's parameters, mildest first, for images of 32 pixels and of 224."""

    small: tuple[Parameters, ...]
    large: tuple[Parameters, ...]

    def at(self, images: Float[Tensor, "B C H W"], severity: int) -> Parameters:
        """Those for images of this size; raises ChoiceError for a severity that is not 1 to 5."""
        if severity not in SEVERITIES:
            raise ChoiceError(f"A severity is a whole number from 1 to 5, not {severity}.")
        return (self.large if _shorter_side(images) >= MIN_LARGE_SIDE else self.small)[severity - 1]


def length_scale(images: Float[Tensor, "B C H W"]) -> float:
    """Pixels of these images for one pixel of the published ones: lengths are multiplied by it."""
    side = _shorter_side(images)
    return side / PUBLISHED_SIDES[side >= MIN_LARGE_SIDE]


def _shorter_side(images: Tensor) -> int:
    return min(images.shape[-2:])


def draw_normal(shape: tuple[int, ...] | torch.Size, generator: Generator, like: Tensor) -> Tensor:
    """Normal numbers, drawn on the CPU, where ``like`` is."""
    return torch.randn(shape, generator=generator).to(like.device)


def draw_uniform(shape: tuple[int, ...] | torch.Size, generator: Generator, like: Tensor) -> Tensor:
    """Numbers in [0, 1), drawn on the CPU, where ``like`` is."""
    return torch.rand(shape, generator=generator).to(like.device)
