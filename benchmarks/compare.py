"""How long a comparison takes: six baselines and two networks on 10,000 MNIST images, as the command does it.

    python benchmarks/compare.py [FOLDER_OF_ZIPS] [--limit N] [--budget 10m]

Nothing is chosen for it but the number of images: two networks that fit them share the budget, the six quick
baselines look at pixels. 15 % of the images are the test; the rest is trained on, a tenth of it to validate.
"""

import argparse
import tempfile
import time
from pathlib import Path

from record import record, shared

from sightline.comparison.model_comparison import compare
from sightline.training.recipe import Recipe

KEPT = ("entrant", "accuracy", "intervals", "validation", "difference", "p_mcnemar", "p_holm")
KEPT += ("train_seconds", "ms_per_image", "bytes")


def main() -> None:
    """Compare, and say what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--budget", default="10m")
    asked = parser.parse_args()
    data = shared(asked.folder) / "mnist_png.zip"
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        found = compare(
            data, recipe=Recipe(limit=asked.limit, budget=asked.budget), out=Path(place) / "c"
        ).as_json()
    rows = [{name: row[name] for name in KEPT} for row in found["entrants"]]
    record(
        "compare",
        {
            "seconds": round(time.perf_counter() - started, 1),
            "images": asked.limit,
            "budget": asked.budget,
            "test_images": found["n"],
            "entrants": rows,
            "failures": found["failures"],
            "sentences": found["sentences"],
        },
    )


if __name__ == "__main__":
    main()
