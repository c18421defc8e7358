"""Labels by examples/classify_onnx.py (numpy, Pillow, onnxruntime) against ours, over MNIST, CIFAR-10 and photos.

    python benchmarks/export_parity.py [FOLDER_OF_ZIPS] [--limit N] [--fresh]

A LeNet-5 trained for two epochs on MNIST, a third party's ResNet-20 on CIFAR-10, and a ResNet-20 at 64 pixels
trained for eight epochs on the 600 photos (squashed, cropped and padded) are exported; every image file of each
archive then goes both ways: our decoder and classifier in torch, and the script's own reading and the file. At
most 1 label in 1,000 may differ.

Then every network of the catalogue, with random weights on drawn shapes at 32 pixels, in float32 and in int8: how
far the probabilities of the file are from the classifier's, and how many answers are the same. Last the embedded
EfficientNet-Lite0 with a head by regression on photos, at 161, 224 and 225 pixels with the crop of its
card, on the 200 test photos. What was compared
stays in results/export_parity.jsonl, so that what was stopped goes on.
"""

import argparse
import dataclasses
import importlib.util
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import RESULTS, Notebook, record, shared

from sightline import runtime
from sightline.classifier import Classifier
from sightline.compression import Int8
from sightline.data import load_dataset, to_tensor
from sightline.formats import TorchRunner, compare_answers, export, open_exported, write_exported
from sightline.formats.parity import run_in_batches
from sightline.models import NETWORKS, build, parse_architecture
from sightline.preprocessing import Normalise, Preprocessing
from sightline.sources import find
from sightline.training import Recipe, train
from sightline.types import Dataset, Geometry, Splits

ALLOWED = 1 / 1000
SIDES = (161, 224, 225)
BATCH = 256


def script() -> Any:
    """The example, imported."""
    path = Path(__file__).parents[1] / "examples" / "classify_onnx.py"
    spec = importlib.util.spec_from_file_location("classify_onnx", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def theirs(file: Path, archive: Path, limit: int | None) -> np.ndarray:
    """The script's label of every image file."""
    found, reading, source = open_exported(file), script().pixels, find(archive, limit=limit)
    geometry = dataclasses.asdict(found.geometry)
    labels = []
    for start in range(0, len(source), BATCH):
        rows = range(start, min(start + BATCH, len(source)))
        images = np.stack([reading(io.BytesIO(source.read(row)), geometry) for row in rows])
        labels.append(found.probabilities(images).argmax(1))
    return np.concatenate(labels)


def differing(classifier: Classifier, archive: Path, place: Path, limit: int | None) -> dict[str, Any]:
    """How many labels differ, on all images of an archive."""
    images = load_dataset(find(archive, limit=limit), classifier.geometry)
    file = place / "model.onnx"
    export(classifier, file, data=images, overwrite=True)
    ours = run_in_batches(TorchRunner(classifier), images).argmax(1)
    other = int((ours != theirs(file, archive, limit)).sum())
    return {"images": len(ours), "differing": other, "share": other / len(ours)}


def network(name: str, images: Dataset, place: Path) -> dict[str, Any]:
    """Of one network, in float32 and int8: the share of equal answers and the largest difference."""
    runtime.seed_torch(0)
    word = f"{name}:test_resnet" if name == "timm" else name
    plan = parse_architecture(word, classes=4, channels=3, size=images.geometry.size)
    steps = Preprocessing([Normalise([0.5] * 3, [0.25] * 3)])
    made = Classifier(steps, build(plan), architecture=plan, classes=images.classes, geometry=images.geometry)
    with torch.no_grad():
        for start in range(0, len(images), 64):
            made.train()(to_tensor(images[start : start + 64]))  # norms learn what they are given
    kinds, found = {"float32": made.eval(), "int8": Int8(images=64)(made, Splits(images, images, images))}, {}
    for kind, one in kinds.items():
        values = compare_answers(one, open_exported(write_exported(one, place / f"{name}.onnx")), images)
        found[kind] = {key: values[key] for key in ("agreement", "largest_difference")}
    return found


def embedded(side: int, archive: Path, place: Path, limit: int | None) -> dict[str, Any]:
    """Of the embedded network at one size: as ``network``, on test photos."""
    run = train(archive, Recipe(method="probe", size=side, limit=limit), out=place / str(side))
    kinds = {"float32": run.classifier.eval(), "int8": Int8(images=64)(run.classifier, run.splits)}
    found: dict[str, Any] = {"geometry": run.classifier.geometry.as_json(), "n": len(run.splits.test)}
    for kind, one in kinds.items():
        file = open_exported(write_exported(one, place / f"{side}_{kind}.onnx"))
        values = compare_answers(one, file, run.splits.test)
        found[kind] = {key: values[key] for key in ("agreement", "largest_difference")}
    return found


def main() -> None:
    """Train or load, export, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--limit", type=int, help="images of each archive, for a quick look")
    parser.add_argument("--fresh", action="store_true")
    given = parser.parse_args()
    book = Notebook(RESULTS / "export_parity.jsonl", fresh=given.fresh)
    folder = shared(given.folder)
    weights = folder.parent / "weights" / "resnet20-12fca82f.th"
    photos = Recipe(model="resnet20", size=64, epochs=8, limit=given.limit)
    recipes = {
        "mnist": ("mnist_png.zip", Recipe(model="lenet5", epochs=2, limit=given.limit)),
        "cifar10": (
            "cifar10_jpg.zip",
            Recipe(model="resnet20", weights=str(weights), normalize="imagenet", epochs=0, limit=given.limit),
        ),
        **{
            f"photos, {fit}": ("photos_jpg.zip", photos.replace(resize_mode=fit))
            for fit in ("squash", "crop", "pad")
        },
    }
    with tempfile.TemporaryDirectory() as place:
        for name, (archive, recipe) in recipes.items():
            if book.find(data=name, limit=given.limit) is None:
                run = train(folder / archive, recipe, out=Path(place) / name)
                found = differing(run.classifier, folder / archive, Path(place), given.limit)
                print(book.add(found, data=name, limit=given.limit), flush=True)
        images = load_dataset(find("shapes:256"), Geometry(size=(32, 32), channels=3))
        for name in NETWORKS:
            if book.find(network=name) is None:
                print(book.add(network(name, images, Path(place)), network=name), flush=True)
        for side in SIDES:
            if book.find(embedded=side, limit=given.limit) is None:
                found = embedded(side, folder / "photos_jpg.zip", Path(place), given.limit)
                print(book.add(found, embedded=side, limit=given.limit), flush=True)
    data = {name: book.find(data=name, limit=given.limit) for name in recipes}
    held = all(one is not None and one["share"] <= ALLOWED for one in data.values())
    every = {name: book.find(network=name) for name in NETWORKS}
    sides = {side: book.find(embedded=side, limit=given.limit) for side in SIDES}
    figures = {"data": data, "at_most": ALLOWED, "held": held, "networks": every, "embedded": sides}
    record("export_parity", figures)


if __name__ == "__main__":
    main()
