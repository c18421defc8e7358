"""Images become what a network expects: a sequence of steps, shipped inside the classifier.

Statistics are measured on training images only; every number is in units of [0, 1] pixels.
"""

import re
from collections.abc import Callable
from functools import partial

from ..choose import choose
from ..errors import ChoiceError
from .pipeline import (
    CHANNEL_STATISTICS,
    PREPROCESSING_STEPS,
    FilterPlan,
    FittedStatistics,
    GlobalContrast,
    KnownStatistics,
    Preprocessing,
    StepPlan,
    ZcaPlan,
)
from .statistics import ImageRows, measure_channels
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
    compress_jpeg,
    to_uint8,
)
from .whitening import Zca

NORMALISATIONS: dict[str, Callable[..., StepPlan]] = {
    "fitted": FittedStatistics,
    **{name: partial(KnownStatistics, name) for name in CHANNEL_STATISTICS},
    "gcn": GlobalContrast,
    "zca": ZcaPlan,
}
"""Name -> how its step is fitted to training images: the words of ``--normalize``."""

PIXEL_FILTERS: dict[str, Callable[..., PixelFilter]] = {
    "median": MedianFilter,
    "jpeg": JpegFilter,
    "bits": BitDepthFilter,
    "noise": NoiseFilter,
}
"""Name -> a filter of pixels, which comes before any normalisation: ``median:3+fitted``."""


def check_normalisation(how: str) -> None:
    """Raise ChoiceError unless ``fit_preprocessing`` knows the preprocessing ``how``; needs no image."""
    _parse_plans(how)


def forecast_fit(how: str, shape: tuple[int, int, int], count: int) -> tuple[str, ...]:
    """Sentences on what fitting ``how`` to ``count`` images of ``shape`` (H, W, C) will cost, where that is much.

    Raises ChoiceError for an unknown name.
    """
    return tuple(text for plan in _parse_plans(how) for text in plan.forecast(shape, count))


def fit_preprocessing(images: ImageRows, how: str, channels: int) -> Preprocessing:
    """The preprocessing named ``how``, fitted to ``images``: give training images only.

    Args:
        images: uint8 images by row, (N, H, W, C). how: names of ``NORMALISATIONS`` with their arguments, joined by
        +, after names of ``PIXEL_FILTERS``. Each is
            fitted to what the ones before it leave: ``gcn+zca:eps=0.1``.
        channels: 1 or 3.

    The result's ``notes`` tell the cost where it is much. Raises ChoiceError for an unknown name, DataError where
    there is no image to measure.
    """
    steps: list[PreprocessingStep] = []
    for plan in _parse_plans(how):
        steps += plan.fit(images, Preprocessing(steps).eval(), channels)
    return Preprocessing(steps, forecast_fit(how, images[:1].shape[1:], len(images)) if len(images) else ())


def _parse_plans(how: str) -> list[StepPlan]:
    words = re.split(r"\+(?!\d)", how)  # the plus of 1e+3 is none
    found = [choose({**NORMALISATIONS, **PIXEL_FILTERS}, word, "normalisation") for word in words]
    plans = [FilterPlan(one) if isinstance(one, PixelFilter) else one for one in found]
    for word, before, plan in zip(words[1:], plans, plans[1:], strict=False):
        if isinstance(plan, FilterPlan) and not isinstance(before, FilterPlan):
            raise ChoiceError(f"In the normalisation '{how}', '{word}' filters pixels in [0, 1]: put it first.")
    return plans
