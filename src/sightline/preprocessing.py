"""Images become what a network expects: a sequence of steps, shipped inside the classifier.

Statistics are measured on training images only; every number is in units of [0, 1] pixels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor, nn

from .choose import lookup, suggest
from .errors import BundleError, DataError

STD_FLOOR = 1 / 255
"""One grey level: what a constant channel is divided by, and the least any channel is."""

_LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of R, G and B in grey (ITU-R BT.601), as image decoders apply them."""


@runtime_checkable
class Images(Protocol):
    """What statistics are measured on: a dataset, a memory map or an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> UInt8[ndarray, "B H W C"]: ...


class Step(nn.Module, ABC):
    """One change of pixels, ``(B C H W) -> (B C H W)``, that its ``config()`` rebuilds."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that rebuild this step, as JSON; larger tensors belong in the state_dict."""


class Normalise(Step):
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
            # A broadcast over innermost channels is 6 times slower than over a plane of its own.
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


STEPS: dict[str, type[Step]] = {
    "normalise": Normalise,
}


class Preprocessing(nn.Module):
    """Steps applied in order, ``(B C H W)`` in [0, 1] -> ``(B C H W)``; no steps is the identity.

    ``Preprocessing.from_config(p.config())`` with ``p.state_dict()`` loaded is ``p`` again.
    """

    def __init__(self, steps: Iterable[Step] = ()):
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """What the network sees of these pixels."""
        for step in self.steps:
            pixels = step(pixels)
        return pixels

    def config(self) -> list[dict[str, Any]]:
        """The steps and their arguments, as JSON."""
        names = {kind: name for name, kind in STEPS.items()}
        return [{"step": names[type(s)], **s.config()} for s in self.steps if isinstance(s, Step)]

    @classmethod
    def from_config(cls, config: Sequence[Mapping[str, Any]]) -> "Preprocessing":
        """The steps a config names; raises BundleError where it cannot be understood."""
        try:
            return cls(_step(**item) for item in config)
        except (TypeError, ValueError) as error:
            raise BundleError(f"The preprocessing cannot be rebuilt: {error}.") from error


def _step(step: str, **arguments: Any) -> Step:
    if step not in STEPS:
        raise BundleError(
            f"There is no preprocessing step called '{step}' in this release. {suggest(step, STEPS)} "
            "A newer Sightline may know it."
        )
    return STEPS[step](**arguments)


STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((), ()),
    # ILSVRC-2012 training images, as published with torchvision's models.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # The 50,000 training images of the lossless set.
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    # The 60,000 training images.
    "mnist": ((0.1307,), (0.3081,)),
    # No data: [0, 1] becomes [-1, 1].
    "signed": ((0.5,), (0.5,)),
}
"""Name -> (mean, std) per channel."""


def fit(images: Images, how: str, channels: int) -> Preprocessing:
    """The preprocessing called ``how``: ``fitted`` measures ``images`` (give training images only).

    Otherwise a name in ``STATISTICS``, and images are not read. RGB statistics on grey images become
    their luminance-weighted mean; grey ones on RGB are repeated. A std is never below ``STD_FLOOR``.
    Raises ChoiceError for an unknown name, DataError where there is nothing to measure.
    """
    if how == "fitted":
        return Preprocessing([Normalise(*measure(images))])
    mean, std = lookup({"fitted": ((), ()), **STATISTICS}, how, "normalisation")
    if not mean:
        return Preprocessing()
    return Preprocessing([Normalise(_adapted(mean, channels), _adapted(std, channels))])


def _adapted(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    return (sum(w * v for w, v in zip(_LUMINANCE, values, strict=True)),) * channels


def measure(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population std of each channel over all pixels, in [0, 1] units, exact.

    Streams: never holds more than about 16 MB of integers beside one chunk of images.
    """
    if not len(images):
        raise DataError("There are no training images to measure: the training part is empty.")
    count, sums = 0, np.zeros((2, images[:1].shape[-1]), np.int64)
    chunk = max(1, (1 << 20) // images[:1].size)
    for start in range(0, len(images), chunk):
        values = torch.from_numpy(np.ascontiguousarray(images[start : start + chunk])).flatten(0, 2).int()
        count += len(values)
        sums += torch.stack([values.sum(0), values.square().sum(0)]).numpy()
    moments = [_moments(count, int(one), int(two)) for one, two in sums.T]
    return tuple(mean for mean, _ in moments), tuple(std for _, std in moments)


def _moments(count: int, one: int, two: int) -> tuple[float, float]:
    """Mean and std in [0, 1] from a count, a sum and a sum of squares of uint8 values."""
    variance = (count * two - one * one) / count**2
    return one / count / 255, max(math.sqrt(variance) / 255, STD_FLOOR)
