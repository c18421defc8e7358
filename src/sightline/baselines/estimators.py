"""The classical classifiers, each with the settings that work for images; arguments come after colons: ``knn:3``.

Vectors reach them in about unit size (``models/estimator.py``), so that C and gamma mean the same for all
features. Settings follow the Fashion-MNIST benchmark (Xiao et al. 2017, table 3) where that says something.
"""

from collections.abc import Callable, Mapping
from typing import Any

from .. import runtime


def svm_rbf(C: float = 10.0, gamma: float | str = "scale", *, seed: int = 0) -> Any:
    """Support vector machine with a Gaussian kernel: usually the best of the classical ones."""
    from sklearn.svm import SVC

    settings: dict[str, Any] = {"C": C, "gamma": gamma, "cache_size": 500, "random_state": seed}
    # The answer is the largest decision, not the first of those with most votes.
    return SVC(**settings, break_ties=True)


def svm_linear(C: float = 0.01, *, seed: int = 0) -> Any:
    """Linear support vector machine, one class against the rest."""
    from sklearn.svm import LinearSVC

    return LinearSVC(C=C, dual="auto", max_iter=2000, tol=1e-3, random_state=seed)


def naive_bayes(smoothing: float = 1e-9, *, seed: int = 0) -> Any:
    """Gaussian naive Bayes: every number by itself, normally distributed."""
    from sklearn.naive_bayes import GaussianNB

    del seed  # nothing is drawn
    return GaussianNB(var_smoothing=smoothing)


def knn(k: int = 5, weights: str = "distance", p: int = 2, *, seed: int = 0) -> Any:
    """The k nearest training images, nearer ones weighing more; p=1 measures by absolute differences."""
    from sklearn.neighbors import KNeighborsClassifier

    del seed
    return KNeighborsClassifier(n_neighbors=k, weights=weights, p=p, algorithm="brute")


def random_forest(trees: int = 100, depth: int | None = None, *, seed: int = 0) -> Any:
    """Random forest: the mean of many trees, each on its own sample of images and numbers."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(
        n_estimators=trees, max_depth=depth, criterion="entropy", n_jobs=runtime.cpu_count(), random_state=seed
    )


def decision_tree(depth: int | None = 10, *, seed: int = 0) -> Any:
    """One decision tree: easy to read, and what a forest improves on."""
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(criterion="entropy", max_depth=depth, random_state=seed)


def gradient_boosting(
    rounds: int = 100, rate: float = 0.1, leaves: int = 31, share: float = 0.1, *, seed: int = 0
) -> Any:
    """Histogram gradient boosting: trees that correct each other, each split looking at a share of the numbers."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    settings: dict[str, Any] = {"max_iter": rounds, "learning_rate": rate, "max_leaf_nodes": leaves}
    settings |= {"max_features": share, "early_stopping": False, "random_state": seed}
    return HistGradientBoostingClassifier(**settings)


def logistic_regression(C: float = 0.1, *, seed: int = 0) -> Any:
    """Logistic regression over all classes: what a network without hidden layers would learn."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, max_iter=1000, tol=1e-3, random_state=seed)


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
"""Name -> ``(arguments, seed) -> an unfitted scikit-learn classifier``."""

DEFAULT_BASELINES = ("svm-rbf", "knn", "random-forest", "logistic-regression", "decision-tree", "naive-bayes")
"""Those that are fitted in a minute or so to ten thousand small images: what a comparison takes by itself."""
