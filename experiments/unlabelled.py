"""FixMatch, SoftMatch and pseudo-labels against labels alone, and against the classical methods on the same labels.

    python experiments/unlabelled.py [--part mnist|cifar10] [--seeds 5] [--steps 2000] [--data FOLDER_OF_ZIPS]

MNIST with 25 labels a class, CIFAR-10 with 25 and 400. A seed draws which images have a label; validation has as many
images of each class as training has up to 10, from the training images. Every method has the same network, start, steps
and labelled images, and the moving average of the weights is tested. Beside them: logistic regression and label
spreading on raw pixels (MNIST) or on the embedded features (CIFAR-10), from the same labels. Stopped, it goes on.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np
from common import arguments, changed, keep, mean, notebook, paired, told, trained

from sightline.baselines import measure_few_label_baselines
from sightline.data import concat, strip_labels
from sightline.training import Recipe, read_splits
from sightline.types import Splits

PARTS: dict[str, dict[str, Any]] = {
    "mnist": {
        "file": "mnist_png.zip",
        "labels": (25,),
        "recipe": Recipe(
            model="lenet5", augment=("shift:2",), size=28, channels=1, batch_size=64, lr=0.03, ema_decay=0.999
        ),
        "ways": {"none": 5, "fixmatch:ratio=3": 5, "softmatch:ratio=3": 5, "pseudo-label:ratio=3": 3},
        "steps": 2000,
    },
    "cifar10": {
        "file": "cifar10_jpg.zip",
        "labels": (25, 400),
        "recipe": Recipe(
            model="fastcnn:width=0.5",
            augment=("flip", "shift:4"),
            size=32,
            channels=3,
            batch_size=32,
            lr=0.03,
            ema_decay=0.999,
        ),
        "ways": {"none": 5, "fixmatch:ratio=7": 5},
        "steps": 600,
    },
}
VALIDATED = 10
"""Validation images of a class, at most: never more than there are labels."""


def with_labels(splits: Splits, count: int, seed: int) -> Splits:
    """``count`` labelled training images of each class, up to 10 to validate on, and all others without their label."""
    pool, chosen, held_out = splits.train, [], []
    order = np.random.default_rng([seed, 77]).permutation(len(pool))
    for label in range(len(pool.classes)):
        own = order[pool.labels[order] == label]
        chosen.append(own[:count])
        held_out.append(own[count : count + min(count, VALIDATED)])
    labelled, val = (np.sort(np.concatenate(rows)) for rows in (chosen, held_out))
    rest = np.setdiff1d(np.arange(len(pool)), np.concatenate([labelled, val]))
    train = concat([pool.subset(labelled), strip_labels(pool.subset(rest))])
    return replace(splits, train=train, val=pool.subset(val))


def classical(splits: Splits) -> dict[str, Any]:
    """Accuracies of the classical methods from these labels."""
    began = time.perf_counter()
    found = measure_few_label_baselines(splits)
    return {**{name: value.value for name, value in found.items()}, "seconds": time.perf_counter() - began}


def whole(recipe: Recipe, data: Any) -> Splits:
    """The dataset with all its training images in the training split."""
    splits, _ = read_splits(recipe.replace(data=str(data), val_fraction=0.0))
    return splits


def main() -> None:
    """Every part, number of labels, seed and method."""
    asked = arguments(__doc__, part={"choices": tuple(PARTS)}, steps={"type": int}, labels={"type": int})
    book = notebook("unlabelled", asked)
    for name in (asked.part,) if asked.part else PARTS:
        part = PARTS[name]
        steps, splits = asked.steps or part["steps"], None
        figures: dict[str, Any] = {"seeds": asked.seeds, "steps": steps, "recipe": changed(part["recipe"])}
        for count in (asked.labels,) if asked.labels else part["labels"]:
            lines: dict[str, list[dict[str, Any]]] = {way: [] for way in (*part["ways"], "classical")}
            for seed in range(asked.seeds):
                few: Splits | None = None
                for way, done in lines.items():
                    if seed >= part["ways"].get(way, asked.seeds):  # for the record, on fewer seeds
                        continue
                    epochs = -(-steps // max(1, 10 * count // part["recipe"].batch_size))
                    recipe = part["recipe"].replace(
                        epochs=epochs, steps=steps, seed=seed, semi_supervised=None if way == "none" else way
                    )
                    key = {"part": name, "labels": count, "way": way, "seed": seed}
                    key |= {} if way == "classical" else {"recipe": told(recipe.replace(seed=0))}
                    found = book.find(**key)
                    if found is None:
                        splits = splits or whole(recipe, asked.data / part["file"])
                        few = few or with_labels(splits, count, seed)
                        found = book.add(classical(few) if way == "classical" else trained(recipe, few), **key)
                        print(name, count, seed, way, shown(found), flush=True)
                    done.append(found)
            figures[f"{count} a class"] = summarise(lines, part, steps, asked.seeds)
        keep(f"unlabelled-{name}", figures)


def shown(found: dict[str, Any]) -> str:
    """The accuracies of a line, and its seconds."""
    return ", ".join(f"{k} {v:.4g}" for k, v in found.items() if isinstance(v, float))


def summarise(
    lines: dict[str, list[dict[str, Any]]], part: dict[str, Any], steps: int, seeds: int
) -> dict[str, Any]:
    """Means over the seeds, differences to labels alone, and how many images each method saw."""
    size, rows = part["recipe"].batch_size, {}
    for way in part["ways"]:
        ratio = 0 if way == "none" else int(way.rpartition("=")[2])
        rows[way] = {
            "test": mean(lines[way]),
            "labelled_seen": steps * size,
            "unlabelled_seen": steps * size * ratio,
        }
        rows[way]["seconds"] = round(float(np.mean([line["seconds"] for line in lines[way]])), 1)
        if way != "none" and seeds > 1:
            rows[way]["against_labels_alone"] = paired(lines[way], lines["none"][: len(lines[way])])
    names = [name for name in lines["classical"][0] if name.startswith(("logistic", "label "))]
    seconds = round(float(np.mean([line["seconds"] for line in lines["classical"]])), 1)
    return rows | {name: {"test": mean(lines["classical"], name), "seconds_of_all": seconds} for name in names}


if __name__ == "__main__":
    main()
