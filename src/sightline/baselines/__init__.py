"""What the classical methods would have given: scikit-learn's classifiers on hand-made or learnt features.

A word names both: ``svm-rbf``, ``svm-rbf:C=5@hog``, ``knn@hog+lbp``, ``svm-linear@embedding:runs/photos``. What is
fitted is a ``Classifier`` like any other.
"""

from .estimators import BASELINES, DEFAULT_BASELINES
from .features import FEATURES, parse_features
from .fit import Baseline, fit_baseline, parse_baseline

__all__ = [
    "BASELINES",
    "DEFAULT_BASELINES",
    "FEATURES",
    "Baseline",
    "fit_baseline",
    "parse_baseline",
    "parse_features",
]
