"""Planted label noise of 0 to 10 % in MNIST or photos: which share is found, how pure the list is, what it takes.

    python benchmarks/suspects.py [FOLDER_OF_ZIPS] [--images 2000] [--by svm-rbf@hog logistic-regression@hog ...]
    python benchmarks/suspects.py [FOLDER_OF_ZIPS] --set waste --by probe lda svm-rbf@hog

Photos are read as the card of the published weights says. Labels of training images are changed to another class,
drawn evenly. MNIST has wrong labels of its own, which count against the precision here: how many are listed without
planting any is measured too. Stopped, it goes on.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from record import Notebook, record, shared

from sightline.comparison.label_issues import find_label_issues
from sightline.data import load_dataset
from sightline.training import Recipe
from sightline.types import Dataset, Geometry

PHOTOS = Geometry(size=(224, 224), channels=3, resize_mode="crop", crop_fraction=0.875, interpolation="bicubic")
SETS = {
    "mnist": ("mnist_png.zip", Geometry(size=(28, 28), channels=1)),
    "photos": ("photos_jpg.zip", PHOTOS),
    "waste": ("waste_jpg.zip", PHOTOS),
}
RATES = (0.0, 0.01, 0.02, 0.05, 0.1)
WAYS = ("svm-rbf@hog", "svm-rbf", "logistic-regression@hog", "logistic-regression", "knn@hog", "lenet5")
NETWORK = Recipe(epochs=8, batch_size=64, lr=0.05, augment=("shift:1",))


def main() -> None:
    """Every way and rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--set", choices=SETS, default="mnist")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--by", nargs="+", default=list(WAYS))
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    book = Notebook(Path(tempfile.gettempdir()) / "sightline-suspects.jsonl", fresh=asked.fresh)
    name, geometry = SETS[asked.set]
    whole = load_dataset(shared(asked.data) / name, geometry)
    rng = np.random.default_rng(0)
    images = np.sort(rng.permutation(np.flatnonzero(whole.columns["split"] == "train"))[: asked.images])
    dataset = whole.subset(images)
    figures: dict[str, Any] = {"images": len(dataset), "ways": {}}
    for by in asked.by:
        for rate in RATES:
            key = {"set": asked.set, "images": len(dataset), "by": by, "rate": rate}
            found = book.find(**key) or book.add(measured(dataset, by, rate), **key)
            figures["ways"].setdefault(by, {})[f"{rate:g}"] = found
            print(by, rate, {k: v for k, v in found.items() if k not in key}, flush=True)
    record("suspects" if asked.set == "mnist" else f"suspects-{asked.set}", figures)


def measured(dataset: Dataset, by: str, rate: float) -> dict[str, Any]:
    """Plant, look, count."""
    rng, labels = np.random.default_rng(1), dataset.labels.copy()
    where = rng.choice(len(dataset), round(rate * len(dataset)), replace=False)
    count = len(dataset.classes)
    labels[where] = (labels[where] + rng.integers(1, count, len(where))) % count
    started = time.perf_counter()
    found = find_label_issues(replace(dataset, labels=labels), by, recipe=NETWORK)
    listed = np.array([one.index for one in found.issues], np.int64)
    planted = np.isin(listed, where)
    return {
        "planted": len(where),
        "listed": len(listed),
        "recall": round(float(planted.sum() / max(1, len(where))), 4),
        "precision": round(float(planted.mean()), 4) if len(listed) and len(where) else None,
        "precision_of_first": round(float(planted[: len(where)].mean()), 4) if len(where) else None,
        "first_is_planted": bool(planted[0]) if len(where) and len(listed) else None,
        "estimated": round(found.estimated_error_rate, 4),
        "agreement": round(found.accuracy.value, 4),
        "seconds": round(time.perf_counter() - started, 1),
    }


if __name__ == "__main__":
    main()
