"""Fine-tuning against training from scratch, on 10, 50 and 250 images per class, five seeds each.

    python benchmarks/transfer.py [--data FOLDER_OF_ZIPS] [--tasks mnist photos] [--seeds 0 1 2 3 4] [--quick]

A third party's ResNet-20, trained on CIFAR-10, is the start of other tasks: MNIST's digits in colour at 32 x 32,
far from what it knows, and photos of cats and dogs at 32 x 32, near (both are classes of CIFAR-10, so there a
gain says little of new classes). Each seed draws its own images; a fifth of them are for validation. On the same
images, with the same epochs, each arm is trained by the recipe that Sightline chooses for it:

    scratch    random weights
    probe      the start's weights, all but the head at rest
    tune       the start's weights, all of them trained
    staged     the same, with the head alone for the first fifth of the epochs, and layer_decay 0.7

Differences are paired by seed, so their intervals hold for the draw of the images as well as for the training.
Stopped, it goes on: each training is kept in results/transfer.jsonl.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import RESULTS, Notebook, record, shared

from sightline.data import load_dataset
from sightline.inference import match_labels, predict_logits
from sightline.metrics import seeds_interval
from sightline.training import Recipe
from sightline.training.run import train_on_splits
from sightline.training.run_folder import SilentRunFolder
from sightline.types import Dataset, Geometry, Splits

TASKS = {
    "mnist": ("mnist_png.zip", {10: 40, 50: 30, 250: 8}, 2000),
    "photos": ("photos_jpg.zip", {10: 40, 50: 30, 200: 20}, 200),
}
"""Name -> archive, epochs for each number of images per class, test images (evenly over the classes)."""

WAY: dict[str, Any] = {"precision": "float32", "memory_format": "channels_last", "cpu_replicas": 1}
"""Set, so that no training is another one where another way measures faster."""

START = Path("weights") / "resnet20-12fca82f.th"


def arms(weights: Path, epochs: int) -> dict[str, Recipe]:
    """The recipes that are compared."""
    plain = Recipe(
        **WAY, model="resnet20", size=32, channels=3, augment=("shift:2",), epochs=epochs, normalize="fitted"
    )
    start = plain.replace(weights=str(weights), normalize="imagenet")  # what its authors trained with
    return {
        "scratch": plain,
        "probe": start.replace(freeze="backbone"),
        "tune": start,
        "staged": start.replace(freeze=f"until:{max(1, epochs // 5)}", layer_decay=0.7),
    }


def main() -> None:
    """Measure what is missing, then say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", nargs="+", default=[*TASKS], choices=[*TASKS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--quick", action="store_true", help="two epochs of everything: a test of the script")
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    folder = shared(asked.data)
    name = "transfer_quick" if asked.quick else "transfer"
    book = Notebook(RESULTS / f"{name}.jsonl", fresh=asked.fresh)
    for task in asked.tasks:
        archive, sizes, tested = TASKS[task]
        data = load_dataset(folder / archive, Geometry(size=(32, 32), channels=3))
        for count, epochs in sizes.items():
            for seed in asked.seeds:
                splits = drawn(data, count, tested, seed)
                recipes = arms(folder.parent / START, 2 if asked.quick else epochs)
                for arm, recipe in recipes.items():
                    key = {"task": task, "images_per_class": count, "arm": arm, "seed": seed}
                    if book.find(**key) is None:
                        book.add(measure(splits, recipe.replace(seed=seed)), **key)
    record(name, {task: summary(book, task) for task in TASKS if book.find(task=task)})


def drawn(data: Dataset, count: int, tested: int, seed: int) -> Splits:
    """So many training images of each class, a fifth of them for validation; the same test images for all."""
    parts, rng = data.columns["split"], np.random.default_rng([seed, count])
    test = _each(data, np.flatnonzero(parts == "test"), tested // len(data.classes), np.random.default_rng(0))
    chosen = _each(data, np.flatnonzero(parts == "train"), count, rng).reshape(-1, count)
    held = count // 5
    train, val = chosen[:, held:].ravel(), chosen[:, :held].ravel()
    return Splits(*(data.subset(np.sort(rows)) for rows in (train, val, test)))


def _each(data: Dataset, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """So many of these images of each class, class by class."""
    mixed = rng.permutation(rows)
    return np.concatenate([mixed[data.labels[mixed] == k][:count] for k in range(len(data.classes))])


def measure(splits: Splits, recipe: Recipe) -> dict:
    """One training and its test."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        run = train_on_splits(splits, recipe, SilentRunFolder(Path(place)), device="cpu")
    logits, _ = predict_logits(run.classifier, splits.test)
    right = logits.argmax(1).numpy() == match_labels(run.classifier, splits.test)
    seconds = time.perf_counter() - started
    begun = "weights" if recipe.weights else "scratch"
    print(
        f"{len(splits.train)} images, {begun}, freeze {recipe.freeze}: {right.mean():.4f} ({seconds:.0f} s)",
        flush=True,
    )
    return {
        "test_accuracy": float(right.mean()),
        "val_accuracy": run.facts["val_accuracy"],
        "seconds": seconds,
        "recipe": {
            name: vars(run.recipe)[name] for name in ("lr", "batch_size", "epochs", "freeze", "layer_decay")
        },
    }


def summary(book: Notebook, task: str) -> dict:
    """For each size: every arm's accuracy over the seeds, and how much better than scratch it is."""
    found = {}
    for count in TASKS[task][1]:
        rows = {arm: _by_seed(book, task, count, arm) for arm in arms(Path(), 5)}
        scratch = rows["scratch"]
        found[str(count)] = {
            arm: {
                "accuracy": [round(value, 4) for value in seeds.values()],
                **_interval("mean", [*seeds.values()]),
                **_interval("gain", [seeds[s] - scratch[s] for s in seeds if s in scratch and arm != "scratch"]),
            }
            for arm, seeds in rows.items()
            if seeds
        }
    return found


def _by_seed(book: Notebook, task: str, count: int, arm: str) -> dict[int, float]:
    lines = book.all(task=task, images_per_class=count, arm=arm)
    return {line["seed"]: line["test_accuracy"] for line in lines}


def _interval(name: str, values: list[float]) -> dict:
    """The mean over seeds with Student's interval, where there are two or more."""
    if len(values) < 2:
        return {}
    mean = seeds_interval(values)
    return {name: round(mean.value, 4), f"{name}_interval_95": [round(mean.low, 4), round(mean.high, 4)]}


if __name__ == "__main__":
    main()
