"""The training images that look most alike to the network, in the features that its last layer is given."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from .. import progress, runtime
from ..classifier import Classifier
from ..data import count_batches, iterate_batches, relabel, stratified_subset
from ..errors import DataError
from ..types import Dataset
from .base import EXPLANATION_BATCH_SIZE, deterministic_eval

MAX_GALLERY_IMAGES = 5000
"""Training images that are looked through, at most; of more, a stratified sample."""


def embed_images(classifier: Classifier, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
    """What the last layer is given; of a baseline the features its estimator is given."""
    return classifier.features(pixels).flatten(1).float()


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest training images of B images, nearest first."""

    index: Int[ndarray, "B k"]
    """Positions in the gallery's dataset; -1 where there are fewer than k."""
    distance: Float[ndarray, "B k"]
    """Euclidean, in features; infinite where there are fewer than k."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Training images with their features."""

    dataset: Dataset
    features: Float[Tensor, "N D"]

    def nearest(
        self, features: Float[Tensor, "B D"], k: int = 5, labels: Int[Tensor, " B"] | None = None
    ) -> Neighbours:
        """The ``k`` nearest images to each; with ``labels``, the nearest of these classes."""
        distance = torch.cdist(features.double(), self.features.double())  # (B N)
        if labels is not None:
            own = torch.from_numpy(self.dataset.labels).to(labels.device)
            distance = distance.masked_fill(own[None] != labels[:, None], torch.inf)
        found, index = distance.topk(min(k, distance.shape[1]), dim=1, largest=False)
        missing = ~found.isfinite()
        return Neighbours(index.masked_fill(missing, -1).cpu().numpy(), found.cpu().numpy())

    def distance(
        self, features: Float[Tensor, "B D"], labels: Int[Tensor, " B"], k: int = 5
    ) -> Float[ndarray, " B"]:
        """The mean distance to the ``k`` nearest images of each class; infinite where there are none."""
        found = self.nearest(features, k, labels).distance
        count = np.isfinite(found).sum(1)
        total = np.where(np.isfinite(found), found, 0).sum(1)
        return np.where(count > 0, total / np.maximum(count, 1), np.inf)


def build_gallery(
    classifier: Classifier,
    dataset: Dataset,
    *,
    most: int = MAX_GALLERY_IMAGES,
    seed: int = 0,
    features: Float[Tensor, "N D"] | None = None,
) -> Gallery:
    """Training images with their features, in one pass; of more than ``most`` images a stratified sample.

    Labels become those of the classifier, by name. ``features`` are those of an equal call before.
    Raises DataError where no image is left.
    """
    chosen = _match_classes(classifier, dataset, most, seed)
    if features is not None and len(features) == len(chosen):
        return Gallery(chosen, features.to(classifier.device))
    parts = []
    with (
        deterministic_eval(classifier),
        torch.no_grad(),
        progress.progress_bar("training images", count_batches(len(chosen), EXPLANATION_BATCH_SIZE)) as advance,
    ):
        for batch in iterate_batches(chosen, EXPLANATION_BATCH_SIZE, device=classifier.device):
            parts.append(embed_images(classifier, batch.pixels))
            advance()
    return Gallery(chosen, torch.cat(parts))


def _match_classes(classifier: Classifier, dataset: Dataset, most: int, seed: int) -> Dataset:
    """The images of the classifier's classes, at most ``most``, their labels those of the classifier."""
    known = relabel(dataset, classifier.classes, drop_unknown=True)
    known = known.subset(known.is_labelled)
    if not len(known):
        raise DataError("There are no training images of the classifier's classes to compare with.")
    if len(known) <= most:
        return known
    return known.subset(stratified_subset(known.labels, runtime.permutation(len(known), seed), limit=most))
