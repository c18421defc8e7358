"""Conformal sets: exact ranks, coverage inside its beta law, and what too few images do."""

import json
from math import ceil, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom

from helpers.tiny_classifiers import SETTLED
from sightline.errors import BundleError, ChoiceError, DataError, RecipeError
from sightline.evaluation.conformal import (
    NONCONFORMITY_SCORES,
    SAVED_ALPHAS,
    add_sets,
    conformal_quantile,
    conformalize,
    load_sets,
    measure_sets,
    min_calibration_images,
    quantiles_json,
)
from sightline.types import Prediction


def population(n, seed=0, k=6):
    """Probabilities of a mediocre classifier, and labels that do not quite follow them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(k, 0.35), n).astype(np.float32)
    truth = 0.8 * p.astype(np.float64) + 0.2 / k
    labels = (truth.cumsum(1) > rng.random((n, 1))).argmax(1)
    return p, labels


@pytest.mark.parametrize(("alpha", "least"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.5, 1), (0.9, 1)])
def test_min_calibration_images_of_an_error_rate(alpha, least):
    assert min_calibration_images(alpha) == least
    assert conformal_quantile(np.zeros(least), alpha) == 0
    if least > 1:
        assert conformal_quantile(np.zeros(least - 1), alpha) == inf


@given(st.integers(1, 400), st.sampled_from([1, 2, 5, 10, 20, 30, 50, 90]))
def test_the_quantile_is_the_score_of_the_rank_of_the_formula(n, hundredths):
    scores = np.random.default_rng(n).permutation(n).astype(float)
    rank = ceil(((n + 1) * (100 - hundredths)) / 100 - 1e-12)  # in whole numbers, so without rounding errors
    assert conformal_quantile(scores, hundredths / 100) == (sorted(scores)[rank - 1] if rank <= n else inf)


@pytest.mark.parametrize("by", NONCONFORMITY_SCORES)
@pytest.mark.parametrize("alpha", [0.1, 0.2])
def test_coverage_stays_inside_its_beta_interval_over_many_draws(by, alpha):
    p, labels = population(10_500, seed=2)
    n, rng = 500, np.random.default_rng(7)
    lower = int((n + 1) * alpha)
    low, high = beta.ppf([0.0005, 0.9995], n + 1 - lower, lower)
    slack = 3 * np.sqrt(alpha * (1 - alpha) / 10_000)
    covered = []
    for _ in range(100):
        rows = rng.permutation(10_500)
        sets = conformalize(p[rows[:n]], labels[rows[:n]], alpha, by=by)
        held = sets(p[rows[n:]])[np.arange(10_000), labels[rows[n:]]]
        covered.append(held.mean())
        assert low - slack <= covered[-1] <= high + slack
    mean = beta.mean(n + 1 - lower, lower)
    assert abs(np.mean(covered) - mean) < 4 * beta.std(n + 1 - lower, lower) / 10 + slack
    # not only inside: as spread out as the law says
    middle = beta.ppf([0.1, 0.9], n + 1 - lower, lower)
    inside = np.mean([middle[0] <= c <= middle[1] for c in covered])
    assert binom.cdf(100 * inside, 100, 0.8) > 0.001
    assert binom.sf(100 * inside - 1, 100, 0.8) > 0.0005


def test_per_class_sets_cover_each_class_where_common_sets_do_not():
    p, labels = population(30_000, seed=3)
    rng = np.random.default_rng(0)
    hard = labels == 0
    p[hard] = rng.dirichlet(np.full(6, 0.35), int(hard.sum()))  # class 0 is not recognised at all
    rows = rng.permutation(30_000)
    held, new = rows[:5000], rows[5000:]
    common = measure_sets(conformalize(p[held], labels[held], 0.1), p[new], labels[new])
    apart = measure_sets(conformalize(p[held], labels[held], 0.1, per_class=True), p[new], labels[new])
    assert abs(common.coverage.value - 0.9) < 0.015
    assert common.worst_class < 0.8
    assert apart.worst_class > 0.87


def test_scores_by_hand():
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    np.testing.assert_allclose(NONCONFORMITY_SCORES["lac"](p), 1 - p)
    np.testing.assert_allclose(NONCONFORMITY_SCORES["aps"](p), [[0, 0.5, 0.8], [0.8, 0.9, 0]])


def test_adaptive_sets_are_never_empty_and_add_classes_by_probability():
    p, labels = population(3000)
    sets = conformalize(p[:1000], labels[:1000], 0.3, by="aps")(p[1000:])
    assert sets.any(1).all()
    order = np.argsort(-p[1000:], axis=1, kind="stable")
    ranked = np.take_along_axis(sets, order, 1)
    assert (ranked[:, :-1] >= ranked[:, 1:]).all()


def test_too_few_images_put_every_class_into_every_set_with_a_remark():
    p, labels = population(18)
    sets = conformalize(p, labels, 0.05)
    assert np.isinf(sets.quantiles).all()
    assert sets(p).all()
    assert "18 calibration images are too few for an error rate of 0.05: it takes 19" in (
        sets.remark(tuple("abcdef")) or ""
    )
    lopsided = np.concatenate([np.zeros(175, int), np.full(5, 3)])
    few = conformalize(np.concatenate([p] * 10), lopsided, 0.1, per_class=True)
    assert few.unbounded_classes.tolist() == [1, 2, 3, 4, 5]
    assert "'b', 'c', 'd', 'e', 'f': they are in every set" in (few.remark(tuple("abcdef")) or "")
    assert conformalize(*population(500), 0.1).remark(tuple("abcdef")) is None


def test_impossible_arguments_are_refused():
    p, labels = population(50)
    for alpha in (0.0, 1.0, -1.0):
        with pytest.raises(RecipeError, match="error rate of conformal sets"):
            conformalize(p, labels, alpha)
    with pytest.raises(ChoiceError, match="Did you mean 'aps'"):
        conformalize(p, labels, by="asp")
    with pytest.raises(DataError, match="no images to calibrate"):
        conformalize(p[:0], labels[:0])


@pytest.mark.parametrize("by", NONCONFORMITY_SCORES)
@pytest.mark.parametrize("per_class", [False, True])
def test_sets_survive_a_bundle(by, per_class):
    p, labels = population(120)
    answers = json.loads(json.dumps(quantiles_json(p, labels), allow_nan=False))
    for alpha in SAVED_ALPHAS:
        fresh = conformalize(p, labels, alpha, by=by, per_class=per_class)
        again = load_sets(answers, 6, alpha, by=by, per_class=per_class)
        np.testing.assert_array_equal(fresh.quantiles, again.quantiles)
        np.testing.assert_array_equal(fresh(p), again(p))
        assert fresh.remark(tuple("abcdef")) == again.remark(tuple("abcdef"))


def test_a_bundle_that_was_not_calibrated_or_is_damaged():
    p, labels = population(120)
    answers = quantiles_json(p, labels)
    with pytest.raises(DataError, match=r"no conformal sets yet.*evaluate RUN --conformal-alpha 0\.1 --save"):
        load_sets({}, 6, 0.1)
    with pytest.raises(DataError, match=r"0\.07 are not in the bundle: choose one of 0\.01, 0\.02, 0\.05"):
        load_sets(answers, 6, 0.07)
    with pytest.raises(BundleError, match="cannot be understood"):
        load_sets(answers, 5, 0.1, per_class=True)
    with pytest.raises(BundleError, match="cannot be understood"):
        load_sets({"conformal": {"lac": {"0.1": "x"}}}, 6, 0.1)


def test_predictions_get_the_sets_of_their_probabilities():
    p, labels = population(200)
    classes = tuple("abcdef")
    sets = conformalize(p, labels, 0.2)
    answers = []
    for row in p[:20].tolist():
        ranked = sorted(zip(classes, row, strict=True), key=lambda pair: -pair[1])
        answers.append(Prediction("x", *ranked[0], top=tuple(ranked)))
    answers.append(Prediction("y", None, None, error="broken"))
    *found, broken = add_sets(answers, sets, classes, 2)
    assert broken.among is None
    for one, chosen in zip(found, sets(p[:20]), strict=True):
        assert one.among is not None
        assert set(one.among) == {name for name, held in zip(classes, chosen, strict=True) if held}
        assert len(one.top) == 2


def test_sets_from_the_command_line(cli, tmp_path):
    from sightline.training import Recipe, train

    run = train("digits", Recipe(model="mlp", size=8, epochs=2, **SETTLED), out=tmp_path / "run")
    image = tmp_path / "x.png"
    from PIL import Image

    Image.fromarray(run.splits.test[:1][0, ..., 0]).save(image)
    answer = cli("predict", run.folder, image, "--alpha", "0.1")
    assert answer.code == 2
    assert "no conformal sets yet" in answer.err
    answer = cli("evaluate", run.folder, "--conformal-alpha", "0.05", "--save")
    assert answer.code == 0, answer.err
    assert "error rate 0.05" in answer.out
    (row,) = json.loads(cli("predict", run.folder, image, "--alpha", "0.05", "--json").out)["predictions"]
    assert set(row["among"]) <= set("0123456789")
    line = cli("predict", run.folder, image, "--alpha", "0.05", "--top", "1").out
    assert line.rstrip().endswith("{" + ", ".join(row["among"]) + "}")
    assert cli("predict", run.folder, image, "--alpha", "0.05", "--per-class").code == 0
    table = cli("predict", run.folder, image, "--alpha", "0.05", "--format", "csv").out.splitlines()
    assert table[0].endswith(",among")
    assert table[1].endswith(";".join(row["among"]))
