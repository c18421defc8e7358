"""Images become what a network expects: a sequence of steps, shipped inside the classifier.

Statistics are measured on training images only; every number is in units of [0, 1] pixels.
"""

from .filters import (
    PIXEL_FILTERS,
    BitDepthFilter,
    JpegFilter,
    MedianFilter,
    NoiseFilter,
    PixelFilter,
    compress_jpeg,
    to_uint8,
)
from .pipeline import (
    CHANNEL_STATISTICS,
    NORMALISATIONS,
    PREPROCESSING_STEPS,
    Preprocessing,
    check_normalisation,
    fit_preprocessing,
    forecast_fit,
)
from .statistics import ImageRows, measure_channels
from .steps import STD_FLOOR, ContrastNormalise, Normalise, PreprocessingStep
from .whitening import Zca

__all__ = [
    "CHANNEL_STATISTICS",
    "NORMALISATIONS",
    "PIXEL_FILTERS",
    "PREPROCESSING_STEPS",
    "STD_FLOOR",
    "BitDepthFilter",
    "ContrastNormalise",
    "ImageRows",
    "JpegFilter",
    "MedianFilter",
    "NoiseFilter",
    "Normalise",
    "PixelFilter",
    "Preprocessing",
    "PreprocessingStep",
    "Zca",
    "check_normalisation",
    "compress_jpeg",
    "fit_preprocessing",
    "forecast_fit",
    "measure_channels",
    "to_uint8",
]
