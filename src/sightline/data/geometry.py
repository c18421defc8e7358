"""Pictures brought to a geometry: turned, cropped, padded and resampled; and what that loses."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Shaped, UInt8
from numpy import ndarray

from ..types import Geometry
from .codecs import rows_at_a_time

_TORCH_FILTERS = {"bilinear": "_upsample_bilinear2d_aa", "bicubic": "_upsample_bicubic2d_aa"}
"""torch's antialiased filters on uint8: Pillow's, vectorised; at most two levels of 255 apart, mostly equal."""


def resized_shape(height: float, width: float, geometry: Geometry) -> tuple[int, int]:
    """The (height, width) a picture of this size is resampled to: smaller than the working size for pad only."""
    tall, wide = geometry.size
    if geometry.resize_mode != "pad":
        return tall, wide
    scale = min(tall / height, wide / width)
    return min(tall, max(1, round(height * scale))), min(wide, max(1, round(width * scale)))


def least_decoded_shape(height: float, width: float, geometry: Geometry) -> tuple[int, int]:
    """The least (height, width) at which a file that can be decoded at a reduced scale should be decoded."""
    tall, wide = resized_shape(height, width, geometry)
    return math.ceil(tall / geometry.crop_fraction), math.ceil(wide / geometry.crop_fraction)


def crop_box(height: float, width: float, geometry: Geometry) -> tuple[float, float, float, float]:
    """The box (left, top, right, bottom) of the original that is used: a part of it for crop only."""
    if geometry.resize_mode != "crop":
        return 0.0, 0.0, float(width), float(height)
    scale = max(geometry.size[0] / height, geometry.size[1] / width) / geometry.crop_fraction
    tall, wide = geometry.size[0] / scale, geometry.size[1] / scale
    left, top = (width - wide) / 2, (height - tall) / 2
    return max(left, 0.0), max(top, 0.0), min(left + wide, width), min(top + tall, height)


def apply_orientation(pixels: ndarray, orientation: int) -> ndarray:
    """Upright pixels, by EXIF orientation: 2 mirror, 3 half turn, 6 a quarter turn clockwise, ..."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def resize_to_geometry(
    pixels: UInt8[ndarray, "h w c"],
    geometry: Geometry,
    extent: tuple[float, float] | None = None,
    *,
    without_torch: bool = False,
) -> UInt8[ndarray, "H W C"]:
    """Squash, crop or pad to the working size, antialiased; unchanged where it has that size.

    Grey becomes as many channels as are wanted. ``extent`` is the exact height and width of the picture in these
    pixels: a photo decoded at half scale may end in half a pixel, which would otherwise distort it. ``without_torch``
    makes Pillow resample by the bilinear filter, for a process that would import torch for it alone: slower, and at
    most one level of 255 apart. By the bicubic filter they are further apart, as Pillow clips between its passes.
    """
    height, width = pixels.shape[:2]
    if (height, width) != geometry.size:
        tall, wide = extent or (height, width)
        size = resized_shape(tall, wide, geometry)
        cropped = geometry.crop_fraction < 1
        if cropped or (
            size != (height, width)
            and (
                geometry.resize_mode == "crop"
                or geometry.interpolation not in _TORCH_FILTERS
                or (without_torch and geometry.interpolation == "bilinear")
            )
        ):
            from PIL import Image  # fractional boxes and the rarer filters

            flat = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            left, top, right, bottom = crop_box(tall, wide, geometry)
            box = (left, top, min(right, flat.shape[1]), min(bottom, flat.shape[0]))
            filter = Image.Resampling[geometry.interpolation.upper()]
            resized = Image.fromarray(flat).resize((size[1], size[0]), filter, box)
            pixels = np.asarray(resized).reshape(*size, pixels.shape[2])
        elif size != (height, width):
            pixels = resize_images(pixels[None], size, geometry.interpolation, extent)[0]
        if size != geometry.size:
            padded = np.zeros(geometry.shape, np.uint8)
            top, left = (geometry.size[0] - size[0]) // 2, (geometry.size[1] - size[1]) // 2
            padded[top : top + size[0], left : left + size[1]] = pixels
            pixels = padded
    return pixels if pixels.shape[2] == geometry.channels else pixels.repeat(geometry.channels, axis=2)


def resize_images(
    pixels: UInt8[ndarray, "B h w C"],
    size: tuple[int, int],
    filter: str = "bilinear",
    extent: tuple[float, float] | None = None,
) -> UInt8[ndarray, "B H W C"]:
    """Pictures resampled to ``size``, antialiased, by a bilinear or bicubic filter."""
    scales = (size[0] / extent[0], size[1] / extent[1]) if extent else (None, None)
    count, height, width, channels = pixels.shape
    step = rows_at_a_time(width)
    if step < height and size[1] != width:  # torch copies what it resamples: across first, row by row, as it does
        narrow = np.empty((count, height, size[1], channels), np.uint8)
        for top in range(0, height, step):
            rows = pixels[:, top : top + step]
            narrow[:, top : top + step] = _resample(rows, (rows.shape[1], size[1]), filter, (None, scales[1]))
        pixels = narrow
    return _resample(pixels, size, filter, scales if pixels.shape[2] == width else (scales[0], None))


def _resample(
    pixels: ndarray, size: tuple[int, int], filter: str, scales: tuple[float | None, float | None]
) -> ndarray:
    import torch  # here: a picture of the working size is read without it

    whole = np.require(pixels, requirements=("C", "W"))  # torch warns of arrays it may not write to
    made = np.empty((len(pixels), *size, pixels.shape[3]), np.uint8)
    getattr(torch.ops.aten, _TORCH_FILTERS[filter]).out(
        torch.from_numpy(whole).permute(0, 3, 1, 2),
        list(size),
        False,
        *scales,
        out=torch.from_numpy(made).permute(0, 3, 1, 2),
    )
    return made


@dataclass(frozen=True, eq=False)
class GeometryLoss:
    """One kind of loss, for every image."""

    amounts: Float64[ndarray, " N"]
    sentence: str
    """The beginning of a sentence, with a placeholder for the amount."""
    remedy: str
    note_above: float
    """Mean from which it gets a note."""
    class_gap: float
    """Difference between classes from which it gets a warning."""
    format_amount: Callable[[float], str] = "{:.0%}".format

    def describe(self, amount: float) -> str:
        """The sentence with this amount in it."""
        return self.sentence.format(self.format_amount(amount))


def geometry_losses(
    height: Shaped[ndarray, " N"], width: Shaped[ndarray, " N"], geometry: Geometry
) -> dict[str, GeometryLoss]:
    """The losses of images of these sizes (upright, in pixels), by the kinds that the resize mode can have.

    ``cropped`` is the share of a picture's area cut off, ``padding`` the share of the working area
    left black, ``bend`` the factor by which squashing changes the aspect ratio (1 is none), ``enlarged``
    is 1 where a picture is smaller than the working size.
    """
    tall, wide = geometry.size
    down, across = tall / height, wide / width
    bend = np.maximum(down, across) / np.minimum(down, across)
    scale = {"squash": np.sqrt(down * across), "crop": np.maximum(down, across)}.get(
        geometry.resize_mode, np.minimum(down, across)
    ) / geometry.crop_fraction
    enlarged = GeometryLoss(
        (scale > 1).astype(np.float64),
        "{} of the images are smaller than the working size and are enlarged",
        ": a smaller --size would lose nothing and be faster.",
        0.5,
        0.5,
    )
    cropped = 1 - geometry.crop_fraction**2 / bend
    own = {
        "squash": ("bend", GeometryLoss(bend, "Squashing changes the aspect ratio by a factor of {} on average",
                    ": --resize-mode crop or pad keeps it.", 1.15, 0.25, "{:.2f}".format)),
        "crop": ("cropped", GeometryLoss(cropped, "Cropping cuts away {} of the area on average",
                    ": --resize-mode squash or pad keeps it.", 0.1, 0.15)),
        "pad": ("padding", GeometryLoss(1 - 1 / bend, "Padding leaves {} of the working area black on average",
                    ": --resize-mode squash or crop fills it.", 0.1, 0.15)),
    }  # fmt: skip
    name, loss = own[geometry.resize_mode]
    return {name: loss, "enlarged": enlarged}
