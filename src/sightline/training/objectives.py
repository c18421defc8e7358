"""What training minimises: ``(classifier, Batch) -> loss ()``. To add one, write it and name it in OBJECTIVES."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from ..classifier import Classifier
from ..types import Batch


@runtime_checkable
class Objective(Protocol):
    """A value that says how wrong a classifier is on a batch."""

    def __call__(self, classifier: Classifier, batch: Batch, /) -> Float[Tensor, ""]:
        """The mean loss over the batch."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """-sum_c q_c log softmax(z)_c, mean over the batch, q the label mixed with the uniform distribution.

    ``label_smoothing`` is the share of the uniform one (Szegedy et al. 2016, section 7). Soft labels work too.
    ``class_weights`` multiply each class's terms; the sum is divided by the number of images, not of weights,
    so that pieces of a batch add up to the batch.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean cross-entropy of the batch, in float32 whatever the network's precision."""
        logits = classifier(batch.pixels).float()
        if self.class_weights is None:
            return F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        weights = torch.tensor(self.class_weights, device=logits.device)
        return F.cross_entropy(
            logits, batch.labels, weights, label_smoothing=self.label_smoothing, reduction="sum"
        ) / len(batch)


OBJECTIVES: Mapping[str, Callable[..., Objective]] = {"cross-entropy": CrossEntropy}


def balanced_weights(counts: Int[ndarray, " K"]) -> tuple[float, ...]:
    """N / (K n_c) for each class: every class weighs the same in all, the mean over images is 1; absent ones 0."""
    present = counts > 0
    weights = np.divide(counts.sum(), present.sum() * counts, out=np.zeros(len(counts)), where=present)
    return tuple(weights.tolist())
