"""A run or bundle, opened with the images to examine it on.

>>> from sightline.runs import open_subject
>>> open_subject("runs/photos", limit=0)
Traceback (most recent call last):
    ...
sightline.errors.DataError: --limit is 0: it must be at least 1 image.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from . import runtime
from .classifier import Classifier, find_bundle
from .data import load_dataset, nested_subset
from .errors import DataError
from .inference import match_labels
from .sources import USUAL_LABELS, Source, find
from .training import Run, RunFolder, reopen
from .types import Dataset


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """A classifier, the images to examine it on, and what a reader must know about them."""

    classifier: Classifier
    """In eval mode, on the device asked for."""
    images: Dataset
    sentence: str
    """Which images these are: "300 of the 1,797 test images, each class in its share (seed 0)."."""
    validation: Dataset | None = None
    """The run's validation images, for fitting on images that are not examined; None for other data."""
    run: Run | None = None
    """The run whose own images these are, which keeps the results; None for other data."""
    seen: int = 0
    """How many of other images the classifier was trained or validated on."""


NAME_IMAGES = "name the images to test it on, after it"


def open_run(run: Path | str, *, device: str = "auto", remedy: str = NAME_IMAGES) -> Run:
    """Reopen a finished run with the images it was trained on.

    ``remedy`` ends the message for a classifier without its run. Raises DataError for such a classifier and for
    images that changed since, BundleError where there is nothing to open.
    """
    find_bundle(run)  # before any image is decoded
    folder = Path(run)
    if folder.is_file() or (folder / "config.json").is_file():
        raise DataError(f"'{run}' is a classifier without its run: {remedy}.")
    return reopen(folder, device=device)


def open_moved_run(
    run: Path | str | Classifier, data: Path | str | Source | Dataset, *, device: str = "auto"
) -> Run | None:
    """A finished run whose images lie in ``data`` now and not where they were; None for any other run or data."""
    if (
        isinstance(run, Classifier)
        or isinstance(data, Source | Dataset)
        or not (Path(run) / "recipe.toml").is_file()
    ):
        return None
    folder = RunFolder(Path(run))
    old = folder.read_recipe().data
    if folder.read_digests("test") is None or old is None or not Path(old).is_absolute() or Path(old).exists():
        return None
    try:
        return reopen(Path(run), data, device=device)
    except DataError:  # other images, to be tested as such
        return None


def open_subject(
    run: Path | str | Classifier,
    data: Path | str | Source | Dataset | None = None,
    *,
    split: Literal["test", "val"] = "test",
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    remedy: str = NAME_IMAGES,
) -> Subject:
    """Open a run with its own images, or a run, bundle or classifier with other labelled images.

    Args:
        run: a run or bundle folder, an exported file, or a classifier.
        data: other images: a dataset, a source, or what ``sources.find`` takes, read by the label rule of the run.
            Its test split where it has splits, else all of it. Default: the run's own ``split``.
        split: which of the run's own images, where ``data`` is None.
        limit: about how many images, each class in its share and at least once; None for all.
        seed: seed of that sample.
        remedy: the end of the message for a classifier without its run and without ``data``.

    Raises DataError where there are no images to open or the data do not fit the classifier, and what loading a
    classifier or images raises.
    """
    if limit is not None and limit < 1:
        raise DataError(f"--limit is {limit}: it must be at least 1 image.")
    whole, seen = None, 0
    if data is None and isinstance(run, Classifier):
        raise DataError(f"This classifier comes without its run: {remedy}.")
    if data is not None:
        whole = open_moved_run(run, data, device=device)
    elif not isinstance(run, Classifier):
        whole = open_run(run, device=device, remedy=remedy)
    if whole is not None:
        classifier, named = whole.classifier, "test images" if split == "test" else "validation images"
        images = whole.splits.test if split == "test" else whole.splits.val
    else:
        assert data is not None
        classifier = run if isinstance(run, Classifier) else Classifier.load(run)
        if device != "auto" or not isinstance(run, Classifier):
            classifier = classifier.to(runtime.resolve_device(device))
        if not isinstance(data, Source | Dataset):
            data = find_for_run(run, data)
        images = load_dataset(data, classifier.geometry) if isinstance(data, Source) else data
        named = f"images of '{data.name}'" if isinstance(data, Source) else "images"
        own = images.columns.get("split")
        if own is not None and "test" in own:
            images, named = images.subset(own == "test"), f"test {named}"
    match_labels(classifier, images)  # before any work
    some, sentence = sample_images(images, limit, seed, named)
    if whole is None and not isinstance(run, Classifier) and (seen := int(trained_on(run, some).sum())):
        sentence += (
            f" The classifier was trained or validated on {seen:,} of them, so the result is too optimistic."
        )
    return Subject(
        classifier=classifier.eval(),
        images=some,
        sentence=sentence,
        validation=whole.splits.val if whole else None,
        run=whole,
        seen=seen,
    )


def find_for_run(run: Path | str | Classifier, data: Path | str) -> Source:
    """Labelled images at ``data``, by the label rule of the run's recipe where that fits, else by usual names."""
    rule = USUAL_LABELS
    if not isinstance(run, Classifier) and (Path(run) / "recipe.toml").is_file():
        rule = RunFolder(Path(run)).read_recipe().label_rule
    if rule.given:
        with suppress(DataError):
            return find(data, several=False, rule=rule)
    return find(data, several=False)


def sample_images(images: Dataset, limit: int | None, seed: int = 0, what: str = "images") -> tuple[Dataset, str]:
    """About ``limit`` of the images, each class in its share and at least once, and a sentence that says so.

    Raises DataError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise DataError(f"--limit is {limit}: it must be at least 1 image.")
    if limit is None or limit >= len(images):
        return images, f"All {len(images):,} {what}."
    some = images.subset(nested_subset(images.labels, limit / len(images), seed))
    return some, f"{len(some):,} of the {len(images):,} {what}, each class in its share (seed {seed})."


def trained_on(run: Run | Path | str, images: Dataset, *, validation: bool = True) -> Bool[ndarray, " N"]:
    """Which of the images a run or bundle was trained on, or with ``validation`` was validated on.

    Images are known by their bytes, not their names, where a run lists them in its ``split.csv``. An old run
    knows names, which count for images of the very data it was trained on; a bundle without that file counts all
    images of its data but those of their test split.
    """
    if isinstance(run, Run):
        used = [run.splits.train, run.splits.val] if validation else [run.splits.train]
        return np.isin(images.digests, np.concatenate([part.digests for part in used]))
    is_file = Path(run).is_file()  # an exported file
    folder = RunFolder(Path(run) if is_file or (Path(run) / "split.csv").is_file() else find_bundle(run).parent)
    names = ("train", "val") if validation else ("train",)
    if not is_file and (digests := folder.read_digests(*names)) is not None:
        return np.isin(images.digests, digests)
    if is_file:
        provenance = Classifier.load(run).provenance
    else:
        provenance = json.loads((find_bundle(run) / "config.json").read_text(encoding="utf-8"))["provenance"]
    if provenance.get("data_fingerprint") != images.fingerprint:
        return np.zeros(len(images), dtype=bool)
    if not (Path(run) / "split.csv").is_file():
        return images.columns.get("split", np.full(len(images), "")) != "test"
    files = {row["file"] for row in RunFolder(Path(run)).read_split() if row["split"] in names}
    return np.array([str(file) in files for file in images.files], dtype=bool)
