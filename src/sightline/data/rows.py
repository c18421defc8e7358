"""Files of a source become rows of a store: facts in memory and pixels in a file, in any thread or process."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from ..errors import ImageError
from ..sources import Reader
from ..types import Geometry
from .decode import ImageHeader, decode_with_header

STORE_FACTS = np.dtype(
    [
        ("ok", np.bool_),
        ("rotated", np.bool_),
        ("animated", np.bool_),
        ("transparent", np.bool_),
        ("inks", np.bool_),
        ("channels", np.uint8),
        ("depth", np.uint8),
        ("low", np.float32),
        ("high", np.float32),
        ("floating", np.bool_),
        ("width", np.int32),
        ("height", np.int32),
        ("digest", np.uint64),
    ]
)
"""A record of each file: its header (upright size, before the geometry is applied) and a hash of its bytes."""
_HEADER_FACTS = (
    "rotated",
    "animated",
    "transparent",
    "cmyk",
    "channels",
    "depth",
    "low",
    "high",
    "floating",
    "width",
    "height",
)
"""The fields of an ``ImageHeader`` in the order of ``STORE_FACTS``."""


class PixelFile:
    """A file of pixels, open for rows in any order; pickles as its path, so that other processes write to it too."""

    def __init__(self, path: Path, first: int, each: int):
        """``first`` is the byte where the first row begins, ``each`` the bytes of a row."""
        self.path, self.first, self.each = path, first, each
        self.stream = path.open("r+b")

    def write(self, row: int, images: list[ndarray]) -> None:
        """Write these images from this row on."""
        views, at, target = [one.data for one in images], self.first + row * self.each, self.stream.fileno()
        done = os.pwritev(target, views, at)  # without a copy; the system may write a part only
        if done < len(images) * self.each:
            rest = memoryview(b"".join(views))
            while done < len(rest):
                done += os.pwrite(target, rest[done:], at + done)

    def __reduce__(self) -> Any:
        return PixelFile, (self.path, self.first, self.each)


class RowDecoder:
    """Decodes the files of a source, collects the facts, and writes the pixels to a file, if it is given one.

    Pickles without the facts.
    """

    def __init__(
        self, reader: Reader, keys: Int64[ndarray, " N"], geometry: Geometry, pixels: PixelFile | None = None
    ):
        """``keys`` are the numbers of the files in the reader."""
        self.reader, self.keys, self.geometry, self.pixels = reader, keys, geometry, pixels
        self.facts = np.zeros(len(keys), STORE_FACTS)
        self.reasons: dict[int, str] = {}
        self.unopened: list[int] = []
        self._black = np.zeros(geometry.shape, np.uint8)

    def process(self, rows: range) -> None:
        """Decode these files: black for an unreadable one, whose reason is kept. Keeps the facts of each."""
        heads: dict[ImageHeader | None, int] = {}  # a chunk has few kinds of header: each becomes a record once
        kinds, digests, images = [], [], []
        for row in rows:
            pixels, head, digest = self._decode_file(row)
            images.append(pixels)
            kinds.append(heads.setdefault(head, len(heads)))
            digests.append(digest)
        if self.pixels is not None:
            self.pixels.write(rows.start, images)
        unknown = (False,) * len(STORE_FACTS.descr)
        records = [
            (True, *(getattr(head, name) for name in _HEADER_FACTS), 0) if head else unknown for head in heads
        ]
        facts = np.array(records, STORE_FACTS)[kinds]
        facts["digest"] = np.frombuffer(b"".join(digests), "<u8")
        self.facts[rows.start : rows.stop] = facts

    def _decode_file(self, row: int) -> tuple[ndarray, ImageHeader | None, bytes]:
        try:
            data = self.reader.read(int(self.keys[row]))
            pixels, header = decode_with_header(data, self.geometry)
        except ImageError as error:
            self.reasons[row] = str(error)
            if isinstance(error.__cause__, OSError):
                self.unopened.append(row)
            return self._black, None, bytes(8)
        return np.ascontiguousarray(pixels), header, hash_file(data)

    def __reduce__(self) -> Any:
        return RowDecoder, (self.reader, self.keys, self.geometry, self.pixels)


def hash_file(data: bytes) -> bytes:
    """Eight bytes that are equal for equal files: an image's entry in ``Dataset.digests``, little-endian."""
    return hashlib.blake2b(data, digest_size=8).digest()
