"""From images to a fitted baseline: features, one unit for them, an estimator, a temperature."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ..choose import choose
from ..classifier import Classifier
from ..data import iterate_batches
from ..errors import ChoiceError, TrainingError
from ..inference import predict_logits
from ..models import Architecture, EstimatorNetwork, feature_config
from ..preprocessing import Preprocessing
from ..training import fit_temperature
from ..types import Dataset, Splits
from .estimators import BASELINES
from .features import parse_features

VECTOR_COPIES = 4
"""Copies of the vectors that fitting may hold at once: an estimator works in float64, beside our float32."""


@dataclass(frozen=True)
class Baseline:
    """A classifier and what it looks at: ``svm-rbf:C=5@hog+lbp``."""

    classifier: str
    """A name of ``CLASSIFIERS`` with its arguments."""
    features: str = "pixels"
    """Names of ``FEATURES`` with their arguments, joined by +."""

    def __str__(self) -> str:
        return self.classifier if self.features == "pixels" else f"{self.classifier}@{self.features}"

    def estimator(self, seed: int = 0) -> Any:
        """The unfitted scikit-learn classifier; raises ChoiceError for a name or argument nobody knows."""
        return choose({n: partial(f, seed=seed) for n, f in BASELINES.items()}, self.classifier, "baseline")


def parse_baseline(word: str, features: str = "pixels") -> Baseline:
    """The baseline a word names, on ``features`` where it says none; raises ChoiceError for unknown names."""
    classifier, at, own = word.partition("@")
    if at and not own:
        raise ChoiceError(f"'{word}' names no features after the @. Write, for example, {classifier}@hog.")
    found = Baseline(classifier.strip(), own.strip() or features)
    found.estimator()
    parse_features(found.features)
    return found


def fit_baseline(splits: Splits, word: str | Baseline, *, seed: int = 0) -> Classifier:
    """Fit a baseline to the training images; its temperature is fitted on the validation images, as a network's.

    The answer is a classifier like any other: predict, evaluate, save and load work on it; it is not
    differentiable. Equal seeds give equal classifiers. Raises ChoiceError for an unknown name, TrainingError where
    the images, the settings or the memory do not allow it.
    """
    chosen = parse_baseline(word) if isinstance(word, str) else word
    train = splits.train
    network, plan = _build_network(chosen, train)
    vectors = _feature_matrix(network, train, chosen)
    network.fit_units(vectors)
    np.subtract(vectors, network.shift.numpy(), out=vectors)
    np.divide(vectors, network.scale.numpy(), out=vectors)
    estimator, remarks = _fit_estimator(chosen, vectors, train.labels, seed)
    network.set_estimator(estimator)
    classifier = Classifier(
        Preprocessing(),
        network,
        architecture=plan,
        classes=train.classes,
        geometry=train.geometry,
        provenance={
            "baseline": str(chosen),
            "data_fingerprint": train.fingerprint,
            "train_images": len(train),
            "seed": seed,
            "remarks": remarks,
        },
    ).eval()
    if len(splits.val):
        with _explain_fit_errors(chosen):
            classifier.temperature = round(fit_temperature(*predict_logits(classifier, splits.val)), 6)
    return classifier


def _build_network(chosen: Baseline, train: Dataset) -> tuple[EstimatorNetwork, Architecture]:
    """The features as a network without its estimator."""
    features = parse_features(chosen.features, train.geometry)
    plan = Architecture(
        "estimator",
        {
            "classes": len(train.classes),
            "channels": train.geometry.channels,
            "size": list(train.geometry.size),
            "features": [feature_config(one) for one in features],
            "word": str(chosen),
        },
    )
    try:
        network = EstimatorNetwork(len(train.classes), train.geometry.channels, train.geometry.size, features)
    except ValueError as error:
        raise TrainingError(f"The features of '{chosen}' cannot be made: {error}.") from error
    return network, plan


def _feature_matrix(network: EstimatorNetwork, dataset: Dataset, chosen: Baseline) -> Float[ndarray, "N D"]:
    """The features of every image, in order."""
    width = sum(network.widths)
    needed, free = VECTOR_COPIES * 4 * len(dataset) * width, _available_memory()
    if free is not None and needed > free:
        raise TrainingError(
            f"'{chosen}' needs about {needed / 1e9:,.1f} GB of memory for {width:,} numbers of each of "
            f"{len(dataset):,} images, and {free / 1e9:,.1f} GB are free: choose smaller features "
            "(--features hog), a smaller --size, or --limit."
        )
    found = np.empty((len(dataset), width), np.float32)
    for batch in iterate_batches(dataset, 256):
        found[batch.index.numpy()] = network.feature_vectors(batch.pixels).numpy()
    return found


def _available_memory() -> int | None:
    """Memory this process may still take, as Linux tells it; None elsewhere."""
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError, StopIteration):  # a container's own limit; what it caches of files can go
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        found.append(limit - used + next(int(line.split()[1]) for line in lines if line.startswith("file ")))
    return min(found, default=None)


def _fit_estimator(
    chosen: Baseline, vectors: Float[ndarray, "N D"], labels: ndarray, seed: int
) -> tuple[Any, list[str]]:
    """The estimator, fitted, and what it complained of."""
    estimator = chosen.estimator(seed)
    with warnings.catch_warnings(record=True) as said, _explain_fit_errors(chosen):
        warnings.simplefilter("always")
        estimator.fit(vectors, labels)
    if hasattr(estimator, "n_jobs"):
        estimator.n_jobs = None  # how many cores fitted it is not the answer's business
    remarks = [str(one.message).partition("\n")[0] for one in said if "onverge" in str(one.message)]
    return estimator, list(dict.fromkeys(remarks))


@contextmanager
def _explain_fit_errors(chosen: Baseline) -> Iterator[None]:
    """What scikit-learn refuses, as one error."""
    try:
        yield
    except (ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise TrainingError(f"The baseline '{chosen}' cannot be fitted: {reason}.") from error
