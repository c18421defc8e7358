"""What is examined: a run's classifier and its test images, or a bundle's and others; a stated sample of them."""

from dataclasses import dataclass
from pathlib import Path

from .. import runtime
from ..classifier import Classifier
from ..comparison import nested_subset
from ..data import load
from ..errors import DataError
from ..evaluation import match_labels
from ..sources import find
from ..training import reopen
from ..types import Dataset


@dataclass(frozen=True, eq=False)
class AttackSubject:
    """A classifier, the images it is examined on, and what a reader must know of them."""

    classifier: Classifier
    images: Dataset
    sentence: str
    """Which images these are, in a sentence."""
    validation: Dataset | None
    """Validation images of the run, for what must be made on images that are not tested."""
    folder: Path | None
    """The run whose own test images these are."""


def open_attack_subject(
    run: Path | str, data: str | None = None, *, limit: int | None = None, seed: int = 0, device: str = "auto"
) -> AttackSubject:
    """A run with its test images, or a run or bundle with the images of ``data``: about ``limit`` of them.

    The sample has each class in its share. Raises DataError where a bundle is named without images.
    """
    if limit is not None and limit < 1:
        raise DataError(f"The limit is {limit}: it must be at least 1 image.")
    folder = Path(run)
    if data is None:
        if (folder / "config.json").is_file():
            raise DataError(f"'{run}' is a classifier without its run: name the images to test it on, after it.")
        whole = reopen(folder, device=device)
        classifier, images, others, split = whole.classifier, whole.splits.test, whole.splits.val, "test images"
    else:
        classifier = Classifier.load(run).to(runtime.resolve_device(device))
        images, others, split = load(find(data, several=False), classifier.geometry), None, f"images of '{data}'"
        parts = images.columns.get("split")
        if parts is not None and "test" in parts:
            images, split = images.subset(parts == "test"), f"test images of '{data}'"
    match_labels(classifier, images)  # says what does not fit before any work
    some, sentence = sample_images(images, limit, seed, split)
    return AttackSubject(classifier.eval(), some, sentence, others, folder if data is None else None)


def sample_images(images: Dataset, limit: int | None, seed: int, what: str = "images") -> tuple[Dataset, str]:
    """About ``limit`` images, each class in its share and at least once, drawn by ``seed``; and the sentence."""
    if limit is None or limit >= len(images):
        return images, f"All {len(images):,} {what}."
    some = images.subset(nested_subset(images.labels, limit / len(images), seed))
    return some, f"{len(some):,} of the {len(images):,} {what}, each class in its share (seed {seed})."
