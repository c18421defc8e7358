"""int8 against float32: file, accuracy and speed, in one run of onnxruntime.

    python benchmarks/int8.py [FOLDER_OF_ZIPS] [--rounds 9] [--limit N] [--images 256]
                              [--parts resnet20 resnet18 photos waste]

A third party's ResNet-20 on all test images of CIFAR-10 (JPEG): accuracy of the float file and of the int8 file,
paired. ResNet-18 at 224 pixels with random weights, calibrated on the photos: file size and speed only, which do
not depend on what the weights are. The embedded EfficientNet-Lite0 with a head by logistic regression on the photos
and on the photos of waste, at 224 pixels: accuracy of both files on the test images, paired, and p50 and p95 of an
answer to one image. Codes of weights have 7 bits; with 8, answers of the file differ from those of
torch on processors whose sums of pairs overflow. Speed is a matter of the processor: with VNNI one instruction
multiplies and adds four pairs of 8-bit numbers, without it three are needed; ``vnni`` says which this one is.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from record import record, shared

from sightline import metrics, runtime
from sightline.classifier import Classifier
from sightline.compression import Int8
from sightline.data import load_dataset
from sightline.formats import Runner, TorchRunner, open_exported, write_exported
from sightline.formats.parity import run_in_batches
from sightline.inference import match_labels
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing
from sightline.preprocessing.pipeline import CHANNEL_STATISTICS
from sightline.preprocessing.steps import Normalise
from sightline.sources import find
from sightline.training import Recipe, train
from sightline.types import Geometry, Splits

BATCHES = (1, 32)
SINGLE_ANSWERS = 200
"""Answers to one image that p50 and p95 are taken from, of each file in turn."""


PARTS = ("resnet20", "resnet18", "photos", "waste")


def files(classifier: Classifier, small: Classifier, place: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Both as files, opened; and their sizes in MB."""
    paths = {
        "float32": write_exported(classifier, place / "float.onnx"),
        "int8": write_exported(small, place / "int8.onnx"),
    }
    opened = {name: open_exported(path) for name, path in paths.items()}
    return opened, {name: path.stat().st_size / 1e6 for name, path in paths.items()}


def ask(runner: Runner, images: np.ndarray, count: int = 1) -> None:
    """So many times."""
    for _ in range(count):
        runner.probabilities(images)


def speed(opened: dict[str, Any], images: np.ndarray, rounds: int) -> dict[str, Any]:
    """Images/s of both in turn."""
    found = {}
    for size in BATCHES:
        asked = {
            name: partial(ask, runner, np.ascontiguousarray(images[:size])) for name, runner in opened.items()
        }
        count = max(1, round(0.2 / min(runtime.time_interleaved(asked, 3)["float32"])))
        times = runtime.time_interleaved({name: partial(one, count) for name, one in asked.items()}, rounds)
        rates = {name: statistics.median(size * count / t for t in each) for name, each in times.items()}
        found[str(size)] = {name: round(rate, 1) for name, rate in rates.items()} | {
            "int8_over_float32": round(rates["int8"] / rates["float32"], 2)
        }
    return found


def resnet20(folder: Path, place: Path, limit: int | None, rounds: int) -> dict[str, Any]:
    """Size, accuracy and speed of the third party's network."""
    weights = folder.parent / "weights" / "resnet20-12fca82f.th"
    recipe = Recipe(model="resnet20", weights=str(weights), normalize="imagenet", epochs=0, limit=limit)
    run = train(folder / "cifar10_jpg.zip", recipe, out=place / "run")
    small, finer = (Int8(bits=bits)(run.classifier, run.splits) for bits in (7, 8))
    opened, sizes = files(run.classifier, small, place)
    opened["int8, 8 bits"] = open_exported(write_exported(finer, place / "finer.onnx"))
    test = run.splits.test
    labels = match_labels(run.classifier, test)
    sides = {**opened, "int8 in torch": TorchRunner(small), "int8, 8 bits, in torch": TorchRunner(finer)}
    predicted = {name: run_in_batches(runner, test).argmax(1) for name, runner in sides.items()}
    right = {name: each == labels for name, each in predicted.items()}
    difference = metrics.paired_difference(right["int8"], right["float32"])
    return {
        "megabytes": {name: round(size, 4) for name, size in sizes.items()},
        "times_smaller": round(sizes["float32"] / sizes["int8"], 3),
        "n": len(test),
        "accuracy": {name: float(each.mean()) for name, each in right.items()},
        "int8_minus_float32": [difference.value, difference.low, difference.high],
        "agreement_of_file_and_torch": {
            name: float((predicted[name] == predicted[of]).mean())
            for name, of in (("int8", "int8 in torch"), ("int8, 8 bits", "int8, 8 bits, in torch"))
        },
        "agreement_with_float32": float((predicted["int8"] == predicted["float32"]).mean()),
        "calibration": small.provenance["int8"],
        "images_per_second": speed(opened, test[: max(BATCHES)], rounds),
    }


def resnet18(folder: Path, place: Path, rounds: int) -> dict[str, Any]:
    """Size and speed of a large network on large images."""
    geometry = Geometry(size=(224, 224), channels=3)
    images = load_dataset(find(folder / "photos_jpg.zip", limit=128), geometry)
    runtime.seed_torch(0)
    plan = parse_architecture("resnet18", classes=10, channels=3, size=geometry.size)
    classes = [str(k) for k in range(10)]
    steps = Preprocessing([Normalise(*CHANNEL_STATISTICS["imagenet"])])
    made = Classifier(steps, build(plan), architecture=plan, classes=classes, geometry=geometry).eval()
    small = Int8(by="minmax", images=64)(made, Splits(images, images, images))
    opened, sizes = files(made, small, place)
    return {
        "megabytes": {name: round(size, 3) for name, size in sizes.items()},
        "times_smaller": round(sizes["float32"] / sizes["int8"], 3),
        "images_per_second": speed(opened, images[: max(BATCHES)], rounds),
    }


def photos(data: Path, place: Path, limit: int | None, images: int, rounds: int) -> dict[str, Any]:
    """Size, accuracy and latency of the pretrained network."""
    run = train(data, Recipe(method="probe", size=224, limit=limit), out=place / data.stem)
    small = Int8(images=images)(run.classifier, run.splits)
    opened, sizes = files(run.classifier, small, place)
    test = run.splits.test
    labels = match_labels(run.classifier, test)
    sides = {**opened, "int8 in torch": TorchRunner(small)}
    predicted = {name: run_in_batches(runner, test).argmax(1) for name, runner in sides.items()}
    right = {name: each == labels for name, each in predicted.items()}
    difference = metrics.paired_difference(right["int8"], right["float32"])
    agreement = metrics.wilson(int((predicted["int8"] == predicted["float32"]).sum()), len(test))
    one = np.ascontiguousarray(test[:1])
    times = runtime.time_interleaved(
        {name: partial(ask, runner, one) for name, runner in opened.items()}, SINGLE_ANSWERS
    )
    return {
        "megabytes": {name: round(size, 3) for name, size in sizes.items()},
        "n": len(test),
        "accuracy": {name: float(each.mean()) for name, each in right.items()},
        "int8_minus_float32": [difference.value, difference.low, difference.high],
        "agreement_with_float32": [agreement.value, agreement.low, agreement.high],
        "agreement_of_file_and_torch": float((predicted["int8"] == predicted["int8 in torch"]).mean()),
        "single_image_ms": {
            name: {f"p{share}": round(float(np.percentile(each, share)) * 1000, 2) for share in (50, 95)}
            for name, each in times.items()
        },
        "calibration": small.provenance["int8"],
        "images_per_second": speed(opened, test[: max(BATCHES)], rounds),
    }


def main() -> None:
    """Every part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=int, help="images of a data set, for a quick look")
    parser.add_argument("--images", type=int, default=256, help="photos that int8 is calibrated on")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    folder = shared(given.folder)
    import onnxruntime

    figures: dict[str, Any] = {"vnni": runtime.has_vnni(), "onnxruntime": onnxruntime.__version__}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if "resnet20" in given.parts:
            figures["resnet20"] = resnet20(folder, place, given.limit, given.rounds)
        if "resnet18" in given.parts:
            figures["resnet18 at 224"] = resnet18(folder, place, given.rounds)
        for data in ("photos", "waste"):
            if data in given.parts:
                figures[data] = photos(folder / f"{data}_jpg.zip", place, given.limit, given.images, given.rounds)
    record("int8" if set(given.parts) == set(PARTS) else "int8_" + "_".join(given.parts), figures)


if __name__ == "__main__":
    main()
