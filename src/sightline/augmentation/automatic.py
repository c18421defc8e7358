"""Policies that draw an operation and a magnitude for each image: TrivialAugment and RandAugment.

An operation space is a table of operations with the amounts at the smallest and the largest magnitude, and whether
the sign is drawn too. Each operation is applied once, to all images that drew it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from ..batches import Batch
from ..checks import check_int, check_number
from .colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_sharpness,
    autocontrast,
    equalize,
    posterize,
    solarize,
)
from .kernels import affine_matrices, gather_images, scatter_images, similarity_matrices, warp
from .mix import paste_boxes

Operation = Callable[[Tensor, Tensor], Tensor]
"""(pixels (B C H W), one amount for each image) -> pixels."""


def shear_x(pixels: Float[Tensor, "B C H W"], slopes: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Each row moved sideways by its distance from the centre times the slope of its image."""
    return warp(pixels, affine_matrices(xy=slopes, count=len(pixels)))


def shear_y(pixels: Float[Tensor, "B C H W"], slopes: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Each column moved up or down by its distance from the centre times the slope of its image."""
    return warp(pixels, affine_matrices(yx=slopes, count=len(pixels)))


def translate_x(pixels: Float[Tensor, "B C H W"], distances: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Each image moved to the right, in pixels."""
    return warp(pixels, affine_matrices(x=-distances, count=len(pixels)))


def translate_y(pixels: Float[Tensor, "B C H W"], distances: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Each image moved down, in pixels."""
    return warp(pixels, affine_matrices(y=-distances, count=len(pixels)))


def rotate(pixels: Float[Tensor, "B C H W"], degrees: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """Each image turned about its centre."""
    still = degrees.new_zeros(len(degrees), 2)
    turned = similarity_matrices(torch.deg2rad(degrees), torch.ones_like(degrees), still, pixels.shape[-2:])
    return warp(pixels, turned)


OperationSpace = Mapping[str, tuple[Operation, float, float, bool]]
"""Name -> (operation, amount at magnitude 0, amount at the largest magnitude, whether the sign is drawn)."""


def _from_factor(change: Operation) -> Operation:
    return lambda pixels, amounts: change(pixels, 1 + amounts)


def _from_share(change: Operation, axis: int) -> Operation:
    return lambda pixels, amounts: change(pixels, amounts * pixels.shape[axis])


def _build_space(
    lean: float, move: tuple[Operation, Operation, float], degrees: float, factor: float, bits: int
) -> OperationSpace:

    return {
        "identity": (lambda pixels, _: pixels, 0, 0, False),
        "lean-x": (shear_x, 0, lean, True),
        "lean-y": (shear_y, 0, lean, True),
        "move-x": (move[0], 0, move[2], True),
        "move-y": (move[1], 0, move[2], True),
        "turn": (rotate, 0, degrees, True),
        "brightness": (_from_factor(adjust_brightness), 0, factor, True),
        "saturation": (_from_factor(adjust_saturation), 0, factor, True),
        "contrast": (_from_factor(adjust_contrast), 0, factor, True),
        "sharpness": (_from_factor(adjust_sharpness), 0, factor, True),
        "posterize": (posterize, 8, bits, False),
        "solarize": (solarize, 1, 0, False),
        "autocontrast": (lambda pixels, _: autocontrast(pixels), 0, 0, False),
        "equalize": (lambda pixels, _: equalize(pixels), 0, 0, False),
    }


TRIVIALAUGMENT_SPACE = _build_space(
    lean=0.99, move=(translate_x, translate_y, 32.0), degrees=135, factor=0.99, bits=2
)
"""TrivialAugment's wide space: slopes, pixels, degrees, factors from 1, bits."""

RANDAUGMENT_SPACE = _build_space(
    lean=0.3,
    move=(_from_share(translate_x, 3), _from_share(translate_y, 2), 150 / 331),
    degrees=30,
    factor=0.9,
    bits=4,
)
"""RandAugment's space, the one of AutoAugment; displacements are shares of the sides."""


STRONG_SPACE = _build_space(
    lean=0.3, move=(_from_share(translate_x, 3), _from_share(translate_y, 2), 0.3), degrees=30, factor=0.95, bits=4
)
"""FixMatch's space."""

COLOURLESS_OPERATIONS = frozenset(
    ["identity", "lean-x", "lean-y", "move-x", "move-y", "turn", "brightness", "sharpness", "equalize"]
)
"""Those of FixMatch's operations that leave characters on a plain ground readable."""


@dataclass(frozen=True)
class StrongAugment:
    """``n`` random operations of random magnitudes for each image, then a grey square: FixMatch's strong view.

    Sohn et al. 2020, arXiv 2001.07685, appendix D; brightness, contrast, saturation and sharpness also rise here. The
    square (Cutout) has a side of up to half the image's. Grey images get no operation that inverts or flattens them.
    """

    n: int = 3
    square: float = 0.5

    def __post_init__(self):
        check_int("n", self.n, 0, 20)
        check_number("square", self.square, 0, 1)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with operations and a square applied to each image."""
        pixels, count = batch.pixels, len(batch)
        space = STRONG_SPACE
        if pixels.shape[1] == 1:
            space = {name: each for name, each in space.items() if name in COLOURLESS_OPERATIONS}
        for _ in range(self.n):
            levels = torch.rand(count, generator=generator, dtype=torch.float64)
            pixels = _apply_random(pixels, levels, space, generator)
        size = torch.tensor(pixels.shape[-2:])
        sides = torch.rand(count, 1, generator=generator, dtype=torch.float64) * self.square * size
        starts = (torch.rand(count, 2, generator=generator, dtype=torch.float64) * size - sides / 2).round().long()
        boxes = torch.cat([starts, starts + sides.round().long()], 1).clamp_min(0).minimum(size.repeat(2))
        grey = torch.full((), 0.5).to(pixels.device, non_blocking=True).expand(pixels.shape)
        return replace(batch, pixels=paste_boxes(grey, pixels, boxes))


@dataclass(frozen=True)
class TrivialAugment:
    """One random operation at a random magnitude for each image: strong, with nothing to tune.

    Fourteen operations, 31 magnitudes, all equally likely: the wide space of Müller and Hutter 2021,
    arXiv 2103.10158, but bilinear. Pixels from beyond the border are black.
    """

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with one operation applied to each image."""
        levels = torch.randint(31, (len(batch),), generator=generator).double() / 30
        return replace(batch, pixels=_apply_random(batch.pixels, levels, TRIVIALAUGMENT_SPACE, generator))


@dataclass(frozen=True)
class RandAugment:
    """``n`` random operations in a row for each image, all at magnitude ``m`` of 30.

    Cubuk et al. 2019, arXiv 1909.13719; fourteen operations, by default as they trained ResNet-50 on ImageNet.
    """

    n: int = 2
    m: float = 9

    def __post_init__(self):
        check_int("n", self.n, 0, 20)
        check_number("m", self.m, 0, 30)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with ``n`` operations applied to each image."""
        pixels, levels = batch.pixels, torch.full((len(batch),), self.m / 30, dtype=torch.float64)
        for _ in range(self.n):
            pixels = _apply_random(pixels, levels, RANDAUGMENT_SPACE, generator)
        return replace(batch, pixels=pixels)


def _apply_random(
    pixels: Float[Tensor, "B C H W"], levels: Float[Tensor, " B"], space: OperationSpace, generator: Generator
) -> Float[Tensor, "B C H W"]:
    """Each image changed by one operation of the space, with the magnitude of its level in [0, 1]."""
    chosen = torch.randint(len(space), (len(pixels),), generator=generator)
    signs = 2 * torch.randint(2, (len(pixels),), generator=generator) - 1
    return apply_operations(pixels, chosen, levels, signs, space)


def apply_operations(
    pixels: Float[Tensor, "B C H W"],
    chosen: Int[Tensor, " B"],
    levels: Float[Tensor, " B"],
    signs: Int[Tensor, " B"],
    space: OperationSpace,
) -> Float[Tensor, "B C H W"]:
    """Operation number ``chosen`` of the space for each image: each operation once, on all that chose it."""
    order = torch.argsort(chosen, stable=True)
    counts = torch.bincount(chosen, minlength=len(space)).tolist()
    changed = []
    for rows, (operation, low, high, signed) in zip(order.split(counts), space.values(), strict=True):
        if len(rows):
            amounts = low + (high - low) * levels[rows]
            changed.append(operation(gather_images(pixels, rows), amounts * signs[rows] if signed else amounts))
    return scatter_images(pixels, order, torch.cat(changed))
