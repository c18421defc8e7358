"""Does batch norm that sees half of each batch cost accuracy? One process against two, five seeds, paired.

    python benchmarks/processes.py [--data FOLDER_OF_ZIPS] [--images 3000] [--epochs 5] [--fresh]

Without layers that look across the batch two processes give the weights of one, up to rounding: a test, not a
measurement. With them each process normalises by its own half. Within a seed both runs have the same split, first
weights, order and augmentation. The figure is the mean difference in test accuracy on all 10,000 digits of MNIST,
two processes less one, with Student's 95 % interval over the seeds. Stopped, it goes on where it was
(``processes.jsonl`` in --work).
"""

import argparse
import tempfile
from pathlib import Path

from precision import ARCHIVES, SEEDS, one
from record import Notebook, record, shared

from sightline.metrics import seeds_interval
from sightline.training import Recipe

RECIPE = Recipe(
    model="fastcnn:widths=(16,32,64)",
    augment=("shift:2",),
    batch_size=128,
    precision="float32",
    memory_format="channels_last",
    cpu_replicas=1,
)


def main() -> None:
    """Train in pairs, print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds mnist_png.zip")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-benchmarks")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier start measured")
    asked = parser.parse_args()
    data = shared(asked.data) / ARCHIVES["mnist"]
    book = Notebook(asked.work / "processes.jsonl", fresh=asked.fresh)
    accuracies: dict[int, list[float]] = {1: [], 2: []}
    for seed in SEEDS:
        for processes, found in accuracies.items():
            recipe = RECIPE.replace(seed=seed, devices=processes, limit=asked.images, epochs=asked.epochs)
            key = {"recipe": recipe.to_toml()}
            line = book.find(**key) or book.add(one(data, recipe), **key)
            found.append(line["test_accuracy"])
            print(f"seed {seed}, {processes} processes: {found[-1]:.2%}", flush=True)
    change = seeds_interval([two - single for single, two in zip(accuracies[1], accuracies[2], strict=True)])
    record(
        "processes",
        {
            "model": RECIPE.model,
            "train_images": line["train_images"],
            "epochs": asked.epochs,
            "seeds": list(SEEDS),
            "test_accuracy": accuracies,
            "two_less_one": {"mean": change.value, "interval_95": [change.low, change.high]},
        },
    )


if __name__ == "__main__":
    main()
