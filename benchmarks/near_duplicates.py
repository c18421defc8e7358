"""Near duplicates among many images: the exact search against the sorted window that it replaced.

    python benchmarks/near_duplicates.py [FOLDER_OF_ZIPS] [--images 50000 200000 400000] [--rounds 3]

The images are CIFAR-10's and MNIST's, mirrored ones, and crops enlarged, so that no two are the same; a thousand are
planted once more as JPEG of quality 70. Both ways take the same images from memory, one after the other; the ratio is
that of the medians of their wall times, from pixels to confirmed pairs.
"""

import argparse
import statistics
import time
from io import BytesIO

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray
from PIL import Image
from record import record, shared

from sightline.data import duplicates, load_dataset
from sightline.data.geometry import resize_images
from sightline.types import Dataset, Geometry

SETS = {
    "cifar10": ("cifar10_jpg.zip", Geometry(size=(32, 32))),
    "mnist": ("mnist_png.zip", Geometry(size=(28, 28), channels=1)),
}
PLANTED = 1000


def make_images(base: ndarray, count: int) -> ndarray:
    """``count`` images: the given ones, their mirrors, crops of both, and copies of the first, encoded again."""
    rng, side = np.random.default_rng(0), base.shape[1] * 2 // 3
    every = np.concatenate([base, base[:, :, ::-1]])[: count - PLANTED]
    more = count - PLANTED - len(every)
    crops = base[:0]
    if more:
        rows, (y, x) = rng.integers(0, len(every), more), rng.integers(0, base.shape[1] - side + 1, (2, more))
        cut = [every[i, a : a + side, b : b + side] for i, a, b in zip(rows, y, x, strict=True)]
        crops = resize_images(np.stack(cut), base.shape[1:3])
    copies = np.empty_like(every[:PLANTED])
    for place, image in zip(copies, every, strict=False):
        stream = BytesIO()
        Image.fromarray(image.squeeze()).save(stream, "JPEG", quality=70)
        place[:] = np.asarray(Image.open(stream)).reshape(image.shape)
    return np.concatenate([every, crops, copies])


def as_dataset(pixels: ndarray, geometry: Geometry) -> Dataset:
    """Pixels as a dataset of one class."""
    count = len(pixels)
    return Dataset(
        pixels=pixels,
        rows=np.arange(count),
        labels=np.zeros(count, np.int64),
        classes=("a",),
        files=np.array([""] * count, object),
        digests=np.arange(count, dtype=np.uint64),
        geometry=geometry,
        fingerprint="",
        columns={},
    )


def main() -> None:
    """Each set at each size, in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--images", type=int, nargs="+", default=[50_000, 200_000, 400_000])
    parser.add_argument("--rounds", type=int, default=3)
    given, figures = parser.parse_args(), {}
    folder = shared(given.folder)
    for name, (file, geometry) in SETS.items():
        base = load_dataset(folder / file, geometry)[:]
        for count in given.images:
            dataset = as_dataset(make_images(base, count), geometry)
            seconds: dict[str, list[float]] = {"window": [], "exact": []}
            found: dict[str, dict[str, int]] = {}
            for _ in range(given.rounds):
                for way, search in (("window", WindowedSignatures), ("exact", duplicates.ImageSignatures)):
                    started = time.perf_counter()
                    looks = search(dataset, np.arange(count))
                    pairs = looks.candidate_pairs()
                    confirmed = pairs[looks.confirm_pairs(pairs)]
                    seconds[way].append(time.perf_counter() - started)
                    planted = np.isin(
                        np.arange(PLANTED) * count + count - PLANTED + np.arange(PLANTED),
                        confirmed[:, 0] * count + confirmed[:, 1],
                    )
                    found[way] = {
                        "candidates": len(pairs),
                        "confirmed": len(confirmed),
                        "planted_found": int(planted.sum()),
                    }
            middle = {way: round(statistics.median(each), 2) for way, each in seconds.items()}
            figures[f"{name}, {count}"] = {
                "seconds": middle,
                "ratio": round(middle["exact"] / middle["window"], 3),
                "rounds": given.rounds,
                **found,
            }
            record("near_duplicates", figures)  # what is measured is kept when the rest is stopped


# the search as it was

_TABLES, _BITS, _WINDOW, _APART = 16, 14, 24, 12
_PAIRS_PER_CHUNK = 128


class WindowedSignatures:
    """The search as it was: hashes sorted sixteen times, of which the next 24 are looked at; one thread."""

    def __init__(self, dataset: Dataset, positions: Int64[ndarray, " n"]):
        size = (
            min(duplicates.SIGNATURE_SIDE, dataset.geometry.size[0]),
            min(duplicates.SIGNATURE_SIDE, dataset.geometry.size[1]),
        )
        tall, wide = (duplicates._dct_matrix(side) for side in size)
        down, across = (duplicates._smoothing_matrix(side) for side in size)
        count, channels = len(positions), dataset.geometry.channels
        self.thumbs = np.empty((count, *size), np.uint16)  # in 256ths of a level
        self.low = np.empty((count, duplicates._FREQUENCIES**2 - 1), np.float32)
        self.colours = np.empty((count, 48), np.uint8) if channels == 3 else None
        self.contrast = np.empty(count, np.float32)
        step = max(1, 4_000_000 // int(np.prod(dataset.geometry.shape)))
        for start in range(0, count, step):
            part = slice(start, start + step)
            pixels = dataset[positions[part]]
            small = pixels if pixels.shape[1:3] == size else resize_images(pixels, size)
            if small.shape[3] == 1:
                grey = small[..., 0].astype(np.float32)
            else:
                flat = small.reshape(-1, 3).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
                grey = flat.reshape(small.shape[:3])
            self.contrast[part] = grey.std((1, 2))
            self.thumbs[part] = np.rint(down @ grey @ across.T * 256)
            waves = (tall @ grey @ wide.T).reshape(len(grey), -1)[:, 1:]
            self.low[part] = waves / np.maximum(np.linalg.norm(waves, axis=1, keepdims=True), 1e-6)
            if self.colours is not None:
                self.colours[part] = resize_images(small, (4, 4)).reshape(len(small), -1)

    def candidate_pairs(self) -> Int64[ndarray, "p 2"]:
        """Pairs that may be near duplicates, each once, the smaller position first."""
        vivid = np.flatnonzero(self.contrast >= duplicates.MIN_CONTRAST)
        pairs = vivid[_match_hashes(self.low[vivid])]
        close = np.empty(len(pairs), np.bool_)
        for start in range(0, len(pairs), 1 << 16):
            one, two = (self.low[pairs[start : start + (1 << 16), side]] for side in (0, 1))
            close[start : start + (1 << 16)] = (
                np.einsum("ij,ij->i", one, two) > 1 - duplicates.MAX_SPECTRAL_DISTANCE**2 / 2
            )
        return pairs[close]

    def confirm_pairs(self, pairs: Int64[ndarray, "p 2"]) -> Bool[ndarray, " p"]:
        """Which pairs are near duplicates, by their pixels."""
        found = np.zeros(len(pairs), np.bool_)
        for start in range(0, len(pairs), _PAIRS_PER_CHUNK):
            one, two = (
                self.thumbs[side] * np.float32(1 / 256) for side in pairs[start : start + _PAIRS_PER_CHUNK].T
            )
            likely = np.flatnonzero(_is_same_picture(one, two, every=3, slack=3.0))  # a ninth of the points
            found[start + likely] = _is_same_picture(one[likely], two[likely])
        if self.colours is not None:
            one, two = (self.colours[side].astype(np.float32).reshape(-1, 16, 3) for side in pairs[found].T)
            apart = one - two
            apart -= apart.mean(2, keepdims=True)  # brightness aside
            found[found] = np.abs(apart).mean((1, 2)) <= duplicates.MAX_COLOUR_DIFFERENCE
        return found


def _match_hashes(low: Float32[ndarray, "n f"]) -> Int64[ndarray, "p 2"]:
    """Pairs whose hashes agree in all bits of a table and differ in few of the others.

    A table sorts the hashes by its own bits first and looks at the next few: the time is that of sorting.
    """
    count = len(low)
    bits = np.pad(low > np.median(low, axis=0), ((0, 0), (0, 1)))
    whole = _pack_bits(bits)
    drawn = np.random.default_rng(0)
    found = []
    for _ in range(_TABLES):
        keys = _pack_bits(bits[:, [*drawn.permutation(bits.shape[1] - 1), bits.shape[1] - 1]])
        order = np.argsort(keys)
        table, hashes = keys[order] >> np.uint64(64 - _BITS), whole[order]
        for lag in range(1, min(_WINDOW, count - 1) + 1):
            hits = np.flatnonzero(table[lag:] == table[:-lag])
            hits = hits[np.bitwise_count(hashes[hits] ^ hashes[hits + lag]) <= _APART]
            one, two = order[hits], order[hits + lag]
            found.append(np.minimum(one, two) * count + np.maximum(one, two))
    pairs = np.sort(np.concatenate(found))  # np.unique hashes, which takes four times as long
    return np.stack(np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], count), 1)


def _pack_bits(bits: Bool[ndarray, "n 64"]) -> ndarray:
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(">u8")[:, 0].astype(np.uint64)


def _is_same_picture(
    one: Float32[ndarray, "B h w"], two: Float32[ndarray, "B h w"], *, every: int = 1, slack: float = 1.0
) -> Bool[ndarray, " B"]:
    """Whether one is the other, slightly shifted, stretched, blurred or changed in contrast.

    To first order such changes add the picture's derivatives to it, so their sizes, and what they
    leave unexplained, follow from least squares; the derivatives are taken of the mean of both.
    """
    count, height, width = one.shape
    mean = (one + two) / 2
    here, after, before = slice(1, -1, every), slice(2, None, every), slice(0, -2, every)
    middle = mean[:, here, here]
    left, right, above, below = (
        mean[:, here, before],
        mean[:, here, after],
        mean[:, before, here],
        mean[:, after, here],
    )
    across, down = (right - left) * (width / 2), (below - above) * (height / 2)
    x = ((np.arange(1, width - 1, every) + 0.5) / width - 0.5).astype(np.float32)
    y = ((np.arange(1, height - 1, every) + 0.5) / height - 0.5).astype(np.float32)[:, None]
    contrast = middle - middle.mean((1, 2), keepdims=True)
    blur = left + right + above + below - 4 * middle
    terms = [across, across * x, down, down * y, blur, contrast, np.ones_like(middle)]
    points = middle.shape[1] * middle.shape[2]
    design = np.stack(terms, 1).reshape(count, len(terms), points)
    change = (two - one)[:, here, here].reshape(count, points)
    normal = design @ design.transpose(0, 2, 1) + 0.01 * np.eye(len(terms), dtype=np.float32)
    amounts = np.linalg.solve(normal, design @ change[..., None])
    rest = change - (amounts.transpose(0, 2, 1) @ design)[:, 0]
    moved = np.abs(amounts[:, :4, 0]).max(1)
    allowed = duplicates.MAX_RESIDUAL_VARIANCE * (contrast**2).mean((1, 2)) + duplicates.ROUNDING_NOISE**2
    return ((rest**2).mean(1) <= slack * allowed) & (moved <= slack * duplicates.MAX_DISPLACEMENT)


if __name__ == "__main__":
    main()
