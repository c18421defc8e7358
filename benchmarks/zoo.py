"""What each network reaches after the same short training: a first impression, not what it can reach.

    python benchmarks/zoo.py [NETWORK ...] [--data FOLDER_OF_ZIPS] [--images 2000] [--epochs 5]

Every network of the catalogue at 32 x 32 pixels in colour, nothing tuned for any, the cheapest first: 2,000
training images of CIFAR-10 and 200 for validation, drawn by seed 0; 5 epochs; batches, learning rate and
augmentation as Sightline chooses them; seed 0. The accuracy is that on 2,000 of the test images. The whole
catalogue takes more than two hours of one core; each finished network is kept in results/zoo.jsonl, so that what
was stopped goes on. With the protocol above the table is written at the end to results/zoo.json and into the
package, from where `sightline list models` shows it; another one is only tried.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from record import RESULTS, Notebook, record, shared

from sightline import runtime
from sightline.evaluation import evaluate
from sightline.files import write_json
from sightline.models import NETWORKS, build, count_multiply_adds, parse_architecture
from sightline.models.registry import MEASURED_FILE
from sightline.training import Recipe, read_splits
from sightline.training.run import train_on_splits
from sightline.training.run_folder import SilentRunFolder
from sightline.types import Splits

IMAGES, EPOCHS, TESTED = 2000, 5, 2000

KNOWN = [name for name, entry in NETWORKS.items() if entry.side]
"""Networks with a form of their own."""


def main() -> None:
    """Measure what is missing, then write what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=KNOWN)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    book = Notebook(RESULTS / "zoo.jsonl", fresh=asked.fresh)
    protocol = {"images": asked.images, "epochs": asked.epochs}
    wanted = [name for name in cheapest_first(asked.names) if book.find(network=name, **protocol) is None]
    splits = drawn(shared(asked.data) / "cifar10_jpg.zip", asked.images) if wanted else None
    for name in wanted:
        assert splits is not None
        book.add(measure(name, splits, asked.epochs), network=name, **protocol)
    if protocol == {"images": IMAGES, "epochs": EPOCHS}:
        keep(book, protocol)


def cheapest_first(names: Sequence[str]) -> list[str]:
    """By multiply-adds for an image of 32 x 32 pixels."""
    plans = {name: parse_architecture(name, classes=10, channels=3, size=(32, 32)) for name in names}
    return sorted(names, key=lambda name: count_multiply_adds(build(plans[name]), 3, (32, 32)))


def keep(book: Notebook, protocol: dict[str, int]) -> None:
    """Write what was measured so far, for us and for the package."""
    found = {name: book.find(network=name, **protocol) for name in KNOWN}
    found = {name: line for name, line in found.items() if line is not None}
    record("zoo", {"protocol": protocol, "networks": found})
    words = f"CIFAR-10: {IMAGES:,} training images, {EPOCHS} epochs, 1 seed, {TESTED:,} test images"
    write_json(MEASURED_FILE, {"protocol": words, "accuracy": {n: line["accuracy"] for n, line in found.items()}})


def drawn(data: Path, images: int) -> Splits:
    """That many training images, a tenth as many for validation, some test images; all by seed 0."""
    splits, _ = read_splits(Recipe(data=str(data), size=32, channels=3, model="mlp"))
    parts = ((splits.train, images), (splits.val, images // 10), (splits.test, TESTED))
    train, val, test = (part.subset(runtime.permutation(len(part), 0)[:count]) for part, count in parts)
    return replace(splits, train=train, val=val, test=test)


def measure(name: str, splits: Splits, epochs: int) -> dict:
    """One training and its test."""
    recipe = Recipe(data="cifar10", size=32, channels=3, model=name, epochs=epochs)
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        run = train_on_splits(splits, recipe, SilentRunFolder(Path(place)))
        took = time.perf_counter() - started
        accuracy = evaluate(run.classifier, splits.test).metrics["accuracy"].value
    print(f"{name}: {accuracy:.4f}, {took / 60:.1f} min", flush=True)
    return {"accuracy": accuracy, "lr": run.recipe.lr}


if __name__ == "__main__":
    main()
