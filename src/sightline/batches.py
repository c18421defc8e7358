"""The images of one step, as tensors. The other values that all stages share are in ``types``, which needs no torch."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """The images that a network trains on in one step. Fields are replaced, never written to."""

    pixels: Float[Tensor, "B C H W"]
    """In [0, 1]."""
    labels: Int[Tensor, " B"] | Float[Tensor, "B K"]
    """Class indices, or a distribution over classes for each image (mixup)."""
    index: Int[Tensor, " B"]
    """Position of each image in its dataset."""
    group: Int[Tensor, " B"] | None = None
    classes: int | None = None
    """K, which is needed to turn hard labels into soft ones."""
    epoch: int = 0
    """Number of the pass over the data, from 0: what alternates by epoch depends on it."""
    view: Float[Tensor, "B C H W"] | None = None
    """The same images once more, augmented in another way (the strong view of FixMatch, the second of SimCLR)."""
    beside: "Batch | None" = None
    """A second batch of other images that a step uses with this one: unlabelled (labels -1), or of a target domain."""

    def __len__(self) -> int:
        return len(self.index)
