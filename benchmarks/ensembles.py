"""Five classifiers against their mean, and five tuned ones against their soups too, on CIFAR-10's JPEG images.

    python benchmarks/ensembles.py [--data FOLDER_OF_ZIPS] [--quick]

Two families of five classifiers, on the same 9,000 training and 1,000 validation images, tested on all 10,000 test
images:

    scratch    fastcnn:width=0.25 from five seeds, 8 epochs each: the mean of their answers
    tuned      a third party's ResNet-20, trained on the lossless CIFAR-10, trained on here for 2 epochs from five
               seeds and at five rates: the mean of their answers, their soup, and their greedy soup

Each combination is compared with its members on the same test images: with each of them, and with their mean. To
be known beforehand: the third party trained on this set's training images, before they became JPEG, so those of
validation are not new to it; test images are. Stopped, it goes on: finished classifiers are kept below --runs.
"""

import argparse
import time
from pathlib import Path

from cifar import drawn, images
from record import record, shared

from sightline.classifier import Classifier
from sightline.ensembles import combine, compare_with_members
from sightline.training import Recipe
from sightline.training.run import train_on_splits
from sightline.training.run_folder import SilentRunFolder
from sightline.types import Splits

PLAIN = Recipe(
    size=32,
    channels=3,
    augment=("flip", "shift:4"),
    batch_size=128,
    precision="float32",
    memory_format="channels_last",
    cpu_replicas=1,
)

RATES = (0.01, 0.015, 0.02, 0.03, 0.04)
"""Peak learning rates of the tuned ones."""

WAYS = {"scratch": ("mean",), "tuned": ("mean", "soup", "greedy-soup")}


def main() -> None:
    """Train what is missing, combine, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "ensembles")
    parser.add_argument("--quick", action="store_true", help="few images, one epoch: a test of the script")
    asked = parser.parse_args()
    folder, quick = shared(asked.data), asked.quick
    weights = folder.parent / "weights" / "resnet20-12fca82f.th"
    scratch = PLAIN.replace(model="fastcnn:width=0.25", epochs=1 if quick else 8)
    tuned = PLAIN.replace(model="resnet20", weights=str(weights), normalize="imagenet", epochs=1 if quick else 2)
    families = {
        "scratch": [scratch.replace(seed=seed) for seed in range(5)],
        "tuned": [tuned.replace(seed=seed, lr=rate) for seed, rate in enumerate(RATES)],
    }
    splits = drawn(images(folder), 50 if quick else 1000, tested=20 if quick else 1000)
    name = "ensembles_quick" if quick else "ensembles"
    figures = {}
    for family, recipes in families.items():
        members = [made(splits, recipe, asked.runs / name / f"{family}{recipe.seed}") for recipe in recipes]
        figures[family] = {by: compared(members, by, splits) for by in WAYS[family]}
    record(name, figures)


def made(splits: Splits, recipe: Recipe, place: Path) -> Classifier:
    """The classifier, trained unless it is there."""
    folder = SilentRunFolder(place)
    if not (place / "training.json").is_file():
        place.mkdir(parents=True, exist_ok=True)
        run = train_on_splits(splits, recipe, folder, device="cpu")
        print(
            f"{place.name}: {run.facts['seconds']:.0f} s, validation {run.facts['val_accuracy']:.4f}", flush=True
        )
    return Classifier.load(folder.bundle)


def compared(members: list[Classifier], by: str, splits: Splits) -> dict:
    """One combination and its members on the same test images."""
    started = time.perf_counter()
    names = [str(number) for number in range(len(members))]
    combination = combine(members, by, images=splits, names=names)
    values = compare_with_members(combination.classifier, members, splits.test, names)
    took = time.perf_counter() - started
    rows = [{name: row[name] for name in (*_SHOWN, "difference")} for row in values["rows"]]
    shown = {name: values[name] for name in _SHOWN}
    print(f"{by}: {values['accuracy']:.4f}, {values['gain']['value']:+.4f} over its members' mean", flush=True)
    return {
        "n": values["n"],
        **shown,
        "members": rows,
        "gain_over_members_mean": values["gain"],
        "kept": combination.member_indices,
        "seconds": round(took, 1),
    }


_SHOWN = ("accuracy", "log_loss", "ece")


if __name__ == "__main__":
    main()
