"""From images to a fitted baseline: features in one unit, an estimator, a temperature."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from .. import runtime
from ..classifier import Classifier
from ..data import iterate_batches
from ..errors import ChoiceError, TrainingError
from ..inference import predict_logits
from ..models import Architecture, EmbeddingFeature, EstimatorNetwork, Feature, feature_config
from ..preprocessing import Preprocessing
from ..training import fit_temperature
from ..types import Dataset, Splits

VECTOR_COPIES = 4
"""Copies of the feature matrix (float32) that fitting may hold at once; an estimator works in float64."""


class LearntFeatures(EmbeddingFeature):
    """The input of a trained network's last layer: ``embedding:RUN``, a run or bundle folder."""

    def __init__(self, run: object) -> None:
        classifier = Classifier.load(str(run))
        super().__init__(classifier.preprocessing, classifier.network, classifier.architecture.config())
        self.run = str(run)
        self.geometry = classifier.geometry


@dataclass(frozen=True)
class Baseline:
    """A scikit-learn classifier and its features: ``svm-rbf:C=5@hog+lbp``."""

    classifier: str
    """A name of ``BASELINES`` with its arguments."""
    features: str
    """Names of ``FEATURES`` with their arguments, joined by +."""
    make_estimator: Callable[[int], Any] = field(compare=False, repr=False)
    """seed -> the unfitted scikit-learn classifier."""
    extractors: tuple[Feature | EmbeddingFeature, ...] = field(compare=False, repr=False)
    """The features themselves, in order."""

    def __str__(self) -> str:
        return self.classifier if self.features == "pixels" else f"{self.classifier}@{self.features}"


def extract_features(baseline: Baseline, dataset: Dataset) -> tuple[EstimatorNetwork, Float[ndarray, "N D"]]:
    """The features of every image, each brought to one unit, and the network that computes them.

    The network has no estimator yet. Raises ChoiceError for an embedding of a network that takes other pixels,
    TrainingError where features cannot be computed from these images or do not fit into memory.
    """
    geometry = dataset.geometry
    for feature in baseline.extractors:
        if isinstance(feature, LearntFeatures) and feature.geometry != geometry:
            wanted = feature.geometry
            raise ChoiceError(
                f"The network of 'embedding:{feature.run}' takes images decoded as {wanted}, and these are "
                f"{geometry}. Work at its size: --size {max(wanted.size)} --channels {wanted.channels} "
                f"--resize-mode {wanted.resize_mode} --interpolation {wanted.interpolation}"
            )
    try:
        network = EstimatorNetwork(len(dataset.classes), geometry.channels, geometry.size, baseline.extractors)
    except ValueError as error:
        raise TrainingError(f"The features of '{baseline}' cannot be computed: {error}.") from error
    width = sum(network.widths)
    needed, free = VECTOR_COPIES * 4 * len(dataset) * width, runtime.available_memory()
    if free is not None and needed > free:
        raise TrainingError(
            f"'{baseline}' needs about {needed / 1e9:,.1f} GB of memory for {width:,} numbers of each of "
            f"{len(dataset):,} images, and {free / 1e9:,.1f} GB are free: choose smaller features "
            "(--features hog), a smaller --size, or --limit."
        )
    vectors = np.empty((len(dataset), width), np.float32)
    for batch in iterate_batches(dataset, 256):
        vectors[batch.index.numpy()] = network.feature_vectors(batch.pixels).numpy()
    network.fit_units(vectors)
    vectors -= network.shift.numpy()
    vectors /= network.scale.numpy()
    return network, vectors


def fit_classifier(baseline: Baseline, splits: Splits, seed: int) -> Classifier:
    """The fitted baseline as a classifier; see ``fit_baseline``."""
    train = splits.train.labelled
    network, vectors = extract_features(baseline, train)
    estimator = baseline.make_estimator(seed)
    with warnings.catch_warnings(record=True) as caught, _explain_fit_errors(baseline):
        warnings.simplefilter("always")
        estimator.fit(vectors, train.labels)
    if hasattr(estimator, "n_jobs"):
        estimator.n_jobs = None  # the bundle does not depend on the cores that fitted it
    network.set_estimator(estimator)
    messages = [str(one.message).partition("\n")[0] for one in caught]
    features = [feature_config(one) for one in baseline.extractors]
    size, channels = list(train.geometry.size), train.geometry.channels
    arguments = {"classes": len(train.classes), "channels": channels, "size": size, "features": features}
    classifier = Classifier(
        Preprocessing(),
        network,
        architecture=Architecture("estimator", {**arguments, "word": str(baseline)}),
        classes=train.classes,
        geometry=train.geometry,
        provenance={
            "baseline": str(baseline),
            "data_fingerprint": train.fingerprint,
            "train_images": len(train),
            "seed": seed,
            "remarks": list(dict.fromkeys(text for text in messages if "onverge" in text)),
        },
    ).eval()
    if len(splits.val):
        with _explain_fit_errors(baseline):
            classifier.temperature = round(fit_temperature(*predict_logits(classifier, splits.val)), 6)
    return classifier


@contextmanager
def _explain_fit_errors(baseline: Baseline) -> Iterator[None]:
    """Turn what scikit-learn refuses into a TrainingError of one sentence."""
    try:
        yield
    except (ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise TrainingError(f"The baseline '{baseline}' cannot be fitted: {reason}.") from error
