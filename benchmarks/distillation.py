"""LeNet-5 on CIFAR-10, taught by a ResNet-20's answers, against the same LeNet-5 that learns from labels alone.

    python benchmarks/distillation.py [--data FOLDER_OF_ZIPS] [--seeds 0 1 2 3 4] [--quick] [--fresh]

The teacher is a third party's ResNet-20, trained on the lossless CIFAR-10 (see third_party.py). A reduced
protocol, so that all of it takes about 12 minutes of one core: each seed draws 5,000 of the 50,000 JPEG
training images, a tenth of them for validation, and trains both arms for 15 epochs on the same images, from the
same weights, in the same order, with the same augmentation; the one difference is the objective. Tested on all
10,000 test images.

    alone     cross-entropy of the labels
    taught    0.9 T^2 KL(teacher || student) at T = 4, and 0.1 cross-entropy of the labels

Differences are paired by seed. To be known beforehand: the third party trained on this set's training images
before they became JPEG, so the teacher knows the validation images; the test images it does not. Stopped, it goes
on: each training is kept in results/distillation.jsonl.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from cifar import drawn, images
from record import RESULTS, Notebook, record, shared

from sightline.classifier import Classifier
from sightline.compression import Distil, fine_tune
from sightline.inference import match_labels, predict_logits
from sightline.metrics import mcnemar, seeds_interval
from sightline.models import count_multiply_adds, count_parameters
from sightline.training import Recipe, resolve
from sightline.training.run import train_on_splits
from sightline.training.run_folder import SilentRunFolder
from sightline.types import Dataset, Splits

RECIPE = Recipe(
    model="lenet5",
    size=32,
    channels=3,
    augment=("flip", "shift:2"),
    batch_size=128,
    lr=0.05,
    clip_grad=1.0,
    epochs=15,
    precision="float32",
    memory_format="channels_last",
    cpu_replicas=1,
)

IMAGES = 500
"""Training images of each class."""

ARMS = ("alone", "taught")


def main() -> None:
    """Measure what is missing, then say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--quick", action="store_true", help="few images, one epoch: a test of the script")
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    folder, quick = shared(asked.data), asked.quick
    name = "distillation_quick" if quick else "distillation"
    book = Notebook(RESULTS / f"{name}.jsonl", fresh=asked.fresh)
    data = images(folder)
    recipe = RECIPE.replace(epochs=1) if quick else RECIPE
    parts = {
        seed: drawn(data, 30 if quick else IMAGES, seed=seed, tested=20 if quick else 1000) for seed in asked.seeds
    }
    first = parts[asked.seeds[0]]
    teacher = teacher_of(folder, first)
    for seed, splits in parts.items():
        for arm in ARMS:
            if book.find(arm=arm, seed=seed) is None:
                book.add(measure(teacher, splits, recipe.replace(seed=seed), arm), arm=arm, seed=seed)
    record(name, summary(book, teacher, first, recipe))


def teacher_of(folder: Path, splits: Splits) -> Classifier:
    """The third party's network, as it is."""
    weights = folder.parent / "weights" / "resnet20-12fca82f.th"
    recipe = RECIPE.replace(model="resnet20", weights=str(weights), normalize="imagenet", epochs=0, lr=0.1)
    with tempfile.TemporaryDirectory() as place:
        return train_on_splits(splits, recipe, SilentRunFolder(Path(place)), device="cpu").classifier.eval()


def measure(teacher: Classifier, splits: Splits, recipe: Recipe, arm: str) -> dict[str, Any]:
    """One training of the student and its test."""
    started, step = time.perf_counter(), Distil("lenet5", seed=recipe.seed)
    student, labels = step(teacher, splits), resolve(recipe).objective
    objective = step.objective(teacher, labels) if arm == "taught" else labels
    with tempfile.TemporaryDirectory() as place:
        made = fine_tune(student, splits, recipe, SilentRunFolder(Path(place)), objective=objective, fresh=True)
    right = right_of(made.classifier, splits.test)
    seconds = time.perf_counter() - started
    print(f"seed {recipe.seed}, {arm}: {right.mean():.4f} ({seconds:.0f} s)", flush=True)
    return {
        "test_accuracy": float(right.mean()),
        "val_accuracy": made.facts["val_accuracy"],
        "seconds": round(seconds, 1),
        "right": np.packbits(right).tobytes().hex(),
        "n": len(right),
    }


def right_of(classifier: Classifier, images: Dataset) -> np.ndarray:
    """Which images it answers rightly."""
    return predict_logits(classifier, images)[0].argmax(1).numpy() == match_labels(classifier, images)


def summary(book: Notebook, teacher: Classifier, splits: Splits, recipe: Recipe) -> dict[str, Any]:
    """Both arms over the seeds, and their difference, paired by seed."""
    rows = {arm: {line["seed"]: line for line in book.all(arm=arm)} for arm in ARMS}
    seeds = sorted(set(rows["alone"]) & set(rows["taught"]))
    accuracies = {arm: [rows[arm][seed]["test_accuracy"] for seed in seeds] for arm in ARMS}
    gains = [after - before for before, after in zip(accuracies["alone"], accuracies["taught"], strict=True)]
    student = Distil("lenet5")(teacher, splits)
    return {
        "protocol": f"{len(splits.train) + len(splits.val):,} images a seed, {recipe.epochs} epochs, "
        f"{len(splits.test):,} test images",
        "teacher": {"test_accuracy": float(right_of(teacher, splits.test).mean()), **size_of(teacher)},
        "student": size_of(student),
        **{
            arm: {"accuracy": [round(v, 4) for v in values], **_interval(values)}
            for arm, values in accuracies.items()
        },
        "taught_minus_alone": {"gains": [round(gain, 4) for gain in gains], **_interval(gains)},
        "mcnemar_p": [_p(rows["alone"][seed], rows["taught"][seed]) for seed in seeds],
        "seconds": round(sum(line["seconds"] for line in book.lines), 1),
    }


def size_of(classifier: Classifier) -> dict[str, int]:
    """What an answer costs."""
    known = classifier.geometry
    work = count_multiply_adds(classifier.network, known.channels, known.size)
    return {"parameters": count_parameters(classifier.network), "multiply_adds": work}


def _p(alone: dict[str, Any], taught: dict[str, Any]) -> float:
    right = [
        np.unpackbits(np.frombuffer(bytes.fromhex(one["right"]), np.uint8))[: one["n"]].astype(bool)
        for one in (taught, alone)
    ]
    return mcnemar(*right)


def _interval(values: list[float]) -> dict[str, Any]:
    """The mean over seeds with Student's interval, where there are two or more."""
    if len(values) < 2:
        return {}
    mean = seeds_interval(values)
    return {"mean": round(mean.value, 4), "interval_95": [round(mean.low, 4), round(mean.high, 4)]}


if __name__ == "__main__":
    main()
