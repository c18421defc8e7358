"""Images that are arrays, not files: joined into one set, and served as PNG files that cost next to nothing."""

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
from .source import Source


@dataclass(frozen=True, eq=False)
class ArrayChunk:
    """Some images of one origin, with the labels that were found there."""

    name: str
    """The file or array that holds the images."""
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
        """Hash of the pixels, their shape, the labels and the splits."""
        digest = hashlib.blake2b(repr((self.images.shape, self.classes)).encode(), digest_size=16)
        for array in (self.images, self.labels, np.array([]) if self.splits is None else self.splits):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def source_from_arrays(name: str, arrays: ImageArrays) -> Source:
    """Labelled images in memory."""
    return Source(
        name=name,
        reader=ArrayReader(arrays.images),
        keys=np.arange(len(arrays.labels), dtype=np.int64),
        files=arrays.files,
        labels=arrays.labels,
        classes=arrays.classes,
        fingerprint=arrays.fingerprint(),
        columns={} if arrays.splits is None else {"split": arrays.splits},
        notes=arrays.notes,
    )


def concatenate_chunks(
    chunks: Sequence[ArrayChunk], place: str, names: Sequence[str] | None = None, notes: tuple[str, ...] = ()
) -> ImageArrays:
    """One set of images from its chunks; ``names`` are the class names where labels are numbers.

    Raises DataError, naming ``place``, where the chunks do not fit together.
    """
    shapes = {chunk.images.shape[1:] for chunk in chunks}
    if len(shapes) > 1:
        listed = ", ".join(sorted("x".join(map(str, shape)) for shape in shapes))
        raise DataError(f"'{place}' has images of several shapes ({listed}): make them all alike.")
    for chunk in chunks:
        if len(chunk.images) != len(chunk.labels):
            raise DataError(
                f"'{chunk.name}' of '{place}' has {len(chunk.images):,} images but {len(chunk.labels):,} labels: "
                "one of the two is from elsewhere or was cut; copy or download them again."
            )
    texts = [_name_labels(chunk, place, names) for chunk in chunks]
    classes = sort_classes(set().union(*(set(known) for known, _ in texts)))
    classes = tuple(name for name in names if name in classes) if names else classes
    check_has_classes(classes, place)
    splits = None
    if any(chunk.split for chunk in chunks):
        splits = np.concatenate([np.full(len(chunk.labels), chunk.split or "train", "<U5") for chunk in chunks])
        pairs = (
            (chunk.split or "", name) for chunk, (known, _) in zip(chunks, texts, strict=True) for name in known
        )
        check_train_covers_classes(pairs, classes, place)
    number = {name: i for i, name in enumerate(classes)}
    labels = [np.array([number[name] for name in known], np.int64)[codes] for known, codes in texts]
    files = np.array([f"{chunk.name}:{i}" for chunk in chunks for i in range(len(chunk.labels))], object)
    images = chunks[0].images if len(chunks) == 1 else np.concatenate([chunk.images for chunk in chunks])
    return ImageArrays(images, np.concatenate(labels), classes, files, splits, notes)


def _name_labels(chunk: ArrayChunk, place: str, names: Sequence[str] | None) -> tuple[list[str], ndarray]:
    """The class names that occur in a chunk, and the position in them of each image's class."""
    known, codes = np.unique(chunk.labels, return_inverse=True)
    if names is None:
        return [str(label) for label in known.tolist()], codes
    if len(known) and not 0 <= known[0] <= known[-1] < len(names):
        raise DataError(
            f"'{chunk.name}' of '{place}' has the label {known[-1] if known[0] >= 0 else known[0]}, but there are "
            f"only {len(names)} class names: labels count from 0."
        )
    return [str(names[label]) for label in known.tolist()], codes


@dataclass(frozen=True, eq=False)
class ArrayReader:
    """Serves images in memory as PNG files, so that they are decoded like every other image.

    The PNG is uncompressed and written by hand: that takes a tenth of Pillow's time, and reading it is faster too.
    """

    images: ndarray
    path: Path | None = None
    """The ``.npy`` file that ``images`` maps, if any: other processes then open it again."""

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
    """A reader of the images in a ``.npy`` file, mapped into memory."""
    return ArrayReader(np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)), path)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
