"""Steps in order as one module, and the plans that fit each step to training images."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..checks import check_int, check_positive
from ..choose import suggest
from ..errors import BundleError
from .statistics import ImageRows, measure_channels, measure_transformed_channels
from .steps import (
    STD_FLOOR,
    BitDepthFilter,
    ContrastNormalise,
    JpegFilter,
    MedianFilter,
    NoiseFilter,
    Normalise,
    PixelFilter,
    PreprocessingStep,
)
from .whitening import Zca, describe_zca, fit_zca

_GREY_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of R, G and B in grey (ITU-R BT.601), as image decoders apply them."""

PREPROCESSING_STEPS: dict[str, type[PreprocessingStep]] = {
    "normalise": Normalise,
    "contrast": ContrastNormalise,
    "zca": Zca,
    "median": MedianFilter,
    "jpeg": JpegFilter,
    "bits": BitDepthFilter,
    "noise": NoiseFilter,
}


class Preprocessing(nn.Module):
    """Steps applied in order, ``(B C H W)`` in [0, 1] -> ``(B C H W)``; no steps is the identity.

    ``Preprocessing.from_config(p.config())`` with ``p.state_dict()`` loaded equals ``p``. ``notes`` are sentences
    about the fit.
    """

    def __init__(self, steps: Iterable[PreprocessingStep] = (), notes: Iterable[str] = ()):
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.notes = tuple(notes)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The pixels after every step."""
        for step in self.steps:
            pixels = step(pixels)
        return pixels

    def config(self) -> list[dict[str, Any]]:
        """The steps and their arguments, as JSON."""
        names = {kind: name for name, kind in PREPROCESSING_STEPS.items()}
        return [{"step": names[type(s)], **s.config()} for s in self.steps if isinstance(s, PreprocessingStep)]

    @classmethod
    def from_config(cls, config: Sequence[Mapping[str, Any]]) -> "Preprocessing":
        """The steps of a config, built again; raises BundleError for unknown steps or arguments."""
        try:
            for item in config:
                if item.get("step") not in PREPROCESSING_STEPS:
                    raise BundleError(
                        f"There is no preprocessing step called '{item.get('step')}' in this release. "
                        f"{suggest(str(item.get('step')), PREPROCESSING_STEPS)} A newer Sightline may know it."
                    )
            arguments = [{name: value for name, value in item.items() if name != "step"} for item in config]
            return cls(
                PREPROCESSING_STEPS[item["step"]](**rest) for item, rest in zip(config, arguments, strict=True)
            )
        except (TypeError, ValueError) as error:
            raise BundleError(f"The preprocessing cannot be rebuilt: {error}.") from error


CHANNEL_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
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


class StepPlan(ABC):
    """How a step is fitted to training images: the meaning of a name of ``NORMALISATIONS``."""

    @abstractmethod
    def fit(self, images: ImageRows, before: Preprocessing, channels: int) -> list[PreprocessingStep]:
        """The steps for these images after the steps of ``before``; an empty list is the identity."""

    def forecast(self, shape: tuple[int, int, int], count: int) -> list[str]:  # noqa: ARG002
        """Sentences on the cost of fitting to ``count`` images of ``shape`` (H, W, C), where it is much."""
        return []


@dataclass(frozen=True)
class KnownStatistics(StepPlan):
    """Mean and std of a name in ``STATISTICS``; images are not read.

    RGB statistics on grey images become their luminance-weighted mean; grey ones on RGB are repeated.
    """

    name: str

    def fit(self, images: ImageRows, before: Preprocessing, channels: int) -> list[PreprocessingStep]:  # noqa: ARG002
        """One step, or none."""
        mean, std = CHANNEL_STATISTICS[self.name]
        return [Normalise(_match_channels(mean, channels), _match_channels(std, channels))] if mean else []


def _match_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    return (sum(w * v for w, v in zip(_GREY_WEIGHTS, values, strict=True)),) * channels


@dataclass(frozen=True)
class FittedStatistics(StepPlan):
    """Mean and std of each channel, measured on the training images; a std is never below ``STD_FLOOR``."""

    def fit(self, images: ImageRows, before: Preprocessing, channels: int) -> list[PreprocessingStep]:  # noqa: ARG002
        """One step. Exact where it comes first."""
        return [
            Normalise(
                *(measure_transformed_channels(images, before) if len(before.steps) else measure_channels(images))
            )
        ]


@dataclass(frozen=True)
class GlobalContrast(StepPlan):
    """Global contrast normalisation: each image minus its mean, divided by its std or by ``floor`` if larger."""

    floor: float = STD_FLOOR

    def __post_init__(self):
        check_positive("floor", self.floor)

    def fit(self, images: ImageRows, before: Preprocessing, channels: int) -> list[PreprocessingStep]:  # noqa: ARG002
        """One step; nothing is measured."""
        return [ContrastNormalise(self.floor)]


@dataclass(frozen=True)
class ZcaPlan(StepPlan):
    """ZCA whitening fitted to the training images: whole up to 4,096 values per image, low-rank above.

    ``eps`` is added to each variance, in units of the step's input; ``rank`` is the number of directions.
    """

    eps: float = 0.1
    rank: int | None = None

    def __post_init__(self):
        check_positive("eps", self.eps)
        if self.rank is not None:
            check_int("rank", self.rank, 1)

    def fit(self, images: ImageRows, before: Preprocessing, channels: int) -> list[PreprocessingStep]:  # noqa: ARG002
        """One step."""
        return [fit_zca(images, before, self.eps, self.rank)]

    def forecast(self, shape: tuple[int, int, int], count: int) -> list[str]:
        """The cost, and what is done where the whole matrix is too large."""
        return [describe_zca(shape, count, self.rank)]


@dataclass(frozen=True)
class FilterPlan(StepPlan):
    """A filter of pixels: nothing is measured."""

    step: PixelFilter

    def fit(self, images: ImageRows, before: Preprocessing, channels: int) -> list[PreprocessingStep]:  # noqa: ARG002
        """The filter."""
        return [self.step]
