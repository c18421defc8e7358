"""The 600 photos of cats and dogs, many sizes, with no flags: what a user with a small folder gets.

    python benchmarks/photos.py [FOLDER_OF_ZIPS]

400 training images from scratch are few: the result is honest, not good. Pretrained weights are a later stage.
"""

import sys
import tempfile
import time
from pathlib import Path

from record import record, shared

from sightline.evaluation import evaluate
from sightline.training import train


def main() -> None:
    """Train as `sightline train photos_jpg.zip` does, and test."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        run = train(shared(sys.argv[1] if len(sys.argv) > 1 else None) / "photos_jpg.zip", out=Path(place) / "run")
        accuracy = evaluate(run.classifier, run.splits.test).metrics["accuracy"]
    record(
        "photos",
        {
            "chosen": {name: vars(run.recipe)[name] for name in ("model", "size", "epochs", "batch_size", "lr")},
            "test_accuracy": accuracy.value,
            "interval_95": [accuracy.low, accuracy.high],
            "n": accuracy.n,
            "minutes": round((time.perf_counter() - started) / 60, 2),
        },
    )


if __name__ == "__main__":
    main()
