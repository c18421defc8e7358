"""CIFAR-10's JPEG images in small parts, for protocols that two cores can afford."""

from pathlib import Path

import numpy as np

from sightline.data import load_dataset
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
