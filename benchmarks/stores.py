"""Building a store, and opening it again: seconds of the first and of the second `find` and `load`.

    python benchmarks/stores.py [FOLDER_OF_ZIPS]

Three rounds in turn, each into an empty cache; medians. The archives are in the page cache.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from record import record, shared

from sightline.data import find, load
from sightline.types import Geometry

CASES = {
    "mnist_png.zip": Geometry(size=(28, 28), channels=1),
    "cifar10_jpg.zip": Geometry(size=(32, 32)),
    "photos_jpg.zip": Geometry(size=(224, 224)),
}


def main() -> None:
    """Load each archive twice into a fresh cache, in turn."""
    folder = shared(sys.argv[1] if len(sys.argv) > 1 else None)
    times: dict[str, dict[str, list[float]]] = {name: {"first": [], "again": []} for name in CASES}
    images = {}
    for _ in range(3):
        for name, geometry in CASES.items():
            with tempfile.TemporaryDirectory() as cache:
                for which in ("first", "again"):
                    started = time.perf_counter()
                    images[name] = len(load(find(folder / name), geometry, cache=Path(cache)))
                    times[name][which].append(round(time.perf_counter() - started, 3))
    record(
        "stores",
        {
            name: {"images": images[name], **{f"{w}_seconds": statistics.median(t) for w, t in found.items()}}
            for name, found in times.items()
        },
    )


if __name__ == "__main__":
    main()
