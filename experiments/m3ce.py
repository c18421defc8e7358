"""Paper 000: does M3CE, alone or beside cross-entropy, classify better than cross-entropy? With and without ZCA.

    python experiments/m3ce.py [--cases mnist cifar10] [--seeds 5] [--known] [--data FOLDER_OF_ZIPS]

LeNet-5 on all of MNIST and on 10,000 images of CIFAR-10; nothing differs within a seed but the loss. The weight of
M3CE-CEc is the one of 1/12 (the safe one), 0.25 and 1 with the highest mean validation accuracy: the test images
decide nothing. Stopped, it goes on where it was; --known trains nothing, and says what is finished.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from common import arguments, changed, images, keep, mean, notebook, paired, told, trained
from record import Notebook

from sightline.training import Recipe
from sightline.training.losses import lambda_safe
from sightline.training.presets import PRESETS

CASES = {
    "mnist": ("mnist_png.zip", None, PRESETS["mnist-fast"]()),
    "cifar10": (
        "cifar10_jpg.zip",
        10_000,
        Recipe(model="lenet5", epochs=15, augment=("flip", "shift:2"), lr=0.1),
    ),
}
LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "m3ce": {"loss": "m3ce"},
    **{f"m3ce-cec {w:.3g}": {"loss": "m3ce-cec", "loss_weight": w} for w in (lambda_safe(), 0.25, 1.0)},
}
NORMALISED = {"plain": "fitted", "zca": "zca:eps=0.1"}


@dataclass(frozen=True)
class Case:
    """One dataset, with or without ZCA: its trainings by loss, a line for each seed."""

    data: str
    normalised: str
    lines: dict[str, list[dict[str, Any]]]

    def figures(self) -> dict[str, Any]:
        """Accuracy of each loss, and what it changes against cross-entropy."""
        usual = self.lines["cross-entropy"]
        rows = {
            name: {"test": mean(found), "val_mean": mean(found, "val_accuracy")["mean"]}
            | (
                {}
                if name == "cross-entropy" or len(usual) == 1
                else {"against_cross_entropy": paired(found, usual)}
            )
            for name, found in self.lines.items()
        }
        weighed = [name for name in rows if name.startswith("m3ce-cec")]
        return {"losses": rows, "chosen_on_validation": max(weighed, key=lambda name: rows[name]["val_mean"])}


def main() -> None:
    """Every dataset, normalisation, seed and loss."""
    asked = arguments(
        __doc__,
        cases={"nargs": "+", "default": list(CASES), "choices": list(CASES)},
        known={"action": "store_true", "help": "train nothing"},
    )
    book = notebook("m3ce", asked)
    figures: dict[str, Any] = {}
    for data in asked.cases:
        for name, word in NORMALISED.items():
            lines: dict[str, list[dict[str, Any]]] = {loss: [] for loss in LOSSES}
            for seed in range(asked.seeds):
                base = CASES[data][2].replace(seed=seed, normalize=word)
                for loss, line in lines_of(data, name, base, asked, book).items():
                    lines[loss].append(line)
            if all(len(found) == asked.seeds for found in lines.values()):
                figures[f"{data}, {name}"] = Case(data, name, lines).figures() | {"recipe": changed(base)}
    keep("m3ce", figures)


def lines_of(data: str, name: str, base: Recipe, asked: argparse.Namespace, book: Notebook) -> dict[str, Any]:
    """A training by each loss with one seed: made, or remembered; with --known those remembered."""
    archive, count, _ = CASES[data]
    found, splits = {}, None
    for loss, fields in LOSSES.items():
        key = {"data": data, "normalised": name, "seed": base.seed, "loss": loss, "recipe": told(base)}
        line = book.find(**key)
        if line is None and not asked.known:
            splits = splits or images(base, asked.data / archive, count)
            line = book.add(trained(base.replace(**fields), splits), **key)
            print(f"{data} {name} seed {base.seed} {loss}: {line['test_accuracy']:.2%}", flush=True)
        if line is not None:
            found[loss] = line
    return found


if __name__ == "__main__":
    main()
