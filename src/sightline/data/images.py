"""Bytes become pixels: the only place in the package where an image file is opened.

``read`` gives the picture with what its header says, ``decode`` the picture alone, ``inspect``
the header alone. JPEG goes through simplejpeg (turbo, scaled decoding for large photos), the
rest through Pillow; where simplejpeg cannot be imported, Pillow reads JPEG too.
"""

import threading
import warnings
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from ..errors import ImageError
from ..sources.listing import MAX_BYTES
from ..types import Geometry
from .png import read_plain

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1
"""Raised whenever the same bytes would decode to other pixels: old stores are then rebuilt."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 100_000_000

_ORIENTATION = 0x0112
_GAP = 2
"""Large JPEGs are decoded at a reduced scale, but at least this many times the size asked for, as
Pillow's ``thumbnail`` does: decoded at just the size, pictures come out visibly softer."""
_TOO_LARGE = "the header announces more than 100 megapixels, which is refused unread"
_CUT_SHORT = "the file is damaged or cut short"
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_DAMAGE = ("premature end", "bad huffman", "no image", "truncated", "ended prematurely")
_OPENING = threading.Lock()  # warnings.catch_warnings changes global state: one thread at a time


class Header(NamedTuple):
    """What an image file says of itself; width and height as seen upright, in pixels."""

    width: int
    height: int
    channels: int
    """1 for grey, 3 for anything with colour."""
    format: str
    rotated: bool
    """True when EXIF says the picture must be turned or mirrored to be upright."""


def decode(data: bytes, geometry: Geometry) -> UInt8[ndarray, "H W C"]:
    """The picture in these bytes at the working size.

    Transparency is laid on white; 16-bit grey keeps its full range (65535 becomes 255); of an
    animation the first frame is taken. A picture already of the working size is not resampled.
    Raises ImageError, with the reason, for anything that is not one whole image.
    """
    return read(data, geometry)[0]


def read(data: bytes, geometry: Geometry) -> tuple[UInt8[ndarray, "H W C"], Header]:
    """The picture at the working size, and its header. Raises ImageError."""
    _check(data)
    quick = _read_jpeg if data[:3] == b"\xff\xd8\xff" else _read_png
    return quick(data, geometry) or _read_any(data, geometry)


def inspect(data: bytes) -> Header:
    """What the header says, without decoding the picture. Raises ImageError."""
    _check(data)
    if data[:3] == b"\xff\xd8\xff" and (head := _jpeg_header(data)):
        return head[0]
    image, orientation = _open(data)
    return _header_of(image, orientation)


def fitted(height: int, width: int, geometry: Geometry) -> tuple[int, int]:
    """The (height, width) a picture of this size is resampled to: smaller than the working size for pad only."""
    tall, wide = geometry.size
    if geometry.fit != "pad":
        return tall, wide
    scale = min(tall / height, wide / width)
    return min(tall, max(1, round(height * scale))), min(wide, max(1, round(width * scale)))


def kept(height: int, width: int, geometry: Geometry) -> tuple[float, float, float, float]:
    """The box (left, top, right, bottom) of the original that is used: less than all of it for crop only."""
    if geometry.fit != "crop":
        return 0.0, 0.0, float(width), float(height)
    scale = max(geometry.size[0] / height, geometry.size[1] / width)
    tall, wide = geometry.size[0] / scale, geometry.size[1] / scale
    left, top = (width - wide) / 2, (height - tall) / 2
    return max(left, 0.0), max(top, 0.0), min(left + wide, width), min(top + tall, height)


def decoder() -> str:
    """Which code turns bytes into pixels here: part of a store's name."""
    return f"{VERSION}-{'pillow' if _simplejpeg() is None else 'simplejpeg'}"


def _check(data: bytes) -> None:
    if not data:
        raise ImageError("the file is empty (zero bytes)")
    if len(data) > MAX_BYTES:
        raise ImageError(f"the file is larger than {MAX_BYTES // 1_000_000} MB, which is refused unread")


# JPEG by simplejpeg


@cache
def _simplejpeg() -> Any:
    """The module, or None where it is not installed (Pillow then reads JPEG)."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _jpeg_header(data: bytes) -> tuple[Header, int] | None:
    """Header and EXIF orientation (1 to 8); None where Pillow should look instead."""
    jpeg = _simplejpeg()
    if jpeg is None:
        return None
    try:
        height, width, space, _ = jpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if height * width > MAX_PIXELS:
        raise ImageError(_TOO_LARGE)
    if space not in ("Gray", "GRAY", "YCbCr", "RGB"):
        return None
    orientation = _jpeg_orientation(data)
    if orientation > 4:
        height, width = width, height
    channels = 1 if space.upper() == "GRAY" else 3
    return Header(width, height, channels, "JPEG", orientation > 1), orientation


def _jpeg_orientation(data: bytes) -> int:
    """EXIF orientation of a JPEG; 1 (upright) when it has none or nonsense. Cheap without EXIF."""
    scan = data.find(b"\xff\xda")
    start = data.find(b"Exif\0\0", 0, scan if scan > 0 else len(data))
    if start < 4:
        return 1
    length = int.from_bytes(data[start - 2 : start], "big") - 2
    return _exif_orientation(data[start : start + length])


def _exif_orientation(block: bytes) -> int:
    from PIL import Image

    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exif = Image.Exif()
            exif.load(block)
            return _plausible(exif.get(_ORIENTATION))
        except Exception:  # a broken EXIF block must not cost the picture
            return 1


def _plausible(orientation: Any) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _read_jpeg(data: bytes, geometry: Geometry) -> tuple[ndarray, Header] | None:
    """As ``read``; None where Pillow should read the file instead (CMYK, oddities)."""
    head = _jpeg_header(data)
    if head is None:
        return None
    header, orientation = head
    if not geometry.exif:
        orientation = 1
    size = (header.height, header.width) if geometry.exif or not header.rotated else _raw_size(data)
    tall, wide = fitted(*size, geometry)
    if orientation > 4:
        tall, wide = wide, tall
    try:
        pixels = _simplejpeg().decode_jpeg(
            data, "GRAY" if geometry.channels == 1 else "RGB", min_height=_GAP * tall, min_width=_GAP * wide
        )
    except ValueError as error:
        if any(word in str(error).lower() for word in _DAMAGE):
            raise ImageError(_CUT_SHORT) from error
        return None  # harmless warnings of libjpeg: Pillow judges
    return _fit(_turn(pixels, orientation), geometry), header


def _raw_size(data: bytes) -> tuple[int, int]:
    return _simplejpeg().decode_jpeg_header(data)[:2]


# everything else by Pillow


def _read_png(data: bytes, geometry: Geometry) -> tuple[ndarray, Header] | None:
    """As ``read`` for a plain PNG whose channels are those asked for; None for all else."""
    pixels = read_plain(data, MAX_PIXELS)
    if pixels is None or pixels.shape[2] > geometry.channels:
        return None
    height, width, channels = pixels.shape
    if channels < geometry.channels:
        pixels = pixels.repeat(3, axis=2)
    return _fit(pixels, geometry), Header(width, height, channels, "PNG", False)


def _open(data: bytes) -> "tuple[Image.Image, int]":
    """The image, its pixels not yet read, and its EXIF orientation (1 to 8)."""
    from PIL import Image

    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(BytesIO(data), formats=FORMATS)
            marked = image.format == "TIFF" or b"Exif" in data or b"eXIf" in data or b"EXIF" in data
            orientation = _plausible(image.getexif().get(_ORIENTATION)) if marked else 1
        except Image.DecompressionBombError as error:
            raise ImageError(_TOO_LARGE) from error
        except Image.UnidentifiedImageError as error:
            raise ImageError(_unknown(data)) from error
        except Exception as error:  # Pillow's readers raise nearly anything on damaged files
            raise ImageError(_CUT_SHORT) from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(_TOO_LARGE)
    return image, orientation


def _unknown(data: bytes) -> str:
    """Why Pillow knows no format for this content."""
    if data[4:8] == b"ftyp":
        return "the file is HEIC, AVIF or a video, which is not read: convert it to JPEG or PNG"
    if data[:3] == b"\xff\xd8\xff" or data[:4] == b"\x89PNG":
        return _CUT_SHORT
    return f"the content is not an image ({', '.join(FORMATS)} are read)"


def _header_of(image: "Image.Image", orientation: int) -> Header:
    swapped = orientation > 4 and image.format != "TIFF"  # Pillow turns a TIFF itself
    width, height = image.size[::-1] if swapped else image.size
    grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
    return Header(width, height, 1 if grey else 3, image.format or "", orientation > 1)


def _read_any(data: bytes, geometry: Geometry) -> tuple[ndarray, Header]:
    image, orientation = _open(data)
    header = _header_of(image, orientation)
    tiff = image.format == "TIFF"
    try:
        if image.format in ("JPEG", "MPO") and (geometry.exif or orientation == 1):
            tall, wide = fitted(header.height, header.width, geometry)
            wide, tall = (wide, tall) if orientation <= 4 else (tall, wide)
            image.draft(None, (_GAP * wide, _GAP * tall))
        image.load()
        pixels = _to_array(image, geometry.channels)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_CUT_SHORT) from error
    # Pillow turns a TIFF upright while loading it.
    upright = pixels if tiff or not geometry.exif else _turn(pixels, orientation)
    return _fit(upright, geometry), header


def _to_array(image: "Image.Image", channels: int) -> UInt8[ndarray, "h w C"]:
    """Pixels of a loaded image as 8-bit grey or RGB, whatever its mode."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        deep = _eight_bits(np.asarray(image), image.mode)[..., None]
        return deep if channels == 1 else deep.repeat(3, axis=2)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = _on_white(image)
    if image.mode != mode:
        image = image.convert(mode)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _eight_bits(deep: ndarray, mode: str) -> UInt8[ndarray, "h w"]:
    """16-bit (and 32-bit integer) grey by its full range; floats in [0, 1], or else in [0, 255]."""
    if mode != "F":
        return ((np.clip(deep.astype(np.int64), 0, 65535) + 128) // 257).astype(np.uint8)
    if not np.isfinite(deep).all():
        raise ImageError("the image has pixels that are not numbers")
    scale = 255.0 if deep.max(initial=0) <= 1 else 1.0
    return np.rint(np.clip(deep * scale, 0, 255)).astype(np.uint8)


def _on_white(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


# geometry


def _turn(pixels: ndarray, orientation: int) -> ndarray:
    """Upright pixels, by EXIF orientation: 2 mirror, 3 half turn, 6 a quarter turn clockwise, ..."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _fit(pixels: UInt8[ndarray, "h w C"], geometry: Geometry) -> UInt8[ndarray, "H W C"]:
    """Squash, crop or pad to the working size, antialiased; untouched when already of that size."""
    height, width = pixels.shape[:2]
    if (height, width) == geometry.size:
        return pixels
    from PIL import Image

    tall, wide = fitted(height, width, geometry)
    if (tall, wide) != (height, width):
        flat = np.ascontiguousarray(pixels[..., 0] if geometry.channels == 1 else pixels)
        image = Image.fromarray(flat).resize(
            (wide, tall), Image.Resampling[geometry.filter.upper()], kept(height, width, geometry)
        )
        pixels = np.asarray(image).reshape(tall, wide, geometry.channels)
    if (tall, wide) == geometry.size:
        return pixels
    padded = np.zeros(geometry.shape, np.uint8)
    top, left = (geometry.size[0] - tall) // 2, (geometry.size[1] - wide) // 2
    padded[top : top + tall, left : left + wide] = pixels
    return padded
