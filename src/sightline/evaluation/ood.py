"""Images that a classifier was not made for: scores that should be high for images like its own, low for others.

A score is ``(classifier, images in [0, 1]) -> (B)``; in-distribution is the positive side, everywhere. Those that
compare with training images are fitted to them first: ``fitted(score, classifier, dataset)`` does it for any.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from .. import runtime
from ..checks import check_int, check_positive
from ..classifier import Classifier
from ..errors import DataError
from ..inference import map_batches
from ..types import Dataset
from .mc_dropout import predict_with_dropout

MAX_REFERENCE_IMAGES = 20_000
"""Training images that a score is fitted to, at most."""


@runtime_checkable
class OODScore(Protocol):
    """How much each image looks like those the classifier was made for."""

    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"], /) -> Float[Tensor, " B"]:
        """Higher is more usual; of no unit."""
        ...


@runtime_checkable
class FittableScore(Protocol):
    """A score that compares with training images."""

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], /) -> OODScore:
        """The score that knows these features of training images."""
        ...


@dataclass(frozen=True)
class MaxSoftmax:
    """The calibrated probability of the answer (Hendrycks and Gimpel 2017)."""

    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """In [1 / K, 1]."""
        return classifier.probabilities(images).amax(1)


@dataclass(frozen=True)
class MaxLogit:
    """The largest logit (Hendrycks et al. 2022): unlike the softmax, it does not forget how large they all are."""

    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """Any number."""
        return classifier(images).float().amax(1)


@dataclass(frozen=True)
class Energy:
    """Negative free energy, T logsumexp(z / T) (Liu et al. 2020); ``temperature`` is T."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for a temperature of 0 or below."""
        check_positive("temperature", self.temperature)

    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """Any number."""
        return self.temperature * torch.logsumexp(classifier(images).float() / self.temperature, 1)


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """Minus the squared distance to the nearest class mean, in units of the classes' common spread (Lee et al.
    2018).

    In the features before the last layer; ``shrinkage`` mixes the covariance with a round one of equal trace, so
    that features that hardly vary do not decide.
    """

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
        apart = x - means[torch.searchsorted(present, labels)]
        covariance = apart.T @ apart / len(x)
        spread = covariance.diagonal().mean().clamp_min(1e-12)
        covariance = (1 - self.shrinkage) * covariance
        covariance.diagonal().add_(self.shrinkage * spread)
        root = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(covariance)))
        return replace(self, means=means, root=root)

    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """At most 0."""
        means, root = _require_fitted(self.means, "mahalanobis"), _require_fitted(self.root, "mahalanobis")
        x = ood_features(classifier, images).double().cpu() @ root
        return -torch.cdist(x, means @ root).amin(1).square().float()


@dataclass(frozen=True, eq=False)
class KNN:
    """Minus the distance to the ``k``-th nearest training image, in features of unit length (Sun et al. 2022)."""

    k: int = 10
    reference: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a k below 1."""
        check_int("k", self.k, 1)

    def fit(self, features: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> "KNN":
        """Keep the features, at unit length."""
        del labels
        if len(features) < self.k:
            raise DataError(f"{len(features):,} training images have no {self.k}th nearest: choose a smaller k.")
        return replace(self, reference=F.normalize(features.float(), dim=1))

    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """In [-2, 0]."""
        near = (
            F.normalize(ood_features(classifier, images).float(), dim=1).cpu()
            @ _require_fitted(self.reference, "knn").T
        )
        return -(2 - 2 * near.topk(self.k, 1).values[:, -1]).clamp_min(0).sqrt()


@dataclass(frozen=True)
class MCDropout:
    """Minus the disagreement of ``passes`` passes with dropout: for networks that have some (see ``dropout``)."""

    passes: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for fewer than two passes."""
        check_int("passes", self.passes, 2)

    def __call__(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        """At most 0, in nats."""
        return -predict_with_dropout(classifier, images, passes=self.passes, seed=self.seed).mutual_information


OOD_SCORES: Mapping[str, Callable[..., OODScore]] = {
    "max-softmax": MaxSoftmax,
    "max-logit": MaxLogit,
    "energy": Energy,
    "mahalanobis": Mahalanobis,
    "knn": KNN,
    "dropout": MCDropout,
}
"""Name -> the score, its arguments after colons: ``knn:k=50``."""


def ood_features(classifier: Classifier, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
    """What the last layer is given; of a baseline, what its estimator is given."""
    return classifier.features(images).flatten(1)


def _require_fitted(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise DataError(f"The score '{name}' compares with training images: fit it to some first.")
    return tensor


@torch.inference_mode()
def fit_score(
    score: OODScore, classifier: Classifier, dataset: Dataset, *, batch_size: int = 256, seed: int = 0
) -> OODScore:
    """The score, fitted to the dataset's features where it is one that is; at most 20,000 images, drawn by seed.

    Raises DataError where there are no images.
    """
    if not isinstance(score, FittableScore):
        return score
    if not len(dataset):
        raise DataError("There are no training images to fit a score to.")
    chosen = dataset.subset(np.sort(runtime.permutation(len(dataset), seed)[:MAX_REFERENCE_IMAGES]))
    features = map_batches(
        classifier, chosen, lambda pixels: ood_features(classifier, pixels).float().cpu(), batch_size=batch_size
    )
    return score.fit(features, torch.from_numpy(chosen.labels))


@torch.inference_mode()
def score_dataset(
    score: OODScore, classifier: Classifier, dataset: Dataset, *, batch_size: int = 256
) -> Float[ndarray, " N"]:
    """The score of every image of a dataset, in order, the classifier in eval mode."""
    if not len(dataset):
        raise DataError("There are no images to score: give data with at least one readable image.")
    scores = map_batches(classifier, dataset, partial(score, classifier), batch_size=batch_size)
    return scores.cpu().numpy().astype(np.float64)
