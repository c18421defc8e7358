"""Whether an adaptation helps: on a labelled handful of the target, compared with fine-tuning on that handful."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from ..classifier import Classifier
from ..inference import map_batches, match_labels
from ..metrics import paired_difference, wilson
from ..runtime import permutation
from ..types import Dataset, Interval

MIN_JUDGED_IMAGES = 100
"""Labelled target images from which an adaptation may be called proven."""

TUNING_FOLDS = 5
"""Parts of the labelled images; each is answered by a last layer that was tuned on the others."""

TUNING_PENALTY = 0.1
"""Squared norm of the change of the last layer (standardised features) in the mean loss. Fixed: a handful is too small
to choose it on."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """Accuracies on the same labelled target images, none of which any of the ways has seen with its label."""

    n: int
    accuracies: Mapping[str, Interval]
    """Way -> accuracy: ``source``, ``adapted``, ``fine-tuned`` (the source's last layer, tuned on the other folds), and
    ``adapted, fine-tuned``."""
    differences: Mapping[str, Interval]
    """Way -> its accuracy minus that of ``source``, paired by image."""

    @property
    def verdict(self) -> Literal["helps", "hurts", "unclear", "too few"]:
        """What these images say of the adaptation alone."""
        change = self.differences["adapted"]
        if change.high < 0:
            return "hurts"
        if self.n < MIN_JUDGED_IMAGES:
            return "too few"
        return "helps" if change.low > 0 else "unclear"

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "n": self.n,
            "verdict": self.verdict,
            "accuracies": {way: one.as_json() for way, one in self.accuracies.items()},
            "differences": {way: one.as_json() for way, one in self.differences.items()},
        }


def judge(source: Classifier, adapted: Classifier, images: Dataset, seed: int = 0) -> Judgement:
    """Compare both classifiers, each also with its last layer fine-tuned, on labelled target images.

    Fine-tuning is cross-fitted: no image is answered by a layer that saw its label. Raises DataError where the images
    have classes that the classifier does not know.
    """
    labels = match_labels(source, images)
    right: dict[str, Bool[ndarray, " N"]] = {}
    for way, tuned, classifier in (
        ("source", "fine-tuned", source),
        ("adapted", "adapted, fine-tuned", adapted),
    ):
        features, logits = features_and_logits(classifier, images)
        right[way] = logits.argmax(1).numpy() == labels
        right[tuned] = cross_fit(features, logits, labels, seed) == labels
    order = ("source", "adapted", "fine-tuned", "adapted, fine-tuned")
    return Judgement(
        len(labels),
        {way: wilson(float(right[way].sum()), len(labels)) for way in order},
        {way: paired_difference(right[way], right["source"]) for way in order[1:]},
    )


@torch.no_grad()
def features_and_logits(classifier: Classifier, images: Dataset) -> tuple[Float[Tensor, "N D"], Tensor]:
    """Features (N, D) and logits (N, K) of every image, on the CPU."""
    count = len(classifier.classes)
    both = map_batches(
        classifier, images, lambda pixels: torch.cat([one.float() for one in classifier.features_and_logits(pixels)], 1)
    ).cpu()  # fmt: skip
    return both[:, :-count], both[:, -count:]


def cross_fit(
    features: Float[Tensor, "N D"], logits: Float[Tensor, "N K"], labels: Int[ndarray, " N"], seed: int = 0
) -> Int[ndarray, " N"]:
    """The class of each image by a last layer tuned on the other folds; classes are spread evenly over the folds."""
    order = permutation(len(labels), seed)
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % TUNING_FOLDS
    answers = logits.argmax(1).numpy()
    for number in range(TUNING_FOLDS):
        held = fold == number
        if held.any() and not held.all():
            weight, bias = tune_last_layer(features[~held], logits[~held], torch.from_numpy(labels[~held]))
            answers[held] = (logits[held] + features[held] @ weight.T + bias).argmax(1).numpy()
    return answers


def tune_last_layer(
    features: Float[Tensor, "N D"], logits: Float[Tensor, "N K"], labels: Int[Tensor, " N"]
) -> tuple[Float[Tensor, "K D"], Float[Tensor, " K"]]:
    """The change (weight, bias) of the last layer that lowers the cross-entropy of these images, and stays small.

    A ridge penalty of ``TUNING_PENALTY`` on the standardised features pulls it to no change. Deterministic.
    """
    x, z = features.double(), logits.double()
    mean, std = x.mean(0), x.std(0, unbiased=False) + 0.1 * x.std(unbiased=False) + 1e-9
    x = (x - mean) / std
    change = torch.zeros(z.shape[1], x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([change], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Float[Tensor, ""]:
        optimizer.zero_grad()
        value = F.cross_entropy(z + x @ change[:, :-1].T + change[:, -1], labels)
        value = value + TUNING_PENALTY / 2 * change[:, :-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type]
    found = change.detach()
    weight = found[:, :-1] / std
    return weight.float(), (found[:, -1] - weight @ mean).float()
