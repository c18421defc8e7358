"""Does bfloat16 cost accuracy? The same training in both precisions, five seeds, paired.

    python benchmarks/precision.py [--data FOLDER_OF_ZIPS] [--cases mnist cifar10 fastcnn] [--full mnist] [--fresh]

Within a seed both runs have the same split, first weights, order and augmentation; only the arithmetic of
training differs. Testing is in float32. The figure is the mean difference in test accuracy, bfloat16 less
float32, with Student's 95 % interval over the seeds: no cost is shown where it holds 0, and a cost larger than
its lower end is excluded. All 10,000 test images are used.

The training sets are cut to some thousand images, which are recorded: a processor that only emulates bfloat16
takes 12 to 20 times longer. --full trains the named cases on all images. Stopped, it goes on where it was
(``precision.jsonl`` in --work).
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from record import Notebook, record, shared

from sightline.evaluation import evaluate
from sightline.metrics import seeds_interval
from sightline.training import Recipe, read_splits, train
from sightline.types import Dataset

SEEDS = range(5)
PRECISIONS = ("float32", "bfloat16")

REDUCED = {
    "mnist": Recipe(model="lenet5", epochs=10, limit=6000),
    "cifar10": Recipe(model="resnet20", epochs=6, limit=6000),
    "fastcnn": Recipe(model="fastcnn:width=0.25:eps=1e-12", epochs=8, limit=6000),
}
FULL = {
    "mnist": Recipe(model="lenet5", epochs=3),
    "cifar10": Recipe(model="resnet20", epochs=8),
    "fastcnn": Recipe(model="fastcnn:width=0.25:eps=1e-12", epochs=8),
}
ARCHIVES = {"mnist": "mnist_png.zip", "cifar10": "cifar10_jpg.zip", "fastcnn": "cifar10_jpg.zip"}


def main() -> None:
    """Train in pairs, print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds mnist_png.zip and cifar10_jpg.zip")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-benchmarks")
    parser.add_argument("--cases", nargs="+", default=["mnist"], choices=list(REDUCED))
    parser.add_argument("--full", nargs="+", default=[], choices=list(FULL), help="cases on all training images")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier start measured")
    parser.add_argument("--out", type=Path, help="file for the figures instead of results/precision.json")
    asked = parser.parse_args()
    book = Notebook(asked.work / "precision.jsonl", fresh=asked.fresh)
    record("precision", {case: compare(case, asked, book) for case in asked.cases}, asked.out)


def compare(case: str, asked: argparse.Namespace, book: Notebook) -> dict[str, Any]:
    """Both precisions on every seed."""
    data = shared(asked.data) / ARCHIVES[case]
    full = case in asked.full
    recipe = (FULL if full else REDUCED)[case].replace(memory_format="channels_last")
    accuracies: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    images = 0
    for seed in SEEDS:
        for precision in PRECISIONS:
            key = {"case": case, "full": full, "seed": seed, "precision": precision}
            found = book.find(**key)
            if found is None:
                found = book.add(one(data, recipe.replace(seed=seed, precision=precision)), **key)
                print(f"{case} seed {seed} {precision}: {found['test_accuracy']:.2%}", flush=True)
            accuracies[precision].append(found["test_accuracy"])
            images = found["train_images"]
    pairs = zip(accuracies["bfloat16"], accuracies["float32"], strict=True)
    change = seeds_interval([bfloat16 - float32 for bfloat16, float32 in pairs])
    return {
        "train_images": images,
        "epochs": recipe.epochs,
        "model": found["model"],
        "seeds": list(SEEDS),
        "test_accuracy": accuracies,
        "bfloat16_less_float32": {"mean": change.value, "interval_95": [change.low, change.high]},
    }


def one(data: Path, recipe: Recipe) -> dict[str, Any]:
    """Train, and test on every test image there is."""
    with tempfile.TemporaryDirectory() as place:
        run = train(data, recipe, out=Path(place) / "run")
    test = run.splits.test if recipe.limit is None else whole_test(data, recipe)
    accuracy = evaluate(run.classifier, test).metrics["accuracy"].value
    return {"test_accuracy": accuracy, "train_images": len(run.splits.train), "model": run.recipe.model}


def whole_test(data: Path, recipe: Recipe) -> Dataset:
    """The test images that the recipe's limit left out as well."""
    splits, _ = read_splits(recipe.replace(data=str(data), limit=None))
    return splits.test


if __name__ == "__main__":
    main()
