"""Which learning rate the networks with plain hidden layers bear: what ``training.choices.STEADY_LR`` rests on.

    python benchmarks/rates.py [NETWORK ...] [--data FOLDER_OF_ZIPS]

Each network at 32 x 32 pixels in colour, at shares of the optimiser's usual rate: 2,000 training images of
CIFAR-10, 5 epochs, accuracy on 1,000 other training images; all drawn by seed 1, and no test image is looked at.
ViT learns with SGD and with AdamW. What was measured stays in results/rates.jsonl, so that what was stopped goes
on.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from record import RESULTS, Notebook, record, shared

from sightline import runtime
from sightline.errors import TrainingError
from sightline.evaluation import evaluate
from sightline.training import OPTIMIZERS, Recipe, read_splits
from sightline.training.run import train_on_splits
from sightline.training.run_folder import SilentRunFolder
from sightline.types import Splits

IMAGES, HELD, EPOCHS, BATCH = 2000, 1000, 5, 64
ALL, SOME = (1.0, 0.5, 0.25, 0.1, 0.05), (1.0, 0.25)
PLAN: Mapping[str, Mapping[str, Sequence[float]]] = {
    **{name: {"sgd": ALL} for name in ("mlp", "lenet5", "strided-cnn", "table2")},
    "vit": {"adamw": (1.0,), "sgd": SOME},
    "alexnet-small": {"sgd": SOME},
    "vgg11": {"sgd": (1.0, 0.25, 0.1)},
    "alexnet": {"sgd": (1.0, 0.25, 0.1)},
}
"""Network -> optimiser -> shares of its usual rate. The last four take minutes each."""


def main() -> None:
    """Measure what is missing, then write what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PLAN))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    book = Notebook(RESULTS / "rates.jsonl", fresh=asked.fresh)
    splits = drawn(shared(asked.data) / "cifar10_jpg.zip")
    for name in asked.names:
        for optimizer, shares in PLAN[name].items():
            for share in shares:
                key = {"network": name, "optimizer": optimizer, "share": share}
                if book.find(**key) is None:
                    print(book.add({"accuracy": accuracy(splits, **key)}, **key), flush=True)
    record("rates", {"images": IMAGES, "epochs": EPOCHS, "measured": book.lines})


def drawn(data: Path) -> Splits:
    """Images to learn from and others to judge by, all of the training part."""
    splits, _ = read_splits(Recipe(data=str(data), size=32, channels=3, model="mlp"))
    rows = runtime.permutation(len(splits.train), 1)[: IMAGES + HELD]
    return Splits(splits.train.subset(rows[:IMAGES]), splits.train.subset(rows[IMAGES:]), splits.test)


def accuracy(splits: Splits, *, network: str, optimizer: str, share: float) -> float:
    """That on the images held back; 0.1, as by chance, where training went astray."""
    lr = OPTIMIZERS[optimizer].default_lr * share * BATCH / 128
    recipe = Recipe(
        data="cifar10",
        size=32,
        channels=3,
        model=network,
        optimizer=optimizer,
        epochs=EPOCHS,
        batch_size=BATCH,
        lr=lr,
    )
    with tempfile.TemporaryDirectory() as place:
        try:
            run = train_on_splits(splits, recipe, SilentRunFolder(Path(place)))
        except TrainingError as error:
            print(error)
            return 0.1
        return evaluate(run.classifier, splits.val).metrics["accuracy"].value


if __name__ == "__main__":
    main()
