"""What each preset reaches: test accuracy over seeds, and the minutes it takes here.

    python benchmarks/presets.py mnist-fast mnist-best --seeds 0 1 2 3 4 [--data FOLDER_OF_ZIPS]

Everything goes the way of `sightline train DATA --preset NAME`: the validation tenth is split off the training
images, the best epoch is chosen on it, and the test images are looked at once, at the end. Minutes are those of
the clock; core minutes are those of all threads together, what the same training takes on one core of this kind. A
run that was stopped goes on where it was: each finished seed is kept in results/presets.jsonl.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from record import RESULTS, Notebook, record, shared

from sightline import runtime
from sightline.evaluation import evaluate
from sightline.metrics import seeds_interval
from sightline.training import Recipe, train
from sightline.training.presets import PRESETS

DATA = {"mnist": "mnist_png.zip", "cifar10": "cifar10_jpg.zip"}


def main() -> None:
    """Measure what is missing, then say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PRESETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    folder = shared(asked.data)
    book = Notebook(RESULTS / "presets.jsonl", fresh=asked.fresh)
    for name in asked.names:
        for seed in asked.seeds:
            key = key_of(name, seed)
            if book.find(**key) is None:
                recipe = PRESETS[name]().replace(seed=seed)
                book.add(measure(folder / DATA[name.partition("-")[0]], recipe), **key)
    record("presets", {name: summary(book, name) for name in PRESETS if summary(book, name)})


def key_of(name: str, seed: int) -> dict:
    """What a measurement holds for: the preset as it is now, this seed, this kind of processor."""
    usual = vars(Recipe())
    fields = {field: value for field, value in vars(PRESETS[name]()).items() if value != usual[field]}
    return {"preset": name, "seed": seed, "recipe": str(fields), "processor": runtime.processor()}


def measure(data: Path, recipe: Recipe) -> dict:
    """One run, from the command to the last epoch, and its test."""
    with tempfile.TemporaryDirectory() as place:
        started, worked = time.perf_counter(), time.process_time()
        run = train(data, recipe, out=Path(place) / "run")
        took, worked = time.perf_counter() - started, time.process_time() - worked
        found = evaluate(run.classifier, run.splits.test).metrics["accuracy"].value
    print(f"{found:.4f} in {took / 60:.2f} min (training {run.facts['seconds'] / 60:.2f})", flush=True)
    return {
        "test_accuracy": found,
        "val_accuracy": run.facts["val_accuracy"],
        "minutes": took / 60,
        "core_minutes": worked / 60,
        "threads": torch.get_num_threads(),
        "training_minutes": run.facts["seconds"] / 60,
        "images_per_second": run.facts["images_per_second"],
        "way": [run.recipe.precision, run.recipe.memory_format, run.recipe.replicas],
    }


def summary(book: Notebook, name: str) -> dict | None:
    """The mean over seeds of the preset as it is now."""
    found = [line for seed in range(100) if (line := book.find(**key_of(name, seed)))]
    if not found:
        return None
    accuracies = [line["test_accuracy"] for line in found]
    mean = seeds_interval(accuracies) if len(found) > 1 else None
    return {
        "seeds": [line["seed"] for line in found],
        "test_accuracy": accuracies,
        "mean": sum(accuracies) / len(found),
        "interval_95": [mean.low, mean.high] if mean else None,
        "minutes": [round(line["minutes"], 2) for line in found],
        "core_minutes": [round(line["core_minutes"], 2) for line in found],
        "threads": found[-1]["threads"],
        "way": found[-1]["way"],
    }


if __name__ == "__main__":
    main()
