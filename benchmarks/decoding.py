"""Decoding in one thread: ours against Pillow, and how far apart the pictures are.

    python benchmarks/decoding.py [FOLDER_OF_ZIPS]

Three rounds in turn over the same bytes, already in memory; medians. Pillow opens, converts and, for photos,
resizes with its antialiased bilinear filter: the same picture. At 1000 x 750 to 96 half scale is decoded.
"""

import statistics
import sys
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from record import record, shared

from sightline.data import decode, read_header
from sightline.types import Geometry

ROUNDS = 3


def pillow(geometry: Geometry) -> Callable[[bytes], np.ndarray]:
    """The plain way."""
    mode, size = "L" if geometry.channels == 1 else "RGB", geometry.size[::-1]

    def read(data: bytes) -> np.ndarray:
        image = Image.open(BytesIO(data)).convert(mode)
        image = image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(geometry.shape)

    return read


def files(archive: Path, count: int) -> list[bytes]:
    """Evenly spread over the archive."""
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.endswith((".png", ".jpg"))]
        return [opened.read(name) for name in names[:: max(1, len(names) // count)][:count]]


def enlarged(data: bytes) -> bytes:
    """The same photo at twice its size."""
    image, stream = Image.open(BytesIO(data)).convert("RGB"), BytesIO()
    image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def main() -> None:
    """Rates of both, in turn, and the mean difference of their pictures in levels of 255."""
    torch.set_num_threads(1)
    folder = shared(sys.argv[1] if len(sys.argv) > 1 else None)
    photos = files(folder / "photos_jpg.zip", 600)
    wide = [data for data in photos if (head := read_header(data)).width >= 480 and head.height >= 320][:120]
    cases = {
        "mnist, PNG 28": (files(folder / "mnist_png.zip", 4000), Geometry(size=(28, 28), channels=1)),
        "cifar, JPEG 32": (files(folder / "cifar10_jpg.zip", 4000), Geometry(size=(32, 32))),
        "photos, JPEG 500x375 to 224": (wide, Geometry(size=(224, 224))),
        "photos, JPEG 1000x750 to 96": ([enlarged(data) for data in wide[:60]], Geometry(size=(96, 96))),
    }
    found = {}
    for name, (data, geometry) in cases.items():
        ways = {"pillow": pillow(geometry), "ours": lambda each, geometry=geometry: decode(each, geometry)}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, read in ways.items():
                started = time.perf_counter()
                for each in data:
                    read(each)
                rates[way].append(len(data) / (time.perf_counter() - started))
        middle = {way: statistics.median(each) for way, each in rates.items()}
        apart = [np.abs(ways["ours"](d).astype(int) - ways["pillow"](d)) for d in data[:200]]
        found[name] = {
            **{f"{way}_per_second": round(rate) for way, rate in middle.items()},
            "times": round(middle["ours"] / middle["pillow"], 2),
            "mean_difference": round(float(np.mean([each.mean() for each in apart])), 3),
            "largest_mean_difference": round(float(max(each.mean() for each in apart)), 3),
        }
    record("decoding", found)


if __name__ == "__main__":
    main()
