"""MNIST from its PNG archive: LeNet-5, the default recipe, three epochs, five seeds.

    python benchmarks/mnist.py [FOLDER_OF_ZIPS]

Test accuracy on the 10,000 test images, which nothing was chosen on; the epoch is chosen on validation.
"""

import sys
import tempfile
from pathlib import Path

from record import record, shared

from sightline.evaluation import evaluate
from sightline.metrics import seeds_interval
from sightline.training import Recipe, train

SEEDS = range(5)


def main() -> None:
    """Train five times and say the mean with its interval over seeds."""
    data = shared(sys.argv[1] if len(sys.argv) > 1 else None) / "mnist_png.zip"
    accuracies, seconds = [], []
    with tempfile.TemporaryDirectory() as place:
        for seed in SEEDS:
            run = train(data, Recipe(epochs=3, seed=seed), out=Path(place) / str(seed))
            accuracies.append(evaluate(run.classifier, run.splits.test).metrics["accuracy"].value)
            seconds.append(run.facts["seconds"])
    mean = seeds_interval(accuracies)
    record(
        "mnist",
        {
            "model": run.recipe.model,
            "epochs": 3,
            "seeds": list(SEEDS),
            "test_accuracy": accuracies,
            "mean": mean.value,
            "interval_95": [mean.low, mean.high],
            "training_seconds": seconds,
            "peak_memory_mb": run.facts["peak_memory_mb"],
        },
    )


if __name__ == "__main__":
    main()
