"""CIFAR-10's JPEG images in small parts, for protocols that two cores can afford."""

import tempfile
import zipfile
from pathlib import Path

import numpy as np

from sightline.data import load_dataset
from sightline.serving import publish
from sightline.training import Recipe, Run, train
from sightline.types import Dataset, Geometry, Splits


def images(folder: Path) -> Dataset:
    """All of them, at their own size."""
    return load_dataset(folder / "cifar10_jpg.zip", Geometry(size=(32, 32), channels=3))


def drawn(data: Dataset, count: int, *, seed: int = 0, tested: int = 1000) -> Splits:
    """So many training images of each class, a tenth of them for validation; test images are the same for all."""
    parts, rng = data.columns["split"], np.random.default_rng(seed)
    own = [rng.permutation(np.flatnonzero((parts == "train") & (data.labels == k)))[:count] for k in range(10)]
    held = count // 10
    test = [np.flatnonzero((parts == "test") & (data.labels == k))[:tested] for k in range(10)]
    train, val = [one[held:] for one in own], [one[:held] for one in own]
    return Splits(*(data.subset(np.sort(np.concatenate(rows))) for rows in (train, val, test)))


def read_test_files(folder: Path, every: int) -> list[tuple[bytes, str]]:
    """The bytes and the class of one test image in ``every``."""
    with zipfile.ZipFile(folder / "cifar10_jpg.zip") as held:
        names = [name for name in held.namelist() if name.startswith("test/")][::every]
        return [(held.read(name), name.split("/")[1]) for name in names]


def publish_resnet20(folder: Path, place: Path, *, epochs: int, limit: int) -> Path:
    """A site in ``place`` whose release is a ResNet-20, trained for a moment."""
    recipe = Recipe(
        model="resnet20",
        epochs=epochs,
        limit=limit,
        precision="float32",
        memory_format="contiguous",
        cpu_replicas=1,
    )
    publish(place / "site", train(folder / "cifar10_jpg.zip", recipe, out=place / "run").folder)
    return place / "site"


def open_third_party_resnet20(folder: Path) -> Run:
    """A run of a third party's ResNet-20, whose temperature alone is fitted, on validation images."""
    weights = folder.parent / "weights" / "resnet20-12fca82f.th"
    recipe = Recipe(model="resnet20", weights=str(weights), normalize="imagenet", epochs=0)
    with tempfile.TemporaryDirectory() as place:
        return train(folder / "cifar10_jpg.zip", recipe, out=Path(place) / "run")
