"""Sums over features: additive, subtractable, independent of order, and their heads against scikit-learn."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from sightline.continual.computed_heads import RanPAC
from sightline.continual.statistics import (
    RIDGE_PENALTIES,
    FeatureStatistics,
    RidgeStatistics,
    fit_ridge,
    random_projection,
)
from sightline.errors import DataError

CLASSES = ("a", "b", "c")


def draw(count=120, width=7, seed=0):
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 3).astype(np.int64)
    return (rng.normal(size=(3, width))[labels] * 2 + rng.normal(size=(count, width))).astype(np.float32), labels


@pytest.mark.parametrize("kind", [FeatureStatistics, RidgeStatistics])
def test_parts_in_any_order_give_the_sums_of_the_whole(kind):
    features, labels = draw()
    whole = kind.of(features, labels, CLASSES)
    order = np.random.default_rng(1).permutation(len(labels))
    parts = [kind.of(features[rows], labels[rows], CLASSES) for rows in np.array_split(order, 5)]
    joined = parts[3] + parts[0] + parts[4] + parts[1] + parts[2]
    for name, value in vars(whole).items():
        if name != "classes":
            np.testing.assert_allclose(vars(joined)[name], value, rtol=1e-6, atol=1e-4)


def test_a_class_that_comes_later_is_the_same_as_one_known_from_the_start():
    features, labels = draw()
    old = FeatureStatistics.of(features[labels < 2], labels[labels < 2], ("a", "b"))
    new = FeatureStatistics.of(features[labels == 2], np.zeros(40, np.int64), ("c",))
    later, whole = (old + new).fit_lda(), FeatureStatistics.of(features, labels, CLASSES).fit_lda()
    np.testing.assert_allclose(later.weight, whole.weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(later.bias, whole.bias, rtol=1e-5, atol=1e-5)


def test_a_forgotten_image_leaves_what_never_having_seen_it_would_have_left():
    features, labels = draw()
    gone = np.array([0, 7, 50])
    rest = np.setdiff1d(np.arange(len(labels)), gone)
    parts = [FeatureStatistics.of(features[rows], labels[rows], CLASSES) for rows in (gone, rest)]
    forgotten = FeatureStatistics.of(features, labels, CLASSES) - parts[0]
    np.testing.assert_allclose(forgotten.fit_lda().weight, parts[1].fit_lda().weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(forgotten.fit_lda().bias, parts[1].fit_lda().bias, rtol=1e-4, atol=1e-4)


def test_a_forgotten_image_leaves_no_trace_in_a_ridge_regression_of_the_smallest_penalty():
    """Of 300 random features of 7: most eigenvalues are far below the penalty."""
    features, labels = draw()
    gone, rest = np.arange(9), np.arange(9, 120)
    head = RanPAC(projections=300)
    forgotten = head.sum(features, labels, CLASSES) - head.sum(features[gone], labels[gone], CLASSES)
    never_seen = head.sum(features[rest], labels[rest], CLASSES)
    weights, grams = [], []
    for sums in (forgotten, never_seen):
        gram = np.zeros((300, 300))
        gram[np.tril_indices(300)] = sums.triangles.sum(0)
        grams.append(gram + np.tril(gram, -1).T)
        penalty = min(RIDGE_PENALTIES) * np.trace(grams[0]) / 300
        weights.append(fit_ridge(grams[-1], sums.sums.T, penalty))
    np.testing.assert_allclose(*grams, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(*weights, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(forgotten.fit()[0], never_seen.fit()[0], rtol=1e-6, atol=1e-8)


def test_more_images_than_were_learned_cannot_be_forgotten():
    features, labels = draw()
    few = FeatureStatistics.of(features[:6], labels[:6], CLASSES)
    with pytest.raises(DataError, match="Cannot forget more images of the class 'a' than were learned"):
        few - FeatureStatistics.of(features, labels, CLASSES)
    with pytest.raises(DataError, match="'c' is not among a, b"):
        FeatureStatistics.of(features, labels, CLASSES).expand(("a", "b"))


@pytest.mark.parametrize(
    ("shrinkage", "solver"), [(1e-12, {"solver": "svd"}), (None, {"solver": "lsqr", "shrinkage": 7 / (7 + 120)})]
)
def test_the_discriminant_is_that_of_scikit_learn(shrinkage, solver):
    features, labels = draw()  # classes of equal size: the scores of all get the same back
    head = FeatureStatistics.of(features, labels, CLASSES).fit_lda(shrinkage)
    other = LinearDiscriminantAnalysis(**solver, priors=np.full(3, 1 / 3)).fit(features.astype(np.float64), labels)
    scores = features @ head.weight.numpy().T + head.bias.numpy()
    ours = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(ours / ours.sum(1, keepdims=True), other.predict_proba(features), atol=2e-4)


@pytest.mark.parametrize("shrinkage", [1e-9, 0.1, None])
def test_a_class_of_few_images_gets_back_what_noise_in_its_mean_takes(shrinkage):
    """The margin of new images of either of two classes, over 200 draws of 400 images of one and 8 of the other.

    Of unit variance in D dimensions, the plain rule's margins differ by D (1/8 - 1/400) on average, 3.7 for D = 30;
    these are equal but for chance.
    """
    rng, width = np.random.default_rng(5), 30
    labels, differences = np.repeat([0, 1], [400, 8]), []
    centre = np.zeros((2, width))
    centre[1, 0] = 3.0
    for _ in range(200):
        features = rng.normal(size=(408, width)) + centre[labels]
        head = FeatureStatistics.of(features, labels, ("a", "b")).fit_lda(shrinkage)
        weight, bias = head.weight.double().numpy(), head.bias.double().numpy()
        first, second = ((weight[k] - weight[1 - k]) @ centre[k] + bias[k] - bias[1 - k] for k in (0, 1))
        differences.append(first - second)
    plain = width * (1 / 8 - 1 / 400)
    assert abs(np.mean(differences)) < 0.25 * plain


def test_shrinkage_moves_the_covariance_to_a_multiple_of_the_identity():
    features, labels = draw()
    statistics = FeatureStatistics.of(features, labels, CLASSES)
    head = statistics.fit_lda(shrinkage=1.0)
    level = np.trace(statistics.covariance()) / 7
    centred = statistics.means - statistics.means.mean(0)
    np.testing.assert_allclose(head.weight.numpy(), centred / level, rtol=1e-5, atol=1e-6)
    own = np.stack([features[labels == k] - features[labels == k].mean(0) for k in range(3)]).reshape(-1, 7)
    np.testing.assert_allclose(statistics.covariance(), own.T @ own / len(own), rtol=1e-4, atol=1e-4)


def test_merged_classes_have_the_statistics_of_one_class():
    features, labels = draw()
    merged = FeatureStatistics.of(features, labels, CLASSES).regroup({"b": "a", "c": "z"})
    whole = FeatureStatistics.of(features, np.array([0, 0, 1])[labels], ("a", "z"))
    assert merged.classes == ("a", "z")
    np.testing.assert_allclose(merged.means, whole.means)
    np.testing.assert_allclose(merged.covariance(), whole.covariance())


def test_statistics_survive_the_memory_of_a_bundle():
    features, labels = draw()
    known = FeatureStatistics.of(features, labels, CLASSES)
    again = FeatureStatistics.from_tensors(known.tensors(), CLASSES)
    assert np.array_equal(again.scatter, known.scatter)
    assert FeatureStatistics.from_tensors(known.tensors(), ("a", "b")) is None
    assert FeatureStatistics.from_tensors({}, CLASSES) is None


def test_ridge_regression_of_three_images():
    h, y = np.array([[1, 0], [1, 1], [0, 1.0]]), np.array([[1, 0], [1, 0], [0, 1.0]])
    weights = fit_ridge(h.T @ h, h.T @ y, 0.1)
    np.testing.assert_allclose(weights, [[0.938416, -0.293255], [0.029326, 0.615836]], atol=1e-6)


def test_classes_of_few_images_weigh_as_much_as_others_against_scikit_learn():
    features, labels = draw()
    kept = np.flatnonzero((labels < 2) | (np.arange(len(labels)) < 12))  # 40, 40 and 4 images
    features, labels = features[kept], labels[kept]
    statistics = RidgeStatistics.of(features, labels, CLASSES)
    weights, penalty = statistics.fit()
    counts = np.bincount(labels)
    other = Ridge(alpha=penalty, fit_intercept=False)
    other.fit(features.astype(np.float64), np.eye(3)[labels], sample_weight=(len(labels) / (3 * counts))[labels])
    np.testing.assert_allclose(weights.T, other.coef_, rtol=1e-3, atol=1e-4)


def test_the_penalty_is_that_of_cross_validation_of_each_class():
    features, labels = draw(count=60)
    kept = np.flatnonzero((labels < 2) | (np.arange(60) < 12))  # 20, 20 and 4 images
    x, labels = features[kept].astype(np.float64), labels[kept]
    _, penalty = RidgeStatistics.of(x, labels, CLASSES).fit()
    weight = (len(labels) / (3 * np.bincount(labels)))[labels]
    x, y = x * np.sqrt(weight)[:, None], np.eye(3)[labels] * np.sqrt(weight)[:, None]
    level = np.linalg.eigvalsh(x.T @ x).mean()

    def score(one):
        hat = x @ np.linalg.solve(x.T @ x + one * np.eye(x.shape[1]), x.T)
        squares = ((y - hat @ y) ** 2).sum(1) / weight
        return sum(squares[labels == k].mean() / (1 - np.diag(hat)[labels == k].mean()) ** 2 for k in range(3))

    candidates = [level * one for one in RIDGE_PENALTIES]
    assert penalty == pytest.approx(min(candidates, key=score), rel=1e-6)
    assert min(candidates) < penalty < max(candidates)


def test_a_class_without_images_is_refused():
    features, labels = draw()
    with pytest.raises(DataError, match="'d' has no image"):
        FeatureStatistics.of(features, labels, (*CLASSES, "d")).fit_lda()
    with pytest.raises(DataError, match="'d' has no image"):
        RidgeStatistics.of(features, labels, (*CLASSES, "d")).fit()


def test_random_projections_repeat():
    assert bool((random_projection(5, 9, 3) == random_projection(5, 9, 3)).all())
    assert not bool((random_projection(5, 9, 3) == random_projection(5, 9, 4)).any())
