"""Several classifiers become one."""

from .runs import beside, combine_runs, shared
from .ways import COMBINATIONS, Combination, GreedySoup, Mean, Soup, combine, settle_norms

__all__ = [
    "COMBINATIONS",
    "Combination",
    "GreedySoup",
    "Mean",
    "Soup",
    "beside",
    "combine",
    "combine_runs",
    "settle_norms",
    "shared",
]
