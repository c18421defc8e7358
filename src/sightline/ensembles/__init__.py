"""Several classifiers become one."""

from .combining import combine_runs, compare_with_members, shared_splits
from .methods import COMBINERS, Combination, GreedySoup, Mean, Soup, combine, update_bn

__all__ = [
    "COMBINERS",
    "Combination",
    "GreedySoup",
    "Mean",
    "Soup",
    "combine",
    "combine_runs",
    "compare_with_members",
    "shared_splits",
    "update_bn",
]
