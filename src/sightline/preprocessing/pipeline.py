"""Steps in order as one module, and the words that name them: ``fitted``, ``imagenet``, ``gcn+zca:eps=0.1``."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..checks import check_int, check_positive
from ..choose import choose, suggest
from ..errors import BundleError, ChoiceError
from .filters import PIXEL_FILTERS, BitDepthFilter, JpegFilter, MedianFilter, NoiseFilter, PixelFilter
from .statistics import ImageRows, measure_channels, measure_transformed_channels
from .steps import STD_FLOOR, ContrastNormalise, Normalise, PreprocessingStep
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

    ``Preprocessing.from_config(p.config())`` with ``p.state_dict()`` loaded is ``p`` again. ``notes`` are
    sentences about how it was fitted.
    """

    def __init__(self, steps: Iterable[PreprocessingStep] = (), notes: Iterable[str] = ()):
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.notes = tuple(notes)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """What the network sees of these pixels."""
        for step in self.steps:
            pixels = step(pixels)
        return pixels

    def config(self) -> list[dict[str, Any]]:
        """The steps and their arguments, as JSON."""
        names = {kind: name for name, kind in PREPROCESSING_STEPS.items()}
        return [{"step": names[type(s)], **s.config()} for s in self.steps if isinstance(s, PreprocessingStep)]

    @classmethod
    def from_config(cls, config: Sequence[Mapping[str, Any]]) -> "Preprocessing":
        """The steps a config names; raises BundleError where it cannot be understood."""
        try:
            return cls(_build_step(**item) for item in config)
        except (TypeError, ValueError) as error:
            raise BundleError(f"The preprocessing cannot be rebuilt: {error}.") from error


def _build_step(step: str, **arguments: Any) -> PreprocessingStep:
    if step not in PREPROCESSING_STEPS:
        raise BundleError(
            f"There is no preprocessing step called '{step}' in this release. {suggest(step, PREPROCESSING_STEPS)} "
            "A newer Sightline may know it."
        )
    return PREPROCESSING_STEPS[step](**arguments)


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
    """A word's meaning: how a step comes from training images."""

    @abstractmethod
    def fit(self, images: ImageRows, before: Preprocessing, channels: int) -> list[PreprocessingStep]:
        """The steps for these images as ``before`` leaves them; none is the identity."""

    def forecast(self, shape: tuple[int, int, int], count: int) -> list[str]:  # noqa: ARG002
        """What is worth saying before fitting to ``count`` images of ``shape`` (H, W, C)."""
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
    """Global contrast normalisation: each image minus its mean, over its std, which is at least ``floor``."""

    floor: float = STD_FLOOR

    def __post_init__(self):
        check_positive("floor", self.floor)

    def fit(self, images: ImageRows, before: Preprocessing, channels: int) -> list[PreprocessingStep]:  # noqa: ARG002
        """One step; nothing is measured."""
        return [ContrastNormalise(self.floor)]


@dataclass(frozen=True)
class ZcaPlan(StepPlan):
    """ZCA whitening fitted to the training images: whole up to 4,096 values per image, low-rank above.

    ``eps`` is added to each variance, in units of the values it is given; ``rank`` asks for so many directions.
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
        """What it will cost, and what is done where the whole is too much."""
        return [describe_zca(shape, count, self.rank)]


@dataclass(frozen=True)
class FilterPlan(StepPlan):
    """A filter of pixels: nothing is measured."""

    step: PixelFilter

    def fit(self, images: ImageRows, before: Preprocessing, channels: int) -> list[PreprocessingStep]:  # noqa: ARG002
        """The filter."""
        return [self.step]


NORMALISATIONS: dict[str, Callable[..., StepPlan]] = {
    "fitted": FittedStatistics,
    **{name: partial(KnownStatistics, name) for name in CHANNEL_STATISTICS},
    "gcn": GlobalContrast,
    "zca": ZcaPlan,
}
"""The words of ``--normalize``."""


def check_normalisation(how: str) -> None:
    """Raise ChoiceError where ``how`` is not words that ``fit`` understands; no image is needed."""
    _parse_plans(how)


def forecast_fit(how: str, shape: tuple[int, int, int], count: int) -> tuple[str, ...]:
    """What is worth saying before fitting ``how`` to ``count`` images of ``shape`` (H, W, C): what it will cost.

    Raises ChoiceError as ``check`` does.
    """
    return tuple(text for plan in _parse_plans(how) for text in plan.forecast(shape, count))


def fit_preprocessing(images: ImageRows, how: str, channels: int) -> Preprocessing:
    """The preprocessing called ``how``, measured on ``images`` (give training images only).

    ``how`` is a word of ``NORMALISATIONS`` with its arguments, or several joined by +, each measured on what
    the ones before it leave: ``gcn+zca:eps=0.1``; words of ``FILTERS`` come first. The result's ``notes`` say
    what it took, where that is much.
    Raises ChoiceError for an unknown word, DataError where there is nothing to measure.
    """
    steps: list[PreprocessingStep] = []
    for plan in _parse_plans(how):
        steps += plan.fit(images, Preprocessing(steps).eval(), channels)
    costly = len(images) and any(isinstance(step, Zca) for step in steps)
    return Preprocessing(steps, forecast_fit(how, images[:1].shape[1:], len(images)) if costly else ())


def _parse_plans(how: str) -> list[StepPlan]:
    words = re.split(r"\+(?!\d)", how)  # the plus of 1e+3 is none
    found = [choose({**NORMALISATIONS, **PIXEL_FILTERS}, word, "normalisation") for word in words]
    plans = [FilterPlan(one) if isinstance(one, PixelFilter) else one for one in found]
    for word, before, plan in zip(words[1:], plans, plans[1:], strict=False):
        if isinstance(plan, FilterPlan) and not isinstance(before, FilterPlan):
            raise ChoiceError(f"In the normalisation '{how}', '{word}' filters pixels in [0, 1]: put it first.")
    return plans
