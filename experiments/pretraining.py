"""SimCLR and BYOL on CIFAR-10 (JPEG): what minutes of pre-training without labels are worth.

    python experiments/pretraining.py [--by simclr] [--minutes 30] [--model resnet20] [--data FOLDER_OF_ZIPS]

The k-NN accuracy of the features on 2,000 test images, 5,000 labelled training images voting, next to that of the
untrained network, of the same network trained on the labels for a quarter of the time, and of the embedded backbone
(images enlarged to 112 pixels). Published runs take 200 to 1,000 epochs of a network 14 times as large. Stopped, it
goes on.
"""

import json
from typing import Any

from common import arguments, keep

from sightline.adaptation import pretrain
from sightline.adaptation.pretraining import PRETRAINING_SHARE
from sightline.training import KNN_FILE, Recipe, RunFolder


def main() -> None:
    """Pre-train, or go on, and record."""
    asked = arguments(
        __doc__,
        by={"default": "simclr"},
        minutes={"type": float, "default": 30.0},
        model={"default": "resnet20"},
    )
    folder = RunFolder(asked.work / f"pretraining-{asked.by}-{asked.model}-{asked.minutes:g}".replace(":", "-"))
    done = folder.path / KNN_FILE
    if asked.fresh or not done.exists():
        started = folder.checkpoint.exists() and not asked.fresh
        budget = f"{60 * asked.minutes / PRETRAINING_SHARE:g}s"
        recipe = Recipe(model=asked.model, budget=budget)
        data = None if started else str(asked.data / "cifar10_jpg.zip")
        resume = folder.path if started else None
        pretrain(data, recipe, by=asked.by, out=None if started else folder.path, resume=resume, overwrite=True)
    found: dict[str, Any] = json.loads(done.read_text())
    knn = {name: one["value"] for name, one in found["knn"].items()}
    facts = folder.read_facts()
    keep(
        f"pretraining-{asked.by.partition(':')[0]}",
        {
            **found,
            "minutes": asked.minutes,
            "model": asked.model,
            "seconds": facts["seconds"],
            "points_above_untrained": round(100 * (knn["pretrained"] - knn["untrained"]), 1),
        },
    )


if __name__ == "__main__":
    main()
