"""Metrics against scikit-learn and scipy; intervals against their formulas and against simulation."""

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from sklearn import metrics as sk

from sightline import metrics
from sightline.errors import DataError
from sightline.metrics import classification as over_classes
from sightline.metrics import confidence as confidence_metrics
from sightline.metrics import ranking
from sightline.types import Interval

NAMES = {
    "accuracy",
    "balanced_accuracy",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "f1_micro",
    "f1_weighted",
    "top_2_accuracy",
    "roc_auc_ovr",
    "log_loss",
    "brier",
    "ece",
}


def sample(n, k, seed=0, *, separation=1.5, levels=None, dtype=np.float64, shares=None):
    """Labels and softmax probabilities; ``levels`` rounds the logits, which makes ties."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(k, size=n, p=shares)
    logits = rng.normal(size=(n, k))
    logits[np.arange(n), labels] += separation
    if levels:
        logits = np.round(logits * levels) / levels
    weights = np.exp(logits)
    return labels, (weights / weights.sum(1, keepdims=True)).astype(dtype)


cases = st.builds(
    sample,
    st.integers(1, 60),
    st.integers(2, 6),
    st.integers(0, 10_000),
    separation=st.sampled_from([0.0, 1.0, 8.0]),
    levels=st.sampled_from([None, 1, 2]),
    dtype=st.sampled_from([np.float32, np.float64]),
)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_equals_scikit_learn(case):
    labels, probabilities = case
    predicted, k = probabilities.argmax(1), probabilities.shape[1]
    found = metrics.overall_metrics(labels, probabilities)
    present = np.unique(labels)
    recalls = [sk.recall_score(labels == c, predicted == c) for c in present]
    oracle = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "balanced_accuracy": np.mean(recalls),
        "precision_macro": sk.precision_score(labels, predicted, average="macro", zero_division=0),
        "recall_macro": sk.recall_score(labels, predicted, average="macro", zero_division=0),
        "f1_macro": sk.f1_score(labels, predicted, average="macro", zero_division=0),
        "f1_micro": sk.f1_score(labels, predicted, average="micro", zero_division=0),
        "f1_weighted": sk.f1_score(labels, predicted, average="weighted", zero_division=0),
        "log_loss": sk.log_loss(labels, probabilities, labels=range(k)),
        "brier": sk.brier_score_loss(labels, probabilities, labels=range(k), scale_by_half=False),
    }
    # scikit-learn counts the last of equally likely classes first, we the first, as in the answer itself
    turned = (k - 1 - labels, probabilities[:, ::-1])
    for top in (2, 3, 5):
        if top < k:
            oracle[f"top_{top}_accuracy"] = sk.top_k_accuracy_score(*turned, k=top, labels=range(k))
    if len(present) > 1:
        areas = [sk.roc_auc_score(labels == c, probabilities[:, c]) for c in present]
        oracle["roc_auc_ovr"] = np.mean(areas)
    assert found.keys() == oracle.keys() | {"ece"}
    for name, value in oracle.items():
        rounded = probabilities.dtype == np.float32 and name in {"log_loss", "brier"}
        tolerance = 1e-5 if rounded else 1e-12
        assert found[name].value == pytest.approx(value, abs=tolerance, rel=tolerance), name
    matrix = metrics.confusion_matrix(labels, predicted, k)
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(labels, predicted, labels=range(k)))


@pytest.mark.parametrize("k", [2, 100, 101, 1000])
def test_a_confusion_matrix_as_json(k):
    labels, predicted = np.random.default_rng(k).integers(k, size=(2, 5000))
    matrix = sk.confusion_matrix(labels, predicted, labels=range(k))
    found = json.loads(json.dumps(metrics.confusion_as_json(matrix)))
    if k <= 100:
        assert found == {"confusion": matrix.tolist()}
    else:
        rows, columns, counts = np.transpose(found["confusion_cells"])
        np.testing.assert_array_equal(sparse.coo_array((counts, (rows, columns)), (k, k)).toarray(), matrix)
        assert len(rows) <= 5000


@settings(max_examples=40, deadline=None)
@given(cases)
def test_every_class_equals_scikit_learn(case):
    labels, probabilities = case
    predicted, k = probabilities.argmax(1), probabilities.shape[1]
    columns = sk.precision_recall_fscore_support(labels, predicted, labels=range(k), zero_division=0)
    for one, precision, recall, f1, n in zip(
        metrics.per_class_metrics(labels, probabilities), *columns, strict=True
    ):
        assert (one.precision.value, one.recall.value) == pytest.approx((precision, recall))
        assert one.f1.value == pytest.approx(f1)
        assert (one.n, one.predicted) == (n, (predicted == one.index).sum())
        if 0 < n < len(labels):
            area = sk.roc_auc_score(labels == one.index, probabilities[:, one.index])
            assert one.roc_auc.value == pytest.approx(area)
        else:
            assert one.roc_auc is None


@settings(max_examples=40, deadline=None)
@given(cases)
def test_intervals_contain_their_value_and_stay_in_range(case):
    labels, probabilities = case
    overall = metrics.overall_metrics(labels, probabilities)
    per_class = [
        interval
        for one in metrics.per_class_metrics(labels, probabilities)
        for interval in (one.precision, one.recall, one.f1, one.roc_auc)
        if interval is not None
    ]
    for interval in [*overall.values(), *per_class]:
        assert interval.low <= interval.value <= interval.high
        assert all(math.isfinite(v) for v in (interval.value, interval.low, interval.high))
        assert interval.low >= 0
    for name, interval in overall.items():
        assert interval.n == len(labels)
        assert interval.high <= {"log_loss": math.inf, "brier": 2}.get(name, 1)


def test_multiclass_auc_equals_scikit_learn_in_one_call():
    labels, probabilities = sample(500, 5)
    expected = sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    found = metrics.one_vs_rest(labels, probabilities).macro_auc
    assert found.value == pytest.approx(expected, abs=1e-12)


def test_metric_names():
    assert metrics.overall_metrics(*sample(50, 3)).keys() == NAMES


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 9), (9912, 10_000)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_equals_scipy(right, n, level):
    expected = stats.binomtest(right, n).proportion_ci(level, method="wilson")
    found = metrics.wilson(right, n, level=level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_of_no_images_is_zero_to_one():
    assert metrics.wilson(0, 0) == Interval(0.0, 0.0, 1.0, 0)


def test_accuracy_has_the_wilson_interval():
    labels, probabilities = sample(137, 4)
    right = int((probabilities.argmax(1) == labels).sum())
    expected = stats.binomtest(right, 137).proportion_ci(method="wilson")
    found = metrics.overall_metrics(labels, probabilities)["accuracy"]
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@settings(max_examples=40, deadline=None)
@given(cases, st.sampled_from([1, 5, 15]))
def test_ece_equals_the_loop_of_its_formula(case, bins):
    labels, probabilities = case
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    total = 0.0
    for b in range(bins):
        low, high = np.linspace(0, 1, bins + 1)[b : b + 2]
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.sum() / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.reliability(labels, probabilities, bins=bins).ece == pytest.approx(total, abs=1e-12)
    if bins == 15:
        found = metrics.overall_metrics(labels, probabilities)["ece"].value
        assert found == pytest.approx(total, abs=1e-12)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it():
    found = metrics.reliability(np.array([0]), np.array([[0.6, 0.4]]), bins=5)
    assert found.counts.tolist() == [0, 0, 1, 0, 0]


def test_delong_variance_equals_its_definition():
    """The placement form of DeLong, DeLong and Clarke-Pearson (1988), pair by pair."""
    labels, probabilities = sample(60, 2, seed=3, levels=2)
    scores, positive = probabilities[:, 1], labels == 1
    pairs = np.sign(scores[positive][:, None] - scores[~positive][None, :]) / 2 + 0.5
    expected = pairs.mean(1).var() / positive.sum() + pairs.mean(0).var() / (~positive).sum()
    found = ranking._class_auc(positive, scores, 0.95)
    assert found.value == pytest.approx(pairs.mean())
    assert found.influence @ found.influence / len(labels) ** 2 == pytest.approx(expected)
    assert found.smooth_variance > expected
    assert found.smooth_variance == pytest.approx(expected, rel=0.2)


@settings(max_examples=40, deadline=None)
@given(cases)
def test_roc_curves_equal_scikit_learn(case):
    labels, probabilities = case
    for k in np.flatnonzero(np.bincount(labels) % len(labels)):
        exact = metrics.roc_curve(labels == k, probabilities[:, k])
        fpr, tpr, _ = sk.roc_curve(labels == k, probabilities[:, k], drop_intermediate=False)
        corners = set(zip(exact.false_positive, exact.true_positive, strict=True))
        assert corners <= set(zip(fpr, tpr, strict=True))
        assert exact.area == pytest.approx(sk.auc(fpr, tpr), abs=1e-12)
        # every point of theirs lies on our line
        for x, y in zip(fpr, tpr, strict=True):
            inside = exact.false_positive <= x
            low = np.interp(x - 1e-12, exact.false_positive, exact.true_positive)
            assert low - 1e-6 <= y <= exact.true_positive[inside][-1] + 1e-6 or y == pytest.approx(
                np.interp(x, exact.false_positive, exact.true_positive)
            )


@pytest.mark.parametrize(("n", "k"), [(40, 2), (500, 5), (5000, 3)])
def test_saved_curves_are_within_half_a_grid_step(n, k):
    labels, probabilities = sample(n, k)
    ranks = metrics.one_vs_rest(labels, probabilities)
    for c, saved in enumerate(ranks.curves):
        exact = metrics.roc_curve(labels == c, probabilities[:, c])
        assert len(saved.false_positive) <= 2 * ranking.ROC_GRID_STEPS
        for axis in (saved.false_positive, saved.true_positive):
            assert (np.diff(axis) >= 0).all()
            assert (axis[0], axis[-1]) == (0, 1)
        # by their distance along the diagonal, where a step of either axis is a small one
        at = np.linspace(0, 2, 801)
        heights = [
            np.interp(at, curve.false_positive + curve.true_positive, curve.true_positive - curve.false_positive)
            for curve in (saved, exact)
        ]
        assert np.abs(heights[0] - heights[1]).max() <= 2 / ranking.ROC_GRID_STEPS
    assert ranks.macro_curve.area == pytest.approx(ranks.macro_auc.value, abs=2 / ranking.ROC_GRID_STEPS)


def test_the_mean_curve_is_the_mean_true_positive_rate():
    curves = [
        metrics.RocCurve(np.array([0, 0, 1.0]), np.array([0, 0.5, 1.0])),
        metrics.RocCurve(np.array([0, 0.5, 0.5, 1.0]), np.array([0, 0, 1.0, 1.0])),
    ]
    mean = metrics.RocCurve.mean(curves)
    assert mean.false_positive.tolist() == [0, 0, 0.5, 0.5, 1]
    assert mean.true_positive == pytest.approx([0, 0.25, 0.375, 0.875, 1])


def test_a_class_without_images_or_alone_has_no_curve():
    ranks = metrics.one_vs_rest(np.zeros(5, np.int64), np.full((5, 3), 1 / 3))
    assert ranks.aucs == ranks.curves == (None, None, None)
    assert ranks.macro_auc is ranks.macro_curve is None


@pytest.mark.parametrize("few", [3, 10])
@pytest.mark.parametrize("shift", [1.2, 3.6], ids=["middling", "nearly perfect"])
def test_the_area_of_a_rare_class_is_covered(few, shift):
    """Of 200 samples with a few images of a class, at least 90 % of its 95 % intervals hold the true area."""
    rng, truth, held = np.random.default_rng(0), stats.norm.cdf(shift / math.sqrt(2)), 0
    positive = np.arange(300) < few
    for _ in range(200):
        area = ranking._class_auc(positive, rng.normal(size=300) + shift * positive, 0.95)
        found = ranking._auc_interval(area.value, area.smooth_value, area.smooth_variance, area.few, 300, 0.95)
        held += found.low <= truth <= found.high
    assert held >= 180


def test_top_k_is_at_least_the_accuracy_and_k_is_below_the_classes():
    labels, probabilities = sample(300, 6, levels=1)
    found = metrics.overall_metrics(labels, probabilities)
    values = [found[name].value for name in ("accuracy", "top_2_accuracy", "top_3_accuracy", "top_5_accuracy")]
    assert values == sorted(values)
    assert "top_2_accuracy" not in metrics.overall_metrics(*sample(30, 2))


def test_f1_micro_is_accuracy_and_brier_ends_at_two():
    labels = np.array([0, 0, 1])
    found = metrics.overall_metrics(labels, np.eye(2)[1 - labels])
    assert found["f1_micro"] == found["accuracy"]
    assert found["brier"].value == 2
    assert metrics.overall_metrics(labels, np.eye(2)[labels])["brier"].value == 0


def test_a_paired_difference_equals_agresti_and_min():
    """Their interval by its own formula, from the two kinds of disagreement."""
    after, before = np.array([1] * 30 + [0] * 12 + [1] * 58), np.array([0] * 30 + [1] * 12 + [1] * 58)
    b, c, n = 30.5, 12.5, 102
    half = 1.959964 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    found = metrics.paired_difference(after, before)
    assert (found.value, found.n) == (pytest.approx(0.18), 100)
    assert (found.low, found.high) == pytest.approx(((b - c) / n - half, (b - c) / n + half), abs=1e-6)
    turned = metrics.paired_difference(before, after)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    with pytest.raises(ValueError, match="same images"):
        metrics.paired_difference(after, before[1:])


def test_macro_variances_equal_a_numerical_derivative():
    """The influence of an image is the change of the average as its cell gains weight."""
    matrix = np.array([[30.0, 3, 1], [4, 20, 2], [0, 5, 9]])
    n, step = matrix.sum(), 1e-6
    for name, (value, variance) in over_classes._averages_with_variance(matrix).items():
        influence = np.zeros_like(matrix)
        for cell in np.ndindex(matrix.shape):
            nudged = matrix * (1 - step)
            nudged[cell] += step * n
            influence[cell] = (over_classes._averages_with_variance(nudged)[name][0] - value) / step
        assert variance == pytest.approx((matrix * influence**2).sum() / n**2, rel=1e-4), name


def test_balanced_classes_give_balanced_accuracy_about_the_interval_of_accuracy():
    labels = np.repeat(np.arange(5), 40)
    predicted = labels.copy()
    predicted[::10] = (labels[::10] + 1) % 5
    found = metrics.overall_metrics(labels, np.eye(5)[predicted])
    assert found["balanced_accuracy"].value == pytest.approx(found["accuracy"].value)
    assert found["balanced_accuracy"].low == pytest.approx(found["accuracy"].low, abs=0.003)


def test_a_perfect_score_on_few_images_has_a_wide_interval():
    labels = np.array([0, 0, 0, 1, 1, 1])
    found = metrics.overall_metrics(labels, np.eye(2)[labels] * 0.98 + 0.01)
    for name in NAMES - {"log_loss", "ece", "brier", "top_2_accuracy"}:
        assert found[name].value == pytest.approx(1), name
        assert found[name].low < 0.7, name
        assert found[name].high == 1, name


def test_a_rare_class_makes_balanced_accuracy_uncertain():
    labels = np.array([0] * 998 + [1] * 2)
    found = metrics.overall_metrics(labels, np.eye(2)[labels])
    assert found["accuracy"].low > 0.99
    assert found["balanced_accuracy"].low < 0.8


def test_one_image():
    found = metrics.overall_metrics(np.array([1]), np.array([[0.2, 0.8]]))
    assert "roc_auc_ovr" not in found
    assert found["accuracy"].value == 1
    assert found["log_loss"].value == pytest.approx(-math.log(0.8))
    assert found["ece"].value == pytest.approx(0.2)


def test_a_class_without_images_is_left_out_where_it_has_no_meaning():
    labels, probabilities = sample(80, 3)
    kept = labels != 2
    found = metrics.overall_metrics(labels[kept], probabilities[kept])
    recalls = [(probabilities[kept].argmax(1)[labels[kept] == c] == c).mean() for c in (0, 1)]
    assert found["balanced_accuracy"].value == pytest.approx(np.mean(recalls))
    assert metrics.per_class_metrics(labels[kept], probabilities[kept])[2].roc_auc is None


def test_intervals_repeat_under_the_seed_and_move_with_it():
    labels, probabilities = sample(200, 3)
    first, again, other = (metrics.overall_metrics(labels, probabilities, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first["log_loss"] != other["log_loss"]


def test_the_level_widens_every_interval():
    labels, probabilities = sample(200, 3)
    narrow, wide = (metrics.overall_metrics(labels, probabilities, level=v) for v in (0.8, 0.99))
    for name in NAMES:
        assert wide[name].high - wide[name].low > narrow[name].high - narrow[name].low, name


@pytest.mark.parametrize(
    ("separation", "n", "shares"),
    [(2.0, 150, None), (5.0, 90, None), (3.0, 300, [0.6, 0.3, 0.1])],
    ids=["middling", "nearly perfect", "imbalanced"],
)
def test_intervals_cover_the_truth(separation, n, shares):
    """Of 100 samples of a known population, at least 85 % of the 95 % intervals hold its value.

    Log loss and Brier score are left out where errors are rare: a sample without one cannot know their cost.
    """
    k, trials = 3, 100
    labels, probabilities = sample(60_000, k, separation=separation, shares=shares)
    truth = {name: i.value for name, i in metrics.overall_metrics(labels, probabilities).items()}
    rng, held = np.random.default_rng(1), dict.fromkeys(NAMES, 0)
    for _ in range(trials):
        drawn = rng.integers(len(labels), size=n)
        found = metrics.overall_metrics(labels[drawn], probabilities[drawn])
        for name in NAMES:
            held[name] += found[name].low <= truth[name] <= found[name].high
    if separation > 4:
        del held["log_loss"], held["brier"]
    assert {name: count for name, count in held.items() if count < 0.85 * trials} == {}


def test_the_ece_interval_of_a_calibrated_classifier_includes_zero():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, size=400)
    probabilities = np.stack([confidence, 1 - confidence], 1)
    labels = (rng.random(400) > confidence).astype(np.int64)
    found = metrics.overall_metrics(labels, probabilities)["ece"]
    assert found.value > 0
    assert found.low == 0
    overconfident = np.stack([confidence**0.2, 1 - confidence**0.2], 1)
    assert metrics.overall_metrics(labels, overconfident)["ece"].low > 0.05


def test_resampled_means_spread_as_theory_says():
    rng = np.random.default_rng(0)
    column = rng.normal(size=(300, 1))
    means = confidence_metrics._resampled_means(column, rng)
    assert means.shape == (1000, 1)
    assert means.std() == pytest.approx(column.std() / math.sqrt(300), rel=0.1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_seeds_interval_equals_scipy(values):
    assume(np.std(values) > 1e-6)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    found = metrics.seeds_interval(values)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert found.n == len(values)


def test_seeds_interval_keeps_to_its_bounds_and_refuses_one_run():
    assert metrics.seeds_interval([0.9, 1.0], bounds=(0, 1)).high == 1
    with pytest.raises(ValueError, match="at least two"):
        metrics.seeds_interval([0.9])


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (np.zeros(0, np.int64), np.zeros((0, 2)), "no images"),
        (np.array([2]), np.array([[0.5, 0.5]]), "Label 2 is outside the 2 classes"),
        (np.array([-1]), np.array([[0.5, 0.5]]), "Label -1"),
        (np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 1]]), "image 1 are not numbers"),
    ],
)
def test_impossible_predictions_are_refused(labels, probabilities, message):
    with pytest.raises(DataError, match=message):
        metrics.overall_metrics(labels, probabilities)
