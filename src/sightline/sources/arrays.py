"""Images that are arrays, not files: put in one shape, and served as files that cost next to nothing."""

import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray

from ..errors import DataError
from .layout import check_has_classes, check_train_covers_classes, sort_classes


@dataclass(frozen=True, eq=False)
class ArrayChunk:
    """Some images of one origin, with labels as they were found there."""

    name: str
    """What the images are called: the file or array they lie in."""
    images: UInt8[ndarray, "n H W"] | UInt8[ndarray, "n H W 3"]
    labels: ndarray
    """A class number or a class name for each, (n,)."""
    split: str | None = None


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """Images in memory, with their labels."""

    images: UInt8[ndarray, "N H W"] | UInt8[ndarray, "N H W 3"]
    labels: Int64[ndarray, " N"]
    classes: tuple[str, ...]
    files: ndarray
    """A name for each image."""
    splits: ndarray | None = None
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Hash of the pixels, their shape, the labels and the parts."""
        digest = hashlib.blake2b(repr((self.images.shape, self.classes)).encode(), digest_size=16)
        for array in (self.images, self.labels, np.array([]) if self.splits is None else self.splits):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def concatenate_chunks(
    parts: Sequence[ArrayChunk], place: str, names: Sequence[str] | None = None, notes: tuple[str, ...] = ()
) -> ImageArrays:
    """One set of images from its parts; ``names`` are the class names where labels are numbers.

    Raises DataError, naming ``place``, when the parts do not fit together.
    """
    shapes = {part.images.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise DataError(f"'{place}' has images of several shapes ({_format_shapes(shapes)}): make them all alike.")
    for part in parts:
        if len(part.images) != len(part.labels):
            raise DataError(
                f"'{part.name}' of '{place}' has {len(part.images):,} images but {len(part.labels):,} labels: "
                "one of the two is from elsewhere or was cut; copy or download them again."
            )
    texts = [_name_labels(part, place, names) for part in parts]
    classes = sort_classes(set().union(*(set(known) for known, _ in texts)))
    classes = tuple(name for name in names if name in classes) if names else classes
    check_has_classes(classes, place)
    splits = _split_column(parts)
    if splits is not None:
        pairs = ((part.split or "", name) for part, (known, _) in zip(parts, texts, strict=True) for name in known)
        check_train_covers_classes(pairs, classes, place)
    number = {name: i for i, name in enumerate(classes)}
    labels = [np.array([number[name] for name in known], np.int64)[codes] for known, codes in texts]
    files = np.array([f"{part.name}:{i}" for part in parts for i in range(len(part.labels))], object)
    images = parts[0].images if len(parts) == 1 else np.concatenate([part.images for part in parts])
    return ImageArrays(images, np.concatenate(labels), classes, files, splits, notes)


def _format_shapes(shapes: set[tuple[int, ...]]) -> str:
    return ", ".join(sorted("x".join(map(str, shape)) for shape in shapes))


def _split_column(parts: Sequence[ArrayChunk]) -> ndarray | None:
    if not any(part.split for part in parts):
        return None
    return np.concatenate([np.full(len(part.labels), part.split or "train", "<U5") for part in parts])


def _name_labels(part: ArrayChunk, place: str, names: Sequence[str] | None) -> tuple[list[str], ndarray]:
    """The class names that occur in a part, and which of them each image has."""
    known, codes = np.unique(part.labels, return_inverse=True)
    if names is None:
        return [str(label) for label in known.tolist()], codes
    if len(known) and not 0 <= known[0] <= known[-1] < len(names):
        raise DataError(
            f"'{part.name}' of '{place}' has the label {known[-1] if known[0] >= 0 else known[0]}, but there are "
            f"only {len(names)} class names: labels count from 0."
        )
    return [str(names[label]) for label in known.tolist()], codes


@dataclass(frozen=True, eq=False)
class ArrayReader:
    """Serves images in memory as PNG files, so that they go the way of every other image.

    The PNG is uncompressed and written by hand: a tenth of the time Pillow takes, and read faster too.
    """

    images: ndarray
    path: Path | None = None
    """The file that ``images`` maps, where it does: other processes then open it anew."""

    def read(self, key: int) -> bytes:
        """Image ``key`` as a PNG file."""
        image = self.images[key]
        height = image.shape[0]
        rows = np.zeros((height, 1 + image.size // height), np.uint8)  # each row begins with filter 0: none
        rows[:, 1:] = image.reshape(height, -1)
        return self._png_header + _png_chunk(b"IDAT", zlib.compress(rows.data, 0)) + _png_chunk(b"IEND", b"")

    @cached_property
    def _png_header(self) -> bytes:
        height, width, *channels = self.images.shape[1:]
        colour = 2 if channels else 0
        size = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", size)

    def __reduce__(self) -> Any:
        return (open_npy_reader, (self.path,)) if self.path else (ArrayReader, (self.images,))


def open_npy_reader(path: Path) -> ArrayReader:
    """A reader of the images in a ``.npy`` file, which is mapped into memory."""
    return ArrayReader(np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)), path)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
