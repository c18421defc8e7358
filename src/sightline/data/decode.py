"""Bytes become pixels: the only place in the package where an image file is opened.

``decode_with_header`` gives the picture and its header, ``decode`` the picture alone, ``read_header`` the header
alone. JPEG is read by simplejpeg (turbo, scaled decoding for large photos), the rest by Pillow; without simplejpeg
Pillow reads JPEG too.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from ..errors import DataError, ImageError
from ..sources import MAX_FILE_BYTES
from ..types import Geometry
from . import codecs
from .codecs import TIFF_DEPTHS, TIFF_SAMPLES, check_tiff_blocks, read_tiff_tags
from .geometry import apply_orientation, least_decoded_shape, resize_to_geometry

if TYPE_CHECKING:
    from PIL import Image

DECODER_VERSION = 3
"""Increased whenever the same bytes would decode to other pixels: old stores are then rebuilt."""

IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Formats that every Pillow reads; AVIF is added where this one does, see ``readable_formats``."""
MAX_IMAGE_PIXELS = 100_000_000
"""Pixels that a header may announce; SIGHTLINE_MAX_MEGAPIXELS raises it for files that are trusted."""
_LEAST_MAX_PIXELS = 1_000_000  # of SIGHTLINE_MAX_MEGAPIXELS: up to it the environment need not be read
MAX_SCALED_PIXELS = 400_000_000
"""Pixels of a JPEG that is decoded at a reduced scale, in one scan: phones of 200 megapixels, panoramas."""
_MAX_JPEG_PIXELS_PER_BYTE = 256
"""A block of 64 pixels takes two bits at least: a shorter file lacks most of the picture."""
FULL_RANGE_16_BIT = (0.0, 65535.0)
"""The default window of 16- and 32-bit integers."""
FULL_RANGE_FLOAT = (0.0, 1.0)
"""The default window of floats."""

_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_ORIENTATION_MARKS = (b"Exif", b"eXIf", b"EXIF", codecs.XMP_ORIENTATION)
"""What a file contains that has an orientation, by EXIF or by XMP alone."""


class ImageHeader(NamedTuple):
    """The header of an image file; width and height of the upright picture, in pixels."""

    width: int
    height: int
    channels: int
    """1 for grey, 3 for anything with colour."""
    format: str
    rotated: bool
    """Whether the picture must be turned or mirrored to be upright, by EXIF."""
    animated: bool = False
    """Has more than one frame or page: the first is used."""
    transparent: bool = False
    """Has transparency: laid on white. After decoding, only where some pixel is not opaque."""
    cmyk: bool = False
    """Is in printers' inks (CMYK): turned into RGB without a colour profile."""
    depth: int = 8
    """Bits of a value: 8, 16 or 32."""
    low: float = 0
    high: float = 0
    """Smallest and largest value of grey with more than 8 bits; known after decoding."""
    floating: bool = False
    """Holds decimal numbers."""


def decode(data: bytes, geometry: Geometry, *, without_torch: bool = False) -> UInt8[ndarray, "H W C"]:
    """The picture in these bytes, at the working size; ``without_torch`` is that of ``resize_to_geometry``.

    Transparency is laid on white; 16-bit values keep their full range (65535 becomes 255) or the
    geometry's window; of an animation the first frame is taken. A picture of the working size is not resampled.
    Raises ImageError, with the reason, for anything that is not one whole image.
    """
    pixels, extent, _ = _read_pixels(data, geometry)
    return resize_to_geometry(pixels, geometry, extent, without_torch=without_torch)


def decode_with_header(
    data: bytes, geometry: Geometry, jpeg: codecs.JpegHeader | None = None
) -> tuple[UInt8[ndarray, "H W C"], ImageHeader]:
    """The picture at the working size, and its header; ``jpeg`` is what is known of a JPEG's. Raises ImageError."""
    pixels, extent, header = _read_pixels(data, geometry, jpeg)
    return resize_to_geometry(pixels, geometry, extent), header


_Decoded = tuple[ndarray, tuple[float, float] | None, ImageHeader]
"""The upright picture before it is resampled, the height and width it fills of these pixels, and its header."""


def _read_pixels(data: bytes, geometry: Geometry, jpeg: codecs.JpegHeader | None = None) -> _Decoded:
    _check_size(data)
    quick = None
    if data[:3] == b"\xff\xd8\xff":
        quick = _decode_jpeg(data, geometry, jpeg)
    elif (pixels := codecs.decode_png(data, _max_pixels())) is not None and pixels.shape[2] <= geometry.channels:
        quick = pixels, None, ImageHeader(pixels.shape[1], pixels.shape[0], pixels.shape[2], "PNG", False)
    return quick or _decode_with_pillow(data, geometry)


def read_header(data: bytes) -> ImageHeader:
    """The header, without decoding the picture. Raises ImageError."""
    _check_size(data)
    if data[:3] == b"\xff\xd8\xff" and (head := _checked_jpeg_header(data)):
        return _header_from_jpeg(head)
    image, orientation = _open_with_pillow(data)
    return _header_from_pillow(image, orientation, data)


def decoder_name() -> str:
    """The version and library that decode here, and what they refuse: part of a store's name."""
    limit = _max_pixels()
    raised = f"-{limit}" * (limit != MAX_IMAGE_PIXELS)
    return f"{DECODER_VERSION}-{'pillow' if codecs.import_simplejpeg() is None else 'simplejpeg'}{raised}"


def read_values(data: bytes) -> Float32[ndarray, "h w"] | None:
    """The values of a grey picture of 32 bits, a pixel in several where it is large; None for other pictures.

    Raises ImageError.
    """
    image, _ = _open_with_pillow(data)
    if image.mode not in ("I", "F") or _header_from_pillow(image, 1, data).depth < 32:
        return None
    try:
        values = np.asarray(image)
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise ImageError(codecs.DAMAGED_IMAGE) from error
    step = max(1, min(values.shape) // 128)
    return values[::step, ::step].astype(np.float32)


def _max_pixels() -> int:
    """The pixels that a header may announce, in this environment."""
    word = os.environ.get("SIGHTLINE_MAX_MEGAPIXELS", "").strip()
    if not word:
        return MAX_IMAGE_PIXELS
    if not word.isdigit() or not 1 <= int(word) <= 4000:
        raise DataError(
            f"--max-megapixels (SIGHTLINE_MAX_MEGAPIXELS) is '{word}': it must be a whole number from 1 to 4000."
        )
    return int(word) * 1_000_000


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise ImageError(
            f"the header announces {width} x {height} pixels, more than {limit // 1_000_000} megapixels, which is "
            f"refused unread: save it smaller, or allow it, --max-megapixels {-(-width * height // 1_000_000)}"
        )


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that are opened, as Pillow names them."""
    from PIL import features

    return (*IMAGE_FORMATS, "AVIF") if "avif" in features.modules and features.check("avif") else IMAGE_FORMATS


def _check_size(data: bytes) -> None:
    if not data:
        raise ImageError("the file is empty (zero bytes)")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"the file is larger than {MAX_FILE_BYTES // 1_000_000} MB, which is refused unread")


# JPEG by simplejpeg, plain PNG by hand


def _checked_jpeg_header(data: bytes, head: codecs.JpegHeader | None = None) -> codecs.JpegHeader | None:
    head = head or codecs.read_jpeg_header(data)
    pixels = head.width * head.height if head else 0
    if head and pixels > _LEAST_MAX_PIXELS and pixels > (limit := _max_pixels()):
        # In several scans a decoder holds the coefficients of the whole picture.
        single = not codecs.parse_jpeg_segments(data).keys().isdisjoint((0xC0, 0xC1))
        if single and pixels <= _MAX_JPEG_PIXELS_PER_BYTE * len(data):
            limit = max(limit, MAX_SCALED_PIXELS)
        _check_pixels(head.width, head.height, limit)
    return head


def _header_from_jpeg(head: codecs.JpegHeader) -> ImageHeader:
    height, width = (head.width, head.height) if head.orientation > 4 else (head.height, head.width)
    return ImageHeader(width, height, 1 if head.grey else 3, "JPEG", head.orientation > 1)


def _decode_jpeg(data: bytes, geometry: Geometry, head: codecs.JpegHeader | None) -> _Decoded | None:
    """As ``_read_pixels``; None where Pillow should read the file instead (CMYK, oddities)."""
    head = _checked_jpeg_header(data, head)
    if head is None:
        return None
    orientation = head.orientation if geometry.exif else 1
    across = orientation > 4
    tall, wide = _swap(least_decoded_shape(*_swap((head.height, head.width), across), geometry), across)
    large = head.width * head.height > _LEAST_MAX_PIXELS
    if large and codecs.jpeg_scale(head, tall, wide) == 8:  # nothing is saved
        _check_pixels(head.width, head.height, _max_pixels())
    found = codecs.decode_jpeg(data, head, geometry.channels, tall, wide)
    if found is None:
        return None
    pixels, extent = found
    return apply_orientation(pixels, orientation), _swap(extent, across), _header_from_jpeg(head)


def _swap(pair: tuple[Any, Any], swap: bool) -> tuple[Any, Any]:
    return pair[::-1] if swap else pair


# everything else by Pillow


def _open_with_pillow(data: bytes) -> "tuple[Image.Image, int]":
    """The image, its pixels not yet read, and its EXIF orientation (1 to 8)."""
    from PIL import Image

    _check_bands(data)
    check_tiff_blocks(read_tiff_tags(data))
    with codecs.PILLOW_LOCK, warnings.catch_warnings(), _without_pillow_limit():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(BytesIO(codecs.drop_png_notes(data)), formats=readable_formats())
        except Image.UnidentifiedImageError as error:
            raise ImageError(_unknown_format_reason(data)) from error
        except Exception as error:  # Pillow's readers raise nearly anything on damaged files
            raise ImageError(codecs.DAMAGED_IMAGE) from error
        orientation = 1
        if image.format in ("TIFF", "AVIF") or any(mark in data for mark in _ORIENTATION_MARKS):
            with suppress(Exception):  # as above; a broken EXIF block must not cost the picture
                orientation = codecs.valid_orientation(image.getexif().get(codecs.EXIF_ORIENTATION_TAG))
    _check_pixels(image.width, image.height, _max_pixels())
    return image, orientation


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Pillow's own limit lifted while it opens a file: ours is checked before any pixel is decoded."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _unknown_format_reason(data: bytes) -> str:
    """Why Pillow has no format for this content."""
    if data[4:8] == b"ftyp":
        known = "HEIC or a video" if "AVIF" in readable_formats() else "HEIC, AVIF or a video"
        return f"the file is {known}, which is not read: convert it to JPEG or PNG"
    if tags := read_tiff_tags(data):
        depths = tags.get(TIFF_DEPTHS, (1,))
        return (
            f"the TIFF has {_count_channels(tags.get(TIFF_SAMPLES, (1,))[0])} of {depths[0]} bits in a form that is "
            "not read: save it as 8-bit RGB, or as 8- or 16-bit grey"
        )
    if data[:3] == b"\xff\xd8\xff" or data[:4] == b"\x89PNG":
        return codecs.DAMAGED_IMAGE
    return f"the content is not an image ({', '.join(IMAGE_FORMATS)} are read)"


def _check_bands(data: bytes) -> None:
    """Refuse images with more channels than a picture has: Pillow would drop some without a word."""
    bands, kind = 1, ""
    if data[:3] == b"\xff\xd8\xff":
        segments, kind = codecs.parse_jpeg_segments(data), "JPEG"
        frame = next((body for mark, body in segments.items() if mark in range(0xC0, 0xC4)), b"")
        bands = frame[5] if len(frame) > 5 else 1
    elif tags := read_tiff_tags(data):
        bands, kind = tags.get(TIFF_SAMPLES, (1,))[0], "TIFF"
    if bands > 4 or (kind == "JPEG" and bands == 2):
        raise ImageError(
            f"the {kind} has {_count_channels(bands)}, and only grey (1), RGB (3), CMYK (4) and their transparent "
            "kinds are read: save the bands that matter as RGB or grey"
        )


def _count_channels(bands: int) -> str:
    return "1 channel" if bands == 1 else f"{bands} channels"


def _header_from_pillow(image: "Image.Image", orientation: int, data: bytes) -> ImageHeader:
    swapped = orientation > 4 and image.format != "TIFF"  # Pillow turns a TIFF itself
    width, height = image.size[::-1] if swapped else image.size
    grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
    transparent = "transparency" in image.info or image.mode in _ALPHA_MODES
    if image.mode.startswith("I;16"):
        depth = 16
    elif image.format == "PNG":  # Pillow shows 16-bit colour as 8-bit, so the file is read
        depth = 16 if data[24] == 16 else 8
    elif image.format == "TIFF":
        depth = max(8, *read_tiff_tags(data).get(TIFF_DEPTHS, (8,)))
    else:
        depth = {"I": 16, "F": 32}.get(image.mode, 8)
    return ImageHeader(
        width, height, 1 if grey else 3, image.format or "", orientation > 1,
        _has_second_frame(image.format or "", data), transparent, image.mode == "CMYK", depth,
        floating=image.mode == "F",
    )  # fmt: skip


def _has_second_frame(kind: str, data: bytes) -> bool:
    """Whether the file has a second frame or page."""
    from PIL import Image

    if kind not in ("GIF", "WEBP", "TIFF") and not (kind == "PNG" and b"acTL" in data):
        return False
    with codecs.PILLOW_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.open(BytesIO(data), formats=(kind,)).seek(1)
        except Exception:  # no such frame, or a damaged one
            return False
    return True


def _decode_with_pillow(data: bytes, geometry: Geometry) -> _Decoded:
    image, orientation = _open_with_pillow(data)
    header = _header_from_pillow(image, orientation, data)
    if not geometry.exif and image.format != "TIFF":  # Pillow turns a TIFF upright while loading it
        orientation = 1
    extent = None
    try:
        if image.format in ("JPEG", "MPO"):  # decoded at reduced scale where it is large
            across = orientation > 4
            width, height = image.size
            tall, wide = _swap(least_decoded_shape(*_swap((height, width), across), geometry), across)
            image.draft(None, (2 * wide, 2 * tall))
            if (scale := round(width / image.width)) > 1:
                extent = _swap((height / scale, width / scale), across)
        image.load()
        last = image.crop((0, image.height - 1, image.width, image.height))
        if image.format == "PNG" and (data[28] or not np.asarray(last).any()) and codecs.png_lacks_rows(data):
            raise ImageError(codecs.DAMAGED_IMAGE)
        pixels, header = _to_array(image, geometry, header, data)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(codecs.DAMAGED_IMAGE) from error
    return pixels if image.format == "TIFF" else apply_orientation(pixels, orientation), extent, header


def _to_array(
    image: "Image.Image", geometry: Geometry, header: ImageHeader, data: bytes
) -> tuple[UInt8[ndarray, "h w c"], ImageHeader]:
    """Pixels of a loaded image as 8-bit grey or RGB, whatever its mode; and the header with what they show."""
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        deep = np.asarray(image)
        shown = _apply_window(deep, image.mode, geometry.window)
        return shown[..., None], header._replace(low=float(deep.min()), high=float(deep.max()))
    if header.depth > 8 and geometry.window is not None:
        raise ImageError("16-bit colour is read by its full range only: leave the window out, or save it as grey")
    if image.mode == "CMYK" and image.format == "JPEG" and 0xEE not in codecs.parse_jpeg_segments(data):
        # Adobe's files hold inks inverted, and Pillow takes every file for one of Adobe's.
        image.frombytes(bytes(255 - np.asarray(image)))
    mode, clear = ("L" if geometry.channels == 1 else "RGB"), False

    def show(rows: Image.Image) -> Image.Image:
        nonlocal clear
        if header.transparent:
            rows = rows.convert("RGBA")
            if rows.getextrema()[3][0] < 255:  # type: ignore[index]  RGBA has a pair for each of four bands
                rows, clear = Image.alpha_composite(Image.new("RGBA", rows.size, "white"), rows), True
            rows = rows.convert("RGB")
        return rows if rows.mode == mode else rows.convert(mode)

    pixels = codecs.image_to_array(image, geometry.channels, show)
    return pixels, header._replace(transparent=clear)


def _apply_window(deep: ndarray, mode: str, window: tuple[float, float] | None) -> UInt8[ndarray, "h w"]:
    """Grey of more than 8 bits through a window: low becomes 0, high 255.

    Without a window integers are read by the full 16 bits and floats by [0, 1], whatever this picture holds: two
    pictures of one set must be shown alike.
    """
    low, high = window or (FULL_RANGE_FLOAT if mode == "F" else FULL_RANGE_16_BIT)
    shown = np.empty(deep.shape, np.uint8)
    step = codecs.rows_at_a_time(deep.shape[1])
    for top in range(0, len(deep), step):
        rows = deep[top : top + step]
        if not np.isfinite(rows).all():
            raise ImageError("the image has pixels that are not numbers")
        scaled = (rows.astype(np.float64) - low) * (255 / (high - low))
        shown[top : top + step] = np.rint(np.clip(scaled, 0, 255))
    return shown
