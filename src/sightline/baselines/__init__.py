"""What the classical methods would have given: scikit-learn's classifiers on hand-made or learnt features.

A word names both: ``svm-rbf``, ``svm-rbf:C=5@hog``, ``knn@hog+lbp``, ``svm-linear@embedding:runs/photos``. What is
fitted is a ``Classifier`` like any other.
"""

from .classifiers import CHEAP, CLASSIFIERS
from .features import FEATURES, features_of
from .fit import Baseline, baseline, fit_baseline

__all__ = [
    "CHEAP",
    "CLASSIFIERS",
    "FEATURES",
    "Baseline",
    "baseline",
    "features_of",
    "fit_baseline",
]
