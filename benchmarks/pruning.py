"""ResNet-20 with 40 % fewer multiply-adds on CIFAR-10's JPEG images: what that costs, and what it gains.

    python benchmarks/pruning.py [--data FOLDER_OF_ZIPS] [--runs FOLDER] [--tiny]

A reduced protocol, so that all of it takes about 15 minutes of one core. 15,000 of the 50,000 training images, a
tenth of them for validation; tested on all 10,000 test images, once, at the end.

    parent     a third party's ResNet-20 (see third_party.py), trained on for 3 epochs
    choice     every criterion and scope takes 40 % of the multiply-adds; norms are measured anew, nothing is
               trained; the one of least loss on validation is kept
    pruned     that, fine-tuned for 5 epochs at half of the rate; and once more with widths in multiples of 8
    control    the parent, trained on for as long as the pruned ones are fine-tuned

Differences are paired image by image; latency is that of the exported files, in turn. To be known beforehand: the
third party trained on this set's training images before they became JPEG, so the validation images are not new to
it; the test images are. Stopped, it goes on: what is finished is kept below --runs.
"""

import argparse
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from cifar import drawn, images
from record import Notebook, record, shared

from sightline.classifier import Classifier
from sightline.compression import Channels, compare_with_original, fine_tune
from sightline.compression.compressor import recalibrate_norms
from sightline.compression.pruning import CHANNEL_CRITERIA, CHANNEL_SCOPES
from sightline.inference import validate
from sightline.training import Recipe, resolve
from sightline.training.run import train_on_splits
from sightline.training.run_folder import SilentRunFolder
from sightline.types import Dataset, Splits

AMOUNT = 0.4
"""Share of the multiply-adds that goes."""

RECIPE = Recipe(
    model="resnet20",
    size=32,
    channels=3,
    normalize="imagenet",
    augment=("flip", "shift:4"),
    batch_size=128,
    lr=0.02,
    epochs=3,
    precision="float32",
    memory_format="channels_last",
    cpu_replicas=1,
)

FINE_TUNING = RECIPE.replace(epochs=5, lr=0.01)


def main() -> None:
    """Make what is missing, measure it, say it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "pruning")
    parser.add_argument("--tiny", action="store_true", help="few images, one epoch: a test of the script")
    asked = parser.parse_args()
    folder, tiny = shared(asked.data), asked.tiny
    place = asked.runs / ("tiny" if tiny else "whole")
    weights = folder.parent / "weights" / "resnet20-12fca82f.th"
    recipe, fine_tuning = (one.replace(epochs=1) if tiny else one for one in (RECIPE, FINE_TUNING))
    splits = drawn(images(folder), 50 if tiny else 1500, tested=20 if tiny else 1000)

    parent = load_or_make(place / "parent", lambda at: train_on_splits(
        splits, recipe.replace(weights=str(weights)), SilentRunFolder(at), device="cpu").classifier)  # fmt: skip
    book = Notebook(place / "choice.jsonl")
    best = chosen(parent, splits, book)
    made = {}
    for name, multiple in (("pruned", 1), ("pruned_multiples_of_8", 8)):
        step = Channels(AMOUNT, **best, multiple=multiple)
        made[name] = load_or_make(
            place / name, fine_tuned(lambda step=step: step(parent, splits), splits, fine_tuning)
        )
    made["control"] = load_or_make(place / "control", fine_tuned(lambda: parent, splits, fine_tuning))
    figures: dict[str, Any] = {
        "protocol": " / ".join(f"{len(part):,}" for part in vars(splits).values() if isinstance(part, Dataset)),
        "asked": AMOUNT,
        "choice_on_validation": book.lines,
        "chosen": best,
    }
    for name, classifier in made.items():
        figures[name] = compare(parent, classifier, splits)
        print(f"{name}: {' '.join(figures[name]['sentences'])}", flush=True)
    figures["pruned_less_control"] = difference(made["control"], made["pruned"], splits.test)
    record("pruning_tiny" if tiny else "pruning", figures)


def load_or_make(place: Path, make: Callable[[Path], Classifier]) -> Classifier:
    """What is there, or made now; an interrupted fine-tuning continues from its checkpoint."""
    done = place / "done"
    if not done.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        print(f"Making {place.name} ...", flush=True)
        make(place).save(done)
    return Classifier.load(done)


def fine_tuned(start: Callable[[], Classifier], splits: Splits, recipe: Recipe) -> Callable[[Path], Classifier]:
    """Norms measured anew and a short training."""
    loss = resolve(recipe).fit_to(splits.train).objective
    return lambda place: fine_tune(start(), splits, recipe, SilentRunFolder(place), objective=loss).classifier


def chosen(parent: Classifier, splits: Splits, book: Notebook) -> dict[str, str]:
    """The criterion and scope that do best on validation before any training."""
    for criterion, scope in product(CHANNEL_CRITERIA, CHANNEL_SCOPES):
        if book.find(criterion=criterion, scope=scope) is None:
            made, _ = recalibrate_norms(Channels(AMOUNT, criterion, scope)(parent, splits), splits)
            loss, accuracy = validate(made, splits.val)
            book.add({"accuracy": round(accuracy, 4), "loss": round(loss, 4)}, criterion=criterion, scope=scope)
            print(f"{criterion}, {scope}: {accuracy:.4f} on validation, before fine-tuning", flush=True)
    best = min(book.lines, key=lambda line: line["loss"])
    return {name: best[name] for name in ("criterion", "scope")}


def compare(parent: Classifier, made: Classifier, splits: Splits) -> dict[str, Any]:
    """Both on the test images: accuracy, files, work, latency."""
    table = compare_with_original(parent, made, splits.test).as_json()
    before, after = (table[name]["multiply_adds"] for name in ("original", "small"))
    return {"multiply_adds_less": round(1 - after / before, 4), **table}


def difference(before: Classifier, after: Classifier, images: Dataset) -> dict[str, float]:
    """In accuracy, image by image, with its interval."""
    from sightline.inference import match_labels, predict_logits
    from sightline.metrics import paired_difference

    labels = match_labels(before, images)
    right = [predict_logits(one, images)[0].argmax(1).numpy() == labels for one in (after, before)]
    return vars(paired_difference(*right))


if __name__ == "__main__":
    main()
