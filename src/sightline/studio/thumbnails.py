"""Small pictures of images, made once and kept in a bounded folder of the disk."""

import hashlib
import io
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data import decode, read_header
from ..types import Geometry

THUMBNAIL_PIXELS = 112
"""Longer side of a thumbnail in pixels."""
MAX_THUMBNAIL_CACHE_BYTES = 500_000_000
"""Bytes of the folder: about 100,000 thumbnails."""
_MAX_LOSSLESS_PIXELS = 48
"""Longer side up to which a picture is kept as PNG, enlarged by a whole factor without smoothing."""
_WRITES_BETWEEN_SWEEPS = 500
_JPEG_QUALITY = 82


@dataclass
class ThumbnailCache:
    """Thumbnails in a folder, by the content of the image; the oldest go first when it is full.

    Images are decoded by the package's own reader, which refuses bombs by their header. Safe to use from several
    processes: a thumbnail is there whole or not at all.
    """

    folder: Path
    max_bytes: int = MAX_THUMBNAIL_CACHE_BYTES
    writes: int = 0
    """Thumbnails written by this object."""

    def get(self, data: bytes, most: int = THUMBNAIL_PIXELS) -> tuple[bytes, str]:
        """The thumbnail of an image file, at most ``most`` pixels wide and high, and its media type.

        Raises ImageError for a file that cannot be read. A full disk costs time only: the thumbnail is then made
        whenever it is asked for.
        """
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        path = self.folder / digest[:2] / f"{digest}-{most}"
        try:
            found = path.read_bytes()
        except OSError:
            found = draw_thumbnail(data, most)
            self._keep(path, found)
        return found, "image/png" if found[:4] == b"\x89PNG" else "image/jpeg"

    def _keep(self, path: Path, content: bytes) -> None:
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(content)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            if self.writes % _WRITES_BETWEEN_SWEEPS == 0:
                self.sweep()
            self.writes += 1

    def sweep(self) -> None:
        """Remove the oldest thumbnails until the folder is 4/5 full at most, where it is fuller than allowed."""
        files: list[tuple[float, int, str]] = []
        for place in self.folder.glob("??"):
            with os.scandir(place) as entries:
                for entry in entries:
                    with suppress(OSError):
                        status = entry.stat()
                        files.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        if total <= self.max_bytes:
            return
        for _, size, path in sorted(files):
            if total <= 0.8 * self.max_bytes:
                return
            with suppress(OSError):
                Path(path).unlink()
                total -= size


def draw_thumbnail(data: bytes, most: int) -> bytes:
    """A JPEG, or a PNG of a picture that is small already, of an image file. Raises ImageError."""
    from PIL import Image

    header = read_header(data)
    scale = min(1.0, most / max(header.width, header.height))
    size = max(1, round(header.height * scale)), max(1, round(header.width * scale))
    pixels = decode(data, Geometry(size=size, channels=3 if header.channels == 3 else 1))
    small = max(header.width, header.height) <= _MAX_LOSSLESS_PIXELS
    if small:
        factor = max(1, most // max(size))
        pixels = pixels.repeat(factor, 0).repeat(factor, 1)
    stream, image = io.BytesIO(), Image.fromarray(np.squeeze(pixels, 2) if pixels.shape[2] == 1 else pixels)
    if small:
        image.save(stream, "png")
    else:
        image.save(stream, "jpeg", quality=_JPEG_QUALITY)
    return stream.getvalue()
