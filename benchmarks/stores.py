"""Building a store on all cores and on one, and opening it again; the decoder's own rate; memory for each file.

    python benchmarks/stores.py [FOLDER_OF_ZIPS] [--rounds 3] [--only cifar10_jpg.zip] [--out FILE]

Rounds in turn, each into an empty cache; medians. One core is the same process held to one (Linux). The archives are
in the page cache. The decoder's share is images a second of the first `load`, `find` left out, over those of reading
and decoding the same files in a plain loop in one thread (or in as many as there are cores, whichever is faster).
Memory is how much more is taken at the peak for 100,000 tiny PNGs than for 10,000, for each of them: by the whole
process to find and build, and by building alone as Python's tracemalloc counts it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from record import record, shared

from sightline import runtime
from sightline.data import decode, load_dataset
from sightline.sources import Source, find
from sightline.types import Geometry

CASES = {
    "mnist_png.zip": Geometry(size=(28, 28), channels=1),
    "cifar10_jpg.zip": Geometry(size=(32, 32)),
    "photos_jpg.zip": Geometry(size=(224, 224)),
}
FEW, MANY = 10_000, 100_000
PEAK = """
import resource, sys, tracemalloc
from pathlib import Path
from sightline.data import load_dataset
from sightline.sources import find
from sightline.types import Geometry
source, geometry = find(sys.argv[1]), Geometry(size=(8, 8), channels=1)
if sys.argv[3] == "building":
    tracemalloc.start()
load_dataset(source, geometry, cache=Path(sys.argv[2]))
status = Path("/proc/self/status")  # getrusage would count the parent's memory, on Linux
if status.exists():
    whole = 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line)
else:
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(tracemalloc.get_traced_memory()[1] or whole)
"""


def decoder_rate(source: Source, geometry: Geometry) -> float:
    """Images a second of reading and decoding, and nothing else: one thread or all, whichever is faster."""

    def through(rows: range) -> None:
        for row in rows:
            decode(source.read(row), geometry)

    rates = []
    for threads in {1, runtime.cpu_count()}:
        started = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(through, [range(start, len(source), threads) for start in range(threads)]))
        rates.append(len(source) / (time.perf_counter() - started))
    return max(rates)


def load_once(path: Path, geometry: Geometry, cores: set[int]) -> tuple[float, float, float, int]:
    """Seconds to find, to build, and to do both again, held to these cores; and the number of images."""
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # threads that begin afterwards are held to them too
    try:
        with tempfile.TemporaryDirectory() as cache:
            started = time.perf_counter()
            source = find(path)
            found = time.perf_counter()
            images = len(load_dataset(source, geometry, cache=Path(cache)))
            loaded = time.perf_counter()
            load_dataset(find(path), geometry, cache=Path(cache))
            return found - started, loaded - found, time.perf_counter() - loaded, images
    finally:
        os.sched_setaffinity(0, every)


def timed(path: Path, geometry: Geometry) -> dict[str, float]:
    """One round: find and load on all cores, on one, and the decoder alone."""
    every = os.sched_getaffinity(0)
    finding, building, again, images = load_once(path, geometry, every)
    _, alone, _, _ = load_once(path, geometry, {min(every)})
    share = images / building / decoder_rate(find(path), geometry)
    return {
        "images": images,
        "first_seconds": finding + building,
        "again_seconds": again,
        "build_seconds": building,
        "build_seconds_on_one_core": alone,
        "decoder_share": share,
    }


def plant(place: Path, count: int, kind: str) -> Path:
    """So many tiny PNGs in two classes, as a folder or a zip."""
    stream, target = BytesIO(), place / (f"{count}.zip" if kind == "zip" else str(count))
    names = [f"{'ab'[i % 2]}/image_{i:06d}.png" for i in range(count)]
    pictures = []
    for value in range(100):
        stream = BytesIO()
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(stream, "PNG")
        pictures.append(stream.getvalue())
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for i, name in enumerate(names):
                archive.writestr(name, pictures[i % 100])
        return target
    for name in "ab":
        (target / name).mkdir(parents=True)
    for i, name in enumerate(names):
        (target / name).write_bytes(pictures[i % 100])
    return target


def bytes_per_file(kind: str) -> dict[str, int]:
    """Growth of the peak memory between few and many files."""
    peaks: dict[tuple[str, int], int] = {}
    with tempfile.TemporaryDirectory() as place:
        for count in (FEW, MANY):
            data = plant(Path(place), count, kind)
            for what in ("process", "building"):
                command = [sys.executable, "-c", PEAK, str(data), str(Path(place) / f"{what}{count}"), what]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                peaks[what, count] = int(done.stdout)
    return {what: round((peaks[what, MANY] - peaks[what, FEW]) / (MANY - FEW)) for what in ("process", "building")}


def main() -> None:
    """The archives in turn, then the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="folder that holds the archives")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], help="these archives, and no memory")
    parser.add_argument("--out", type=Path, help="result file; benchmarks/results/stores.json")
    asked = parser.parse_args()
    folder = shared(asked.data)
    rounds = [{name: timed(folder / name, CASES[name]) for name in asked.only} for _ in range(asked.rounds)]
    figures: dict[str, Any] = {
        name: {what: round(statistics.median(each[name][what] for each in rounds), 3) for what in rounds[0][name]}
        for name in asked.only
    }
    for measured in figures.values():
        measured["times_one_core"] = round(measured["build_seconds_on_one_core"] / measured["build_seconds"], 2)
    if len(asked.only) == len(CASES):
        figures["bytes_per_file"] = {kind: bytes_per_file(kind) for kind in ("folder", "zip")}
    record("stores", figures, asked.out)


if __name__ == "__main__":
    main()
