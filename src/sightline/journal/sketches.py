"""Sketches: what the journal keeps of every answer so that it can be watched, some hundred bytes and no pixels.

A sketch holds the class probabilities, the energy, a whitened projection of the features, six numbers of the image
and a hash of its coarse brightness. N sketches are a structured array with one row for each answer.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from ..errors import JournalError

MAX_SKETCHED_CLASSES = 20
"""Probabilities in a sketch: with more classes, the largest ones with the numbers of their classes."""

PROJECTED_FEATURES = 32
"""Numbers that features are projected to."""

IMAGE_STATISTICS = ("brightness", "contrast", "sharpness", "megapixels", "aspect ratio", "bytes per pixel")
"""Mean and standard deviation of grey levels in [0, 1], logarithm of the variance of the Laplacian, logarithms of
the millions of pixels and of width by height of the file, and its bytes by its pixels."""

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue (ITU-R BT.601)."""

_COARSE = 8
"""Rows, and columns of differences, of the hash."""

Sketches = ndarray
"""A structured array of shape (N) with the fields of ``sketch_dtype``."""


def sketch_dtype(n_classes: int, projected: int) -> np.dtype:
    """The fields of a sketch: ``probabilities``, ``classes``, ``energy``, ``projection``, ``statistics``, ``hash``.

    ``classes`` is empty up to ``MAX_SKETCHED_CLASSES`` classes; ``projected`` is 0 without features.
    """
    many = n_classes > MAX_SKETCHED_CLASSES
    held = MAX_SKETCHED_CLASSES if many else n_classes
    return np.dtype(
        [
            ("probabilities", "<f2", (held,)),
            ("classes", "<u2", (held if many else 0,)),
            ("energy", "<f2"),
            ("projection", "<f2", (projected,)),
            ("statistics", "<f2", (len(IMAGE_STATISTICS),)),
            ("hash", "<u8"),
        ]
    )


def make_sketches(
    probabilities: Float[ndarray, "N K"],
    energy: Float[ndarray, " N"] | None,
    projection: Float[ndarray, "N P"],
    pixels: UInt8[ndarray, "N H W C"],
    sizes: Sequence[tuple[int, int, int]],
) -> Sketches:
    """Sketch N answers; ``sizes`` are the width, the height and the bytes of each file, 0 where they are not known.

    ``projection`` has no columns for a network without features; its energy is then NaN.
    """
    found = np.zeros(len(probabilities), sketch_dtype(probabilities.shape[1], projection.shape[1]))
    held = found.dtype["probabilities"].shape[0]
    if found.dtype["classes"].shape[0]:
        order = np.argpartition(-probabilities, held, axis=1)[:, :held]
        found["classes"] = order
        found["probabilities"] = np.take_along_axis(probabilities, order, 1)
    else:
        found["probabilities"] = probabilities
    with np.errstate(over="ignore"):
        found["energy"] = np.nan if energy is None else energy
        found["projection"] = projection
    grey = pixels[..., 0] / np.float32(255) if pixels.shape[3] == 1 else pixels @ (_GREY / 255)
    found["statistics"] = _image_statistics(grey, np.array(sizes, np.float64).reshape(-1, 3))
    found["hash"] = _difference_hashes(grey)
    return found


def decode_sketches(rows: Sequence[bytes], n_classes: int, projected: int) -> Sketches:
    """The sketches that were stored as these bytes; raise JournalError for bytes of another length."""
    kind = sketch_dtype(n_classes, projected)
    if any(len(row) != kind.itemsize for row in rows):
        raise JournalError(
            f"A sketch in the journal does not have the {kind.itemsize} bytes of this release: it was written by "
            "another one, or is damaged. Start again with: sightline drift SITE --restart"
        )
    return np.frombuffer(b"".join(rows), kind)


def _image_statistics(grey: Float[ndarray, "N H W"], sizes: Float[ndarray, "N 3"]) -> Float[ndarray, "N S"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        edges = np.zeros(len(grey))  # the variance of the Laplacian
        if min(grey.shape[1:]) >= 3:
            sides = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
            edges = (sides - 4 * grey[:, 1:-1, 1:-1]).var((1, 2))
        width, height, size = np.where(sizes > 0, sizes, np.nan).T
        columns = (
            grey.mean((1, 2)),
            grey.std((1, 2)),
            np.log(edges + 1e-6),
            np.log(width * height / 1e6),
            np.log(width / height),
            size / (width * height),
        )
    return np.stack(columns, 1)


def _difference_hashes(grey: Float[ndarray, "N H W"]) -> ndarray:
    """64 bits each: whether a cell of a coarse picture is brighter than its left neighbour."""
    rows, columns = (
        np.linspace(0, side, parts + 1).astype(int)
        for side, parts in zip(grey.shape[1:], (_COARSE, _COARSE + 1), strict=True)
    )
    if min(grey.shape[1:]) < _COARSE + 1:
        return np.zeros(len(grey), np.uint64)
    sums = np.add.reduceat(np.add.reduceat(grey, rows[:-1], 1), columns[:-1], 2)
    cells = sums / np.diff(rows)[:, None] / np.diff(columns)
    bits = (cells[:, :, 1:] > cells[:, :, :-1]).reshape(len(grey), 64)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)
