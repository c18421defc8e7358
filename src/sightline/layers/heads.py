"""Last layers that prepare their features first: the nearest class mean, and random features."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

MIN_LENGTH = 1e-2
"""Shorter vectors are not brought to full length: the direction of a vector of length 0 has an infinite slope."""


class PreparedHead(nn.Linear):
    """A last layer ``W prepare(f) + b``."""

    kind: ClassVar[str]
    """Its word in ``HEADS``."""

    @property
    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """The arguments besides features and classes that make it again."""

    @abstractmethod
    def prepare(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B M"]:
        """What the linear layer is applied to."""

    @abstractmethod
    def same_kind(self, classes: int) -> nn.Linear:
        """A head for ``classes`` classes that prepares features as this one does, its weights not set."""

    @abstractmethod
    def keep_inputs(self, inputs: Int[Tensor, " d"]) -> None:
        """Keep only these of the features, after the network lost the others."""

    def forward(self, input: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return F.linear(self.prepare(input), self.weight, self.bias)


class PrototypeHead(PreparedHead):
    """Logits ``2 mu_k . f - |mu_k|^2`` of features f, mu_k the mean of class k: ``W = 2 mu``, ``b = -|mu|^2``.

    Their softmax is that of ``-|f - mu_k|^2``, because ``|f|^2`` is the same for every class (Snell et al. 2017,
    arXiv 1703.05175, equation 8). With ``normalise``, f is ``(x - centre) / |x - centre|`` of what the layer is
    given: the nearest mean of exemplars of iCaRL (Rebuffi et al. 2017, arXiv 1611.07725, algorithm 1). Other heads
    on centred and normalised features are this layer with weights of their own.
    """

    kind = "prototypes"
    centre: Tensor

    def __init__(self, features: int, classes: int, *, normalise: bool = True):
        super().__init__(features, classes)
        self.normalise = normalise
        self.register_buffer("centre", torch.zeros(features))

    @property
    def arguments(self) -> dict[str, Any]:
        """Whether features are normalised."""
        return {"normalise": self.normalise}

    def prepare(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The features f that means and distances are of."""
        return F.normalize(x - self.centre, dim=1) if self.normalise else x

    def same_kind(self, classes: int) -> nn.Linear:
        """A head for ``classes`` classes with the same centre."""
        head = PrototypeHead(self.in_features, classes, normalise=self.normalise)
        head.centre.copy_(self.centre)
        return head

    def keep_inputs(self, inputs: Int[Tensor, " d"]) -> None:
        """Keep these columns of the means and of the centre."""
        with torch.no_grad():
            self.weight = nn.Parameter(self.weight.index_select(1, inputs), self.weight.requires_grad)
        self.centre = self.centre.index_select(0, inputs)
        self.in_features = len(inputs)

    @torch.no_grad()
    def set_means(self, means: Float[Tensor, "K D"]) -> None:
        """Take these class means, of prepared features, as the prototypes."""
        self.weight.copy_(2 * means)
        self.bias.copy_(-means.square().sum(1))

    @torch.no_grad()
    def fit(
        self, x: Float[Tensor, "N D"], labels: Int[Tensor, " N"], centre: Float[Tensor, " D"] | None = None
    ) -> None:
        """Take the class means of ``x``, what the layer is given for N images, with ``labels`` in [0, K).

        ``centre`` (zeros by default) is subtracted before features are normalised, such as the mean over other
        data. Raises ValueError where a class has no image.
        """
        if centre is not None:
            self.centre.copy_(centre)
        counts = torch.bincount(labels, minlength=self.out_features)
        if len(counts) > self.out_features or not bool(counts.all()):
            raise ValueError(
                f"every one of the {self.out_features} classes needs an image, and no other may have any"
            )
        sums = torch.zeros_like(self.weight).index_add_(0, labels, self.prepare(x).to(self.weight.dtype))
        self.set_means(sums / counts[:, None])


class CosineHead(PreparedHead):
    """Logits ``scale cos(w_k, f)``: the angle between features f and a direction for each class (CosFace, ArcFace).

    Arguments:
        features: D, the length of f.
        classes: K.
        scale: largest logit.
    """

    kind = "cosine"

    def __init__(self, features: int, classes: int, *, scale: float = 16.0):
        super().__init__(features, classes, bias=False)
        self.scale = scale

    @property
    def arguments(self) -> dict[str, Any]:
        """The scale."""
        return {"scale": self.scale}

    def prepare(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The features at length ``scale``."""
        return self.scale * F.normalize(x, dim=1, eps=MIN_LENGTH)

    def forward(self, input: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return F.linear(self.prepare(input), F.normalize(self.weight, dim=1, eps=MIN_LENGTH))

    def same_kind(self, classes: int) -> nn.Linear:
        """A head for ``classes`` classes with the same scale."""
        return CosineHead(self.in_features, classes, scale=self.scale)

    def keep_inputs(self, inputs: Int[Tensor, " d"]) -> None:
        """Keep these columns of the directions."""
        with torch.no_grad():
            self.weight = nn.Parameter(self.weight.index_select(1, inputs), self.weight.requires_grad)
        self.in_features = len(inputs)


class RandomFeatureHead(PreparedHead):
    """Logits ``W relu(P f) + b`` of features f; P is drawn, never trained (RanPAC: McDonnell et al. 2023).

    Arguments:
        features: D, the length of f.
        classes: K.
        projections: M, the number of random features.
    """

    kind = "random-features"
    projection: Tensor

    def __init__(self, features: int, classes: int, *, projections: int = 2000):
        super().__init__(projections, classes)
        self.in_features = features
        self.register_buffer("projection", torch.zeros(projections, features))

    @property
    def arguments(self) -> dict[str, Any]:
        """The number of random features."""
        return {"projections": len(self.projection)}

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
    if isinstance(head, PreparedHead):
        return head.kind, head.arguments
    return "linear", {} if head.bias is not None else {"bias": False}
