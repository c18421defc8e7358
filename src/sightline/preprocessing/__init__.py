"""Images become what a network expects: a sequence of steps, shipped inside the classifier.

Statistics are measured on training images only; every number is in units of [0, 1] pixels.
"""

from .filters import FILTERS, Bits, Filter, Jpeg, Median, Noise
from .pipeline import NORMALISATIONS, STATISTICS, STEPS, Preprocessing, check, fit, forecast
from .statistics import Images, measure
from .steps import STD_FLOOR, Contrast, Normalise, Step
from .whitening import Zca

__all__ = [
    "FILTERS",
    "NORMALISATIONS",
    "STATISTICS",
    "STD_FLOOR",
    "STEPS",
    "Bits",
    "Contrast",
    "Filter",
    "Images",
    "Jpeg",
    "Median",
    "Noise",
    "Normalise",
    "Preprocessing",
    "Step",
    "Zca",
    "check",
    "fit",
    "forecast",
    "measure",
]
