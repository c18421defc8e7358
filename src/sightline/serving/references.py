"""The reference of a new release: what its own engine says of held-out images, for comparison with its traffic."""

from pathlib import Path
from typing import Any

import numpy as np

from ..classifier import Classifier
from ..data import nested_subset
from ..exported_model import NetworkOutputs, open_exported
from ..inference import match_labels
from ..journal import MIN_REFERENCE_IMAGES, REFERENCE_FILE, Projection, Reference, make_sketches
from ..types import Dataset, Splits
from .engine import BundleRunner, EngineRunner
from .releases import ONNX_FILE

MAX_SKETCHED_IMAGES = 2000
"""Images that a projection is fitted to, and images that are sketched, at most."""

_BATCH_IMAGES = 64


def write_reference(
    classifier: Classifier, release: Path, given: Dataset | None, splits: Splits | None
) -> dict[str, Any]:
    """Write the reference into the folder of a release; return ``n`` and ``sample``, or ``why`` there is none.

    The projection is fitted to validation images and the scores are of test images, so that no image that was trained
    on, or that chose anything, is compared with traffic. ``given`` images, or validation images where there is no test
    split, are halved.
    """
    fitted, scored, sample = _choose_images(given, splits)
    if fitted is None or scored is None or len(fitted) + len(scored) < MIN_REFERENCE_IMAGES:
        return {"file": None, "why": f"fewer than {MIN_REFERENCE_IMAGES} held-out images with labels ({sample})"}
    fitted, scored = _limit(fitted), _limit(scored)
    path = release / ONNX_FILE
    runner: EngineRunner = open_exported(path) if path.is_file() else BundleRunner(classifier)
    features = _collect_outputs(runner, fitted).features
    projection = Projection.fit(features, match_labels(classifier, fitted), len(classifier.classes))
    outputs = _collect_outputs(runner, scored)
    sides = (scored.columns.get(name, np.zeros(len(scored), int)).tolist() for name in ("width", "height"))
    sizes = [(width, height, 0) for width, height in zip(*sides, strict=True)]
    sketches = make_sketches(
        outputs.probabilities, outputs.energy, projection.project(outputs.features, len(scored)), scored[:], sizes
    )
    labels = match_labels(classifier, scored)
    Reference(classifier.classes, projection, sketches, labels).save(release / REFERENCE_FILE)
    return {"file": REFERENCE_FILE, "n": len(scored), "sample": sample}


def _choose_images(given: Dataset | None, splits: Splits | None) -> tuple[Dataset | None, Dataset | None, str]:
    """Images to fit to, images to score, and a description."""
    if given is not None:
        return *_halve(given.labelled), "given images"
    if splits is None:
        return None, None, "no images of the run"
    if not len(splits.test):
        return *_halve(splits.val), "validation images"
    if not len(splits.val):
        return *_halve(splits.test), "test images"
    return splits.val, splits.test, "test images"


def _halve(images: Dataset) -> tuple[Dataset, Dataset]:
    first = np.random.default_rng(0).permutation(len(images)) < len(images) // 2
    return images.subset(first), images.subset(~first)


def _limit(images: Dataset) -> Dataset:
    if len(images) <= MAX_SKETCHED_IMAGES:
        return images
    return images.subset(nested_subset(images.labels, MAX_SKETCHED_IMAGES / len(images), 0))


def _collect_outputs(runner: EngineRunner, images: Dataset) -> NetworkOutputs:
    """All outputs for all images, in order."""
    parts = [runner.outputs(images[i : i + _BATCH_IMAGES]) for i in range(0, len(images), _BATCH_IMAGES)]
    features, energy = (
        None if getattr(parts[0], name) is None else np.concatenate([getattr(one, name) for one in parts])
        for name in ("features", "energy")
    )
    return NetworkOutputs(np.concatenate([one.probabilities for one in parts]), features, energy)
