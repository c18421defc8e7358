"""What training minimises: ``(classifier, Batch) -> loss ()``. To add one, write it and name it in OBJECTIVES."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float
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
    """

    label_smoothing: float = 0.0

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean cross-entropy of the batch, in float32 whatever the network's precision."""
        logits = classifier(batch.pixels).float()
        return F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)


OBJECTIVES: Mapping[str, Callable[..., Objective]] = {"cross-entropy": CrossEntropy}
