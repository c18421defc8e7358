"""Ours: `train` as anyone calls it, on as many images of the folder as steps are asked for.

The store is built before and the first epoch is warm-up; a rate is that of the epochs after it, as the run's
``history.csv`` has it: loading, augmentation, steps, bookkeeping. Precision and layout are what `train` chooses, and
whether it uses the fused kernels, which are compiled before: a training as short as this one would not compile them.
"""

import csv
import math
import statistics
import tempfile
from pathlib import Path

from task import BATCH, LR, MOMENTUM, WEIGHT_DECAY, Answer, Asked, main

from sightline.layers import open_kernels
from sightline.models import count_parameters
from sightline.training import Recipe, train


def run(asked: Asked) -> Answer:
    """Train two epochs, or four where they are short."""
    case = asked.case
    shift = f"shift:{case.shift}"
    recipe = Recipe(
        model=asked.net,
        augment=("flip", shift) if case.mirror else (shift,),
        batch_size=BATCH,
        lr=LR,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        schedule="constant",
        warmup=0.0,
        epochs=4 if asked.steps > 50 else 2,
        limit=images(asked),
        val_fraction=0.1,
    )
    open_kernels()
    with tempfile.TemporaryDirectory() as place:
        done = train(asked.folder, recipe, out=Path(place) / "run")
        rows = list(csv.DictReader((done.folder / "history.csv").read_text().splitlines()))
    rate = statistics.median(float(row["images_per_second"]) for row in rows[1:])
    steps = len(done.splits.train) // BATCH
    assert steps >= asked.steps, f"{steps} steps an epoch, {asked.steps} asked for"
    chosen = f"{done.recipe.precision} {done.recipe.memory_format}"
    if done.recipe.fused_kernels:
        chosen += ", fused kernels"
    if (done.recipe.cpu_replicas or 1) > 1:
        chosen += f", {done.recipe.cpu_replicas} replicas"
    return Answer(rate, count_parameters(done.classifier.network), chosen)


def images(asked: Asked) -> int:
    """How many images of the whole folder leave enough for training, a tenth of it kept for validation."""
    counts = {part: sum(1 for _ in (asked.folder / part).glob("*/*")) for part in ("train", "test")}
    share = 0.9 * counts["train"] / sum(counts.values())
    return min(sum(counts.values()), math.ceil(asked.steps * BATCH / share) + BATCH)


if __name__ == "__main__":
    main("sightline", run)
