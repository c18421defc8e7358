"""What each network reaches after the same short training: a first impression, not what it can reach.

    python benchmarks/zoo.py [NETWORK ...] [--data FOLDER_OF_ZIPS] [--images 5000] [--epochs 10]

Every network of the catalogue at 32 x 32 pixels in colour, nothing tuned for any: 5,000 training images of
CIFAR-10 and 500 for validation, drawn by seed 0; 10 epochs; batches, learning rate and augmentation as Sightline
chooses them; seed 0. The accuracy is that on the 10,000 test images. Each finished network is kept in
results/zoo.jsonl, so that what was stopped goes on. With the protocol above the table is written to
results/zoo.json and into the package, from where `sightline list models` shows it; a shorter one is only tried.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from record import RESULTS, Notebook, record, shared

from sightline import runtime
from sightline.evaluation import evaluate
from sightline.files import write_json
from sightline.models.catalogue import MEASURED, REFERENCE
from sightline.training import Recipe
from sightline.training.folder import Quiet
from sightline.training.run import prepare, train_on
from sightline.types import Splits

IMAGES, EPOCHS = 5000, 10


def main() -> None:
    """Measure what is missing, then write what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(REFERENCE))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    book = Notebook(RESULTS / "zoo.jsonl", fresh=asked.fresh)
    protocol = {"images": asked.images, "epochs": asked.epochs}
    wanted = [name for name in asked.names if book.find(network=name, **protocol) is None]
    splits = drawn(shared(asked.data) / "cifar10_jpg.zip", asked.images) if wanted else None
    for name in wanted:
        assert splits is not None
        book.add(measure(name, splits, asked.epochs), network=name, **protocol)
    found = {name: book.find(network=name, **protocol) for name in REFERENCE}
    found = {name: line for name, line in found.items() if line is not None}
    if protocol == {"images": IMAGES, "epochs": EPOCHS}:
        record("zoo", {"protocol": protocol, "networks": found})
        words = f"CIFAR-10: {IMAGES:,} training images, {EPOCHS} epochs, 1 seed, 10,000 test images"
        write_json(MEASURED, {"protocol": words, "accuracy": {n: line["accuracy"] for n, line in found.items()}})


def drawn(data: Path, images: int) -> Splits:
    """That many training images, a tenth as many for validation, every test image; all by seed 0."""
    _, splits, _ = prepare(Recipe(data=str(data), size=32, channels=3, model="mlp"))
    parts = ((splits.train, images), (splits.val, images // 10))
    train, val = (part.subset(runtime.order(len(part), 0)[:count]) for part, count in parts)
    return replace(splits, train=train, val=val)


def measure(name: str, splits: Splits, epochs: int) -> dict:
    """One training and its test."""
    recipe = Recipe(data="cifar10", size=32, channels=3, model=name, epochs=epochs)
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        run = train_on(splits, recipe, Quiet(Path(place)))
        took = time.perf_counter() - started
        accuracy = evaluate(run.classifier, splits.test).metrics["accuracy"].value
    print(f"{name}: {accuracy:.4f}, {took / 60:.1f} min", flush=True)
    return {"accuracy": accuracy, "lr": run.recipe.lr, "minutes": round(took / 60, 2)}


if __name__ == "__main__":
    main()
