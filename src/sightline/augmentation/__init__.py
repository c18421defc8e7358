"""One image becomes many: batched tensors, an explicit generator, labels as they were unless images are mixed.

A member is a frozen value, ``(Batch, generator) -> Batch``; its ``repr`` rebuilds it.
"""

from .automatic import RandAugment, TrivialAugment
from .colour import LUMA_WEIGHTS, Blur, Brightness, Contrast, Hue, Noise, Saturation, Sharpen
from .geometry import (
    Affine,
    AlternatingFlip,
    Elastic,
    Flip,
    ResizedCrop,
    Rotate,
    Scale,
    Shear,
    Shift,
    VerticalFlip,
)
from .kernels import affine_matrices, gaussian_blur, resample, similarity_matrices, warp
from .mix import CutMix, Erase, Mixup
from .policy import AUGMENTATIONS, Augmentation, Compose, parse_policy

__all__ = [
    "AUGMENTATIONS",
    "LUMA_WEIGHTS",
    "Affine",
    "AlternatingFlip",
    "Augmentation",
    "Blur",
    "Brightness",
    "Compose",
    "Contrast",
    "CutMix",
    "Elastic",
    "Erase",
    "Flip",
    "Hue",
    "Mixup",
    "Noise",
    "RandAugment",
    "ResizedCrop",
    "Rotate",
    "Saturation",
    "Scale",
    "Sharpen",
    "Shear",
    "Shift",
    "TrivialAugment",
    "VerticalFlip",
    "affine_matrices",
    "gaussian_blur",
    "parse_policy",
    "resample",
    "similarity_matrices",
    "warp",
]
