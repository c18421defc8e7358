"""Near duplicates: how many are claimed where none are meant, how many planted copies are found.

    python benchmarks/duplicates.py [FOLDER_OF_ZIPS]

Of each set 300 images drawn by seed are planted again in each way: resized by 0.6 to 2 times, encoded again as
JPEG of quality 60 to 90, or cropped by 2 % of each side. Copies are decoded like any file, at the set's working
size, and are found when they are confirmed as a pair with their original. Unplanned are the images that are
grouped before any is planted (CIFAR-10 holds pictures that are truly in it twice). ``near_duplicates.py`` says in what
time.
"""

import sys
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image
from record import record, shared

from sightline.data import decode, find_near_duplicates, load_dataset
from sightline.data.duplicates import ImageSignatures
from sightline.sources import find
from sightline.types import Dataset, Geometry

CASES = {
    "mnist": ("mnist_png.zip", Geometry(size=(28, 28), channels=1)),
    "cifar10": ("cifar10_jpg.zip", Geometry(size=(32, 32))),
    "photos at 64": ("photos_jpg.zip", Geometry(size=(64, 64))),
    "photos at 224": ("photos_jpg.zip", Geometry(size=(224, 224))),
}
PLANTED = 300


def _bytes(image: Image.Image, kind: str, **options: int) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def resized(image: Image.Image, rng: np.random.Generator) -> bytes:
    """By a factor between 0.6 and 2."""
    factor = float(np.exp(rng.uniform(np.log(0.6), np.log(2))))
    size = max(8, round(image.width * factor)), max(8, round(image.height * factor))
    return _bytes(image.resize(size, Image.Resampling.BICUBIC), "PNG")


def encoded_again(image: Image.Image, rng: np.random.Generator) -> bytes:
    """As JPEG of quality 60 to 90."""
    return _bytes(image, "JPEG", quality=int(rng.integers(60, 91)))


def cropped(image: Image.Image, rng: np.random.Generator) -> bytes:
    """By 2 % of each side, anywhere; tiny images by a fraction of a pixel."""
    (width, height), (x, y) = image.size, rng.uniform(size=2) * 0.02
    box = (x * width, y * height, (x + 0.98) * width, (y + 0.98) * height)
    if image.width < 100:
        return _bytes(image.resize(image.size, Image.Resampling.BICUBIC, box), "PNG")
    return _bytes(image.crop(tuple(round(edge) for edge in box)), "JPEG", quality=95)


WAYS: dict[str, Callable[[Image.Image, np.random.Generator], bytes]] = {
    "resized": resized,
    "encoded again": encoded_again,
    "cropped by 2 %": cropped,
}


def planted(path: str, geometry: Geometry, dataset: Dataset) -> tuple[Dataset, np.ndarray]:
    """The images with the copies behind them, in the order of WAYS; and the originals of the copies."""
    source, rng = find(path), np.random.default_rng(0)
    originals, copies = [], []
    for change in WAYS.values():
        for at in rng.permutation(len(dataset))[:PLANTED]:
            image = Image.open(BytesIO(source.read(int(dataset.rows[at]))))
            copies.append(decode(change(image.convert("L" if geometry.channels == 1 else "RGB"), rng), geometry))
            originals.append(at)
    pixels = np.concatenate([dataset[:], np.stack(copies)])
    count = len(pixels)
    fields = vars(dataset) | {
        "pixels": pixels,
        "rows": np.arange(count),
        "labels": np.zeros(count, np.int64),
        "files": np.array([""] * count, object),
        "digests": np.arange(count, dtype=np.uint64),
        "columns": {},
    }
    return Dataset(**fields), np.array(originals)


def main() -> None:
    """Measure each set without planted copies, then with them."""
    folder, figures = shared(sys.argv[1] if len(sys.argv) > 1 else None), {}
    for name, (file, geometry) in CASES.items():
        dataset = load_dataset(folder / file, geometry)
        as_array = Dataset(**vars(dataset) | {"pixels": dataset[:], "rows": np.arange(len(dataset))})
        sizes = np.bincount(find_near_duplicates(as_array))  # no store, in which an earlier result would be
        extended, originals = planted(str(folder / file), geometry, dataset)
        looks = ImageSignatures(extended, np.arange(len(extended)))
        pairs = looks.candidate_pairs()
        confirmed = {tuple(pair) for pair in pairs[looks.confirm_pairs(pairs)].tolist()}
        found = np.array([(int(one), len(dataset) + i) in confirmed for i, one in enumerate(originals)])
        figures[name] = {
            "images": len(dataset),
            "unplanned_in_groups": int(sizes[sizes > 1].sum()),
            "unplanned_share": round(float(sizes[sizes > 1].sum() / len(dataset)), 6),
            "planted_and_found": {
                way: round(float(part.mean()), 4)
                for way, part in zip(WAYS, np.split(found, len(WAYS)), strict=True)
            },
        }
    record("duplicates", figures)


if __name__ == "__main__":
    main()
