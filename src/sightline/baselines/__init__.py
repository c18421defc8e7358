"""What classical methods would have given: scikit-learn's classifiers on handcrafted or learnt features.

A word names both: ``svm-rbf``, ``svm-rbf:C=5@hog``, ``knn@hog+lbp``, ``svm-linear@embedding:runs/photos``. A
fitted baseline is a ``Classifier`` like any other.

>>> from sightline.baselines import parse_baseline
>>> str(parse_baseline("svm-rbf:C=5", features="hog+lbp"))
'svm-rbf:C=5@hog+lbp'
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..choose import choose
from ..classifier import Classifier
from ..errors import ChoiceError
from ..models import HANDCRAFTED_FEATURES, EmbeddingFeature, Feature
from ..types import Splits
from .estimators import (
    decision_tree,
    gradient_boosting,
    knn,
    logistic_regression,
    naive_bayes,
    random_forest,
    svm_linear,
    svm_rbf,
)
from .few_labels import embed_published, measure_few_label_baselines
from .fit import Baseline, LearntFeatures, extract_features, fit_classifier

BASELINES: Mapping[str, Callable[..., Any]] = {
    "svm-rbf": svm_rbf,
    "svm-linear": svm_linear,
    "naive-bayes": naive_bayes,
    "knn": knn,
    "random-forest": random_forest,
    "decision-tree": decision_tree,
    "gradient-boosting": gradient_boosting,
    "logistic-regression": logistic_regression,
}
"""Name -> ``(arguments, seed) -> an unfitted scikit-learn classifier``; arguments follow after colons: ``knn:3``.
"""

FEATURES: Mapping[str, Callable[..., Feature | EmbeddingFeature]] = {
    **HANDCRAFTED_FEATURES,
    "embedding": LearntFeatures,
}
"""Name -> ``(arguments) -> feature``: ``pixels``, ``hog:cell=4``, ``edges:canny``, ``embedding:RUN``."""

DEFAULT_BASELINES = ("svm-rbf", "knn", "random-forest", "logistic-regression", "decision-tree", "naive-bayes")
"""Baselines of a comparison that names none: each is fitted to ten thousand small images in about a minute."""


def parse_features(words: str) -> tuple[Feature | EmbeddingFeature, ...]:
    """The features that ``words`` name, joined by ``+``: ``hog+lbp``.

    Raises ChoiceError for an unknown name or argument, BundleError for the run of an embedding that cannot be
    read.
    """
    return tuple(choose(FEATURES, word, "feature") for word in words.split("+"))


def parse_baseline(word: str, features: str = "pixels") -> Baseline:
    """The baseline that a word names: an estimator, and after ``@`` its features.

    ``features`` are used where the word names none. Raises ChoiceError for an unknown name or argument.
    """
    name, at, own = word.partition("@")
    if at and not own:
        raise ChoiceError(f"'{word}' names no features after the @. Write, for example, {name}@hog.")
    name, features = name.strip(), own.strip() or features

    def make_estimator(seed: int) -> Any:
        return choose({n: partial(make, seed=seed) for n, make in BASELINES.items()}, name, "baseline")

    make_estimator(0)  # an unknown name fails here
    return Baseline(name, features, make_estimator, parse_features(features))


def fit_baseline(splits: Splits, by: str | Baseline, *, seed: int = 0) -> Classifier:
    """Fit a baseline to the training images, and its temperature to the validation images.

    Predict, evaluate, save and load work on the result as on a network; it is not differentiable. Equal seeds give
    equal classifiers. Raises ChoiceError for an unknown name, TrainingError where images, settings or memory do
    not allow the fit.
    """
    return fit_classifier(parse_baseline(by) if isinstance(by, str) else by, splits, seed)
