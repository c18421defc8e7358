"""What tuning costs beside training: the same trainings by `tune` and one after the other by `train_on`.

    python benchmarks/tuning_overhead.py [--trials 12] [--epochs 60]

A search by TPE over two fields (LeNet-5 on the digits), then the very recipes it tried, trained without a study.
``overhead`` is the share of the search's time that was not spent in training; ``ratio`` compares the two times.
The database is opened and the images read within the search's time; the winner's training is not.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from record import record

from sightline.training.folder import Quiet
from sightline.training.recipe import Recipe
from sightline.training.run import prepare, train_on
from sightline.tuning import study, tune
from sightline.tuning.study import Tuned

OVER = ("lr=0.005..0.2", "weight_decay=1e-5..1e-2")


def main() -> None:
    """Search, train the same again, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=60)
    asked = parser.parse_args()
    base = Recipe(model="lenet5", epochs=asked.epochs, batch_size=64, replicas=1)
    base = base.replace(precision="float32", memory_format="contiguous")
    study._winner = lambda *_: None  # its training is no part of the search
    with TemporaryDirectory() as place:
        started = time.perf_counter()
        tuned = tune("digits", base, OVER, trials=asked.trials, out=Path(place) / "t")
        search = time.perf_counter() - started
        inside = sum(row["seconds"] for row in tuned.rows)
        plain = trained(tuned, base, Path(place))
    figures = {
        "trials": asked.trials,
        "search_seconds": search,
        "training_seconds": inside,
        "overhead": 1 - inside / search,
        "seconds_without_a_study": plain,
        "ratio": search / plain,
    }
    record("tuning_overhead", {name: round(value, 4) for name, value in figures.items()})


def trained(tuned: Tuned, base: Recipe, place: Path) -> float:
    """Seconds for the images and the same trainings, without a study."""
    started = time.perf_counter()
    recipe, splits, _ = prepare(base.replace(data="digits"))
    for row in tuned.rows:
        folder = Quiet(place / f"plain-{row['trial']}")
        folder.path.mkdir()
        train_on(splits, recipe.replace(lr=row["lr"], weight_decay=row["weight_decay"]), folder)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
