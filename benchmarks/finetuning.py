"""Fine-tuning recipes on photos of waste, compared on validation images alone: the test images are not used.

    python benchmarks/finetuning.py [FOLDER_OF_ZIPS] [--only default all-stages] [--epochs 8] [--fresh]

Each variant changes one thing of the default recipe (`FINE_TUNING` in `training/starts.py`) and trains for the same
epochs from the same head, on 80 % of the training photos; the other 20 % judge it. The standard error of an accuracy
there is about 1.6 points, but all see the same photos. Finished variants are kept, so a stopped run goes on.
What a longer budget can buy is seen with more epochs: `--only default all-stages all-stages-augmented --epochs 24`.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from record import RESULTS, Notebook, record, shared

from sightline.training import Recipe, train

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "all-stages": {"freeze": "early:0"},
    "whole-network": {"freeze": "none"},
    "fewer-stages": {"freeze": "early:0.6"},
    "rate-halved": {"lr": 5e-4},
    "rate-doubled": {"lr": 2e-3},
    "layer-decay-0.9": {"layer_decay": 0.9},
    "no-smoothing": {"label_smoothing": 0.0},
    "no-average": {"ema_decay": 0.0},
    "flip-only": {"augment": ("flip",)},
    "crops-from-0.2": {"augment": ("flip", "resized-crop:least=0.2")},
    "vertical-flip": {"augment": ("flip", "vertical-flip", "resized-crop:least=0.35")},
    "trivialaugment": {"augment": ("flip", "resized-crop:least=0.35", "trivialaugment")},
    "mixup": {"augment": ("flip", "resized-crop:least=0.35", "mixup:0.2")},
    "crop-of-the-card": {"resize_mode": "crop", "crop_fraction": 0.875},
    "pad": {"resize_mode": "pad"},
    "size-160": {"size": 160},
    "size-256": {"size": 256},
    "size-288": {"size": 288},
    "all-stages-augmented": {
        "freeze": "early:0",
        "augment": ("flip", "vertical-flip", "resized-crop:least=0.35", "trivialaugment"),
    },
}
"""Name -> fields of the recipe that differ from the default; with `all-stages` only depthwise kernels are frozen."""


def main() -> None:
    """Train the variants that are missing, then print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=[*VARIANTS])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--set", choices=("waste", "photos"), default="waste")
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    data = shared(asked.data) / f"{asked.set}_jpg.zip"
    notebook = Notebook(RESULTS / "finetuning.jsonl", fresh=asked.fresh)
    figures: dict[str, Any] = {}
    for name in asked.only:
        key = {"set": asked.set, "epochs": asked.epochs, "variant": name}
        if (found := notebook.find(**key)) is None:
            began = time.perf_counter()
            recipe = Recipe(val_fraction=0.2, epochs=asked.epochs, method="finetune", **VARIANTS[name])
            with tempfile.TemporaryDirectory() as place:
                facts = train(data, recipe, out=Path(place) / "run").facts
            after = facts["fine_tuning"]
            measured = {
                "head_accuracy": facts["head"]["val_accuracy"],
                "head_loss": after["head_val_loss"],
                "accuracy": after["val_accuracy"],
                "loss": after["val_loss"],
                "images_per_second": facts["images_per_second"],
                "seconds": round(time.perf_counter() - began, 1),
            }
            found = notebook.add(measured, **key)
        figures[name] = {word: value for word, value in found.items() if word not in key}
        print(name, figures[name], flush=True)
    record(f"finetuning_{asked.set}", {"epochs": asked.epochs, "variants": figures})


if __name__ == "__main__":
    main()
