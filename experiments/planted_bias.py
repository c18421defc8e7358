"""A planted bias: digits whose colour follows the class in training, not in the test. Found, shown, reduced?

    python experiments/planted_bias.py [--seeds 3] [--images 2000] [--follows 0.95] [--data FOLDER_OF_ZIPS]

MNIST's digits, even ones red and odd ones green in 95 % of the training and validation images; in the test the
colour is drawn by chance. LeNet-5 with nothing done about it, with each mitigation (group and class as cells),
and, as the best there can be, on images whose two colours were mixed away. Stopped, it goes on where it was.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, changed, keep, mean, notebook, told
from numpy import ndarray

from sightline.data import load_dataset
from sightline.evaluation.fairness_metrics import evaluate_groups
from sightline.evaluation.uncertainty import predict_matched
from sightline.metrics import seeds_interval
from sightline.training import MITIGATIONS, Recipe
from sightline.training.run import train_on_splits
from sightline.training.run_folder import SilentRunFolder
from sightline.types import Dataset, Geometry, Splits

RECIPE = Recipe(model="lenet5", epochs=8, batch_size=64, lr=0.05, augment=("shift:1",), precision="float32")
WAYS: dict[str, dict[str, Any]] = {
    "nothing": {},
    **{name: {"fairness_column": "colour", "fairness_method": name} for name in MITIGATIONS},
    "colourless": {},
}
COLOURS = {"red": (0, (1, 2)), "green": (1, (0, 2))}
"""Name -> the channel that shows the digit, and those that do not."""
NUMBERS = ("accuracy", "usual", "unusual", "worst_cell", "equalised_odds", "equalised_odds_mean")


def main() -> None:
    """Every seed and way."""
    asked = arguments(
        __doc__,
        images={"type": int, "default": 2000, "help": "training images"},
        follows={
            "type": float,
            "default": 0.95,
            "help": "share of training images whose colour follows the class",
        },
    )
    book = notebook("planted_bias", asked)
    lines: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in range(asked.seeds):
        splits = None
        for way, fields in WAYS.items():
            recipe = RECIPE.replace(seed=seed, **fields)
            key = {
                "seed": seed,
                "way": way,
                "images": asked.images,
                "follows": asked.follows,
                "recipe": told(recipe),
            }
            found = book.find(**key)
            if found is None:
                splits = splits or coloured(asked.data / "mnist_png.zip", asked.images, asked.follows, seed)
                found = book.add(measured(recipe, colourless(splits) if way == "colourless" else splits), **key)
                said = ", ".join(f"{name} {found[name]:.4f}" for name in NUMBERS)
                print(f"seed {seed} {way}: {said}, {found['seconds']:.0f} s", flush=True)
            lines[way].append(found)
    keep(
        "planted_bias",
        figures(lines) | {"images": asked.images, "follows": asked.follows, "recipe": changed(RECIPE)},
    )


def coloured(archive: Path, images: int, follows: float, seed: int) -> Splits:
    """Training and validation images whose colour follows the parity of the digit, test images whose does not."""
    grey = load_dataset(archive, Geometry(size=(28, 28), channels=1))
    parts, rng = grey.columns["split"], np.random.default_rng([seed, 11])
    learnt = rng.permutation(np.flatnonzero(parts == "train"))[: images + images // 5]
    tested = np.sort(rng.permutation(np.flatnonzero(parts == "test"))[: max(2000, images)])
    train, val = np.sort(learnt[:images]), np.sort(learnt[images:])
    return Splits(
        painted(grey.subset(train), follows, rng),
        painted(grey.subset(val), follows, rng),
        painted(grey.subset(tested), 0.5, rng),
    )


def painted(grey: Dataset, follows: float, rng: np.random.Generator) -> Dataset:
    """The images in red or green; even digits are red with the chance ``follows``."""
    usual = rng.random(len(grey)) < follows
    names = np.where((grey.labels % 2 == 0) == usual, "red", "green")
    pixels = np.zeros((len(grey), 28, 28, 3), np.uint8)
    for name, (shown, _) in COLOURS.items():
        pixels[names == name, ..., shown] = grey[np.flatnonzero(names == name)][..., 0]
    columns = {"colour": names, "usual": np.where(usual, "usual", "unusual")}
    geometry = replace(grey.geometry, channels=3)
    return replace(grey, pixels=pixels, rows=np.arange(len(grey)), geometry=geometry, columns=columns)


def colourless(splits: Splits) -> Splits:
    """The same images with the mean of red and green in both channels: what no bias could be learnt from."""
    return Splits(*(replace(part, pixels=_mixed(part[:])) for part in (splits.train, splits.val, splits.test)))


def _mixed(pixels: ndarray) -> ndarray:
    mixed = pixels.max(3, keepdims=True)
    return np.concatenate([mixed, mixed, np.zeros_like(mixed)], 3)


def measured(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """Train, and test once: accuracy over all, of usual and unusual colours, and the gaps between colours."""
    with tempfile.TemporaryDirectory() as place:
        run = train_on_splits(splits, recipe, SilentRunFolder(Path(place)))
    probabilities, labels = predict_matched(run.classifier, splits.test)
    columns, classes = splits.test.columns, run.classifier.classes
    colour = evaluate_groups("colour", columns["colour"], labels, probabilities, classes)
    usual = {
        one.name: one.accuracy.value
        for one in evaluate_groups("u", columns["usual"], labels, probabilities, classes).groups
    }
    assert colour.equalised_odds is not None
    odds = [one.equalised_odds for one in colour.classes if one.equalised_odds is not None]
    return {
        "accuracy": float((probabilities.argmax(1) == labels).mean()),
        "val_accuracy": run.facts["val_accuracy"],
        **usual,
        "worst_cell": min(one.worst_recall.value for one in colour.groups if one.worst_recall),
        "equalised_odds": colour.equalised_odds.value,
        "equalised_odds_low": colour.equalised_odds.low,
        "equalised_odds_mean": float(np.mean(odds)),
        "seconds": run.facts["seconds"],
        "n": len(labels),
    }


def figures(lines: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Each way's numbers over the seeds, and its change against doing nothing, seed by seed."""
    found: dict[str, Any] = {}
    for way, own in lines.items():
        found[way] = {name: mean(own, name) for name in NUMBERS}
        if way != "nothing" and len(own) > 1:
            before = lines["nothing"]
            found[way]["against_nothing"] = {
                name: _change([a[name] - b[name] for a, b in zip(own, before, strict=True)]) for name in NUMBERS
            }
    return {"ways": found}


def _change(differences: list[float]) -> dict[str, Any]:
    one = seeds_interval(differences)
    return {
        "points": round(100 * one.value, 2),
        "interval_95_points": [round(100 * one.low, 2), round(100 * one.high, 2)],
    }


if __name__ == "__main__":
    main()
