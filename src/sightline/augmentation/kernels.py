"""Draws per image, and the kernels that move and smooth pixels: one affine, one Gaussian, whole rows.

Numbers are drawn on the CPU in float64, so that a batch on any device is augmented alike and nothing waits for the
device. Pixels keep their dtype, range, shape and memory format; the given ones are never written to.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn import functional as F

BorderFill = Literal["zero", "edge"]
"""The fill beyond the border: black, or the border continued."""

CROP_TRIES = 10
"""Boxes drawn for each image until one fits into it, as in torchvision."""


def uniform_per_image(count: int, low: float, high: float, generator: Generator) -> Float[Tensor, " B"]:
    """One number in [low, high) for each image."""
    return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)


def draw_bernoulli(count: int, p: float, generator: Generator) -> Bool[Tensor, " B"]:
    """True for each image with probability ``p``."""
    return torch.rand(count, generator=generator) < p


def draw_boxes(
    count: int, least: float, most: float, aspect: float, generator: Generator
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """``CROP_TRIES`` boxes for each image: (heights, widths) as shares of the sides.

    The area is uniform in [least, most] of the image's, the ratio of the shares log-uniform in [1/aspect, aspect].
    """
    drawn = torch.rand(2, count, CROP_TRIES, generator=generator, dtype=torch.float64)
    areas = least + (most - least) * drawn[0]
    ratios = torch.exp((2 * drawn[1] - 1) * math.log(aspect))
    return (areas / ratios).sqrt(), (areas * ratios).sqrt()


def per_image(values: Float[Tensor, " B"], pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 1 1"]:
    """One number per image in a shape that broadcasts over its pixels, on their device and of their dtype."""
    return values.to(pixels.dtype).to(pixels.device, non_blocking=True).view(-1, 1, 1, 1)


def flip_images(
    pixels: Float[Tensor, "B C H W"], chosen: Int[Tensor, " n"], axis: int = 3
) -> Float[Tensor, "B C H W"]:
    """A copy of ``pixels`` with the chosen images mirrored: left to right, or along ``axis`` 2 top to bottom."""
    # Copying the chosen out and back is twice as fast as a where over the whole batch.
    return scatter_images(pixels, chosen, gather_images(pixels, chosen).flip(axis))


def gather_images(pixels: Float[Tensor, "B C H W"], chosen: Int[Tensor, " n"]) -> Float[Tensor, "n C H W"]:
    """The chosen images, in the memory format of all."""
    pixels = as_dense(pixels)
    # In the order of memory an image is one copy, much faster than indexing channels_last pixels.
    cells = _memory_cells(pixels).index_select(0, chosen.to(pixels.device, non_blocking=True))
    return cells.as_strided((len(chosen), *pixels.shape[1:]), pixels.stride())


def scatter_images(
    pixels: Float[Tensor, "B C H W"], chosen: Int[Tensor, " n"], images: Float[Tensor, "n C H W"]
) -> Float[Tensor, "B C H W"]:
    """A copy of ``pixels`` with ``images`` in the chosen places."""
    copy = as_dense(pixels).clone()
    cells = _memory_cells(match_layout(images, copy))
    _memory_cells(copy).index_copy_(0, chosen.to(pixels.device, non_blocking=True), cells)
    return copy


def translate_images(
    pixels: Float[Tensor, "B C H W"], offsets: Int[Tensor, "B 2"], margin: int, fill: BorderFill
) -> Float[Tensor, "B C H W"]:
    """Each image moved down and right by its offsets (dy, dx), each within ±``margin`` pixels.

    One gather of whole rows from the padded batch: each row is one memory copy, where
    indexing windows or gathering pixels copies a pixel at a time.
    """
    pixels = as_dense(pixels)
    padded = _pad_cells(_memory_cells(pixels), margin, fill)  # (B P H+2m W+2m U)
    count, planes, height, width, unit = padded.shape
    h, w = pixels.shape[-2:]
    top, left = (margin - offsets).unbind(1)
    lines = torch.arange(count * planes).view(count, planes, 1) * height + torch.arange(h)
    starts = (lines + top.view(-1, 1, 1)) * width + left.view(-1, 1, 1)
    # Every run of W cells that starts anywhere in the padded batch: overlapping views, no memory.
    runs = padded.as_strided((count * planes * height * width - w + 1, w * unit), (unit, 1))
    moved = runs.index_select(0, starts.flatten().to(pixels.device, non_blocking=True))
    return moved.as_strided(pixels.size(), pixels.stride())


def similarity_matrices(
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


def affine_matrices(
    xx: Tensor | float = 1.0,
    xy: Tensor | float = 0.0,
    x: Tensor | float = 0.0,
    yx: Tensor | float = 0.0,
    yy: Tensor | float = 1.0,
    y: Tensor | float = 0.0,
    *,
    count: int,
) -> Float[Tensor, "B 2 3"]:
    """Matrices for ``warp`` from their six entries, each a number or one per image: ``x' = xx x + xy y + x0``."""
    made = torch.empty(count, 2, 3, dtype=torch.float64)
    for place, entry in enumerate((xx, xy, x, yx, yy, y)):
        made.view(count, 6)[:, place] = entry
    return made


def warp(
    pixels: Float[Tensor, "B C H W"], matrices: Float[Tensor, "B 2 3"], fill: BorderFill = "zero"
) -> Float[Tensor, "B C H W"]:
    """The one affine kernel: ``out(x, y) = in(M (x, y, 1))``, bilinear.

    Coordinates are in pixels from the centre of the image, x right and y down; one matrix per image.
    """
    height, width = pixels.shape[-2:]
    x, y = (torch.arange(side, dtype=matrices.dtype) - (side - 1) / 2 for side in (width, height))
    matrices = matrices / torch.tensor([width / 2, height / 2], dtype=matrices.dtype)[:, None]
    along = (matrices[:, :, :1] * x).float().to(pixels.device, non_blocking=True)  # (B 2 W)
    down = (matrices[:, :, 1:2] * y + matrices[:, :, 2:]).float().to(pixels.device, non_blocking=True)
    grid = torch.empty(len(pixels), height, width, 2, device=pixels.device)
    for axis in (0, 1):  # a sum of a row and a column, not the product that affine_grid works
        torch.add(along[:, axis, None, :], down[:, axis, :, None], out=grid[..., axis])
    return resample(pixels, grid, fill)


def resample(
    pixels: Float[Tensor, "B C H W"], places: Float[Tensor, "B H W 2"], fill: BorderFill = "zero"
) -> Float[Tensor, "B C H W"]:
    """``out(x, y) = in(places(x, y))``, bilinear; places (x, y) in half sides from the centre."""
    mode = "zeros" if fill == "zero" else "border"
    # Bilinear weights sum to one only up to rounding, hence the clamp.
    moved = F.grid_sample(pixels.float(), places, padding_mode=mode, align_corners=False).clamp_(0, 1)
    return match_layout(moved, pixels)


def gaussian_blur(pixels: Float[Tensor, "B C H W"], sigmas: Float[Tensor, " b"]) -> Float[Tensor, "B C H W"]:
    """Each image convolved with a Gaussian, the image mirrored at its borders; b is B, or 1 for all.

    ``sigmas`` are standard deviations in pixels; 0 changes nothing. Separable, a product with one matrix per
    direction: as fast as a convolution, with a sigma of its own for each image.
    """
    height, width = pixels.shape[-2:]
    across = _gaussian_matrices(sigmas, width).to(pixels.device, non_blocking=True)
    down = across if height == width else _gaussian_matrices(sigmas, height).to(pixels.device, non_blocking=True)
    # The matrices are symmetric. Images side by side make one product of each image's rows.
    rows = pixels.float().contiguous().flatten(1, 2) @ across  # (B C*H W)
    return match_layout(down[:, None] @ rows.view(pixels.shape), pixels)


def _gaussian_matrices(sigmas: Float[Tensor, " b"], size: int) -> Float[Tensor, "b n n"]:
    """Matrices that convolve a line of ``size`` pixels, mirrored at its ends (d c b a | a b c d | d c b a).

    Mirrored, a line has period 2n: fold the Gaussian g to F(d) = sum_m g(d + 2nm); then
    M(i, j) = F(i - j) + F(i + j + 1), the second term being j's mirror image.
    """
    distance = torch.arange(2 * size, dtype=torch.float64)
    copies = distance + 2 * size * torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)  # (3 2n)
    widths = sigmas.double().clamp_min(1e-3).view(-1, 1, 1)
    folded = torch.exp(-0.5 * (copies / widths).square()).sum(1)  # (b 2n)
    folded = (folded / folded.sum(1, keepdim=True)).float()
    place = torch.arange(size)
    return folded[:, (place[:, None] - place).abs()] + folded[:, place[:, None] + place + 1]


def as_dense(pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """``pixels`` if their memory is one block in a known order, else a contiguous copy."""
    known = (torch.channels_last, torch.contiguous_format)
    return pixels if any(pixels.is_contiguous(memory_format=order) for order in known) else pixels.contiguous()


def match_layout(images: Float[Tensor, "n C H W"], pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "n C H W"]:
    """``images`` in the dtype and memory format of ``pixels``; not copied where they match."""
    last = pixels.is_contiguous(memory_format=torch.channels_last)
    strides = pixels.stride() if last or pixels.is_contiguous() else as_dense(pixels).stride()
    if images.dtype == pixels.dtype and images.stride() == strides:
        return images
    return torch.empty_strided(images.shape, strides, dtype=pixels.dtype, device=pixels.device).copy_(images)


def _memory_cells(pixels: Tensor) -> Tensor:
    """A view (B P H W U) in the order of memory: one plane of C-unit cells, or C planes of units."""
    if pixels.is_contiguous(memory_format=torch.channels_last):
        return pixels.permute(0, 2, 3, 1).unsqueeze(1)
    return pixels.unsqueeze(-1)


def _pad_cells(cells: Tensor, margin: int, fill: BorderFill) -> Tensor:
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
