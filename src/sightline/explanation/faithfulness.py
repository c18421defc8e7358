"""Tests of a map: deletion and insertion curves, and the comparison with maps of shuffled weights."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from .. import runtime
from ..classifier import Classifier, frozen_eval
from ..types import Remark
from .attribution import FillValue, fill_images
from .base import EXPLANATION_BATCH_SIZE, Explainer, reduce_channels

CURVE_STEPS = 20
"""Equal parts in which the image is removed, or brought back."""

ROLLED_MAPS = 4
"""Copies of a map, each moved to another place, that show what its shape is worth there."""

WEIGHT_SHUFFLES = 3
"""Networks with shuffled weights that a map is compared with."""

MAX_SHUFFLED_SIMILARITY = 0.7
"""Rank correlation with the map of shuffled weights from which a warning is given; an edge detector has 1."""


@dataclass(frozen=True, eq=False)
class FaithfulnessCurves:
    """The target's probability while places are removed or brought back, those with most evidence first."""

    deletion: Float[ndarray, "B S"]
    """From the whole image to none of it; the lower the area, the better the map."""
    insertion: Float[ndarray, "B S"]
    """From none of the image to all of it; the higher the area, the better the map."""

    @property
    def deletion_area(self) -> Float[ndarray, " B"]:
        """Under the deletion curve, 0 to 1."""
        return np.trapezoid(self.deletion, dx=1 / (self.deletion.shape[1] - 1), axis=1)

    @property
    def insertion_area(self) -> Float[ndarray, " B"]:
        """Under the insertion curve, 0 to 1."""
        return np.trapezoid(self.insertion, dx=1 / (self.insertion.shape[1] - 1), axis=1)


def measure_curves(
    classifier: Classifier,
    images: Float[Tensor, "B C H W"],
    targets: Int[Tensor, " B"],
    found: Float[Tensor, "B H W"],
    *,
    steps: int = CURVE_STEPS,
    fill: FillValue = "blur",
) -> FaithfulnessCurves:
    """Deletion and insertion curves (Petsiuk et al. 2018, arXiv 1806.07421) of calibrated target probabilities.

    ``found`` is the evidence that orders the places; removed places become ``fill``.
    """
    order = found.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1).view_as(found)
    edges = torch.linspace(0, order.shape[1], steps + 1, device=found.device).round()
    gone = rank < edges.view(-1, 1, 1, 1)  # (S B H W)
    without = fill_images(images, fill)
    both = []
    with frozen_eval(classifier, weight_noise=False), torch.no_grad():
        for base, other in ((images, without), (without, images)):
            rows = []
            for some in gone.split(max(1, EXPLANATION_BATCH_SIZE // len(images))):
                mixed = torch.where(some[:, :, None], other, base).flatten(0, 1)
                answers = classifier.probabilities(mixed).gather(1, targets.repeat(len(some))[:, None])
                rows.append(answers.view(len(some), -1))
            both.append(torch.cat(rows).T.cpu().numpy().astype(np.float64))
    return FaithfulnessCurves(*both)


def shuffle_weights(classifier: Classifier, seed: int = 0) -> Classifier:
    """A copy with the numbers of each weight tensor in random order; biases and norms stay."""
    other = copy.deepcopy(classifier)
    generator = runtime.make_generator(seed)
    with torch.no_grad():
        for weight in other.network.parameters():
            if weight.ndim > 1:
                mixed = torch.randperm(weight.numel(), generator=generator).to(weight.device)
                weight.copy_(weight.flatten()[mixed].view_as(weight))
    return other


def rank_correlation(one: Float[Tensor, "B H W"], other: Float[Tensor, "B H W"]) -> Float[ndarray, " B"]:
    """Spearman's rank correlation of two maps of each image; 1 for two flat maps."""
    from scipy.stats import rankdata

    ranks = [rankdata(each.flatten(1).double().cpu().numpy(), axis=1) for each in (one, other)]
    a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    flat = (np.ptp(a, axis=1) == 0) & (np.ptp(b, axis=1) == 0)
    return np.where(flat, 1.0, np.divide((a * b).sum(1), size, out=np.zeros(len(a)), where=size > 0))


def compare_with_shuffled(
    classifier: Classifier,
    images: Float[Tensor, "B C H W"],
    targets: Int[Tensor, " B"],
    explainer: Explainer,
    found: Float[Tensor, "B H W"],
    *,
    shuffles: int = WEIGHT_SHUFFLES,
) -> Float[ndarray, " B"]:
    """Mean rank correlation with the maps of shuffled weights (Adebayo et al. 2018, arXiv 1810.03292)."""
    alike = []
    for seed in range(shuffles):
        other = shuffle_weights(classifier, seed)
        alike.append(rank_correlation(found, reduce_channels(explainer, explainer(other, images, targets))))
    return np.mean(alike, axis=0)


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How far the maps of B images by one explainer can be trusted."""

    curves: FaithfulnessCurves
    rolled: Mapping[str, Float[ndarray, " B"]]
    """Areas of the maps moved to other places: ``deletion`` and ``insertion``."""
    similarity: Float[ndarray, " B"] | None
    """Rank correlation with the maps of shuffled weights; None for a classifier without gradients."""

    def row(self, i: int) -> dict[str, Any]:
        """The numbers of one image, JSON-ready."""
        return {
            "deletion_area": float(self.curves.deletion_area[i]),
            "insertion_area": float(self.curves.insertion_area[i]),
            "deletion_elsewhere": float(self.rolled["deletion"][i]),
            "insertion_elsewhere": float(self.rolled["insertion"][i]),
            "similarity_shuffled": None if self.similarity is None else float(self.similarity[i]),
        }

    def as_json(self) -> dict[str, Any]:
        """The means over the images."""
        rows = [self.row(i) for i in range(len(self.curves.deletion))]
        return {
            name: None if rows[0][name] is None else float(np.mean([row[name] for row in rows]))
            for name in rows[0]
        }

    def remarks(self, by: str) -> tuple[Remark, ...]:
        """Warnings about maps that ignore the weights, and maps that are no better than moved elsewhere."""
        said, found = [], self.as_json()
        alike = found["similarity_shuffled"]
        if alike is not None and alike >= MAX_SHUFFLED_SIMILARITY:
            said.append(
                f"The map of {by} hardly depends on the network's weights (rank correlation {alike:.2f} with the "
                "map of shuffled weights): it shows the image, not the reason for the answer. Try another --by."
            )
        deletion = found["deletion_area"] >= found["deletion_elsewhere"]
        if deletion and found["insertion_area"] <= found["insertion_elsewhere"]:
            said.append(
                f"The map of {by} is no better than the same map moved to other places (deletion "
                f"{found['deletion_area']:.2f} against {found['deletion_elsewhere']:.2f}, insertion "
                f"{found['insertion_area']:.2f} against {found['insertion_elsewhere']:.2f}): do not rely on it."
            )
        return tuple(Remark("warning", text) for text in said)


def measure_faithfulness(
    classifier: Classifier,
    images: Float[Tensor, "B C H W"],
    targets: Int[Tensor, " B"],
    explainer: Explainer,
    attribution: Float[Tensor, "B C H W"],
    *,
    shuffles: int = WEIGHT_SHUFFLES,
) -> Faithfulness:
    """Test the maps of an explainer: their curves, those of the maps moved elsewhere, and shuffled weights."""
    found = reduce_channels(explainer, attribution)
    height, width = found.shape[1:]
    shifts = 0.25 + 0.5 * torch.rand(ROLLED_MAPS, 2, generator=runtime.make_generator(0))
    moved = [
        measure_curves(
            classifier,
            images,
            targets,
            found.roll((round(float(down) * height), round(float(along) * width)), (1, 2)),
        )
        for down, along in shifts
    ]
    elsewhere = {
        "deletion": np.mean([one.deletion_area for one in moved], axis=0),
        "insertion": np.mean([one.insertion_area for one in moved], axis=0),
    }
    alike = None
    if classifier.differentiable and shuffles:
        alike = compare_with_shuffled(classifier, images, targets, explainer, found, shuffles=shuffles)
    return Faithfulness(measure_curves(classifier, images, targets, found), elsewhere, alike)
