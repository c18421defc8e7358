"""Paper 001: LeNet-5 on a table of 42,000 digits; accuracy, mean F1, and which digits it confuses.

    python experiments/digits_csv.py [--seeds 5] [--data FOLDER_OF_ZIPS]

The table (label,pixel0,...,pixel783) is made from 42,000 of MNIST's training images, drawn once. A tenth is kept
for the test, stratified; the best epoch is chosen on a tenth of the rest, never on the test.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, changed, keep, mean, notebook, trained

from sightline.training import Recipe, read_splits

ROWS = 42_000
RECIPE = Recipe(model="lenet5", epochs=6, augment=("shift:1",), test_fraction=0.1, val_fraction=0.1)
CONFUSED = ((3, 8), (4, 9))


def main() -> None:
    """Write the table once, train and test for each seed."""
    asked = arguments(__doc__)
    book = notebook("digits_csv", asked)
    table = written(asked.data / "mnist_png.zip", asked.work / f"digits-{ROWS}.csv")
    lines = []
    for seed in range(asked.seeds):
        recipe = RECIPE.replace(seed=seed, data=str(table))
        found = book.find(seed=seed, recipe=str(RECIPE))
        if found is None:
            splits, _ = read_splits(recipe)
            found = book.add(trained(recipe, splits), seed=seed, recipe=str(RECIPE))
            print(f"seed {seed}: {found['test_accuracy']:.2%}", flush=True)
        lines.append(found | {"f1_macro": f1_macro(np.array(found["answers"]))})
    keep(
        "digits_csv",
        {
            "test_images": lines[0]["n"],
            "accuracy": mean(lines),
            "f1_macro": mean(lines, "f1_macro"),
            "confused_both_ways": {f"{a}-{b}": [both_ways(line, a, b) for line in lines] for a, b in CONFUSED},
            "errors": [line["n"] - int(np.trace(line["answers"])) for line in lines],
            "recipe": changed(RECIPE),
        },
    )


def written(archive: Path, table: Path) -> Path:
    """The table of pixels, made where it is not there yet."""
    if table.exists():
        return table
    splits, _ = read_splits(Recipe(data=str(archive), val_fraction=0.01))
    rows = np.sort(np.random.default_rng(0).permutation(len(splits.train))[:ROWS])
    temporary = table.with_suffix(".part")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["label", *(f"pixel{i}" for i in range(28 * 28))])
        for start in range(0, ROWS, 1000):
            chosen = rows[start : start + 1000]
            pixels = splits.train[chosen].reshape(len(chosen), -1).tolist()
            for label, row in zip(splits.train.labels[chosen].tolist(), pixels, strict=True):
                writer.writerow([splits.train.classes[label], *row])
    return temporary.replace(table)


def f1_macro(matrix: np.ndarray) -> float:
    """Mean over the classes of 2 tp / (2 tp + fp + fn)."""
    return float((2 * np.diag(matrix) / (matrix.sum(0) + matrix.sum(1))).mean())


def both_ways(line: dict[str, Any], a: int, b: int) -> int:
    """Images of one of two digits that were given the other."""
    return line["answers"][a][b] + line["answers"][b][a]


if __name__ == "__main__":
    main()
