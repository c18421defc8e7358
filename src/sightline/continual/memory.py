"""What is left of old images: the images where they lie, exemplars, or sums alone; and how they are forgotten."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from jaxtyping import Shaped, UInt64
from numpy import ndarray
from torch import Tensor

from ..classifier import Classifier
from ..data import hash_file, load_dataset, relabel
from ..errors import BundleError, DataError, RecipeError
from ..features import backbone_fingerprint, embed_cached
from ..files import read_csv_rows, write_csv
from ..runs import open_run
from ..runtime import resolve_device
from ..sources import (
    EXEMPLARS_FILE,
    find,
    find_unlabelled,
    read_exemplar_table,
    store_exemplar,
    write_exemplar_table,
)
from ..training import Recipe, Run, RunFolder
from ..types import Dataset, Splits
from .computed_heads import RanPAC
from .exemplars import balanced_sample
from .statistics import FeatureStatistics, RidgeStatistics

SUMMED_FILE = "summed_images.csv"
"""Of a run that keeps sums: hash and class of every image in them."""

EXEMPLAR_SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
"""Shares of the exemplars by their split: new classes are compared with old ones on images that train nothing."""

MAX_RIDGE_BYTES = 256_000_000
"""Largest sums of random features that a bundle keeps: they take 4 MB a class."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over the features of images, and which images these were."""

    statistics: FeatureStatistics
    ridge: RidgeStatistics | None
    digests: UInt64[ndarray, " N"]
    names: Shaped[ndarray, " N"]
    """The class of each (array of str)."""

    def regroup(self, names: Mapping[str, str], removed: Collection[str]) -> "Sums":
        """The sums after classes were renamed or merged, and some removed, by their new names."""
        removed = tuple(removed)
        new = np.array([names.get(name, name) for name in self.names.tolist()], object)
        kept = ~np.isin(new.astype(str), removed)
        return Sums(
            self.statistics.regroup(names).drop(removed),
            None if self.ridge is None else self.ridge.regroup(names).drop(removed),
            self.digests[kept],
            new[kept],
        )

    def __add__(self, other: "Sums") -> "Sums":
        """The sums over the images of both; random features where both have them."""
        return Sums(
            self.statistics + other.statistics,
            None if self.ridge is None or other.ridge is None else self.ridge + other.ridge,
            np.concatenate([self.digests, other.digests]),
            np.concatenate([self.names, other.names]),
        )

    def forget(self, classifier: Classifier, images: Dataset) -> "Sums":
        """The sums without these images, known by their bytes, each as often as it is in them.

        ``classifier`` has the network that the sums are of. Images that are not in the sums change nothing.
        """
        place = {digest: row for row, digest in enumerate(images.digests.tolist())}
        rows = np.array([place.get(digest, -1) for digest in self.digests.tolist()], np.int64)
        gone, left = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
        classes = self.statistics.classes
        labels = np.array([classes.index(name) for name in self.names[gone].tolist()], np.int64)
        known = replace(images.subset(rows[gone]), labels=labels, classes=classes)
        with TemporaryDirectory() as cache:  # features of forgotten images are not kept either
            without = sum_features(classifier, known, ridge=self.ridge is not None, cache=Path(cache))
        return Sums(
            self.statistics - without.statistics,
            None if self.ridge is None or without.ridge is None else self.ridge - without.ridge,
            self.digests[left],
            self.names[left],
        )

    def tensors(self) -> dict[str, Tensor]:
        """The sums as a bundle's memory holds them."""
        return self.statistics.tensors() | ({} if self.ridge is None else self.ridge.tensors())


def sum_features(
    classifier: Classifier, images: Dataset, *, ridge: bool = True, cache: Path | None = None
) -> Sums:
    """The sums over these images by a classifier's network; of random features too, unless they take too much room."""
    features = embed_cached(classifier, images, cache=cache, quiet=True)
    given, random = (features, images.labels, images.classes), None
    if ridge and 4 * RanPAC().projections ** 2 * len(images.classes) <= MAX_RIDGE_BYTES:
        random = RanPAC().sum(*given)
    names = np.array([*images.classes, ""], object)[images.labels]
    return Sums(FeatureStatistics.of(*given), random, images.digests, names)


def open_past(parent: Path, device: str) -> tuple[Run, Sums | None, str]:
    """A finished run with its images; where these are gone, with its exemplars, or with no image and sums alone.

    Returns the run, the sums where images that they are over are gone, and a sentence that says so. Raises DataError
    where nothing of the images is left, and as ``open_run`` does.
    """
    try:
        run = open_run(parent, device=device, remedy="name its run")
        sums = read_sums(parent, run.classifier)
        if sums is None or np.isin(sums.digests, run.splits.train.digests).all():
            return run, None, ""
        gone = int((~np.isin(sums.digests, run.splits.train.digests)).sum())
        return run, sums, f"{gone:,} images of '{parent}' are not there: sums over their features stand for them."
    except (DataError, RecipeError) as error:  # the latter for a run that has sums and no image of its own
        if not (parent / "recipe.toml").is_file():
            raise
        why = str(error)
        classifier = Classifier.load(parent).to(resolve_device(device))
        sums, exemplars = read_sums(parent, classifier), read_exemplar_table(parent)
        if sums is None and not exemplars:
            raise DataError(
                f"{error} It keeps no sums or exemplars of them either, as sightline learn {parent} --keep-images or "
                "--no-keep-images would have made while they were there."
            ) from error
    recipe, folder = RunFolder(parent).read_recipe(), RunFolder(parent)
    if exemplars:
        table = str(parent.resolve() / EXEMPLARS_FILE)
        recipe = recipe.replace(data=table, path_column=None, label_column=None, label_pattern=None)
        images = relabel(load_dataset(find(table, several=False), classifier.geometry), classifier.classes)
        note = f"{why} Its {len(images):,} exemplars stand for its images."
    else:
        recipe, images = recipe.replace(data=None), no_images(classifier)
        note = f"{why} Sums over features stand for the images of '{parent}'."
    part = images.columns.get("split", np.zeros(0, object))
    train, val, test = (images.subset(np.flatnonzero(part == name)) for name in EXEMPLAR_SHARES)
    splits = Splits(train, val, test)
    return Run(folder.path, recipe, classifier, splits, folder.read_facts(), ()), sums, note


def no_images(classifier: Classifier) -> Dataset:
    """A dataset of no image, with the classes and the geometry of a classifier."""
    nothing = np.zeros(0, np.int64)
    return Dataset(
        pixels=np.zeros((0, *classifier.geometry.shape), np.uint8), rows=nothing, labels=nothing,
        classes=classifier.classes, files=np.zeros(0, object), digests=np.zeros(0, np.uint64),
        geometry=classifier.geometry, fingerprint="no images",
    )  # fmt: skip


def read_sums(parent: Path, classifier: Classifier) -> Sums | None:
    """The sums that a run keeps, or None. Raises BundleError where they are those of another network."""
    tensors, classes = classifier.memory.statistics, classifier.classes
    statistics = FeatureStatistics.from_tensors(tensors, classes)
    file = parent / SUMMED_FILE
    if statistics is None or not file.is_file():
        return None
    if classifier.provenance.get("sums_of") != backbone_fingerprint(classifier.network):
        raise BundleError(
            f"The sums in '{parent}' are over features of another network: restore the run's own files, or its images."
        )
    rows = read_csv_rows(file)
    digests = np.array([int(row["digest"], 16) for row in rows], np.uint64)
    names = np.array([row["label"] for row in rows], object)
    return Sums(statistics, RidgeStatistics.from_tensors(tensors, classes), digests, names)


def write_summed(run: Path, sums: Sums) -> None:
    """Write which images a run's sums are over."""
    rows = zip((f"{digest:016x}" for digest in sums.digests.tolist()), sums.names.tolist(), strict=True)
    write_csv(run / SUMMED_FILE, [("digest", "label"), *rows])


def keep_exemplars(run: Path, recipe: Recipe, splits: Splits, size: int, seed: int) -> dict[str, list[str]]:
    """Store up to ``size`` images of a run, equally many of each class; returns the hashes of training ones by class.

    Raises DataError where there are more classes than places.
    """
    assert recipe.data is not None
    source = find(recipe.data, several=False, rule=recipe.label_rule)
    place = {str(file): row for row, file in enumerate(source.files)}
    rows: list[dict[str, str]] = []
    hashes: dict[str, list[str]] = {}
    for name, part in zip(EXEMPLAR_SHARES, (splits.train, splits.val, splits.test), strict=True):
        images, most = part.labelled, round(size * EXEMPLAR_SHARES[name])
        if name == "train":
            most = max(most, min(size, len(np.unique(images.labels))))
        elif most < len(np.unique(images.labels)):  # too few to compare classes by
            continue
        for row in balanced_sample(images.labels, most, seed).tolist() if len(images) else ():
            file, digest = str(images.files[row]), int(images.digests[row])
            image = source.read(place[file]) if file in place else b""
            if int.from_bytes(hash_file(image), "little") != digest:
                continue  # of the same name as another, or changed since
            label = images.classes[images.labels[row]]
            path = store_exemplar(run.resolve().parent, image, Path(file).suffix.lower() or ".png")
            rows.append({"path": path, "label": label, "split": name})
            if name == "train":
                hashes.setdefault(label, []).append(Path(path).stem)
    write_exemplar_table(run, rows)
    return hashes


def read_forgotten(place: Path | str, classifier: Classifier) -> tuple[Dataset, frozenset[str]]:
    """The images to be forgotten, decoded, and the SHA-256 hashes of their files."""
    source = find_unlabelled(place)
    hashes = frozenset(hashlib.sha256(source.read(row)).hexdigest() for row in range(len(source)))
    return load_dataset(source, classifier.geometry), hashes
