"""Paper 002: its network on 100 random images with random labels, a negative control; then on digits.

    python experiments/random_labels.py --seeds 20 [--data FOLDER_OF_ZIPS]

Random images hold nothing to learn: accuracy on images not trained on must be that of a coin. Over the seeds, the
number of right answers is compared with the binomial distribution. Then the same network, with the paper's
rate, decay and dropout, learns to tell MNIST's digits apart (two of them, as in the paper, and all ten).
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, changed, keep, mean, notebook, told, trained
from scipy.stats import binomtest

from sightline.training import Recipe, read_splits

PAPER = Recipe(
    model="small-cnn",
    optimizer="adam",
    lr=0.01,
    weight_decay=1e-3,
    dropout=0.2,
    batch_size=32,
    schedule="constant",
    warmup=0.0,
    augment=(),
)
NOISE = PAPER.replace(epochs=10, test_fraction=0.2, val_fraction=0.2)
DIGITS = PAPER.replace(epochs=3, lr=0.001, batch_size=128)


def main() -> None:
    """Noise, then digits."""
    asked = arguments(__doc__, digit_seeds={"type": int, "default": 3, "help": "trainings on digits"})
    book = notebook("random_labels", asked)
    noise = [remembered(book, noise_of, "noise", NOISE.replace(seed=seed)) for seed in range(asked.seeds)]
    right, of = sum(round(line["test_accuracy"] * line["n"]) for line in noise), sum(line["n"] for line in noise)
    test = binomtest(right, of)
    interval = test.proportion_ci()
    figures: dict[str, Any] = {
        "noise": {
            "seeds": asked.seeds,
            "right": right,
            "of": of,
            "accuracy": right / of,
            "interval_95": [round(interval.low, 4), round(interval.high, 4)],
            "p_of_a_coin": float(test.pvalue),
            "accuracies": [line["test_accuracy"] for line in noise],
            "train_accuracy_kept_out": "the best epoch is chosen on 16 validation images, so that means nothing",
        }
    }
    for name, classes in (("two digits", ("0", "1")), ("ten digits", None)):
        lines = [
            remembered(book, lambda r, c=classes: digits_of(r, asked.data, c), name, DIGITS.replace(seed=seed))
            for seed in range(asked.digit_seeds)
        ]
        figures[name] = {"accuracy": mean(lines), "test_images": lines[0]["n"]}
    keep("random_labels", figures | {"recipes": {"noise": changed(NOISE), "digits": changed(DIGITS)}})


def remembered(book: Any, make: Any, name: str, recipe: Recipe) -> dict[str, Any]:
    """A training, done or found."""
    key = {"name": name, "seed": recipe.seed, "recipe": told(recipe)}
    found = book.find(**key)
    if found is None:
        found = book.add(make(recipe), **key)
        print(f"{name} seed {recipe.seed}: {found['test_accuracy']:.2%}", flush=True)
    return found


def noise_of(recipe: Recipe) -> dict[str, Any]:
    """100 images of uniform noise, 28 x 28, with labels of a fair coin."""
    rng = np.random.default_rng(recipe.seed)
    labels = rng.permutation(np.arange(100) % 2)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "noise.npz"
        np.savez(file, images=rng.integers(0, 256, (100, 28, 28), np.uint8), labels=labels)
        splits, _ = read_splits(recipe.replace(data=str(file)))
        return trained(recipe, splits)


def digits_of(recipe: Recipe, data: Path, classes: tuple[str, ...] | None) -> dict[str, Any]:
    """MNIST, or some of its classes."""
    splits, _ = read_splits(recipe.replace(data=str(data / "mnist_png.zip")))
    if classes is not None:
        from dataclasses import replace

        parts = {}
        for name in ("train", "val", "test"):
            part = vars(splits)[name]
            own = np.array([part.classes.index(c) for c in classes])
            chosen = part.subset(np.isin(part.labels, own))
            parts[name] = replace(chosen, labels=np.searchsorted(own, chosen.labels), classes=classes)
        splits = replace(splits, **parts)
    return trained(recipe, splits)


if __name__ == "__main__":
    main()
