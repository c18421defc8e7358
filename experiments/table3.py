"""Papers 003 and 004: the search of Table III, on real images.

    python experiments/table3.py [--images 3000] [--size 16] [--epochs 1 2 3] [--trials N] [--data FOLDER_OF_ZIPS]

The whole grid of 243 networks: learning rate, batch size, epochs, layers, filter size, with the papers' Adam. The
printed form (all of CIFAR-10, 10 to 30 epochs) is beyond two cores; fewer --images (of training, validation and
test together), pixels and --epochs are recorded with the result, and 10, 20, 30 epochs keep their ratio. --trials
takes so many points of the grid at random. Stopped, it goes on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from common import arguments, keep

from sightline.evaluation import evaluate
from sightline.tuning import tune
from sightline.tuning.space import SPACES

PRINTED = {"lr": 0.001, "batch_size": 64, "epochs": "the middle one", "model.depth": 10, "model.kernel": 3}
"""What Table III calls best."""


def main() -> None:
    """Search, and say what each value of each field gave."""
    asked = arguments(
        __doc__,
        images={"type": int, "default": 3000},
        size={"type": int, "default": 16},
        epochs={"type": int, "nargs": 3, "default": (1, 2, 3)},
        trials={"type": int, "default": None},
    )
    table = SPACES["table3"]
    over = table.override([f"epochs={','.join(map(str, asked.epochs))}"])
    found = tune(
        asked.data / "cifar10_jpg.zip",
        table.recipe.replace(limit=asked.images, size=asked.size),
        over,
        by=table.by,
        trials=asked.trials,
        out=asked.work / "table3-{}-{}-{}".format(asked.images, asked.size, "-".join(map(str, asked.epochs))),
    )
    assert found.winner is not None
    tested = evaluate(found.winner.classifier, found.winner.splits.test).metrics["accuracy"]
    rows = [row for row in found.rows if row["state"] == "finished"]
    keep(
        "table3",
        {
            "images": asked.images,
            "size": asked.size,
            "validation_images": len(found.winner.splits.val),
            "finished": len(rows),
            "not_finished": len(found.rows) - len(rows),
            "mean_val_accuracy": {field: means(rows, field) for field in over},
            "importance": found.importance,
            "best": {field: found.best[field] for field in over} | {"val_accuracy": found.best["val_accuracy"]},
            "printed_best": PRINTED,
            "winner_test_accuracy": {
                "value": tested.value,
                "interval_95": [tested.low, tested.high],
                "n": tested.n,
            },
        },
    )


def means(rows: Sequence[Mapping[str, Any]], field: str) -> dict[str, float]:
    """Mean validation accuracy over the trials with each value of a field."""
    values = sorted({row[field] for row in rows})
    return {
        str(value): round(float(np.mean([row["val_accuracy"] for row in rows if row[field] == value])), 4)
        for value in values
    }


if __name__ == "__main__":
    main()
