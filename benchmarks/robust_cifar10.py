"""What robustness costs on CIFAR-10: accuracy against accuracy under attack at 8/255, of the cheapest ways to
train it.

    python benchmarks/robust_cifar10.py [FOLDER_OF_ZIPS] [--images 12000] [--epochs 8] [--sides plain fast ...]

The same small network, images, epochs and augmentation for each side; only the loss differs. A reduced set (about
--images of the 60,000, a sixth of them for testing, as given): the trade is measured, not a record. Tested by
PGD-20 with steps of 2/255 and by APGD, on the test images of the set. A run that was stopped goes on where it was
(--work, results/robust_cifar10.jsonl).
"""

import argparse
from pathlib import Path

from record import RESULTS, Notebook, record, shared
from robust_mnist import clean, trained, under, words

from sightline import runtime
from sightline.attacks import APGD, PGD
from sightline.training import Recipe

SIDES = {
    "plain": "cross-entropy",
    "fast": "fast-adversarial:8/255",
    "n-fgsm": "fast-adversarial:8/255:step=1:noise=2",
    "pgd-3": "adversarial:8/255:3",
}
EPS = 8 / 255
MEASURES = {
    "clean": clean,
    "PGD-20": under(PGD(20, step=2 / 255), (2 / 255, 4 / 255, EPS)),
    "APGD": under(APGD(50), (EPS,), 500),
}


def main() -> None:
    """Train what is missing, attack what is not yet attacked, say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--images", type=int, default=12000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--work", type=Path, default=runtime.cache_dir() / "robust_cifar10")
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    data = shared(asked.data) / "cifar10_jpg.zip"
    book = Notebook(RESULTS / "robust_cifar10.jsonl", fresh=asked.fresh)
    found = {}
    for side in asked.sides:
        recipe = recipe_of(asked, SIDES[side])
        key = {"side": side, "recipe": words(recipe), "processor": runtime.processor_name()}
        folder = asked.work / f"{side}-{asked.images}-{asked.epochs}"
        for name, measure in MEASURES.items():
            if book.find(**key, measure=name) is None:
                print(side, name, line := measure(trained(data, recipe, folder)), flush=True)
                book.add({"found": line}, **key, measure=name)
        found[side] = {line["measure"]: line["found"] for line in book.all(**key)}
    record("robust_cifar10", {"images": asked.images, "epochs": asked.epochs, "sides": found})


def recipe_of(asked: argparse.Namespace, loss: str) -> Recipe:
    """The recipe all sides share, with a side's loss."""
    return Recipe(
        model="resnet20",
        epochs=asked.epochs,
        limit=asked.images,
        augment=("flip", "shift:2"),
        batch_size=128,
        lr=0.2,
        loss=loss,
    )


if __name__ == "__main__":
    main()
