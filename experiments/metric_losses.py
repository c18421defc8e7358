"""Metric losses with cross-entropy against cross-entropy alone: accuracy, retrieval, and a class left out.

    python experiments/metric_losses.py [--seeds 5] [--epochs 5] [--images 20000] [--data FOLDER_OF_ZIPS]

MNIST without the class ``seed``, LeNet-5: every loss has the same start, batches and steps. On the test images of the
nine classes: accuracy, recall@1 and MAP@R of the features (all test images among themselves, by cosine). And how well
the mean cosine of the ten nearest training images tells the test images of the left-out class from the others. Stopped,
it goes on.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import WAY, arguments, images, keep, mean, notebook, told

from sightline.features import ImageIndex, embed_cached
from sightline.inference import predict_logits
from sightline.metrics import ood_metrics, score_retrieval, seeds_interval
from sightline.training import Recipe
from sightline.training.run import train_on_splits
from sightline.training.run_folder import SilentRunFolder
from sightline.types import Dataset, Splits

LOSSES = (
    "cross-entropy",
    "supcon",
    "supcon:alone=True:weight=1",
    "triplet",
    "contrastive",
    "cosface",
    "arcface",
)
MEASURES = ("test_accuracy", "recall_at_1", "map_at_r", "left_out_auroc")
NEIGHBOURS = 10


def without(dataset: Dataset, gone: int) -> Dataset:
    """The other classes' images, with labels from 0 on."""
    kept = dataset.subset(dataset.labels != gone)
    classes = tuple(name for k, name in enumerate(dataset.classes) if k != gone)
    return replace(kept, labels=kept.labels - (kept.labels > gone), classes=classes)


def measure(recipe: Recipe, splits: Splits, outside: Dataset) -> dict[str, Any]:
    """Train, and measure once on the test images."""
    with tempfile.TemporaryDirectory() as place:
        run = train_on_splits(splits, recipe.replace(**WAY), SilentRunFolder(Path(place)))
        logits, labels = predict_logits(run.classifier, splits.test)
        known, test, other = (
            embed_cached(run.classifier, some, cache=Path(place), quiet=True)
            for some in (splits.train, splits.test, outside)
        )
    retrieval = score_retrieval(
        ImageIndex.build(test, splits.test.files, splits.test.files).features, splits.test.labels
    )
    index = ImageIndex.build(known, splits.train.files, splits.train.files)
    near = [index.search(some, NEIGHBOURS)[1].mean(1) for some in (test, other)]
    return {
        "test_accuracy": float((logits.argmax(1) == labels).float().mean()),
        "recall_at_1": retrieval.recall[1],
        "map_at_r": retrieval.map_at_r,
        "left_out_auroc": ood_metrics(*near).auroc.value,
        "seconds": run.facts["seconds"],
    }


def main() -> None:
    """Every seed and loss."""
    asked = arguments(__doc__, epochs={"type": int, "default": 5}, images={"type": int, "default": 20_000})
    book = notebook("metric_losses", asked)
    base = Recipe(
        model="lenet5", size=28, channels=1, epochs=asked.epochs, batch_size=128, lr=0.05, augment=("shift:1",)
    )
    lines: dict[str, list[dict[str, Any]]] = {loss: [] for loss in LOSSES}
    for seed in range(asked.seeds):
        splits, whole = None, None
        for loss in LOSSES:
            recipe = base.replace(loss=loss, seed=seed)
            key = {"loss": loss, "seed": seed, "images": asked.images, "recipe": told(recipe.replace(seed=0))}
            found = book.find(**key)
            if found is None:
                if whole is None or splits is None:
                    whole = images(recipe, asked.data / "mnist_png.zip", asked.images)
                    splits = Splits(*(without(some, seed) for some in (whole.train, whole.val, whole.test)))
                outside = whole.test.subset(whole.test.labels == seed)
                found = book.add(measure(recipe, splits, outside), **key)
                print(seed, loss, {name: round(found[name], 4) for name in MEASURES}, flush=True)
            lines[loss].append(found)
    rows = {}
    for loss, done in lines.items():
        rows[loss] = {name: mean(done, name) for name in MEASURES}
        rows[loss]["seconds"] = round(float(np.mean([one["seconds"] for one in done])), 1)
        if loss != LOSSES[0] and asked.seeds > 1:
            pairs = list(zip(done, lines[LOSSES[0]], strict=True))
            rows[loss]["against_cross_entropy"] = {
                name: seeds_interval([a[name] - b[name] for a, b in pairs]).as_json() for name in MEASURES
            }
    keep("metric_losses", {"seeds": asked.seeds, "epochs": asked.epochs, "images": asked.images, "losses": rows})


if __name__ == "__main__":
    main()
