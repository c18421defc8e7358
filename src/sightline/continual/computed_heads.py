"""Strategies that compute the last layer from sums over frozen features: seconds, no forgetting, no order."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from ..classifier import Classifier
from ..errors import RecipeError
from ..layers import RandomFeatureHead, get_head
from ..training import Method
from .rehearsal import NaiveFineTuning
from .statistics import FeatureStatistics, RidgeStatistics, random_projection
from .strategy import Past, Strategy, Task, fill_head, with_new_head


@dataclass(frozen=True)
class ComputedHead(Strategy):
    """A head computed from what is remembered; only the first images train the network."""

    computes_head: ClassVar[bool] = True

    def method(self, task: Task) -> Method | None:
        """Ordinary training where nothing was learned before; afterwards none."""
        return NaiveFineTuning().method(task) if task.previous is None else None

    def remember(self, task: Task) -> Past:
        """The sums with the new images, and no image."""
        features = task.embed(task.classifier, task.new)
        fresh = FeatureStatistics.of(features, task.new.labels, task.classifier.classes)
        before = task.past.statistics
        empty = task.new.subset(np.zeros(0, np.int64))
        return replace(
            task.past,
            images=empty,
            tasks=np.zeros(0, np.int64),
            statistics=fresh if before is None else before.expand(task.classifier.classes) + fresh,
        )

    @abstractmethod
    def answer(self, task: Task, remembered: Past) -> Classifier:
        """The classifier with the head."""


@dataclass(frozen=True)
class LDA(ComputedHead):
    """Linear discriminant analysis with one covariance for all classes and equal priors.

    Arguments:
        shrinkage: of the covariance towards a multiple of the identity, in (0, 1]. Default: D / (D + N) for N images of
            D features.
    """

    shrinkage: float | None = None

    def answer(self, task: Task, remembered: Past) -> Classifier:
        """The classifier with an ordinary linear head."""
        assert remembered.statistics is not None
        statistics, rows = remembered.statistics.with_images()
        fitted = statistics.fit_lda(self.shrinkage)
        found = with_new_head(task.classifier, task.classifier.classes)
        fill_head(found, rows, fitted.weight, fitted.bias)
        return found


@dataclass(frozen=True)
class ClassMean(ComputedHead):
    """The nearest class mean."""

    def answer(self, task: Task, remembered: Past) -> Classifier:
        """The classifier with a head of class means."""
        assert remembered.statistics is not None
        statistics, rows = remembered.statistics.with_images()
        found = with_new_head(task.classifier, task.classifier.classes, "prototypes", normalise=False)
        means = torch.from_numpy(statistics.means)
        fill_head(found, rows, 2 * means, -means.square().sum(1))
        return found


@dataclass(frozen=True)
class RanPAC(ComputedHead):
    """Ridge regression on random features of the frozen features, every class of equal weight.

    Arguments:
        projections: number of random features; the sums take 4 projections^2 bytes for each class.
        seed: of their weights: sums that are kept fit one seed.
    """

    projections: int = 1000
    seed: int = 0

    def sum(
        self, features: Float[ndarray, "N D"], labels: Int[ndarray, " N"], classes: Sequence[str]
    ) -> RidgeStatistics:
        """The sums over the random features of N images; labels are in [0, K)."""
        projection = random_projection(features.shape[1], self.projections, self.seed)
        hidden = torch.relu(torch.from_numpy(features).double() @ projection.double().T)
        return RidgeStatistics.of(hidden.numpy(), labels, classes)

    def check_sums(self, ridge: RidgeStatistics | None) -> None:
        """Raise RecipeError without sums of as many random features."""
        if ridge is None:
            raise RecipeError(
                "The run keeps no sums of random features, and its images are not there: choose --by lda or means."
            )
        if ridge.sums.shape[1] != self.projections:
            raise RecipeError(
                f"The run keeps sums of {ridge.sums.shape[1]} random features, not of {self.projections}: choose "
                f"--by ranpac:projections={ridge.sums.shape[1]}."
            )

    def remember(self, task: Task) -> Past:
        """The sums over random features, with the new images."""
        features, before = task.embed(task.classifier, task.new), task.past.ridge
        fresh = self.sum(features, task.new.labels, task.classifier.classes)
        return replace(super().remember(task), ridge=fresh if before is None else before + fresh)

    def answer(self, task: Task, remembered: Past) -> Classifier:
        """The classifier with a head of random features."""
        assert remembered.ridge is not None
        seen, _ = remembered.ridge.with_images()
        weights, _ = seen.fit()
        classes = task.classifier.classes
        found = with_new_head(task.classifier, classes, "random-features", projections=self.projections)
        head = get_head(found.network)
        assert isinstance(head, RandomFeatureHead)
        places = [classes.index(name) for name in seen.classes]
        with torch.no_grad():
            head.projection.copy_(random_projection(head.in_features, self.projections, self.seed))
        fill_head(found, places, torch.from_numpy(weights.T), torch.zeros(len(places)))
        return found
