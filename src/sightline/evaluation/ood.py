"""Out-of-distribution detection: scores that are high for images like the training images and low for others.

A score is ``(classifier, images in [0, 1]) -> (B)``; in-distribution is always the positive side.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, nn

from .. import runtime
from ..checks import check_int, check_positive
from ..classifier import Classifier
from ..data import load_dataset
from ..errors import BundleError, DataError
from ..files import write_json
from ..inference import map_batches
from ..metrics import ood_metrics
from ..sources import find
from ..training import Run
from ..types import Dataset

MAX_REFERENCE_IMAGES = 20_000
"""Training images that a score is fitted to, at most."""


class OODScore(ABC):
    """How much each image resembles the training images."""

    needs_fit: ClassVar[bool] = False
    """Whether the score compares with the features of training images."""

    @abstractmethod
    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """Higher means more in-distribution; the scale is arbitrary."""

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> "OODScore":
        """The score with the features of training images; itself where it needs none."""
        del features, labels
        return self


@dataclass(frozen=True)
class MaxSoftmax(OODScore):
    """The largest calibrated probability, in [1 / K, 1] (Hendrycks and Gimpel 2017)."""

    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """In [1 / K, 1]."""
        return classifier.probabilities(images).amax(1)


@dataclass(frozen=True)
class MaxLogit(OODScore):
    """The largest logit, which keeps the scale that softmax divides out (Hendrycks et al. 2022)."""

    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """Any number."""
        return classifier(images).float().amax(1)


@dataclass(frozen=True)
class Energy(OODScore):
    """Negative free energy, T logsumexp(z / T) (Liu et al. 2020); ``temperature`` is T."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for a temperature of 0 or below."""
        check_positive("temperature", self.temperature)

    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """Any number."""
        return self.temperature * torch.logsumexp(classifier(images).float() / self.temperature, 1)


@dataclass(frozen=True, eq=False)
class Mahalanobis(OODScore):
    """Minus the squared Mahalanobis distance to the nearest class mean, at most 0 (Lee et al. 2018).

    In the features before the last layer, with one covariance for all classes. ``shrinkage`` mixes it with a
    spherical one of equal trace, so that features of little variance do not dominate.
    """

    needs_fit: ClassVar[bool] = True
    shrinkage: float = 0.01
    means: Tensor | None = None
    root: Tensor | None = None
    """L of the inverse covariance L L^T."""

    def __post_init__(self) -> None:
        """Raise ValueError for a shrinkage outside (0, 1]."""
        check_positive("shrinkage", self.shrinkage, 1)

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> "Mahalanobis":
        """Class means and their common, shrunk covariance (divided by N), in float64."""
        present = labels.unique()
        x = features.double()
        means = torch.stack([x[labels == k].mean(0) for k in present])
        centred = x - means[torch.searchsorted(present, labels)]
        covariance = centred.T @ centred / len(x)
        variance = covariance.diagonal().mean().clamp_min(1e-12)
        covariance = (1 - self.shrinkage) * covariance
        covariance.diagonal().add_(self.shrinkage * variance)
        root = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(covariance)))
        return replace(self, means=means, root=root)

    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """At most 0."""
        means, root = _require_fitted(self.means, "mahalanobis"), _require_fitted(self.root, "mahalanobis")
        x = classifier.features(images).double().cpu() @ root
        return -torch.cdist(x, means @ root).amin(1).square().float()


@dataclass(frozen=True, eq=False)
class KNN(OODScore):
    """Minus the distance to the ``k``-th nearest training image in normalised features (Sun et al. 2022)."""

    needs_fit: ClassVar[bool] = True
    k: int = 10
    reference: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a k below 1."""
        check_int("k", self.k, 1)

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> "KNN":
        """Keep the normalised features. Raises DataError for fewer than k training images."""
        del labels
        if len(features) < self.k:
            raise DataError(f"{len(features):,} training images have no {self.k}th nearest: choose a smaller k.")
        return replace(self, reference=F.normalize(features.float(), dim=1))

    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """In [-2, 0]."""
        features = F.normalize(classifier.features(images).float(), dim=1).cpu()
        cosines = features @ _require_fitted(self.reference, "knn").T
        return -(2 - 2 * cosines.topk(self.k, 1).values[:, -1]).clamp_min(0).sqrt()


@dataclass(frozen=True)
class MCDropout(OODScore):
    """Minus the mutual information of ``passes`` passes with dropout, in nats; see ``predict_with_dropout``."""

    passes: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for fewer than two passes."""
        check_int("passes", self.passes, 2)

    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """At most 0."""
        return -predict_with_dropout(classifier, images, passes=self.passes, seed=self.seed).mutual_information


def _require_fitted(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise DataError(f"The score '{name}' compares with training images: fit it to some first.")
    return tensor


@torch.inference_mode()
def fit_score(
    score: OODScore, classifier: Classifier, dataset: Dataset, *, batch_size: int = 256, seed: int = 0
) -> OODScore:
    """The score, fitted to the features of at most ``MAX_REFERENCE_IMAGES`` labelled images where it needs them.

    The images are drawn by ``seed``. Raises DataError where there are none.
    """
    if not score.needs_fit:
        return score
    dataset = dataset.labelled
    if not len(dataset):
        raise DataError("There are no training images to fit a score to.")
    sample = dataset.subset(np.sort(runtime.permutation(len(dataset), seed)[:MAX_REFERENCE_IMAGES]))
    features = map_batches(
        classifier, sample, lambda pixels: classifier.features(pixels).float().cpu(), batch_size=batch_size
    )
    return score.fit(features, torch.from_numpy(sample.labels))


@torch.inference_mode()
def score_dataset(
    score: OODScore, classifier: Classifier, dataset: Dataset, *, batch_size: int = 256
) -> Float[ndarray, " N"]:
    """The score of every image, in order. Raises DataError where there are none."""
    if not len(dataset):
        raise DataError("There are no images to score: give data with at least one readable image.")
    scores = map_batches(classifier, dataset, partial(score, classifier), batch_size=batch_size)
    return scores.cpu().numpy().astype(np.float64)


def evaluate_scores_run(run: Run, data: str | Path, scores: Mapping[str, OODScore]) -> dict[str, Any]:
    """How well scores separate a run's test images from those of ``data``; see ``evaluate_ood_run``."""
    classifier, splits = run.classifier, run.splits
    outside = load_dataset(find(data, several=False), classifier.geometry)
    remarks = []
    if shared := sorted(set(outside.classes) & set(classifier.classes)):
        remarks.append(
            f"'{data}' has classes that the classifier knows ({', '.join(shared[:5])}): their images are in "
            "distribution."
        )
    rows, failed = [], []
    for word, score in scores.items():
        try:
            fitted = fit_score(score, classifier, splits.train)
            inside, others = (score_dataset(fitted, classifier, part) for part in (splits.test, outside))
            rows.append({"score": word, **ood_metrics(inside, others).as_json()})
        except (DataError, BundleError) as error:
            failed.append({"score": word, "error": str(error)})
    found = {
        "run": run.folder.name,
        "data": str(data),
        "positive": "in-distribution",
        "n": len(splits.test),
        "n_outliers": len(outside),
        "scores": sorted(rows, key=lambda row: -row["auroc"]),
        "failed": failed,
        "remarks": remarks,
    }
    write_json(run.folder / "outliers.json", found)
    return found


@dataclass(frozen=True, eq=False)
class MCDropoutPrediction:
    """T passes with dropout over B images (Gal and Ghahramani 2016). Entropies are in nats."""

    probabilities: Float[Tensor, "B K"]
    """Mean over the passes."""
    entropy: Float[Tensor, " B"]
    """Entropy of that mean, the total uncertainty, in [0, ln K]."""
    mutual_information: Float[Tensor, " B"]
    """Entropy of the mean minus the mean entropy of the passes: the epistemic uncertainty, which more training
    images would reduce; 0 where all passes agree."""


def predict_with_dropout(
    classifier: Classifier, images: Float[Tensor, "B C H W"], *, passes: int = 30, seed: int = 0
) -> MCDropoutPrediction:
    """Predict ``passes`` times with dropout on, everything else in eval mode and the temperature applied.

    The passes draw from ``seed`` and do not change the global generators. Raises DataError for a classifier
    without dropout, ValueError for fewer than one pass.
    """
    check_int("passes", passes, 1)
    devices = [images.device] if images.device.type == "cuda" else []
    mean, entropies = torch.zeros(0), torch.zeros(0)
    with torch.random.fork_rng(devices), torch.inference_mode(), enable_dropout(classifier):
        torch.manual_seed(seed)
        for number in range(1, passes + 1):
            p = classifier.probabilities(images)
            if number == 1:
                mean, entropies = torch.zeros_like(p), torch.zeros_like(p[:, 0])
            mean += (p - mean) / number
            entropies += (_entropy(p) - entropies) / number
    total = _entropy(mean)
    return MCDropoutPrediction(mean, total, (total - entropies).clamp_min(0))


@contextmanager
def enable_dropout(classifier: Classifier) -> Iterator[None]:
    """Within it dropout layers drop, and everything else (above all norms) is in eval mode.

    Raises DataError for a classifier without dropout.
    """
    layers = [m for m in classifier.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    if not layers:
        raise DataError(
            "Monte Carlo dropout needs a network with dropout, and this one has none: train one with --dropout "
            "0.2, or choose another score."
        )
    training = classifier.training
    classifier.eval()
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        classifier.train(training)


def _entropy(probabilities: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    return torch.special.entr(probabilities).sum(1)
