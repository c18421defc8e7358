"""Bytes become pixels: the only place in the package where an image file is opened.

``read`` gives the picture with what its header says, ``decode`` the picture alone, ``inspect``
the header alone. JPEG goes through simplejpeg (turbo, scaled decoding for large photos), the
rest through Pillow; where simplejpeg cannot be imported, Pillow reads JPEG too.
"""

import struct
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from ..errors import ImageError
from ..sources.listing import MAX_BYTES
from ..types import Geometry
from . import codecs
from .geometry import fit, fitted, turned

if TYPE_CHECKING:
    from PIL import Image

VERSION = 2
"""Raised whenever the same bytes would decode to other pixels: old stores are then rebuilt."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 100_000_000
FULL = (0.0, 65535.0)
"""The window of 16-bit pictures where none is given."""

_TOO_LARGE = "the header announces more than 100 megapixels, which is refused unread"
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_CLEAR_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_SAMPLES, _DEPTHS = 277, 258
"""TIFF tags: channels, and bits of each."""


class Header(NamedTuple):
    """What an image file says of itself; width and height as seen upright, in pixels."""

    width: int
    height: int
    channels: int
    """1 for grey, 3 for anything with colour."""
    format: str
    rotated: bool
    """True when EXIF says the picture must be turned or mirrored to be upright."""
    animated: bool = False
    """Has more than one frame or page: the first is used."""
    transparent: bool = False
    """Has transparency: laid on white. After ``read``, only where some pixel is not opaque."""
    inks: bool = False
    """Is in printers' inks (CMYK): turned into RGB without a colour profile."""
    depth: int = 8
    """Bits of a value: 8, 16 or 32."""
    low: int = 0
    high: int = 0
    """Smallest and largest value of deep grey (more than 8 bits), clipped to 16 bits; known after ``read``."""


def decode(data: bytes, geometry: Geometry) -> UInt8[ndarray, "H W C"]:
    """The picture in these bytes at the working size.

    Transparency is laid on white; 16-bit values keep their full range (65535 becomes 255) or the
    geometry's window; of an animation the first frame is taken. A picture already of the working size
    is not resampled. Raises ImageError, with the reason, for anything that is not one whole image.
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
    if data[:3] == b"\xff\xd8\xff" and (head := _jpeg_head(data)):
        return _jpeg_header(head)
    image, orientation = _open(data)
    return _header_of(image, orientation, data)


def decoder() -> str:
    """Which code turns bytes into pixels here: part of a store's name."""
    return f"{VERSION}-{'pillow' if codecs.simplejpeg() is None else 'simplejpeg'}"


def _check(data: bytes) -> None:
    if not data:
        raise ImageError("the file is empty (zero bytes)")
    if len(data) > MAX_BYTES:
        raise ImageError(f"the file is larger than {MAX_BYTES // 1_000_000} MB, which is refused unread")


# the quick ways


def _jpeg_head(data: bytes) -> codecs.JpegHead | None:
    head = codecs.jpeg_head(data)
    if head and head.height * head.width > MAX_PIXELS:
        raise ImageError(_TOO_LARGE)
    return head


def _jpeg_header(head: codecs.JpegHead) -> Header:
    height, width = (head.width, head.height) if head.orientation > 4 else (head.height, head.width)
    return Header(width, height, 1 if head.grey else 3, "JPEG", head.orientation > 1)


def _read_jpeg(data: bytes, geometry: Geometry) -> tuple[ndarray, Header] | None:
    """As ``read``; None where Pillow should read the file instead (CMYK, oddities)."""
    head = _jpeg_head(data)
    if head is None:
        return None
    orientation = head.orientation if geometry.exif else 1
    across = orientation > 4
    tall, wide = fitted(*_swapped((head.height, head.width), across), geometry)
    tall, wide = _swapped((tall, wide), across)
    found = codecs.read_jpeg(data, head, geometry.channels, tall, wide)
    if found is None:
        return None
    pixels, extent = found
    return fit(turned(pixels, orientation), geometry, _swapped(extent, across)), _jpeg_header(head)


def _swapped(pair: tuple[Any, Any], swap: bool) -> tuple[Any, Any]:
    return pair[::-1] if swap else pair


def _read_png(data: bytes, geometry: Geometry) -> tuple[ndarray, Header] | None:
    """As ``read`` for a plain PNG whose channels are those asked for; None for all else."""
    pixels = codecs.read_png(data, MAX_PIXELS)
    if pixels is None or pixels.shape[2] > geometry.channels:
        return None
    height, width, channels = pixels.shape
    if channels < geometry.channels:
        pixels = pixels.repeat(3, axis=2)
    return fit(pixels, geometry), Header(width, height, channels, "PNG", False)


# everything else by Pillow


def _open(data: bytes) -> "tuple[Image.Image, int]":
    """The image, its pixels not yet read, and its EXIF orientation (1 to 8)."""
    from PIL import Image

    _check_bands(data)
    with codecs.OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = Image.open(BytesIO(data), formats=FORMATS)
            orientation = _orientation(image, data)
        except Image.DecompressionBombError as error:
            raise ImageError(_TOO_LARGE) from error
        except Image.UnidentifiedImageError as error:
            raise ImageError(_unknown(data)) from error
        except Exception as error:  # Pillow's readers raise nearly anything on damaged files
            raise ImageError(codecs.CUT_SHORT) from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(_TOO_LARGE)
    return image, orientation


def _orientation(image: "Image.Image", data: bytes) -> int:
    """What EXIF says (1 to 8); a broken EXIF block must not cost the picture."""
    if image.format != "TIFF" and not (b"Exif" in data or b"eXIf" in data or b"EXIF" in data):
        return 1
    try:
        return codecs.plausible(image.getexif().get(codecs.ORIENTATION))
    except Exception:  # as above: nearly anything
        return 1


def _unknown(data: bytes) -> str:
    """Why Pillow knows no format for this content."""
    if data[4:8] == b"ftyp":
        return "the file is HEIC, AVIF or a video, which is not read: convert it to JPEG or PNG"
    if tags := _tiff_tags(data):
        depths = tags.get(_DEPTHS, (1,))
        return (
            f"the TIFF has {_count(tags.get(_SAMPLES, (1,))[0])} of {depths[0]} bits in a form that is not read: "
            "save it as 8-bit RGB, or as 8- or 16-bit grey"
        )
    if data[:3] == b"\xff\xd8\xff" or data[:4] == b"\x89PNG":
        return codecs.CUT_SHORT
    return f"the content is not an image ({', '.join(FORMATS)} are read)"


def _check_bands(data: bytes) -> None:
    """Refuse by name what has more channels than a picture; Pillow would silently drop some."""
    bands, kind = 1, ""
    if data[:3] == b"\xff\xd8\xff":
        segments, kind = codecs.jpeg_segments(data), "JPEG"
        frame = next((body for mark, body in segments.items() if mark in range(0xC0, 0xC4)), b"")
        bands = frame[5] if len(frame) > 5 else 1
    elif tags := _tiff_tags(data):
        bands, kind = tags.get(_SAMPLES, (1,))[0], "TIFF"
    if bands > 4 or (kind == "JPEG" and bands == 2):
        raise ImageError(
            f"the {kind} has {_count(bands)}, and only grey (1), RGB (3), CMYK (4) and their transparent "
            "kinds are read: save the bands that matter as RGB or grey"
        )


def _count(bands: int) -> str:
    return "1 channel" if bands == 1 else f"{bands} channels"


def _tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """The whole numbers of a TIFF's first page by tag; empty for other files, damaged ones and BigTIFF."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return {}
    found: dict[int, tuple[int, ...]] = {}
    try:
        (at,) = struct.unpack_from(order + "I", data, 4)
        (entries,) = struct.unpack_from(order + "H", data, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHI", data, entry)
            if (size := {3: "H", 4: "I"}.get(kind)) and 0 < count <= 64:
                wide = struct.calcsize(size) * count > 4
                (where,) = struct.unpack_from(order + "I", data, entry + 8) if wide else (entry + 8,)
                found[tag] = struct.unpack_from(f"{order}{count}{size}", data, where)
    except struct.error:
        return {}
    return found


def _header_of(image: "Image.Image", orientation: int, data: bytes) -> Header:
    swapped = orientation > 4 and image.format != "TIFF"  # Pillow turns a TIFF itself
    width, height = image.size[::-1] if swapped else image.size
    grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
    clear = "transparency" in image.info or image.mode in _CLEAR_MODES
    inks, kind = image.mode == "CMYK", image.format or ""
    depth = _depth(image, data)
    return Header(
        width, height, 1 if grey else 3, kind, orientation > 1, _animated(kind, data), clear, inks, depth
    )


def _depth(image: "Image.Image", data: bytes) -> int:
    """Bits of a value; Pillow shows 16-bit colour as 8-bit, so the file is asked."""
    if image.mode.startswith("I;16"):
        return 16
    if image.format == "PNG":
        return 16 if data[24] == 16 else 8
    if image.format == "TIFF":
        return max(8, *_tiff_tags(data).get(_DEPTHS, (8,)))
    return {"I": 16, "F": 32}.get(image.mode, 8)


def _animated(kind: str, data: bytes) -> bool:
    """Whether there is a second frame or page."""
    from PIL import Image

    if kind not in ("GIF", "WEBP", "TIFF") and not (kind == "PNG" and b"acTL" in data):
        return False
    with codecs.OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Image.open(BytesIO(data), formats=(kind,)).seek(1)
        except Exception:  # no such frame, or a damaged one
            return False
    return True


def _read_any(data: bytes, geometry: Geometry) -> tuple[ndarray, Header]:
    image, orientation = _open(data)
    header = _header_of(image, orientation, data)
    if not geometry.exif and image.format != "TIFF":  # Pillow turns a TIFF upright while loading it
        orientation = 1
    extent = None
    try:
        if image.format in ("JPEG", "MPO"):
            across = orientation > 4
            tall, wide = fitted(*_swapped((image.height, image.width), across), geometry)
            extent = _draft(image, *_swapped((tall, wide), across))
            extent = extent and _swapped(extent, across)
        image.load()
        pixels, header = _to_array(image, geometry, header, data)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(codecs.CUT_SHORT) from error
    upright = pixels if image.format == "TIFF" else turned(pixels, orientation)
    return fit(upright, geometry, extent), header


def _draft(image: "Image.Image", tall: int, wide: int) -> tuple[float, float] | None:
    """Have Pillow decode a large JPEG at reduced scale; the height and width it then truly has."""
    width, height = image.size
    image.draft(None, (2 * wide, 2 * tall))
    scale = round(width / image.width)
    return (height / scale, width / scale) if scale > 1 else None


def _to_array(
    image: "Image.Image", geometry: Geometry, header: Header, data: bytes
) -> tuple[UInt8[ndarray, "h w C"], Header]:
    """Pixels of a loaded image as 8-bit grey or RGB, whatever its mode; the header, now knowing them."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        deep = np.asarray(image)
        shown = _windowed(deep, image.mode, geometry.window)[..., None].repeat(geometry.channels, axis=2)
        low, high = np.clip((deep.min(), deep.max()), 0, 65535)
        return shown, header._replace(low=int(low), high=int(high))
    if header.depth > 8 and geometry.window is not None:
        raise ImageError("16-bit colour is read by its full range only: leave the window out, or save it as grey")
    if image.mode == "CMYK" and image.format == "JPEG" and 0xEE not in codecs.jpeg_segments(data):
        # Adobe's files hold inks inverted, and Pillow takes every file for one of Adobe's.
        image.frombytes(bytes(255 - np.asarray(image)))
    if header.transparent:
        image, header = _on_white(image, header)
    mode = "L" if geometry.channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None], header


def _windowed(deep: ndarray, mode: str, window: tuple[float, float] | None) -> UInt8[ndarray, "h w"]:
    """Deep grey by a window: low becomes 0, high 255.

    Without one whole numbers are read by the full 16 bits, floats by [0, 1] or else by [0, 255].
    """
    if not np.isfinite(deep).all():
        raise ImageError("the image has pixels that are not numbers")
    if window is None and mode == "F":
        window = (0.0, 1.0) if deep.max(initial=0) <= 1 else (0.0, 255.0)
    low, high = window or FULL
    return np.rint(np.clip((deep.astype(np.float64) - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)


def _on_white(image: "Image.Image", header: Header) -> "tuple[Image.Image, Header]":
    from PIL import Image

    image = image.convert("RGBA")
    clear = image.getextrema()[3][0] < 255  # type: ignore[index]  RGBA has a pair for each of four bands
    if not clear:
        return image.convert("RGB"), header._replace(transparent=False)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), header
