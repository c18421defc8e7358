"""Plain PNG files (8-bit grey or RGB, nothing exotic) by Pillow's codec without its file machinery.

Tiny PNGs by the ten thousand are common (MNIST and its kin), and nine tenths of the time to open
one goes into finding the plugin and building its objects. What is not plain is left to Pillow.
"""

import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD = struct.Struct(">I4sIIBBBBB")
_KINDS = {0: ("L", 1), 2: ("RGB", 3)}
_KNOWN = frozenset((b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"tEXt", b"tIME", b"IDAT"))


def read_plain(data: bytes, largest: int) -> UInt8[ndarray, "H W C"] | None:
    """Pixels of a plain PNG of at most ``largest`` pixels; None for any other file, damaged ones too."""
    if data[:8] != _SIGNATURE or len(data) < 45:
        return None
    length, kind, width, height, depth, colour, *methods = _HEAD.unpack_from(data, 8)
    if length != 13 or kind != b"IHDR" or depth != 8 or colour not in _KINDS or any(methods):
        return None
    if not 0 < width * height <= largest or (packed := _pixel_data(data)) is None:
        return None
    return _decoded(packed, width, height, *_KINDS[colour])


def _pixel_data(data: bytes) -> bytes | None:
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
        elif kind not in _KNOWN and at > 8:
            return None
        at = end + 4
    return None


def _decoded(packed: bytes, width: int, height: int, mode: str, channels: int) -> ndarray | None:
    from PIL import Image

    try:
        image = Image.frombytes(mode, (width, height), packed, "zip", mode, 0)
    except (ValueError, OSError, TypeError):
        return None
    return np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, channels)
