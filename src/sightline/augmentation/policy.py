"""Several augmentations as one, chosen by words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Generator

from ..choose import choose
from ..types import Batch
from .automatic import RandAugment, TrivialAugment
from .colour import Blur, Brightness, Contrast, Hue, Noise, Saturation, Sharpen
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
}


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
    """The augmentations these words name, such as ``["flip", "shift:4"]`` or ``"flip shift:4"``.

    An object stands for itself. Raises ChoiceError for an unknown name or an impossible magnitude.

    >>> policy(["flip", "rotate:10"])
    Compose(members=(Flip(p=0.5), Rotate(degrees=10, fill='zero')))
    """
    parts = words.replace(",", " ").split() if isinstance(words, str) else words
    return Compose(tuple(choose(AUGMENTATIONS, part, "augmentation") for part in parts))
