"""The network of Table II with four times fewer parameters on MNIST: every way of low rank, fine-tuned and tested.

    python benchmarks/lowrank.py [--data FOLDER_OF_ZIPS] [--runs FOLDER] [--tiny]

About 10 minutes of one core. The network (421,642 parameters at 28 x 28) is trained for 4 epochs on 55,000 of
MNIST's training images; 5,000 are for validation. Each way of ``LowRank`` brings it to a quarter of its parameters
and is fine-tuned for 2 epochs at a fifth of the rate; which is best is decided on validation. All are tested on the
10,000 test images. Differences are paired image by image; latency is that of the exported files, in turn. Stopped,
it goes on: what is finished is kept below --runs.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from pruning import compare, fine_tuned, load_or_make
from record import record, shared

from sightline.compression import LowRank
from sightline.compression.lowrank import DECOMPOSITIONS
from sightline.data import load_dataset, split
from sightline.inference import validate
from sightline.training import Recipe
from sightline.training.run import train_on_splits
from sightline.training.run_folder import SilentRunFolder
from sightline.types import Geometry, Splits

BUDGET = 0.25
"""Share of the parameters that is left."""

RECIPE = Recipe(
    model="table2",
    size=28,
    channels=1,
    augment=("shift:2",),
    batch_size=128,
    lr=0.05,
    epochs=4,
    precision="float32",
    memory_format="channels_last",
    cpu_replicas=1,
)

FINE_TUNING = RECIPE.replace(epochs=2, lr=0.01)


def main() -> None:
    """Make what is missing, measure it, say it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "lowrank")
    parser.add_argument("--tiny", action="store_true", help="few images, one epoch: a test of the script")
    asked = parser.parse_args()
    place = asked.runs / ("tiny" if asked.tiny else "whole")
    recipe, fine_tuning = (one.replace(epochs=1) if asked.tiny else one for one in (RECIPE, FINE_TUNING))
    data = load_dataset(shared(asked.data) / "mnist_png.zip", Geometry(size=(28, 28), channels=1))
    splits = split(data, val=5000 / 60_000, seed=0)
    if asked.tiny:
        parts = (splits.train, splits.val, splits.test)
        splits = Splits(
            *(part.subset(np.arange(count)) for part, count in zip(parts, (1000, 300, 300), strict=True))
        )

    parent = load_or_make(
        place / "parent", lambda at: train_on_splits(splits, recipe, SilentRunFolder(at), device="cpu").classifier
    )
    figures: dict[str, Any] = {}
    for by in DECOMPOSITIONS:
        step = LowRank(by, budget=BUDGET)
        made = load_or_make(place / by, fine_tuned(lambda step=step: step(parent, splits), splits, fine_tuning))
        bare = validate(step(parent, splits), splits.val)[1]
        figures[by] = {
            "layers": made.architecture.surgery[-1][1]["layers"],
            "validation_before_fine_tuning": round(bare, 4),
            "validation": round(validate(made, splits.val)[1], 4),
            **compare(parent, made, splits),
        }
        print(f"{by}: {' '.join(figures[by]['sentences'])}", flush=True)
    best = max(figures, key=lambda by: figures[by]["validation"])
    told = {"protocol": f"{len(splits.train):,} training, {len(splits.val):,} validation images", "budget": BUDGET}
    record("lowrank_tiny" if asked.tiny else "lowrank", {**told, "best_on_validation": best, **figures})


if __name__ == "__main__":
    main()
