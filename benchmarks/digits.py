"""The demo's accuracy: `sightline demo` on five seeds (split, weights and order differ), test accuracy of each.

    python benchmarks/digits.py

The default recipe on the embedded digits; nothing is chosen on the test images.
"""

import tempfile
import time
from pathlib import Path

from record import record

from sightline.evaluation import evaluate
from sightline.metrics import seeds_interval
from sightline.training import Recipe, train

SEEDS = range(5)


def main() -> None:
    """Train five times and say the mean with its interval over seeds."""
    accuracies, seconds = [], []
    with tempfile.TemporaryDirectory() as place:
        for seed in SEEDS:
            started = time.perf_counter()
            run = train("digits", Recipe(seed=seed), out=Path(place) / str(seed))
            accuracies.append(evaluate(run.classifier, run.splits.test).metrics["accuracy"].value)
            seconds.append(round(time.perf_counter() - started, 1))
    mean = seeds_interval(accuracies)
    record(
        "digits",
        {
            "seeds": list(SEEDS),
            "test_accuracy": accuracies,
            "mean": mean.value,
            "interval_95": [mean.low, mean.high],
            "seconds": seconds,
        },
    )


if __name__ == "__main__":
    main()
