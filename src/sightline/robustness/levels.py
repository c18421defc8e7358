"""How strong a corruption is: five severities, for small images and for large ones, lengths in pixels scaled."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from ..errors import ChoiceError

SEVERITIES = (1, 2, 3, 4, 5)

LARGE = 96
"""Shorter side, in pixels, from which an image is corrupted as ImageNet-C is; smaller ones as CIFAR-10-C."""

PUBLISHED = (32, 224)
"""Sides of the images of CIFAR-10-C and of ImageNet-C, for which their lengths are given."""

T = TypeVar("T")


@dataclass(frozen=True)
class Levels(Generic[T]):
    """A corruption's parameters, mildest first, for images of 32 pixels and of 224."""

    small: tuple[T, ...]
    large: tuple[T, ...]

    def at(self, images: Float[Tensor, "B C H W"], severity: int) -> T:
        """Those for images of this size; raises ChoiceError for a severity that is not 1 to 5."""
        if severity not in SEVERITIES:
            raise ChoiceError(f"A severity is a whole number from 1 to 5, not {severity}.")
        return (self.large if _side(images) >= LARGE else self.small)[severity - 1]


def scale(images: Float[Tensor, "B C H W"]) -> float:
    """Pixels of these images for one pixel of the published ones: lengths are multiplied by it."""
    side = _side(images)
    return side / PUBLISHED[side >= LARGE]


def _side(images: Tensor) -> int:
    return min(images.shape[-2:])


def normal(shape: tuple[int, ...] | torch.Size, generator: Generator, like: Tensor) -> Tensor:
    """Normal numbers, drawn on the CPU, where ``like`` is."""
    return torch.randn(shape, generator=generator).to(like.device)


def uniform(shape: tuple[int, ...] | torch.Size, generator: Generator, like: Tensor) -> Tensor:
    """Numbers in [0, 1), drawn on the CPU, where ``like`` is."""
    return torch.rand(shape, generator=generator).to(like.device)
