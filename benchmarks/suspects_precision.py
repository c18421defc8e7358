"""Wrong labels found with features in bfloat16 against features in float32: time, and whether the lists agree.

    python benchmarks/suspects_precision.py [FOLDER_OF_ZIPS] [--set waste] [--images 2000] [--rounds 3]

The judges of photos, which see the features of the published network (docs/suspects.md), each with an empty cache of
features, in turn. The images are decoded before. One in twenty labels is changed beforehand, drawn evenly.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
from record import record, shared
from suspects import SETS

from sightline import runtime
from sightline.comparison.judges import HEAD_JUDGES
from sightline.comparison.label_issues import find_label_issues
from sightline.data import load_dataset
from sightline.types import Dataset

PLANTED_SHARE = 0.05


def main() -> None:
    """Look with every judge in both precisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--set", choices=("photos", "waste"), default="waste")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    name, geometry = SETS[asked.set]
    whole = load_dataset(shared(asked.data) / name, geometry)
    rng = np.random.default_rng(0)
    dataset = whole.subset(np.sort(rng.permutation(len(whole))[: asked.images]))
    where = rng.choice(len(dataset), round(PLANTED_SHARE * len(dataset)), replace=False)
    labels, count = dataset.labels.copy(), len(dataset.classes)
    labels[where] = (labels[where] + rng.integers(1, count, len(where))) % count
    dataset = replace(dataset, labels=labels)
    figures: dict[str, Any] = {"set": asked.set, "images": len(dataset), "planted": len(where)}
    for by in HEAD_JUDGES:
        figures[by] = compare(dataset, by, where, asked.rounds)
        print(by, figures[by], flush=True)
    record("suspects_precision", figures)


def compare(dataset: Dataset, by: str, planted: np.ndarray, rounds: int) -> dict[str, Any]:
    """Seconds of the whole check in each precision, and how far its two lists agree."""
    found: dict[str, np.ndarray] = {}

    def check(precision: str) -> None:
        able = precision == "bfloat16"
        with (
            tempfile.TemporaryDirectory() as cache,
            patch.dict(os.environ, SIGHTLINE_CACHE=cache),
            patch.object(runtime, "has_bfloat16", lambda _="cpu": able),  # decides the precision of features
        ):
            issues = find_label_issues(dataset, by).issues
        found[precision] = np.array([issue.index for issue in issues], np.int64)

    ways = {precision: partial(check, precision) for precision in ("float32", "bfloat16")}
    seconds = {way: median(times) for way, times in runtime.time_interleaved(ways, rounds).items()}
    first = {way: listed[: len(planted)] for way, listed in found.items()}
    return {
        "seconds": {way: round(taken, 2) for way, taken in seconds.items()},
        "speedup": round(seconds["float32"] / seconds["bfloat16"], 2),
        "listed": {way: len(listed) for way, listed in found.items()},
        "listed_by_both": len(np.intersect1d(found["float32"], found["bfloat16"])),
        "planted_among_first": {way: int(np.isin(listed, planted).sum()) for way, listed in first.items()},
    }


if __name__ == "__main__":
    main()
