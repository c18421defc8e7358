"""Images that are arrays, not files: joined, served as PNG files that cost next to nothing; and built-in datasets."""

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8, UInt16
from numpy import ndarray

from ..errors import DataError
from .layout import check_has_classes, check_train_covers_classes, sort_classes
from .source import Source


@dataclass(frozen=True, eq=False)
class ArrayChunk:
    """Some images of one origin, with the labels that were found there."""

    name: str
    """The file or array that holds the images."""
    images: UInt8[ndarray, "n H W"] | UInt8[ndarray, "n H W 3"] | UInt16[ndarray, "n H W"]
    labels: ndarray
    """A class number or a class name for each, (n,)."""
    split: str | None = None


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """Images in memory, with their labels."""

    images: UInt8[ndarray, "N H W"] | UInt8[ndarray, "N H W 3"] | UInt16[ndarray, "N H W"]
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
        big_endian = np.ascontiguousarray(image, image.dtype.newbyteorder(">"))
        rows = np.zeros((height, 1 + image.nbytes // height), np.uint8)  # each row begins with filter 0: none
        rows[:, 1:] = big_endian.view(np.uint8).reshape(height, -1)
        return self._png_header + _png_chunk(b"IDAT", zlib.compress(rows.data, 0)) + _png_chunk(b"IEND", b"")

    @cached_property
    def _png_header(self) -> bytes:
        height, width, *channels = self.images.shape[1:]
        colour = 2 if channels else 0
        size = struct.pack(">IIBBBBB", width, height, 8 * self.images.itemsize, colour, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", size)

    def __reduce__(self) -> Any:
        return (open_npy_reader, (self.path,)) if self.path else (ArrayReader, (self.images,))


def open_npy_reader(path: Path) -> ArrayReader:
    """A reader of the images in a ``.npy`` file, mapped into memory."""
    return ArrayReader(np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)), path)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


# datasets that need no download: real handwritten digits, and synthetic shapes


def digits() -> ImageArrays:
    """1,797 handwritten digits, 8x8 grey, from scikit-learn (Alpaydin and Kaynak, UCI 1998).

    The original's 0 to 16 becomes 0 to 255.
    """
    found = find_spec("sklearn")  # where its file is; to import it brings scipy.stats and more along
    assert found is not None
    assert found.submodule_search_locations is not None
    (place,) = found.submodule_search_locations
    rows = np.loadtxt(Path(place, "datasets", "data", "digits.csv.gz"), delimiter=",")
    images = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return _name_files("digits", images, rows[:, -1].astype(np.int64), tuple("0123456789"))


def shapes(count: int = 1200, size: int = 32, seed: int = 0) -> ImageArrays:
    """``count`` pictures of one shape each, size x size RGB, of random place, size, turn and colour.

    Circles, squares, stars and triangles in equal number, on a noisy ground of another colour.
    """
    if not (count >= 4 and size >= 8):
        raise ValueError("shapes needs at least 4 images of at least 8 pixels")
    rng = np.random.default_rng([seed, count, size])
    labels = np.arange(count, dtype=np.int64) % len(_SHAPES)
    outlines = np.empty((count, size, size), np.float32)
    for label, distance in enumerate(_SHAPES.values()):
        rows = labels == label
        outlines[rows] = _draw_shapes(distance, int(rows.sum()), size, rng)
    ground = rng.uniform(0, 255, (count, 1, 1, 3))
    turn = rng.uniform(90, 165, (count, 1, 1, 3)) * rng.choice([-1, 1], (count, 1, 1, 3))
    paint = (ground + turn) % 256
    images = ground + outlines[..., None] * (paint - ground) + rng.normal(0, 14, (count, size, size, 3))
    order = rng.permutation(count)
    pixels = np.rint(np.clip(images, 0, 255)).astype(np.uint8)
    return _name_files("shapes", pixels[order], labels[order], tuple(_SHAPES))


def _name_files(
    name: str, images: UInt8[ndarray, "N ..."], labels: Int64[ndarray, " N"], classes: tuple[str, ...]
):
    files = np.array([f"{name}/{i:04d}.png" for i in range(len(labels))], object)
    return ImageArrays(images, labels, classes, files)


def _draw_shapes(distance: Callable[[ndarray, ndarray], ndarray], count: int, size: int, rng: np.random.Generator):
    """Coverage in [0, 1] (count, size, size): 1 inside the shape, antialiased at its border."""
    radius = rng.uniform(0.2, 0.38, (count, 1, 1))
    x0, y0 = rng.uniform(radius, 1 - radius, (2, count, 1, 1))
    angle = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    x, y = (x - x0) / radius, (y - y0) / radius
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return np.clip(0.5 - distance(x, y) * radius * size, 0, 1)


def _star_distance(corners: int, inner: float) -> Callable[[ndarray, ndarray], ndarray]:
    """Signed distance (of the nearest edge's line) to a star with ``corners`` points on the unit circle.

    ``inner`` is the radius of the dents: cos(pi / corners) makes it a regular polygon.
    """
    half = np.pi / corners
    dent = inner * np.array([np.cos(half), np.sin(half)])
    edge = dent - np.array([1.0, 0.0])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)

    def distance(x: ndarray, y: ndarray) -> ndarray:
        angle = np.abs((np.arctan2(y, x) + half) % (2 * half) - half)
        radius = np.hypot(x, y)
        return (radius * np.cos(angle) - 1) * normal[0] + radius * np.sin(angle) * normal[1]

    return distance


_SHAPES: dict[str, Callable[[ndarray, ndarray], ndarray]] = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": _star_distance(4, np.cos(np.pi / 4)),
    "star": _star_distance(5, 0.42),
    "triangle": _star_distance(3, np.cos(np.pi / 3)),
}
