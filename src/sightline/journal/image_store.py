"""The images a journal keeps: without metadata about people and places, and named by their content."""

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

from ..data import (
    DAMAGED_IMAGE,
    EXIF_ORIENTATION_TAG,
    IMAGE_FORMATS,
    PILLOW_LOCK,
    read_jpeg_header,
    valid_orientation,
)
from ..errors import ImageError

_JPEG_SIGNATURE, _PNG_SIGNATURE = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"

_JPEG_MARKERS = frozenset((*range(0xC0, 0xC8), *range(0xC9, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD))
"""Second bytes of the markers of tables, frames and scans: what a decoder needs."""

_JPEG_END, _JPEG_SCAN, _JFIF, _ADOBE = 0xD9, 0xDA, 0xE0, 0xEE

_PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT"))
"""Chunks with pixels, or with how to display them."""

_PNG_MODES = frozenset(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))
"""Pillow's modes that PNG stores without conversion."""


@dataclass(frozen=True)
class ImageStore:
    """A folder of images, each at ``ab/abcdef....jpg``, named by the SHA-256 of its content."""

    folder: Path

    def path(self, name: str) -> Path:
        """Return the path of an image, whether it exists or not."""
        return self.folder / name[:2] / name

    def put(self, name: str, data: bytes) -> None:
        """Write an image atomically, readable by its owner only."""
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
        """Delete an image if it exists."""
        self.path(name).unlink(missing_ok=True)


def content_name(data: bytes) -> tuple[str, bytes]:
    """Return an image's name in the store, and its bytes without metadata; raise ImageError if it is no image."""
    stripped, suffix = strip_metadata(data)
    return hashlib.sha256(stripped).hexdigest() + suffix, stripped


def strip_metadata(data: bytes) -> tuple[bytes, str]:
    """Remove EXIF, GPS, comments, colour profiles, previews and trailing bytes from an image file.

    The pixels of JPEG and PNG are not re-encoded; every other format becomes PNG, or TIFF above 16 bits, of its
    first frame. The EXIF orientation is kept, since it turns the picture. Return the bytes and a file suffix;
    raise ImageError if it is no image.
    """
    with suppress(ValueError, IndexError, struct.error):  # malformed: Pillow may read it nevertheless
        if data[:3] == _JPEG_SIGNATURE:
            return _strip_jpeg(data), ".jpg"
        if data[:8] == _PNG_SIGNATURE:
            return _strip_png(data), ".png"
    return _recode(data)


# JPEG


def _strip_jpeg(data: bytes) -> bytes:
    """Copy the segments a decoder needs; raise ValueError if the file is not well-formed."""
    header = read_jpeg_header(data)
    orientation = _read_orientation(data) if header is None else header.orientation
    parts, at = [b"\xff\xd8"], 2
    if orientation > 1:
        exif = b"Exif\0\0" + _orientation_exif(orientation)
        parts.append(b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif)
    while True:
        if data[at] != 0xFF:
            raise ValueError("no marker")
        while data[at] == 0xFF:  # any number of fill bytes may precede a marker
            at += 1
        marker, at = data[at], at + 1
        if marker == _JPEG_END:
            return b"".join([*parts, b"\xff\xd9"])
        end = at + int.from_bytes(data[at : at + 2], "big")
        if not at + 2 <= end <= len(data):
            raise ValueError("cut short")
        if marker in _JPEG_MARKERS:
            parts.append(bytes((0xFF, marker)) + data[at:end])
        elif marker in (_JFIF, _ADOBE):
            parts.append(_strip_app_segment(marker, data[at + 2 : end]))
        at = end
        if marker == _JPEG_SCAN:
            at = _find_scan_end(data, end)
            parts.append(data[end:at])


def _strip_app_segment(marker: int, body: bytes) -> bytes:
    """Keep the colour transform of JFIF and Adobe segments, without a preview; drop other content."""
    if marker == _JFIF and body[:5] == b"JFIF\0" and len(body) >= 14:
        body = body[:12] + b"\0\0"
    elif marker == _ADOBE and body[:5] == b"Adobe" and len(body) >= 12:
        body = body[:12]
    else:
        return b""
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def _find_scan_end(data: bytes, at: int) -> int:
    """Return where entropy-coded data ends: at the next marker that is no restart and no stuffed byte."""
    while (at := data.index(b"\xff", at)) + 1 < len(data):
        if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7 and data[at + 1] != 0xFF:
            return at
        at += 1 if data[at + 1] == 0xFF else 2
    raise ValueError("cut short")


# PNG


def _strip_png(data: bytes) -> bytes:
    """Copy the chunks of ``_PNG_CHUNKS``; raise ValueError if the file is not well-formed."""
    orientation = _read_orientation(data) if any(word in data for word in (b"eXIf", b"Exif", b"EXIF")) else 1
    parts, at = [_PNG_SIGNATURE], 8
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise ValueError("cut short")
        if kind == b"IDAT" and orientation > 1:
            exif = b"eXIf" + _orientation_exif(orientation)
            parts.append(struct.pack(">I", len(exif) - 4) + exif + struct.pack(">I", zlib.crc32(exif)))
            orientation = 1
        if kind in _PNG_CHUNKS:
            parts.append(data[at:end])
        if kind == b"IEND":
            return b"".join(parts)
        at = end


# EXIF and all other formats


def _orientation_exif(orientation: int) -> bytes:
    """Encode EXIF with the orientation as its only tag."""
    return struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, EXIF_ORIENTATION_TAG, 3, 1, orientation, 0)


def _read_orientation(data: bytes) -> int:
    from PIL import Image

    with PILLOW_LOCK, warnings.catch_warnings(), suppress(Exception):  # malformed EXIF costs only the orientation
        warnings.simplefilter("ignore")
        exif = Image.open(BytesIO(data), formats=IMAGE_FORMATS).getexif()
        return valid_orientation(exif.get(EXIF_ORIENTATION_TAG))
    return 1


def _recode(data: bytes) -> tuple[bytes, str]:
    """Re-encode the first frame as PNG, or TIFF above 16 bits."""
    from PIL import Image

    orientation, stream = _read_orientation(data), BytesIO()
    try:
        with PILLOW_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(BytesIO(data), formats=IMAGE_FORMATS)
        image.load()
        transparency = image.info.get("transparency")
        mode = image.mode
        if mode.startswith("I;16") and mode not in _PNG_MODES:
            mode = "I"
        elif mode not in _PNG_MODES and mode not in ("I", "F"):
            mode = "RGBA" if "a" in mode.lower() else "RGB"
        bare = image if mode == image.mode else image.convert(mode)
        bare.info = (
            {"transparency": transparency} if transparency is not None and mode in ("P", "L", "RGB") else {}
        )
        if mode in ("I", "F"):
            bare.save(stream, "tiff")
            return stream.getvalue(), ".tif"
        turned = orientation > 1 and image.format != "TIFF"  # Pillow applies a TIFF's orientation itself
        bare.save(stream, "png", exif=_orientation_exif(orientation) if turned else b"")
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise ImageError(DAMAGED_IMAGE) from error
    return stream.getvalue(), ".png"
