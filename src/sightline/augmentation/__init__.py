"""One image becomes many: augmentations of batches, drawn from an explicit generator.

A member is a frozen value, ``(Batch, generator) -> Batch``; its ``repr`` rebuilds it. Labels stay as they are
unless images are mixed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Generator

from ..batches import Batch
from ..choose import choose
from .automatic import RandAugment, StrongAugment, TrivialAugment
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

Augmentation = Callable[[Batch, Generator], Batch]

AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    "flip": Flip,
    "alternating-flip": AlternatingFlip,
    "vertical-flip": VerticalFlip,
    "shift": Shift,
    "rotate": Rotate,
    "scale": Scale,
    "affine": Affine,
    "shear": Shear,
    "resized-crop": ResizedCrop,
    "elastic": Elastic,
    "brightness": Brightness,
    "contrast": Contrast,
    "saturation": Saturation,
    "hue": Hue,
    "sharpen": Sharpen,
    "blur": Blur,
    "noise": Noise,
    "erase": Erase,
    "mixup": Mixup,
    "cutmix": CutMix,
    "trivialaugment": TrivialAugment,
    "randaugment": RandAugment,
    "strong": StrongAugment,
}
"""Name -> the augmentation, its arguments after colons: ``rotate:10``, ``affine:10:scale=0.1``."""


@dataclass(frozen=True)
class Compose:
    """Augmentations applied in order; none is the identity."""

    members: tuple[Augmentation, ...] = ()

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch after every member."""
        for member in self.members:
            batch = member(batch, generator)
        return batch


def parse_policy(words: str | Sequence[str | Augmentation]) -> Compose:
    """The augmentations of these words, such as ``["flip", "shift:4"]`` or ``"flip shift:4"``, as one.

    An object is returned unchanged. Raises ChoiceError for an unknown name or an impossible magnitude.

    >>> parse_policy(["flip", "rotate:10"])
    Compose(members=(Flip(p=0.5), Rotate(degrees=10, fill='zero')))
    """
    parts = words.replace(",", " ").split() if isinstance(words, str) else words
    return Compose(tuple(choose(AUGMENTATIONS, part, "augmentation") for part in parts))
