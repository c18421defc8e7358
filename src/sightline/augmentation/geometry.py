"""Flips, shifts, rotations, crops and elastic deformation: samplers of the kernels."""

import math
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Generator

from ..batches import Batch
from ..checks import check_choice, check_int, check_number
from .kernels import (
    BorderFill,
    affine_matrices,
    draw_bernoulli,
    draw_boxes,
    flip_images,
    gaussian_blur,
    resample,
    similarity_matrices,
    translate_images,
    uniform_per_image,
    warp,
)


@dataclass(frozen=True)
class Flip:
    """Mirror each image left to right with probability ``p``."""

    p: float = 0.5

    def __post_init__(self):
        check_number("p", self.p, 0, 1)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with some images mirrored."""
        chosen = draw_bernoulli(len(batch), self.p, generator).nonzero().flatten()
        return replace(batch, pixels=flip_images(batch.pixels, chosen))


@dataclass(frozen=True)
class VerticalFlip:
    """Mirror each image top to bottom with probability ``p``: for views from above, or through a microscope."""

    p: float = 0.5

    def __post_init__(self):
        check_number("p", self.p, 0, 1)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with some images upside down."""
        chosen = draw_bernoulli(len(batch), self.p, generator).nonzero().flatten()
        return replace(batch, pixels=flip_images(batch.pixels, chosen, axis=2))


@dataclass(frozen=True)
class AlternatingFlip:
    """Mirror each image left to right in every other epoch: half of them in the first, the others in the next.

    Any two epochs in a row show every image both ways, which random flips do for half of the images only
    (Jordan, "94% on CIFAR-10 in 3.29 seconds", arXiv 2404.00498, section 3.6). Which half comes first is a hash
    of ``batch.index``; nothing is drawn.
    """

    def __call__(self, batch: Batch, generator: Generator) -> Batch:  # noqa: ARG002
        """The batch with the images mirrored that are due in ``batch.epoch``."""
        hashed = batch.index
        for _ in range(2):  # a 32-bit integer hash: the products stay below 2^59
            hashed = (((hashed >> 16) ^ hashed) * 0x45D9F3B) & 0xFFFFFFFF
        mirrored = ((hashed >> 16) ^ hashed ^ batch.epoch) & 1 == 1
        pixels = batch.pixels
        # A where, not a list of the chosen: the index may be on an accelerator, which then need not wait.
        return replace(
            batch, pixels=torch.where(mirrored.to(pixels.device).view(-1, 1, 1, 1), pixels.flip(3), pixels)
        )


@dataclass(frozen=True)
class Shift:
    """Move each image by up to ``pixels`` each way, whole pixels: pad, then crop.

    ``fill`` is ``zero`` (black, the CIFAR convention) or ``edge`` (the border continued).
    """

    pixels: int = 4
    fill: BorderFill = "zero"

    def __post_init__(self):
        check_int("pixels", self.pixels, 0, 256)
        check_choice("fill", self.fill, get_args(BorderFill))

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image moved by its own offset."""
        offsets = torch.randint(-self.pixels, self.pixels + 1, (len(batch), 2), generator=generator)
        return replace(batch, pixels=translate_images(batch.pixels, offsets, self.pixels, self.fill))


@dataclass(frozen=True)
class Affine:
    """Turn, resize and move each image at once, bilinear.

    The angle is uniform in ±``degrees``, the size log-uniform in [1/(1+``scale``), 1+``scale``], the
    displacement uniform in ±``translate`` of each side.
    """

    degrees: float = 10.0
    scale: float = 0.1
    translate: float = 0.1
    fill: BorderFill = "zero"

    def __post_init__(self):
        check_number("degrees", self.degrees, 0, 180)
        check_number("scale", self.scale, 0, 10)
        check_number("translate", self.translate, 0, 1)
        check_choice("fill", self.fill, get_args(BorderFill))

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image turned, resized and moved by its own amounts."""
        drawn = 2 * torch.rand(len(batch), 4, generator=generator, dtype=torch.float64) - 1
        if not (self.degrees or self.scale or self.translate):
            return batch
        turns = drawn[:, 0] * math.radians(self.degrees)
        sizes = torch.exp(drawn[:, 1] * math.log1p(self.scale))
        moved = similarity_matrices(turns, sizes, drawn[:, 2:] * self.translate, batch.pixels.shape[-2:])
        return replace(batch, pixels=warp(batch.pixels, moved, self.fill))


@dataclass(frozen=True)
class Rotate:
    """Turn each image about its centre by up to ``degrees`` either way."""

    degrees: float = 10.0
    fill: BorderFill = "zero"

    def __post_init__(self):
        Affine(degrees=self.degrees, fill=self.fill)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image turned by its own angle."""
        return Affine(self.degrees, 0.0, 0.0, self.fill)(batch, generator)


@dataclass(frozen=True)
class Scale:
    """Resize each image about its centre by a factor from 1/(1+``scale``) to 1+``scale``."""

    scale: float = 0.1
    fill: BorderFill = "zero"

    def __post_init__(self):
        Affine(scale=self.scale, fill=self.fill)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image resized by its own factor."""
        return Affine(0.0, self.scale, 0.0, self.fill)(batch, generator)


@dataclass(frozen=True)
class Shear:
    """Lean each image by up to ``degrees`` either way, upwards and sideways; areas are kept."""

    degrees: float = 10.0
    fill: BorderFill = "zero"

    def __post_init__(self):
        check_number("degrees", self.degrees, 0, 60)
        check_choice("fill", self.fill, get_args(BorderFill))

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image leaning by its own two angles."""
        count, most = len(batch), math.radians(self.degrees)
        a, b = (torch.tan(uniform_per_image(count, -most, most, generator)) for _ in range(2))
        if not self.degrees:
            return batch
        # First along y by b, then along x by a: the determinant is 1, so nothing collapses.
        leaning = affine_matrices(xx=1 + a * b, xy=a, yx=b, count=count)
        return replace(batch, pixels=warp(batch.pixels, leaning, self.fill))


@dataclass(frozen=True)
class ResizedCrop:
    """Cut a box of random area and aspect out of each image and enlarge it to the whole, bilinear.

    The box has from ``least`` to ``most`` of the area, and its sides are changed against each other by up to
    the factor ``aspect`` (log-uniform); ten are tried, then the whole image is kept. Szegedy et al. 2014,
    arXiv 1409.4842, section 6, with the defaults of torchvision's RandomResizedCrop.
    """

    least: float = 0.08
    most: float = 1.0
    aspect: float = 4 / 3

    def __post_init__(self):
        check_number("most", self.most, 0.001, 1)
        check_number("least", self.least, 0.001, self.most)
        check_number("aspect", self.aspect, 1, 10)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image replaced by an enlarged box of it."""
        heights, widths = draw_boxes(len(batch), self.least, self.most, self.aspect, generator)
        tops, lefts = (uniform_per_image(len(batch), -0.5, 0.5, generator) for _ in range(2))
        if self.least == self.aspect == 1:
            return batch
        fits = (heights <= 1) & (widths <= 1)
        first = fits.int().argmax(1, keepdim=True)
        whole = ~fits.any(1)
        h, w = (side.gather(1, first).flatten().masked_fill(whole, 1) for side in (heights, widths))
        height, width = batch.pixels.shape[-2:]
        boxes = affine_matrices(xx=w, yy=h, x=lefts * (1 - w) * width, y=tops * (1 - h) * height, count=len(batch))
        return replace(batch, pixels=warp(batch.pixels, boxes, "edge"))


@dataclass(frozen=True)
class Elastic:
    """Deform each image as if drawn on rubber: every pixel moves by a smooth random field.

    Displacements uniform in ±1 are smoothed by a Gaussian of ``sigma`` pixels and multiplied by ``alpha``:
    about alpha / (6 sigma) pixels rms along each axis, 1.4 by default. Simard, Steinkraus and Platt 2003,
    section 2, whose values for 29x29 digits are the defaults.
    """

    alpha: float = 34.0
    sigma: float = 4.0
    fill: BorderFill = "zero"

    def __post_init__(self):
        check_number("alpha", self.alpha, 0, 10_000)
        check_number("sigma", self.sigma, 0.1, 100)
        check_choice("fill", self.fill, get_args(BorderFill))

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image deformed by a field of its own."""
        count, height, width = len(batch), *batch.pixels.shape[-2:]
        field = torch.rand(count, 2, height, width, generator=generator)
        if not self.alpha:
            return batch
        field = field.to(batch.pixels.device, non_blocking=True).mul_(2).sub_(1)
        field = gaussian_blur(field, torch.tensor([self.sigma], dtype=torch.float64)).mul_(self.alpha)
        places = torch.empty(count, height, width, 2, device=field.device)
        for axis, side in enumerate((width, height)):
            still = (2 * torch.arange(side) + 1) / side - 1  # half sides from the centre
            line = still.to(field.device, non_blocking=True).view(*((1, -1) if axis == 0 else (-1, 1)))
            torch.add(line, field[:, axis], alpha=2 / side, out=places[..., axis])
        return replace(batch, pixels=resample(batch.pixels, places, self.fill))
