"""Ways to compute a last layer on the features of frozen weights; each is one frozen value and one line in plan.py."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from .linear_probe import fit_linear_probe

SHRINKAGE_PRIOR = 0.1
"""Share of the mean variance in the covariance of linear discriminant analysis where no shrinkage is given."""


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A last layer, and what its fitting measured."""

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    facts: dict[str, Any]


class HeadMethod(ABC):
    """Computes a last layer from features: ``fit``. A member that ``fine_tunes`` is trained on by gradient."""

    fine_tunes: ClassVar[bool] = False

    @abstractmethod
    def fit(
        self,
        features: Float[ndarray, "N D"],
        labels: Int[ndarray, " N"],
        n_classes: int,
        *,
        seed: int,
        weights: Float[ndarray, " N"] | None = None,
    ) -> FittedHead:
        """The last layer for features and labels in [0, n_classes); ``weights`` are of the images."""


@dataclass(frozen=True)
class LinearProbeHead(HeadMethod):
    """Multinomial logistic regression, its penalty by cross-validation."""

    def fit(self, features, labels, n_classes, *, seed, weights=None):
        """The regression; the facts have its penalty and the accuracy of images left out."""
        probe = fit_linear_probe(features, labels, n_classes, seed=seed, weights=weights)
        facts = {"penalty": probe.penalty, "cross_validated_accuracy": probe.accuracy}
        return FittedHead(probe.weight, probe.bias, facts)


@dataclass(frozen=True)
class ProbeThenFineTune(LinearProbeHead):
    """The logistic regression, from which the whole network is fine-tuned where that pays."""

    fine_tunes = True


@dataclass(frozen=True)
class ClassMeans(HeadMethod):
    """The nearest class mean: ``W = 2 mu, b = -|mu|^2``, whose softmax is that of ``-|f - mu|^2`` (Snell et al. 2017).

    Features are divided by their mean squared length, so that distances, and probabilities, are of order 1.
    """

    def fit(self, features, labels, n_classes, *, seed, weights=None):  # noqa: ARG002
        """The class means; nothing is drawn."""
        means = _class_means(features, labels, n_classes, weights)
        centre = means.mean(0)  # the same for every class: it changes no difference between logits
        means = means - centre
        scale = 1 / np.square(features - centre).sum(1).mean()
        weight = 2 * scale * means
        bias = -scale * np.square(means).sum(1) - weight @ centre
        return FittedHead(_tensor(weight), _tensor(bias), {})


@dataclass(frozen=True)
class LinearDiscriminant(HeadMethod):
    """Linear discriminant analysis: one covariance for all classes, shrunk towards a multiple of the identity.

    ``W = S^-1 mu, b = -mu' S^-1 mu / 2 + ln(prior)`` (Fisher 1936); ``shrinkage`` in (0, 1].
    """

    shrinkage: float = SHRINKAGE_PRIOR

    def fit(self, features, labels, n_classes, *, seed, weights=None):  # noqa: ARG002
        """The discriminant; nothing is drawn."""
        images = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
        means = _class_means(features, labels, n_classes, weights)
        centre = means.mean(0)
        rest = (features - means[labels]) * np.sqrt(images)[:, None]
        covariance = rest.T @ rest / images.sum()
        width = covariance.shape[0]
        level = np.trace(covariance) / width or 1.0
        covariance = (1 - self.shrinkage) * covariance + self.shrinkage * level * np.eye(width)
        weight = np.linalg.solve(covariance, (means - centre).T).T
        prior = np.bincount(labels, images, n_classes) / images.sum()
        bias = -0.5 * ((means - centre) * weight).sum(1) - weight @ centre + np.log(prior)
        return FittedHead(_tensor(weight), _tensor(bias), {"shrinkage": self.shrinkage})


def _class_means(
    features: Float[ndarray, "N D"],
    labels: Int[ndarray, " N"],
    n_classes: int,
    weights: Float[ndarray, " N"] | None,
) -> Float[ndarray, "K D"]:
    images = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    sums = np.zeros((n_classes, features.shape[1]))
    np.add.at(sums, labels, features * images[:, None])
    return sums / np.bincount(labels, images, n_classes)[:, None]


def _tensor(values: ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
