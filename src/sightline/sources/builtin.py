"""Data sets that need no download: real handwritten digits, and shapes drawn by us."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray

from .arrays import ImageArrays


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
