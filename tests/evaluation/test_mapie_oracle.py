"""MAPIE as an oracle: conformal sets and the bound behind a guaranteed risk equal its own."""

import warnings

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from sightline.evaluation import abstention, conformalize
from sightline.evaluation.abstention import threshold_for_risk

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mapie.classification import SplitConformalClassifier
    from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value


class Known(ClassifierMixin, BaseEstimator):
    """An estimator whose features are its probabilities."""

    def __init__(self, classes=4):
        self.classes = classes

    def fit(self, x, y):  # noqa: ARG002
        self.classes_, self.is_fitted_ = np.arange(self.classes), True
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(1)


def draw(n, seed, *, classes=4, scale=2.0):
    """Probabilities and labels drawn from them: a calibrated classifier."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(n, classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (p.cumsum(1) > rng.random((n, 1))).argmax(1)
    return p, labels


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("n", [60, 101, 500])
def test_least_ambiguous_sets_equal_mapie(alpha, n):
    held, labels = draw(n, seed=n)
    new, _ = draw(400, seed=1)
    theirs = SplitConformalClassifier(
        Known().fit(held, labels), confidence_level=1 - alpha, conformity_score="lac", prefit=True
    ).conformalize(held, labels)
    _, sets = theirs.predict_set(new)
    np.testing.assert_array_equal(conformalize(held, labels, alpha)(new), sets[:, :, 0])


@pytest.mark.parametrize(("errors", "n"), [(0, 50), (0, 500), (3, 200), (20, 400), (1, 30)])
@pytest.mark.parametrize("delta", [0.2, 0.05, 0.004])
def test_the_upper_bound_inverts_mapies_test(errors, n, delta):
    """The bound is at most a rate exactly where MAPIE's test rejects that the error is above that rate."""
    bound = abstention._clopper_pearson_upper(errors, n, delta)
    rates = np.array([0.5 * bound, 0.999 * bound, min(1.001 * bound, 1 - 1e-9), (1 + bound) / 2])
    p = [compute_hoeffding_bentkus_p_value(np.array([errors / n]), n, r, binary=True).item() for r in rates]
    np.testing.assert_array_equal(np.array(p) <= delta, rates >= bound)


@pytest.mark.parametrize("risk", [0.02, 0.05])
def test_a_guaranteed_risk_is_controlled_by_mapies_test(risk):
    p, labels = draw(6000, seed=5, scale=6.0)
    confidence, correct = p.max(1), p.argmax(1) == labels
    found = threshold_for_risk(confidence, correct, risk)
    assert found.guaranteed
    delta = abstention._step_delta(len(np.unique(confidence)))
    value = compute_hoeffding_bentkus_p_value(np.array([found.risk.value]), found.risk.n, risk, binary=True)
    assert value.item() <= delta
    looser = confidence >= found.value - 0.05
    value = compute_hoeffding_bentkus_p_value(
        np.array([(~correct[looser]).mean()]), int(looser.sum()), risk, binary=True
    )
    assert value.item() > delta
