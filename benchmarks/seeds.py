"""Whether default recipes end well whatever the seed: no NaN, and nothing at chance.

    OMP_NUM_THREADS=1 nice -n 19 python benchmarks/seeds.py [--seeds 0 30] [--networks lenet5 ...] [--sets mnist ...]

Trains `lenet5`, `resnet20` and `fastcnn` on subsets of MNIST, CIFAR-10 and photographs of waste at 32 pixels with
30 seeds, which draw the images, the weights and the order; the size of the subset goes with the seed: 500, 1,000,
2,000, 4,000, 6,000 (waste has 2,144). All is chosen as `sightline train DATA --model NETWORK --size 32 --limit N` would
choose it, but for the length: `lenet5` trains its own 60 epochs, the others as many as see 6,000 images, 3 at least.

A run is at chance where it is right on so few of the dataset's test images (2,000 at most) that always naming their
most frequent class would do as well in one of 10,000 tries (binomial). Every run is a line of results/seeds.jsonl, and
a benchmark that was stopped goes on. Exits 1 where a run ended in NaN, in an error, or at chance.
"""

import argparse
import os
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
from record import RESULTS, Notebook, record, shared
from scipy.stats import binom

from sightline import runtime
from sightline.errors import Interrupted, SightlineError
from sightline.evaluation import evaluate
from sightline.training import Recipe, read_splits, train
from sightline.types import Dataset

DATA = {"mnist": "mnist_png.zip", "cifar10": "cifar10_jpg.zip", "waste": "waste_jpg.zip"}
NETWORKS = ("lenet5", "resnet20", "fastcnn")
SIZES = (500, 1000, 2000, 4000, 6000)
IMAGES_SEEN = 6_000
TEST_IMAGES = 2_000
CHANCE = 1e-4


def main() -> None:
    """Train what is missing, then say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", nargs=2, type=int, default=[0, 30], help="the first, and the one after the last"
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--sets", nargs="+", default=list(DATA))
    parser.add_argument("--data", type=Path, default=os.environ.get("SIGHTLINE_DATA"))
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    folder, tests = shared(asked.data), {}
    book = Notebook(RESULTS / "seeds.jsonl", fresh=asked.fresh)
    for seed, name, network in product(range(*asked.seeds), asked.sets, asked.networks):
        key = {"set": name, "network": network, "seed": seed}
        if book.find(**key) is None:
            if name not in tests:
                tests[name] = read_test(folder / DATA[name])
            print(key, book.add(measure(folder / DATA[name], network, seed, tests[name]), **key), flush=True)
    record("seeds", summarise(book))
    sys.exit(any(line["fault"] for line in book.lines))


def read_test(data: Path) -> Dataset:
    """At most ``TEST_IMAGES`` of the dataset's own test images, which no subset trains on."""
    test = read_splits(Recipe(data=str(data), size=32))[0].test
    return test.subset(np.sort(runtime.permutation(len(test), 0)[:TEST_IMAGES]))


def measure(data: Path, network: str, seed: int, test: Dataset) -> dict:
    """One run: its accuracy on the test images, and what was wrong with it, if anything was."""
    limit, began = SIZES[seed % len(SIZES)], time.perf_counter()
    epochs = 60 if network == "lenet5" else max(3, round(IMAGES_SEEN / limit))
    recipe = Recipe(model=network, size=32, limit=limit, seed=seed, epochs=epochs)
    guess = test.counts.max() / len(test)
    least = int(binom.isf(CHANCE, len(test), guess)) / len(test)
    with tempfile.TemporaryDirectory() as place:
        os.environ["SIGHTLINE_CACHE"] = place  # each subset is used once
        try:
            run = train(data, recipe, out=Path(place) / "run")
        except Interrupted:
            raise
        except SightlineError as error:
            return {"fault": str(error), "limit": limit, "epochs": epochs}
        accuracy = evaluate(run.classifier, test).metrics["accuracy"].value
    fault = "" if accuracy > least else f"at chance: {accuracy:.1%} of the test images, {least:.1%} by guessing"
    return {
        "fault": fault,
        "limit": limit,
        "epochs": epochs,
        "accuracy": round(accuracy, 4),
        "chance": round(least, 4),
        "recoveries": run.facts["recoveries"],
        "remarks": run.facts["remarks"],
        "way": [run.recipe.precision, run.recipe.memory_format, run.recipe.cpu_replicas],
        "lr": run.recipe.lr,
        "minutes": round((time.perf_counter() - began) / 60, 3),
    }


def summarise(book: Notebook) -> dict:
    """For every set and network: runs, faults, recoveries, and the range of accuracies."""
    found = {}
    for name, network in product(DATA, NETWORKS):
        lines = list(book.all(set=name, network=network))
        ended = [line for line in lines if "accuracy" in line]
        if not ended:
            continue
        found[f"{name} {network}"] = {
            "seeds": len(lines),
            "faults": [f"seed {line['seed']}: {line['fault']}" for line in lines if line["fault"]],
            "recoveries": sum(line["recoveries"] for line in ended),
            "bfloat16": sum(line["way"][0] == "bfloat16" for line in ended),
            "chance": ended[-1]["chance"],
            "accuracy": [min(line["accuracy"] for line in ended), max(line["accuracy"] for line in ended)],
            "minutes": round(sum(line["minutes"] for line in ended), 1),
        }
    return found


if __name__ == "__main__":
    main()
