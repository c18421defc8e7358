"""What each preset reaches: test accuracy over seeds, and the minutes it takes here.

    python benchmarks/presets.py mnist-fast mnist-best --seeds 0 1 2 3 4 [--data FOLDER_OF_ZIPS]
    python benchmarks/presets.py cifar10-fast --epochs 5 11 --seeds 0
    python benchmarks/presets.py cifar10-fast --budgets 2.5m 10m 40m [--precision float32] [--width 0.5] --seeds 0

Everything goes the way of `sightline train DATA --preset NAME`: the validation tenth is split off the training
images, the best epoch is chosen on it, and the test images are looked at once, at the end. Minutes are those of
the clock; core minutes are those of all threads together, what the same training takes on one core of this kind.
With --epochs a preset is measured at other lengths than its own: accuracy against time, the curve; one that chooses
its network by time then has half the width. With --budgets the CIFAR preset is measured within other times than its
own, its network chosen for each; --precision float32 shows what a processor without bfloat16 reaches, and --width
what other networks reach, on whose validation images the preset's rule is chosen. A run that was stopped goes on where
it was: each finished seed is kept in results/presets.jsonl. With --keep the runs stay in that folder, for
calibration.py and for looking at.
"""

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

import torch
from record import RESULTS, Notebook, record, shared

from sightline import runtime
from sightline.evaluation import evaluate
from sightline.metrics import seeds_interval
from sightline.training import Recipe, train
from sightline.training.presets import PRESETS, cifar10_within

DATA = {"mnist": "mnist_png.zip", "cifar10": "cifar10_jpg.zip"}

CURVE_NETWORK = "fastcnn:width=0.5:eps=1e-12"
"""The network of the curve of a preset that chooses its own by time."""

BUDGETS = ("2.5m", "5m", "10m", "15m", "30m", "40m")
"""Those of the curve of accuracy against minutes."""


def main() -> None:
    """Measure what is missing, then say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PRESETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", nargs="+", type=int, default=[None], help="in place of the preset's own")
    parser.add_argument("--budgets", nargs="+", default=[None], help="in place of the CIFAR preset's own")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="of the runs with --budgets")
    parser.add_argument("--width", type=float, help="of the network of the runs with --budgets")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--keep", type=Path, help="folder in which the runs stay; they are forgotten without it")
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    folder = shared(asked.data)
    book = Notebook(RESULTS / "presets.jsonl", fresh=asked.fresh)
    for name, epochs, budget, seed in product(asked.names, asked.epochs, asked.budgets, asked.seeds):
        variant = of_length(name, epochs) if budget is None else cifar10_within(budget, asked.precision)
        if asked.width:
            variant = variant.replace(model=f"fastcnn:width={asked.width:g}:eps=1e-12")
        key = key_of(name, variant, seed) | {"width": asked.width}
        if book.find(**key) is None:
            recipe = variant.replace(seed=seed)
            data = folder / DATA[name.partition("-")[0]]
            with tempfile.TemporaryDirectory() as place:
                out = (asked.keep or Path(place)) / f"{name}-{recipe.epochs or recipe.budget}-{seed}"
                book.add(measure(data, recipe, out), **key)
    figures = {name: found for name in PRESETS if (found := summary(book, name, of_length(name)))}
    curves = {name: curve for name in PRESETS if (curve := curve_of(book, name))}
    record("presets", figures | {"curve": curves, "budgets": budgets_of(book)})


def of_length(name: str, epochs: int | None = None) -> Recipe:
    """The preset, trained for ``epochs``, or for its own."""
    recipe = PRESETS[name]()
    if epochs is None:
        return recipe
    model = CURVE_NETWORK if recipe.epochs is None else recipe.model
    return recipe.replace(model=model, epochs=epochs)


def key_of(name: str, recipe: Recipe, seed: int) -> dict:
    """What a measurement holds for: this recipe of the preset, this seed, this kind of processor."""
    usual = vars(Recipe())
    fields = {field: value for field, value in vars(recipe).items() if value != usual[field]}
    if recipe.epochs is None:  # the network depends on how busy the machine is
        del fields["model"]
    return {"preset": name, "seed": seed, "recipe": str(fields), "processor": runtime.processor_name()}


def measure(data: Path, recipe: Recipe, out: Path) -> dict:
    """One run, from the command to the last epoch, and its test."""
    started, worked = time.perf_counter(), time.process_time()
    run = train(data, recipe, out=out)
    took, worked = time.perf_counter() - started, time.process_time() - worked
    found = evaluate(run.classifier, run.splits.test).metrics["accuracy"].value
    before = f"validation {run.facts['val_accuracy']:.4f}, training {run.facts['seconds'] / 60:.2f} min"
    print(f"{found:.4f} in {took / 60:.2f} min ({before})", flush=True)
    return {
        "test_accuracy": found,
        "val_accuracy": run.facts["val_accuracy"],
        "minutes": took / 60,
        "core_minutes": worked / 60,
        "threads": torch.get_num_threads(),
        "training_minutes": run.facts["seconds"] / 60,
        "images_per_second": run.facts["images_per_second"],
        "model": run.recipe.model,
        "epochs": run.facts["epochs"],
        "way": [run.recipe.precision, run.recipe.memory_format, run.recipe.cpu_replicas],
    }


def curve_of(book: Notebook, name: str) -> dict[int, dict]:
    """What the preset reaches at each number of epochs that was measured."""
    return {epochs: found for epochs in range(1, 100) if (found := summary(book, name, of_length(name, epochs)))}


def budgets_of(book: Notebook) -> dict[str, dict]:
    """What the CIFAR preset reaches in each budget and precision that was measured on this kind of processor."""
    found: dict[str, dict | None] = {}
    for budget in BUDGETS:
        found[f"{budget}, faster precision"] = summary(book, "cifar10-fast", cifar10_within(budget))
        found[f"{budget}, float32"] = summary(book, "cifar10-fast", cifar10_within(budget, "float32"))
    return {way: each for way, each in found.items() if each}


def summary(book: Notebook, name: str, recipe: Recipe) -> dict | None:
    """The mean over seeds of this recipe of the preset."""
    found = [line for seed in range(100) if (line := book.find(**key_of(name, recipe, seed), width=None))]
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
        "networks": sorted({f"{line['model']}, {line['epochs']} epochs" for line in found if "model" in line}),
    }


if __name__ == "__main__":
    main()
