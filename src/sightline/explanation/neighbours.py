"""The training images nearest to an image, in the features before the network's last layer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from .. import progress, runtime
from ..classifier import Classifier, frozen_eval
from ..data import count_batches, iterate_batches, relabel, stratified_subset
from ..errors import DataError
from ..types import Dataset
from .base import EXPLANATION_BATCH_SIZE

MAX_GALLERY_IMAGES = 5000
"""Training images searched, at most; of more a stratified sample."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest training images of B images, nearest first."""

    index: Int[ndarray, "B k"]
    """Positions in the gallery's dataset; -1 where it has fewer than k images."""
    distance: Float[ndarray, "B k"]
    """Euclidean distance of the features; infinite where the gallery has fewer than k images."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Training images with their features."""

    dataset: Dataset
    features: Float[Tensor, "N D"]

    def nearest(
        self, features: Float[Tensor, "B D"], k: int = 5, labels: Int[Tensor, " B"] | None = None
    ) -> Neighbours:
        """The ``k`` nearest images to each; with ``labels``, the nearest of each image's class."""
        distance = torch.cdist(features.double(), self.features.double())  # (B N)
        if labels is not None:
            own = torch.from_numpy(self.dataset.labels).to(labels.device)
            distance = distance.masked_fill(own[None] != labels[:, None], torch.inf)
        found, index = distance.topk(min(k, distance.shape[1]), dim=1, largest=False)
        missing = ~found.isfinite()
        return Neighbours(index.masked_fill(missing, -1).cpu().numpy(), found.cpu().numpy())

    def describe_nearest(self, features: Float[Tensor, "B D"], k: int) -> list[tuple[dict[str, Any], ...]]:
        """Position, file, label and distance of each image's ``k`` nearest, JSON-ready."""
        near, known = self.nearest(features, k), self.dataset
        return [
            tuple(
                {
                    "index": int(i),
                    "file": str(known.files[i]),
                    "label": known.classes[known.labels[i]],
                    "distance": float(distance),
                }
                for i, distance in zip(indices, distances, strict=True)
                if i >= 0
            )
            for indices, distances in zip(near.index, near.distance, strict=True)
        ]

    def distance(
        self, features: Float[Tensor, "B D"], labels: Int[Tensor, " B"], k: int = 5
    ) -> Float[ndarray, " B"]:
        """The mean distance to the ``k`` nearest images of the class ``labels``; infinite where there are none."""
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
    """The images of the classifier's classes with their features; of more than ``most`` a stratified sample.

    Labels become those of the classifier, matched by name. ``features`` are those of an earlier equal call. Raises
    DataError where no image is left.
    """
    chosen = relabel(dataset, classifier.classes, drop_unknown=True)
    chosen = chosen.subset(chosen.is_labelled)
    if not len(chosen):
        raise DataError("There are no training images of the classifier's classes to compare with.")
    if len(chosen) > most:
        order = runtime.permutation(len(chosen), seed)
        chosen = chosen.subset(stratified_subset(chosen.labels, order, limit=most))
    if features is not None and len(features) == len(chosen):
        return Gallery(chosen, features.to(classifier.device))
    count = count_batches(len(chosen), EXPLANATION_BATCH_SIZE)
    with (
        frozen_eval(classifier, weight_noise=False),
        torch.no_grad(),
        progress.progress_bar("training images", count) as advance,
    ):
        batches = []
        for batch in iterate_batches(chosen, EXPLANATION_BATCH_SIZE, device=classifier.device):
            batches.append(classifier.features(batch.pixels).float())
            advance()
    return Gallery(chosen, torch.cat(batches))
