"""One image becomes many: batched tensors, an explicit generator, labels as they were.

A member is a frozen value, ``(Batch, generator) -> Batch``; its ``repr`` rebuilds it.
"""

from .geometry import Affine, Flip, Rotate, Scale, Shift, warp
from .policy import AUGMENTATIONS, Augmentation, Compose, policy

__all__ = [
    "AUGMENTATIONS",
    "Affine",
    "Augmentation",
    "Compose",
    "Flip",
    "Rotate",
    "Scale",
    "Shift",
    "policy",
    "warp",
]
