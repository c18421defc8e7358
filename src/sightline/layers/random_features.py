"""A last layer on random features: ``relu(P f)``, P fixed, then a linear layer."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .prototypes import PreparedHead, PrototypeHead


class RandomFeatureHead(PreparedHead):
    """Logits ``W relu(P f) + b`` of features f; P is drawn, never trained (RanPAC: McDonnell et al. 2023).

    Arguments:
        features: D, the length of f.
        classes: K.
        projections: M, the number of random features.
    """

    projection: Tensor

    def __init__(self, features: int, classes: int, *, projections: int = 2000):
        super().__init__(projections, classes)
        self.in_features = features
        self.register_buffer("projection", torch.zeros(projections, features))

    def prepare(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B M"]:
        """The random features."""
        return F.relu(F.linear(x, self.projection))

    def same_kind(self, classes: int) -> nn.Linear:
        """A head of as many random features for ``classes`` classes, with the same projection."""
        head = RandomFeatureHead(self.in_features, classes, projections=len(self.projection))
        head.projection.copy_(self.projection)
        return head

    def keep_inputs(self, inputs: Tensor) -> None:
        """Keep only these of the features."""
        self.projection = self.projection.index_select(1, inputs.to(self.projection.device))
        self.in_features = len(inputs)


def head_kind(head: nn.Linear) -> tuple[str, dict[str, Any]]:
    """The kind of a last layer in ``HEADS``, and the arguments besides features and classes that make it again."""
    if isinstance(head, RandomFeatureHead):
        return "random-features", {"projections": len(head.projection)}
    if isinstance(head, PrototypeHead):
        return "prototypes", {"normalise": head.normalise}
    return "linear", {} if head.bias is not None else {"bias": False}
