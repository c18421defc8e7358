"""Seconds to an accuracy, from the command to the end of training: Sightline against the plain recipe.

    python benchmarks/time_to_accuracy.py mnist   [--seeds 3] [--target 0.99] [--recipe FILE]
    python benchmarks/time_to_accuracy.py cifar10 [--seeds 1] [--plain-epochs 10] [--recipe FILE]

Common: [--data FOLDER_OF_ZIPS] [--work FOLDER] [--fresh]. The plain recipe is ``peers/train_plain.py``.

The test images decide nothing. ``mnist`` and ``cifar10`` begin by setting aside a tenth of the training
images for validation, the same tenth for both sides, and both train on the rest.

``mnist``. First, untimed, each side gets its number of epochs: the fewest whose validation accuracy, mean of two
seeds that are not used again, is at least the target. The plain recipe's rate is constant, so one run
passes through every number of epochs; ours depends on the length of the run, so 1, 2, 3 ... epochs are run. Where
15 epochs of the plain recipe do not reach the target, that is said and ours is timed alone. Then,
timed, in turn, with other seeds, each side trains for exactly these epochs, each run a process of its own:
plain; ours in an empty cache (first use: listing, decoding, the store, and choosing precision and layout are in
the time); ours again. Ours validates every epoch, calibrates and writes its run folder within its time; plain
only trains. Files are in the page cache for both. Only when the clock has stopped is the test accuracy taken.

``cifar10``, the same network, ResNet-20. The plain recipe trains for --plain-epochs, a reduced form of the
usual 160 to 200, with its steps at half and three quarters; its final accuracy on validation is the target. Ours
gets the fewest epochs, of 1, 2, 3 ..., whose validation accuracy is that, on the first seed; all of its seeds
are then timed on first use. Nothing is extrapolated.

Accuracy against minutes, as a curve, is in presets.py.

Stopped, each goes on where it was (``time_to_accuracy.jsonl`` in --work).
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

from environments import python_of, set_aside, unpack
from record import Notebook, record, shared

from sightline.metrics import seeds_interval
from sightline.training import Recipe
from sightline.training.presets import PRESETS

SCRIPTS = Path(__file__).parent / "peers"

CHOOSING_SEEDS = (1000, 1001)
"""Seeds that choose a number of epochs, and are not timed."""

MOST = 15
"""Epochs after which a side has failed to reach the target."""

OURS = {
    "mnist": PRESETS["mnist-fast"](),
    "cifar10": Recipe(model="resnet20", augment=("flip", "shift:4"), lr=0.2, label_smoothing=0.1),
}
"""What is timed, unless --recipe names a file."""


def main() -> None:
    """Do what was asked, in the resumable notebook."""
    asked = arguments()
    bench = Bench(asked)
    {"mnist": mnist, "cifar10": cifar10}[asked.what](bench, asked)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("mnist", "cifar10"))
    parser.add_argument("--data", type=Path, help="folder that holds mnist_png.zip and cifar10_jpg.zip")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-benchmarks")
    parser.add_argument("--seeds", type=int, help="3 for mnist, else 1")
    parser.add_argument("--target", type=float, default=0.99, help="accuracy wanted of mnist")
    parser.add_argument("--plain-epochs", type=int, default=10, help="epochs of the plain recipe on cifar10")
    parser.add_argument("--recipe", type=Path, help="a recipe file of ours in place of the one above")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier start measured")
    asked = parser.parse_args()
    asked.seeds = asked.seeds or (3 if asked.what == "mnist" else 1)
    return asked


def mnist(bench: "Bench", asked: argparse.Namespace) -> None:
    """Seconds to the target on digits, first use and later."""
    folder = set_aside(unpack(shared(asked.data) / "mnist_png.zip", asked.work), asked.work / "mnist_png_split")
    recipe = Recipe.from_toml(asked.recipe) if asked.recipe else OURS["mnist"]
    plain_epochs, plain_curve = bench.plain_epochs("lenet5", folder, asked.target)
    our_epochs, our_curve = bench.our_epochs(recipe, folder, asked.target, CHOOSING_SEEDS)
    recipe = recipe.replace(epochs=our_epochs)
    rows: dict[str, list[dict[str, Any]]] = {"plain": [], "ours, first use": [], "ours, later": []}
    for seed in range(asked.seeds):
        if plain_epochs:
            rows["plain"].append(bench.plain("lenet5", folder, plain_epochs, seed))
        first, later = bench.ours(recipe.replace(seed=seed), folder, twice=True)
        rows["ours, first use"].append(first)
        rows["ours, later"].append(later)
    found = {name: side(values) for name, values in rows.items() if values}
    plain = found["plain"]["median_seconds"] if plain_epochs else math.nan
    record(
        f"time_to_accuracy_mnist_{asked.target:g}",
        {
            "target": asked.target,
            "epochs": {"plain": plain_epochs, "ours": our_epochs},
            "validation_accuracy_by_epochs": {"plain": plain_curve, "ours": our_curve},
            "seeds": list(range(asked.seeds)),
            "sides": found,
            "times_faster": {
                name: round(plain / found[name]["median_seconds"], 2)
                for name in found
                if plain_epochs and name != "plain"
            },
            "recipe": changed(recipe),
        },
    )


def cifar10(bench: "Bench", asked: argparse.Namespace) -> None:
    """Seconds to the plain recipe's final accuracy, on its own network."""
    folder = set_aside(
        unpack(shared(asked.data) / "cifar10_jpg.zip", asked.work), asked.work / "cifar10_jpg_split"
    )
    recipe = Recipe.from_toml(asked.recipe) if asked.recipe else OURS["cifar10"]
    plain = [bench.plain("resnet20", folder, asked.plain_epochs, seed) for seed in range(asked.seeds)]
    target = statistics.fmean(row["val_accuracy"] for row in plain)
    epochs, our_curve = bench.our_epochs(recipe, folder, target, (0,))
    recipe = recipe.replace(epochs=epochs)
    ours = [bench.ours(recipe.replace(seed=seed), folder)[0] for seed in range(asked.seeds)]
    found = {"plain": side(plain), "ours, first use": side(ours)}
    record(
        "time_to_accuracy_cifar10",
        {
            "network": "resnet20",
            "target": target,
            "epochs": {"plain": asked.plain_epochs, "ours": epochs},
            "validation_accuracy_by_epochs": our_curve,
            "seeds": list(range(asked.seeds)),
            "sides": found,
            "times_faster": round(
                found["plain"]["median_seconds"] / found["ours, first use"]["median_seconds"], 2
            ),
            "recipe": changed(recipe),
        },
    )


class Bench:
    """Runs training processes, and remembers what they said."""

    def __init__(self, asked: argparse.Namespace):
        self.work = asked.work
        self.book = Notebook(asked.work / "time_to_accuracy.jsonl", fresh=asked.fresh)

    def plain(self, net: str, folder: Path, epochs: int, seed: int) -> dict[str, Any]:
        """The plain recipe, timed."""
        words = [SCRIPTS / "train_plain.py", net, folder, epochs, seed]
        return self.timed(words, python_of("plain", self.work), what="plain", net=net, epochs=epochs, seed=seed)

    def ours(self, recipe: Recipe, folder: Path, *, twice: bool = False) -> list[dict[str, Any]]:
        """A recipe of ours, timed in an empty cache, and again where asked for."""
        text = recipe.to_toml()
        name = hashlib.blake2b(f"{folder.name} {text}".encode(), digest_size=6).hexdigest()
        file, cache = self.work / f"{name}.toml", self.work / f"cache-{name}"
        file.write_text(text)
        uses = ("first", "later") if twice else ("first",)
        keys = [{"what": "ours", "recipe": name, "seed": recipe.seed, "use": use} for use in uses]
        if not all(self.book.find(**key) for key in keys):
            self.book.lines = [line for line in self.book.lines if line.get("recipe") != name]
            shutil.rmtree(cache, ignore_errors=True)
        words = [SCRIPTS / "train_sightline.py", folder, file]
        rows = [self.timed(words, Path(sys.executable), cache, **key) for key in keys]
        shutil.rmtree(cache, ignore_errors=True)
        return rows

    def timed(self, words: list[Any], python: Path, cache: Path | None = None, **key: Any) -> dict[str, Any]:
        """Seconds from the command to the end of its training, and what it said."""
        known = self.book.find(**key)
        if known is not None:
            return known
        print("Running", *key.values(), flush=True)
        given = os.environ | ({"SIGHTLINE_CACHE": str(cache)} if cache else {})
        started = time.time()
        said = lines_of([str(python), *map(str, words)], given)
        facts = {name: value for line in said for name, value in line.items()}
        facts["seconds"] = round(facts.pop("trained") - started, 2)
        facts["cpu_seconds"] = round(facts["cpu_seconds"], 2)
        return self.book.add(facts, **key)

    def plain_epochs(self, net: str, folder: Path, target: float) -> tuple[int | None, dict[int, float]]:
        """The fewest epochs of the plain recipe that reach the target on validation, if any, and the way there."""
        key = {"what": "plain epochs", "net": net}
        known = self.book.find(**key)
        if known is None or (len(known["curve"]) < MOST and max(known["curve"].values()) < target):
            print("Choosing the plain recipe's epochs on validation", flush=True)
            words = ["train_plain.py", net, folder, MOST, *CHOOSING_SEEDS, "--until", target]
            python = str(python_of("plain", self.work))
            said = lines_of([python, str(SCRIPTS / words[0]), *map(str, words[1:])], dict(os.environ))
            known = self.book.add(
                {"curve": {line["epoch"]: statistics.fmean(line["val_accuracy"]) for line in said}}, **key
            )
        way = {int(epoch): round(accuracy, 5) for epoch, accuracy in known["curve"].items()}
        return fewest(way, target), way

    def our_epochs(
        self, recipe: Recipe, folder: Path, target: float, seeds: tuple[int, ...]
    ) -> tuple[int, dict[int, float]]:
        """The fewest epochs of our recipe that reach the target on validation, and the way there; it ends else."""
        way: dict[int, float] = {}
        for epochs in count(1):
            tried = recipe.replace(epochs=epochs)
            reached = [self.ours(tried.replace(seed=seed), folder)[0]["val_accuracy"] for seed in seeds]
            way[epochs] = round(statistics.fmean(reached), 5)
            print(f"Ours, {epochs} epochs: validation accuracy {way[epochs]:.2%}", flush=True)
            if way[epochs] >= round(target, 5):
                return epochs, way
            if epochs == MOST:
                sys.exit(f"No number of epochs up to {MOST} reached {target:.2%} on validation: {way}")
        raise AssertionError


def fewest(way: dict[int, float], target: float) -> int | None:
    """The fewest epochs that reach the target, if any do."""
    return min((epochs for epochs, accuracy in way.items() if accuracy >= round(target, 5)), default=None)


def lines_of(words: list[str], given: dict[str, str]) -> list[dict[str, Any]]:
    """The JSON objects a command prints, shown as they come; what it says besides goes to the terminal."""
    found = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=given) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                found.append(json.loads(line))
                print(line, end="", flush=True)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return found


def side(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one side over its seeds."""
    test = [row["test_accuracy"] for row in rows]
    found = {
        "median_seconds": round(statistics.median(row["seconds"] for row in rows), 2),
        "seconds": [row["seconds"] for row in rows],
        "cpu_seconds": [row["cpu_seconds"] for row in rows],
        "validation_accuracy": [round(row["val_accuracy"], 5) for row in rows],
        "test_accuracy": test,
        "precision": rows[0].get("precision", "float32 contiguous"),
    }
    if len(test) > 1:
        mean = seeds_interval(test, bounds=(0, 1))
        found["mean_test_accuracy"] = {"mean": mean.value, "interval_95": [mean.low, mean.high]}
    return found


def changed(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says beyond the defaults."""
    usual = vars(Recipe())
    return {name: value for name, value in vars(recipe).items() if value != usual[name] and name != "seed"}


if __name__ == "__main__":
    main()
