"""What a million and a billion images take: rates measured on some thousands, and their product.

    python benchmarks/scale.py [--data FOLDER_OF_ZIPS] [--files 100000] [--out FILE]

Measured: time and memory to list a folder of files and files in a tar; decoding photos of 224 pixels and pictures of
32 into a store, and embedding photos with the published backbone, on all cores: its answers cost as much as embedding.
What grows faster than the images is not multiplied: near duplicates are measured at their own sizes by
``near_duplicates.py``. Disk is exact: bytes of pixels and of features.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import record, shared

from sightline.data import load_dataset
from sightline.features.embedding import time_embedding
from sightline.sources import find
from sightline.training import build_published_start
from sightline.types import Dataset, Geometry

PHOTOS = Geometry(size=(224, 224), channels=3, resize_mode="crop", crop_fraction=0.875, interpolation="bicubic")
PICTURES = Geometry(size=(32, 32), channels=3)
FEATURE_BYTES = 1280 * 4
LIST = """
import json, sys, time, tracemalloc
from sightline.sources import find
if counts_memory := sys.argv[2] == "memory":
    tracemalloc.start()
began = time.perf_counter()
found = find(sys.argv[1])
print(json.dumps({"images": len(found), "seconds": time.perf_counter() - began,
                  "memory_mb": tracemalloc.get_traced_memory()[1] / 1e6 if counts_memory else None}))
"""
"""A program that lists the images of a place: counting allocations makes it slower, so it does one or the other."""


def main() -> None:
    """Measure, multiply, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="result file; benchmarks/results/scale.json")
    asked = parser.parse_args()
    data = shared(asked.data)
    measured = {"files": list_files(data, asked.files), "tar": list_tar(data, asked.files)}
    pictures, _ = decode(data / "cifar10_jpg.zip", PICTURES, limit=20_000)
    photos, images = decode(data / "photos_jpg.zip", PHOTOS)
    took = time_embedding(build_published_start(images, torch.device("cpu")), images) / len(images)
    measured |= {"store, 32 pixels": pictures, "store, 224 pixels": photos}
    measured["embedding, 224 pixels"] = {
        "images": len(images),
        "seconds_an_image": took,
        "gigabytes_of_disk_for_a_million": FEATURE_BYTES / 1e3,
    }
    for each in measured.values():
        each["hours_for_a_million"] = each["seconds_an_image"] * 1e6 / 3600
    record(
        "scale",
        {name: {k: float(f"{v:.4g}") for k, v in each.items()} for name, each in measured.items()},
        asked.out,
    )


def an_image(data: Path) -> bytes:
    """A small JPEG."""
    with zipfile.ZipFile(data / "cifar10_jpg.zip") as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(".jpg")))


def listing(place: Path) -> dict[str, Any]:
    """Seconds and largest memory of listing the images of a place, each in a process with an empty cache."""

    def run(what: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as cache:
            words = [sys.executable, "-c", LIST, str(place), what]
            environment = os.environ | {"SIGHTLINE_CACHE": cache}
            return json.loads(
                subprocess.run(words, check=True, capture_output=True, text=True, env=environment).stdout
            )

    return run("time") | {"memory_mb": run("memory")["memory_mb"]}


def each_more(small: dict[str, Any], large: dict[str, Any]) -> dict[str, float]:
    """What each further image costs."""
    more = large["images"] - small["images"]
    return {
        "images": large["images"],
        "seconds_an_image": (large["seconds"] - small["seconds"]) / more,
        "gigabytes_of_memory_for_a_million": (large["memory_mb"] - small["memory_mb"]) / more * 1e3,
    }


def list_files(data: Path, count: int) -> dict[str, float]:
    """A folder of ten classes, whose files are one file under many names."""
    with tempfile.TemporaryDirectory() as place:
        first, found = Path(place, "first.jpg"), []
        first.write_bytes(an_image(data))
        for images in (count // 10, count):
            folder = Path(place, str(images))
            for number in range(images):
                file = folder / f"class{number % 10}" / f"{number:09}.jpg"
                if number < 10:
                    file.parent.mkdir(parents=True)
                if number % 50_000 == 0:  # a file has at most some tens of thousands of names
                    first = Path(place, f"{images}-{number}.jpg")
                    first.write_bytes(an_image(data))
                os.link(first, file)
            found.append(listing(folder))
        return each_more(*found)


def list_tar(data: Path, count: int) -> dict[str, float]:
    """A tar of ten classes."""
    image, found = an_image(data), []
    with tempfile.TemporaryDirectory() as place:
        file, packed = Path(place, "image.jpg"), Path(place, "images.tar")
        file.write_bytes(image)
        for images in (count // 10, count):
            with tarfile.open(packed, "w") as archive:
                for number in range(images):
                    archive.add(file, f"class{number % 10}/{number:09}.jpg")
            found.append(listing(packed))
        return each_more(*found)


def decode(archive: Path, geometry: Geometry, limit: int | None = None) -> tuple[dict[str, float], Dataset]:
    """Seconds of an image from the archive into a new store, and the images, whose store is gone."""
    source = find(archive, limit=limit)
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        images = load_dataset(source, geometry, cache=Path(place))
        took = time.perf_counter() - began
        rows = np.arange(min(200, len(images)))
        images = replace(images.subset(rows), pixels=images[rows], rows=rows)
    height, width = geometry.size
    figures = {
        "images": len(source),
        "seconds_an_image": took / len(source),
        "gigabytes_of_disk_for_a_million": height * width * 3 / 1e3,
    }
    return figures, images


if __name__ == "__main__":
    main()
