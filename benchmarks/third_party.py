"""A third party's ResNet-20 through our whole path: archive, decoding, store, preprocessing, network, evaluation.

    python benchmarks/third_party.py [FOLDER_OF_ZIPS] [WEIGHTS_FILE]

Trained by its authors on lossless CIFAR-10 (91.73 % on the original test images); on the JPEG images here its
accuracy, measured independently of this project, is 81.03 %.
"""

import sys
import tempfile
from pathlib import Path

from record import record, shared

from sightline.evaluation import evaluate
from sightline.training import Recipe, train


def main() -> None:
    """Evaluate the weights as they are."""
    folder = shared(sys.argv[1] if len(sys.argv) > 1 else None)
    weights = Path(sys.argv[2]) if len(sys.argv) > 2 else folder.parent / "weights" / "resnet20-12fca82f.th"
    recipe = Recipe(model="resnet20", weights=str(weights), normalize="imagenet", epochs=0)
    with tempfile.TemporaryDirectory() as place:
        run = train(folder / "cifar10_jpg.zip", recipe, out=Path(place) / "run")
        found = evaluate(run.classifier, run.splits.test)
    accuracy = found.metrics["accuracy"]
    record(
        "third_party",
        {
            "test_accuracy": accuracy.value,
            "interval_95": [accuracy.low, accuracy.high],
            "n": accuracy.n,
            "expected": 0.8103,
        },
    )


if __name__ == "__main__":
    main()
