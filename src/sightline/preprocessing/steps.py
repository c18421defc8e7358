"""What a step is, and the two that need no more than a mean and a spread."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..checks import check_positive
from ..errors import DataError

STD_FLOOR = 1 / 255
"""One grey level: what a constant channel or image is divided by, and the least any is."""


class PreprocessingStep(nn.Module, ABC):
    """One change of pixels, ``(B C H W) -> (B C H W)``, that its ``config()`` rebuilds."""

    export_refusal: str = ""
    """Why no exported file can hold the step, and what to do instead; empty where one can."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that rebuild this step, as JSON; larger tensors belong in the state_dict."""


class Normalise(PreprocessingStep):
    """``(x - mean) / std``, per channel.

    Raises ValueError unless mean and std are finite, of one length, and std is positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.statistics = tuple(map(float, mean)), tuple(map(float, std))
        if len(mean) != len(std) or not len(mean):
            raise ValueError(f"mean and std must have one number per channel, got {mean} and {std}")
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise ValueError(f"mean and std must be finite and std positive, got {mean} and {std}")
        # Not persistent: the config holds the same numbers, and a bundle has room for one truth.
        for name, values in zip(("mean", "std"), self.statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalised pixels; raises DataError where the channels are not those it was made for."""
        if pixels.shape[1] != len(self.mean):
            raise DataError(
                f"These images have {pixels.shape[1]} channels and the normalisation {len(self.mean)}: "
                "decode them with the classifier's geometry."
            )
        mean, std = self.mean, self.std
        if len(mean) > 1 and pixels.is_contiguous(memory_format=torch.channels_last):
            # A broadcast over innermost channels is slower than over a plane of its own.
            mean, std = (
                value.expand(1, *pixels.shape[1:]).contiguous(memory_format=torch.channels_last)
                for value in (mean, std)
            )
        return (pixels - mean).div_(std)

    def config(self) -> dict[str, Any]:
        """Mean and std per channel, exact."""
        return {"mean": list(self.statistics[0]), "std": list(self.statistics[1])}

    def extra_repr(self) -> str:
        """The numbers, in ``repr``."""
        return f"mean={self.statistics[0]}, std={self.statistics[1]}"


class ContrastNormalise(PreprocessingStep):
    """Global contrast normalisation: ``(x - m) / max(s, floor)``, m and s the mean and std of each image.

    All channels together; a constant image becomes 0. As Coates, Ng and Lee 2011, section 3.1.1, do to patches.
    Raises ValueError unless floor is positive.
    """

    def __init__(self, floor: float = STD_FLOOR):
        super().__init__()
        self.floor = float(check_positive("floor", floor))

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Pixels of mean 0 and, where there is anything to see, std 1 in each image."""
        centred = pixels - pixels.mean((1, 2, 3), keepdim=True)
        # The floor before the root: the root of 0 has no gradient.
        variance = centred.square().mean((1, 2, 3), keepdim=True).clamp_min(self.floor**2)
        return centred * variance.rsqrt()

    def config(self) -> dict[str, Any]:
        """The floor, in units of [0, 1] pixels."""
        return {"floor": self.floor}

    def extra_repr(self) -> str:
        """The floor, in ``repr``."""
        return f"floor={self.floor}"
