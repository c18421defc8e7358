"""Images that are kept: stripped of what they tell about people and places, and named by their content."""

import hashlib
import os
import struct
import tempfile
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from ..data import IMAGE_FORMATS, codecs
from ..errors import ImageError

_JPEG_SIGNATURE, _PNG_SIGNATURE = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

_JPEG_MARKERS = frozenset((*range(0xC0, 0xC8), *range(0xC9, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD))
"""Markers of tables, frames and scans: what a decoder needs."""

_PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT"))
"""Chunks that are pixels or say how to show them."""

_PNG_MODES = frozenset(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))
"""Pillow's modes that PNG holds as they are."""


@dataclass(frozen=True)
class ImageStore:
    """The folder of kept images: ``ab/abcdef....jpg``, by the SHA-256 of what is in it."""

    folder: Path

    def path(self, name: str) -> Path:
        """Where an image of this name lies."""
        return self.folder / name[:2] / name

    def put(self, name: str, data: bytes) -> None:
        """Write an image, whole or not at all; readable by the owner only."""
        path = self.path(name)
        if path.is_file():
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def delete(self, name: str) -> None:
        """Remove an image, if it is there."""
        self.path(name).unlink(missing_ok=True)


def content_name(data: bytes) -> tuple[str, bytes]:
    """The name under which an image is kept, and its stripped bytes; raises ImageError for what is no image."""
    kept, suffix = strip_metadata(data)
    return hashlib.sha256(kept).hexdigest() + suffix, kept


def strip_metadata(data: bytes) -> tuple[bytes, str]:
    """The same picture without EXIF, GPS, comments, profiles, previews and whatever follows it; and its suffix.

    JPEG and PNG are not coded anew; all else becomes PNG (TIFF where it has more than 16 bits), of the first
    frame. Of EXIF one tag is left where it turns the picture. Raises ImageError for what is no image.
    """
    with suppress(ValueError, IndexError, struct.error):
        if data[:3] == _JPEG_SIGNATURE:
            return _strip_jpeg(data), ".jpg"
        if data[:8] == _PNG_SIGNATURE:
            return _strip_png(data), ".png"
    return _recode(data)


# JPEG


def _strip_jpeg(data: bytes) -> bytes:
    """Segments removed; raises ValueError where the file is not put together as a JPEG."""
    parts, at = [b"\xff\xd8"], 2
    if (turn := _jpeg_turn(data)) > 1:
        exif = b"Exif\0\0" + _orientation_exif(turn)
        parts.append(b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif)
    while True:
        at, kind = _next_marker(data, at)
        if kind == 0xD9:
            return b"".join([*parts, b"\xff\xd9"])
        end = at + int.from_bytes(data[at : at + 2], "big")
        if not at + 2 <= end <= len(data):
            raise ValueError("cut short")
        if kind in _JPEG_MARKERS:
            parts.append(bytes((0xFF, kind)) + data[at:end])
        elif kind in (0xE0, 0xEE):
            parts.append(_strip_app_segment(kind, data[at + 2 : end]))
        at = end
        if kind == 0xDA:
            at = _find_scan_end(data, end)
            parts.append(data[end:at])


def _next_marker(data: bytes, at: int) -> tuple[int, int]:
    """Where the segment after the next marker begins, and the marker's last byte."""
    if data[at] != 0xFF:
        raise ValueError("no marker")
    while data[at] == 0xFF:
        at += 1  # a marker may be filled up in front
    return at + 1, data[at]


def _strip_app_segment(kind: int, body: bytes) -> bytes:
    """How colours are stored, as JFIF and Adobe say it, without a preview; nothing of other segments."""
    if kind == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14:
        body = body[:12] + b"\0\0"
    elif kind == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
        body = body[:12]
    else:
        return b""
    return bytes((0xFF, kind)) + (len(body) + 2).to_bytes(2, "big") + body


def _find_scan_end(data: bytes, at: int) -> int:
    """Where coded pixels end: at the next marker that is neither a restart nor a stuffed byte."""
    while (at := data.index(b"\xff", at)) + 1 < len(data):
        if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7 and data[at + 1] != 0xFF:
            return at
        at += 1 if data[at + 1] == 0xFF else 2
    raise ValueError("cut short")


def _jpeg_turn(data: bytes) -> int:
    head = codecs.read_jpeg_header(data)
    return _read_orientation(data) if head is None else head.orientation


# PNG


def _strip_png(data: bytes) -> bytes:
    """Chunks removed; raises ValueError where the file is not put together as a PNG."""
    turn = _read_orientation(data) if any(word in data for word in (b"eXIf", b"Exif", b"EXIF")) else 1
    parts, at = [_PNG_SIGNATURE], 8
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise ValueError("cut short")
        if kind == b"IDAT" and turn > 1:
            parts.append(_png_chunk(b"eXIf", _orientation_exif(turn)))
            turn = 1
        if kind in _PNG_CHUNKS:
            parts.append(data[at:end])
        if kind == b"IEND":
            return b"".join(parts)
        at = end


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


# what both leave of EXIF, and all other kinds


def _orientation_exif(turn: int) -> bytes:
    """EXIF with one tag: how the picture is turned."""
    return struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, codecs.EXIF_ORIENTATION_TAG, 3, 1, turn, 0)


def _read_orientation(data: bytes) -> int:
    from PIL import Image

    with (
        codecs.PILLOW_LOCK,
        warnings.catch_warnings(),
        suppress(Exception),
    ):  # nonsense in EXIF costs only the turn
        warnings.simplefilter("ignore")
        return codecs.valid_orientation(
            Image.open(BytesIO(data), formats=IMAGE_FORMATS).getexif().get(codecs.EXIF_ORIENTATION_TAG)
        )
    return 1


def _recode(data: bytes) -> tuple[bytes, str]:
    from PIL import Image

    turn, stream = _read_orientation(data), BytesIO()
    try:
        with codecs.PILLOW_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(BytesIO(data), formats=IMAGE_FORMATS)
        image.load()
        clear = image.info.get("transparency")
        bare = (
            image
            if image.mode in _PNG_MODES or image.mode in ("I", "F")
            else image.convert(_nearest_png_mode(image.mode))
        )
        bare.info = {} if clear is None or bare.mode not in ("P", "L", "RGB") else {"transparency": clear}
        if bare.mode in ("I", "F"):
            bare.save(stream, "tiff")
            return stream.getvalue(), ".tif"
        turned = turn > 1 and image.format != "TIFF"  # Pillow turns a TIFF itself
        bare.save(stream, "png", exif=_orientation_exif(turn) if turned else b"")
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise ImageError(codecs.DAMAGED_IMAGE) from error
    return stream.getvalue(), ".png"


def _nearest_png_mode(mode: str) -> str:
    """The nearest mode that PNG holds."""
    if mode.startswith("I;16"):
        return "I"
    return "RGBA" if "a" in mode.lower() else "RGB"
