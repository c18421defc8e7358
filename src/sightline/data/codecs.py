"""Fast decoders: JPEG by simplejpeg, plain PNG without Pillow's file machinery; and the header of a TIFF.

A decoder returns None for a file that Pillow should read instead.
"""

import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from ..errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

DAMAGED_IMAGE = "the file is damaged or cut short"
EXIF_ORIENTATION_TAG = 0x0112
"""The EXIF tag."""
XMP_ORIENTATION = b"tiff:Orientation"
"""The same in XMP, which counts where EXIF names none."""
PILLOW_LOCK = threading.Lock()
"""Held while Pillow opens a file: ``warnings.catch_warnings`` changes global state, one thread at a time."""

_MIN_JPEG_OVERSAMPLING = 2
"""Large JPEGs are decoded at a half, a quarter or an eighth, but at least this many times the size asked
for, as Pillow's ``thumbnail`` does. Other scales take longer than decoding all of it."""
_LIBJPEG_DAMAGE_WORDS = ("premature end", "bad huffman", "no image", "truncated", "ended prematurely")

# memory: a file of some kB may hold 50 megapixels, so that what is copied is copied by rows


def rows_at_a_time(width: int) -> int:
    """Rows of a picture of this width that are converted or resampled together: about a megapixel."""
    return max(1, 1_000_000 // max(1, width))


def image_to_array(
    image: "Image.Image", channels: int, show: "Callable[[Image.Image], Image.Image]" = lambda rows: rows
) -> UInt8[ndarray, "H W C"]:
    """The pixels of a loaded image, with each part of it shown as 8-bit grey or RGB by ``show``."""
    step = rows_at_a_time(image.width)
    if step >= image.height:
        return np.asarray(show(image)).reshape(image.height, image.width, channels)
    pixels = np.empty((image.height, image.width, channels), np.uint8)
    for top in range(0, image.height, step):
        rows = show(image.crop((0, top, image.width, min(top + step, image.height))))
        pixels[top : top + step] = np.asarray(rows).reshape(-1, image.width, channels)
    return pixels


# JPEG


class JpegHeader(NamedTuple):
    """The header of a JPEG, sides as stored."""

    height: int
    width: int
    grey: bool
    orientation: int
    """EXIF orientation, 1 to 8."""


@cache
def import_simplejpeg() -> Any:
    """The module, or None where it is not installed (Pillow then reads JPEG)."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of a grey or colour JPEG; None for other inks, and where simplejpeg cannot read it."""
    jpeg = import_simplejpeg()
    if jpeg is None:
        return None
    try:
        height, width, space, _ = jpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if space not in ("Gray", "GRAY", "YCbCr", "RGB"):
        return None
    return JpegHeader(height, width, space.upper() == "GRAY", _jpeg_orientation(data))


def decode_jpeg(
    data: bytes, head: JpegHeader, channels: int, tall: int, wide: int
) -> tuple[UInt8[ndarray, "h w C"], tuple[float, float]] | None:
    """Pixels as stored, for a picture that will have ``tall`` rows and ``wide`` columns of them.

    With them the height and width that the picture truly has in these pixels: at half scale, 375 rows become
    188, of which it fills 187.5. Raises ImageError for a damaged file.
    """
    eighths = jpeg_scale(head, tall, wide)
    least = {"min_height": -(-head.height * eighths // 8), "min_width": -(-head.width * eighths // 8)}
    try:
        pixels = import_simplejpeg().decode_jpeg(
            data, "GRAY" if channels == 1 else "RGB", **(least if eighths < 8 else {})
        )
    except ValueError as error:
        if any(word in str(error).lower() for word in _LIBJPEG_DAMAGE_WORDS):
            raise ImageError(DAMAGED_IMAGE) from error
        return None  # harmless warnings of libjpeg: Pillow judges
    return pixels, (head.height * eighths / 8, head.width * eighths / 8)


def jpeg_scale(head: JpegHeader, tall: int, wide: int) -> int:
    """The eighths of its size (1, 2, 4 or 8) at which a JPEG is decoded for ``tall`` rows and ``wide`` columns."""
    shrink = min(head.height / tall, head.width / wide)
    return next((n for n in (1, 2, 4) if shrink * n >= 8 * _MIN_JPEG_OVERSAMPLING), 8)


def _jpeg_orientation(data: bytes) -> int:
    """Orientation of a JPEG by EXIF, or else by XMP; 1 (upright) where it is absent or invalid. Cheap without both."""
    scan = data.find(b"\xff\xda")
    end = scan if scan > 0 else len(data)
    start = data.find(b"Exif\0\0", 0, end)
    named = re.compile(XMP_ORIENTATION + rb"(?:=[\"']|>)([1-8])").search(data, 0, end)
    by_xmp = int(named[1]) if named else 1
    if start < 4:
        return by_xmp
    from PIL import Image

    length = int.from_bytes(data[start - 2 : start], "big") - 2
    with PILLOW_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exif = Image.Exif()
            exif.load(data[start : start + length])
            return valid_orientation(exif.get(EXIF_ORIENTATION_TAG, by_xmp))
        except Exception:  # a broken EXIF block must not cost the picture
            return 1


def valid_orientation(orientation: Any) -> int:
    """The orientation, or 1 for an invalid one."""
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def parse_jpeg_segments(data: bytes) -> dict[int, bytes]:
    """The segments before the picture by marker (the last byte of ``ff xx``), the first of each."""
    found: dict[int, bytes] = {}
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        found.setdefault(data[at + 1], data[at + 4 : at + 2 + length])
        at += 2 + length
    return found


# PNG

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = struct.Struct(">I4sIIBBBBB")
_PNG_MODES = {0: ("L", 1), 2: ("RGB", 3)}
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values of a pixel, by colour type."""
_ADAM7_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row and steps of the passes of an interlaced PNG."""
_INFLATED_BYTES = 1 << 20
_PNG_NOTES = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP"))
_PNG_CHUNKS = frozenset((b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"tEXt", b"tIME", b"IDAT"))


def decode_png(data: bytes, largest: int) -> UInt8[ndarray, "H W C"] | None:
    """Pixels of a plain PNG (8-bit grey or RGB, nothing exotic) of at most ``largest`` pixels.

    Tiny PNGs by the ten thousand are common (MNIST and its kin), and nine tenths of the time to open one
    go into finding the plugin and building its objects. None for any other file, damaged ones too.
    """
    if data[:8] != _PNG_SIGNATURE or len(data) < 45:
        return None
    length, kind, width, height, depth, colour, *methods = _PNG_HEADER.unpack_from(data, 8)
    if length != 13 or kind != b"IHDR" or depth != 8 or colour not in _PNG_MODES or any(methods):
        return None
    if not 0 < width * height <= largest or (packed := _join_idat(data)) is None:
        return None
    from PIL import Image

    mode, channels = _PNG_MODES[colour]
    try:
        image = Image.frombytes(mode, (width, height), packed, "zip", mode, 0)
    except (ValueError, OSError, TypeError):
        return None
    pixels = image_to_array(image, channels)
    return None if not pixels[-1].any() and png_lacks_rows(data) else pixels


def png_lacks_rows(data: bytes) -> bool:
    """Whether the compressed data of a PNG end before its last row: Pillow leaves the missing rows black."""
    _, _, width, height, depth, colour, _, _, interlaced = _PNG_HEADER.unpack_from(data, 8)
    bits = depth * _PNG_SAMPLES.get(colour, 1)
    passes = _ADAM7_PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
    missing = sum(tall * (1 + -(-wide * bits // 8)) for wide, tall in sizes if wide > 0 and tall > 0)
    inflater = zlib.decompressobj()
    packed = b"".join(data[start + 8 : end - 4] for kind, start, end in _png_chunks(data) if kind == b"IDAT")
    while missing > 0 and packed and not inflater.eof:
        missing -= len(inflater.decompress(packed, min(missing, _INFLATED_BYTES)))
        packed = inflater.unconsumed_tail
    return missing > 0


def drop_png_notes(data: bytes) -> bytes:
    """A PNG without its text and colour profile, which are not used: Pillow refuses files with much of them.

    Other files, and XMP (which may hold the orientation), stay as they are.
    """
    if data[:8] != _PNG_SIGNATURE:
        return data
    kept, last = [data[:8]], 8
    for kind, start, end in _png_chunks(data):
        if kind not in _PNG_NOTES or data.startswith(b"XML:com.adobe.xmp\0\0", start + 8):
            kept.append(data[start:end])
        last = end
    return b"".join([*kept, data[last:]])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each whole chunk."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if (end := at + 12 + length) > len(data):
            return
        yield kind, at, end
        at = end


def _join_idat(data: bytes) -> bytes | None:
    """The joined IDAT chunks of a file whose every chunk is known and whole."""
    at, parts = 8, []
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data) or zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return None
        if kind == b"IDAT":
            parts.append(data[at + 8 : end])
        elif kind == b"IEND":
            return b"".join(parts) if parts else None
        elif kind not in _PNG_CHUNKS and at > 8:
            return None
        at = end + 4
    return None


# TIFF, before Pillow decodes it

MAX_PADDED_TILE_PIXELS = 4_194_304
"""Pixels of a TIFF's tile, 2048 x 2048, that may be more than twice the picture's."""

TIFF_SAMPLES, TIFF_DEPTHS = 277, 258
"""TIFF tags: channels, and bits of each."""

_TIFF_SIDES, _TILE_SIDES, _ROWS_PER_STRIP = (256, 257), (322, 323), 278
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q"}
"""The integers of TIFF by their number, as ``struct`` calls them."""


def check_tiff_blocks(tags: dict[int, tuple[int, ...]]) -> None:
    """Refuse a TIFF whose tiles or strips are far larger than its picture: the decoder allocates a whole one."""
    width, height = (tags.get(tag, (0,))[0] for tag in _TIFF_SIDES)
    rows = tags.get(_ROWS_PER_STRIP, (height,))[0]
    across, down = (
        tags[tag][0] if tag in tags else side for tag, side in zip(_TILE_SIDES, (width, rows), strict=True)
    )
    down = min(down, height) if not tags.keys() & set(_TILE_SIDES) else down  # a strip may end below the picture
    if min(across, down) < 0 or across * down > max(MAX_PADDED_TILE_PIXELS, 2 * width * height):
        raise ImageError(
            f"the TIFF has tiles of {across} x {down} pixels for a picture of {width} x {height}, which is refused "
            "unread: save it again without tiles"
        )


def read_tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """The integers of a TIFF's first page by tag, BigTIFF's too; empty for other files and damaged ones.

    Of a tag that is there twice, the larger value counts: decoders differ in which one they take.
    """
    order, version = {b"II": "<", b"MM": ">"}.get(data[:2]), data[2:4]
    if order is None or version not in (b"*\0", b"\0*", b"+\0", b"\0+"):
        return {}
    start, entries, value = (8, "Q", "Q") if b"+" in version else (4, "H", "I")  # what BigTIFF has wider
    header = struct.Struct(f"{order}HH{value}")
    room = struct.calcsize(order + value)
    found: dict[int, tuple[int, ...]] = {}
    try:
        (at,) = struct.unpack_from(order + value, data, start)
        (count,) = struct.unpack_from(order + entries, data, at)
    except struct.error:
        return {}
    at += struct.calcsize(order + entries)
    step = header.size + room
    for entry in range(at, min(len(data) - step + 1, at + step * count), step):
        tag, kind, length = header.unpack_from(data, entry)
        if (size := _TIFF_INTEGERS.get(kind)) is None or not 0 < length <= 64:
            continue
        where = entry + header.size
        if struct.calcsize(order + size) * length > room:
            (where,) = struct.unpack_from(order + value, data, where)
        with suppress(struct.error, OverflowError):  # the value lies outside of the file: the decoder skips it too
            found[tag] = max(found.get(tag, ()), struct.unpack_from(f"{order}{length}{size}", data, where))
    return found
