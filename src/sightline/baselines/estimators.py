"""scikit-learn's classifiers with defaults for images.

Features arrive standardised to about unit size (``models/estimator.py``), so that C and gamma mean the same for
all of them. Defaults follow the Fashion-MNIST benchmark (Xiao et al. 2017, table 3) where it has the classifier.
"""

from typing import Any

from .. import runtime


def svm_rbf(C: float = 10.0, gamma: float | str = "scale", *, seed: int = 0) -> Any:
    """Support vector machine with a Gaussian kernel: usually the most accurate baseline."""
    from sklearn.svm import SVC

    settings: dict[str, Any] = {"C": C, "gamma": gamma, "cache_size": 500, "random_state": seed}
    # predict() then agrees with the largest decision value, not with the first class of most votes
    return SVC(**settings, break_ties=True)


def svm_linear(C: float = 0.01, *, seed: int = 0) -> Any:
    """Linear support vector machine, one class against the rest."""
    from sklearn.svm import LinearSVC

    return LinearSVC(C=C, dual="auto", max_iter=2000, tol=1e-3, random_state=seed)


def naive_bayes(smoothing: float = 1e-9, *, seed: int = 0) -> Any:
    """Gaussian naive Bayes: features independent and normally distributed within each class."""
    from sklearn.naive_bayes import GaussianNB

    del seed  # nothing is drawn
    return GaussianNB(var_smoothing=smoothing)


def knn(k: int = 5, weights: str = "distance", p: int = 2, *, seed: int = 0) -> Any:
    """The k nearest training images, nearer ones with more weight; p=1 is the Manhattan distance."""
    from sklearn.neighbors import KNeighborsClassifier

    del seed
    return KNeighborsClassifier(n_neighbors=k, weights=weights, p=p, algorithm="brute")


def random_forest(trees: int = 100, depth: int | None = None, *, seed: int = 0) -> Any:
    """Random forest: the mean of many trees, each on a sample of images and features."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(
        n_estimators=trees, max_depth=depth, criterion="entropy", n_jobs=runtime.cpu_count(), random_state=seed
    )


def decision_tree(depth: int | None = 10, *, seed: int = 0) -> Any:
    """One decision tree: easy to read, and less accurate than a forest."""
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(criterion="entropy", max_depth=depth, random_state=seed)


def gradient_boosting(
    rounds: int = 100, rate: float = 0.1, leaves: int = 31, share: float = 0.1, *, seed: int = 0
) -> Any:
    """Histogram gradient boosting; each split considers a share of the features."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    settings: dict[str, Any] = {"max_iter": rounds, "learning_rate": rate, "max_leaf_nodes": leaves}
    settings |= {"max_features": share, "early_stopping": False, "random_state": seed}
    return HistGradientBoostingClassifier(**settings)


def logistic_regression(C: float = 0.1, *, seed: int = 0) -> Any:
    """Multinomial logistic regression: a network without hidden layers."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, max_iter=1000, tol=1e-3, random_state=seed)
