"""What tuning costs beside training: the share of a search's time that is spent outside its trainings.

    python benchmarks/tuning_overhead.py [--trials 20] [--epochs 60]

A search by TPE over two fields (LeNet-5 on the digits). ``before_and_after`` is reading the images, opening the
database, the leaderboard, importance and pictures; ``between_trials`` is proposing and recording. The winner's own
training is not counted. ``report_ms`` is what an epoch pays for being reported, within the training.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from record import record

from sightline.training.recipe import Recipe
from sightline.tuning import study, tune
from sightline.tuning.trial import PruningHook

OVER = ("lr=0.005..0.2", "weight_decay=1e-5..1e-2")


def main() -> None:
    """Search, add up, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=60)
    asked = parser.parse_args()
    base = Recipe(model="lenet5", epochs=asked.epochs, batch_size=64, cpu_replicas=1)
    base = base.replace(precision="float32", memory_format="contiguous")
    study._train_winner = lambda *_: None  # its training is no part of the search
    reports = time_reports()
    with TemporaryDirectory() as place:
        started = time.perf_counter()
        tuned = tune("digits", base, OVER, trials=asked.trials, out=Path(place) / "t")
        search = time.perf_counter() - started
        loop = json.loads((tuned.folder / "tuning.json").read_text())["seconds"]
    training = sum(row["seconds"] for row in tuned.rows)
    figures = {
        "trials": asked.trials,
        "search_seconds": round(search, 2),
        "training_seconds": round(training, 2),
        "overhead": round(1 - training / search, 4),
        "before_and_after": round((search - loop) / search, 4),
        "between_trials": round((loop - training) / search, 4),
        "reports_within_training": round(sum(reports) / search, 4),
        "report_ms": round(1e3 * statistics.median(reports), 2),
    }
    record("tuning_overhead", figures)


def time_reports() -> list[float]:
    """Make the report of every epoch leave its seconds in the list that is returned."""
    after_epoch, seconds = PruningHook.after_epoch, []

    def measured(self: PruningHook, state: Any) -> None:
        started = time.perf_counter()
        after_epoch(self, state)
        seconds.append(time.perf_counter() - started)

    PruningHook.after_epoch = measured
    return seconds


if __name__ == "__main__":
    main()
