"""Where a pixel goes: flips, shifts, and one affine kernel with many samplers.

Parameters are drawn per image on the CPU, so that a batch on any device is augmented alike, and
moved there; nothing waits for the device. Pixels keep their dtype, range, shape and memory format.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional as F

from ..types import Batch

Fill = Literal["zero", "edge"]
"""What appears where the picture ends: black, or its border continued."""


@dataclass(frozen=True)
class Flip:
    """Mirror each image left to right with probability ``p``."""

    p: float = 0.5

    def __post_init__(self):
        _check_range("p", self.p, 1)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with some images mirrored."""
        chosen = (torch.rand(len(batch), generator=generator) < self.p).nonzero().flatten()
        return replace(batch, pixels=mirror(batch.pixels, chosen))


@dataclass(frozen=True)
class Shift:
    """Move each image by up to ``pixels`` each way, whole pixels: pad, then crop.

    ``fill`` is ``zero`` (black, the CIFAR convention) or ``edge`` (the border continued).
    """

    pixels: int = 4
    fill: Fill = "zero"

    def __post_init__(self):
        _check_range("pixels", self.pixels, 256)
        if not isinstance(self.pixels, int):
            raise ValueError(f"pixels is a whole number, not {self.pixels}")
        _check_fill(self.fill)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image moved by its own offset."""
        offsets = torch.randint(-self.pixels, self.pixels + 1, (len(batch), 2), generator=generator)
        return replace(batch, pixels=move(batch.pixels, offsets, self.pixels, self.fill))


@dataclass(frozen=True)
class Affine:
    """Turn, resize and move each image at once, bilinear.

    The angle is uniform in ±``degrees``, the size log-uniform in [1/(1+``scale``), 1+``scale``], the
    displacement uniform in ±``translate`` of each side.
    """

    degrees: float = 10.0
    scale: float = 0.1
    translate: float = 0.1
    fill: Fill = "zero"

    def __post_init__(self):
        _check_range("degrees", self.degrees, 180)
        _check_range("scale", self.scale, 10)
        _check_range("translate", self.translate, 1)
        _check_fill(self.fill)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image turned, resized and moved by its own amounts."""
        drawn = 2 * torch.rand(len(batch), 4, generator=generator, dtype=torch.float64) - 1
        if not (self.degrees or self.scale or self.translate):
            return batch
        turns = drawn[:, 0] * math.radians(self.degrees)
        sizes = torch.exp(drawn[:, 1] * math.log1p(self.scale))
        matrices = similarity(turns, sizes, drawn[:, 2:] * self.translate, batch.pixels.shape[-2:])
        return replace(batch, pixels=warp(batch.pixels, matrices, self.fill))


@dataclass(frozen=True)
class Rotate:
    """Turn each image about its centre by up to ``degrees`` either way."""

    degrees: float = 10.0
    fill: Fill = "zero"

    def __post_init__(self):
        Affine(degrees=self.degrees, fill=self.fill)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image turned by its own angle."""
        return Affine(self.degrees, 0.0, 0.0, self.fill)(batch, generator)


@dataclass(frozen=True)
class Scale:
    """Resize each image about its centre by a factor from 1/(1+``scale``) to 1+``scale``."""

    scale: float = 0.1
    fill: Fill = "zero"

    def __post_init__(self):
        Affine(scale=self.scale, fill=self.fill)

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch with every image resized by its own factor."""
        return Affine(0.0, self.scale, 0.0, self.fill)(batch, generator)


def _check_range(name: str, value: float, most: int) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= most:
        raise ValueError(f"{name} is a number from 0 to {most}, not {value}")


def _check_fill(fill: str) -> None:
    if fill not in get_args(Fill):
        raise ValueError(f"fill is one of {', '.join(get_args(Fill))}, not '{fill}'")


def mirror(pixels: Float[Tensor, "B C H W"], chosen: Int[Tensor, " n"]) -> Float[Tensor, "B C H W"]:
    """A copy of ``pixels`` with the chosen images mirrored left to right."""
    chosen = chosen.to(pixels.device, non_blocking=True)
    copy = dense(pixels).clone()
    cells = _cells(copy)
    # Copying the chosen out and back is twice as fast as a where over the whole batch.
    cells.index_copy_(0, chosen, cells.index_select(0, chosen).flip(3))
    return copy


def move(
    pixels: Float[Tensor, "B C H W"], offsets: Int[Tensor, "B 2"], margin: int, fill: Fill
) -> Float[Tensor, "B C H W"]:
    """Each image moved down and right by its offsets (dy, dx), each within ±``margin`` pixels.

    One gather of whole rows from the padded batch: each row is one memory copy, 2.5 times faster than
    indexing windows and 3 times faster than gathering pixels (128 RGB images of 32x32, one thread).
    """
    pixels = dense(pixels)
    padded = _padded(_cells(pixels), margin, fill)  # (B P H+2m W+2m U)
    count, planes, height, width, unit = padded.shape
    h, w = pixels.shape[-2:]
    top, left = (margin - offsets).unbind(1)
    lines = torch.arange(count * planes).view(count, planes, 1) * height + torch.arange(h)
    starts = (lines + top.view(-1, 1, 1)) * width + left.view(-1, 1, 1)
    # Every run of W cells that starts anywhere in the padded batch: overlapping views, no memory.
    runs = padded.as_strided((count * planes * height * width - w + 1, w * unit), (unit, 1))
    moved = runs.index_select(0, starts.flatten().to(pixels.device, non_blocking=True))
    return moved.as_strided(pixels.size(), pixels.stride())


def similarity(
    turns: Float[Tensor, " B"],
    sizes: Float[Tensor, " B"],
    moves: Float[Tensor, "B 2"],
    shape: tuple[int, int] | torch.Size,
) -> Float[Tensor, "B 2 3"]:
    """Matrices for ``warp``: turn anticlockwise (radians), enlarge, then move by shares (x, y) of the sides."""
    height, width = shape
    cos, sin = torch.cos(turns) / sizes, torch.sin(turns) / sizes
    linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    pixels = moves * torch.tensor([width, height], dtype=moves.dtype)
    return torch.cat([linear, -linear @ pixels[:, :, None]], 2)


def warp(
    pixels: Float[Tensor, "B C H W"], matrices: Float[Tensor, "B 2 3"], fill: Fill = "zero"
) -> Float[Tensor, "B C H W"]:
    """The one affine kernel: ``out(x, y) = in(M (x, y, 1))``, bilinear.

    Coordinates are in pixels from the centre of the image, x right and y down; one matrix per image.
    """
    height, width = pixels.shape[-2:]
    x = torch.arange(width, dtype=matrices.dtype) - (width - 1) / 2
    y = torch.arange(height, dtype=matrices.dtype) - (height - 1) / 2
    halves = torch.tensor([width / 2, height / 2], dtype=matrices.dtype)[:, None]
    matrices = matrices / halves  # grid_sample measures in half sides
    along = (matrices[:, :, :1] * x).float().to(pixels.device, non_blocking=True)  # (B 2 W)
    down = (matrices[:, :, 1:2] * y + matrices[:, :, 2:]).float().to(pixels.device, non_blocking=True)
    grid = torch.empty(len(pixels), height, width, 2, device=pixels.device)
    for axis in (0, 1):  # a sum of a row and a column: 8 times faster than affine_grid
        torch.add(along[:, axis, None, :], down[:, axis, :, None], out=grid[..., axis])
    mode = "zeros" if fill == "zero" else "border"
    # Bilinear weights sum to one only up to rounding, hence the clamp.
    warped = F.grid_sample(pixels.float(), grid, padding_mode=mode, align_corners=False).clamp_(0, 1)
    return torch.empty_like(pixels).copy_(warped)


def dense(pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """``pixels`` if their memory is one block in a known order, else a contiguous copy."""
    known = (torch.channels_last, torch.contiguous_format)
    return pixels if any(pixels.is_contiguous(memory_format=order) for order in known) else pixels.contiguous()


def _cells(pixels: Tensor) -> Tensor:
    """A view (B P H W U) in the order of memory: one plane of C-unit cells, or C planes of units."""
    if pixels.is_contiguous(memory_format=torch.channels_last):
        return pixels.permute(0, 2, 3, 1).unsqueeze(1)
    return pixels.unsqueeze(-1)


def _padded(cells: Tensor, margin: int, fill: Fill) -> Tensor:
    """(B P H W U) with ``margin`` cells more on each side."""
    count, planes, height, width, unit = cells.shape
    bottom, right = margin + height, margin + width
    padded = cells.new_zeros(count, planes, height + 2 * margin, width + 2 * margin, unit)
    padded[:, :, margin:bottom, margin:right] = cells
    if fill == "edge" and margin:
        padded[:, :, margin:bottom, :margin] = cells[:, :, :, :1]
        padded[:, :, margin:bottom, right:] = cells[:, :, :, -1:]
        padded[:, :, :margin] = padded[:, :, margin : margin + 1]
        padded[:, :, bottom:] = padded[:, :, bottom - 1 : bottom]
    return padded
