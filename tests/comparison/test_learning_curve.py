"""Learning curves: nested shares, the same test at every size, saved trainings, and the sentence."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sightline.comparison import LEARNING_CURVE_SHARES, LearningCurve, learning_curve, learning_curve_run
from sightline.comparison.learning_curve import LearningCurvePoint
from sightline.data import nested_subset
from sightline.errors import Interrupted, RecipeError
from sightline.evaluation import evaluate
from sightline.metrics import wilson
from sightline.training import Recipe, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A real run on real digits."""
    recipe = Recipe(model="mlp", size=8, epochs=2, precision="float32", memory_format="contiguous")
    return train("digits", recipe, out=tmp_path_factory.mktemp("growth") / "run")


def test_shares_are_nested_stratified_and_seeded():
    labels = np.repeat([0, 1, 2], [1, 40, 200])
    order = np.random.default_rng(0).permutation(len(labels))
    labels = labels[order]
    small, large = (nested_subset(labels, share, 7) for share in (0.1, 0.5))
    assert set(small) < set(large)
    assert np.bincount(labels[small]).tolist() == [1, 4, 20]
    assert np.bincount(labels[large]).tolist() == [1, 20, 100]
    assert not np.array_equal(small, nested_subset(labels, 0.1, 8))
    np.testing.assert_array_equal(nested_subset(labels, 1.0, 7), np.arange(len(labels)))


def test_every_size_has_the_same_test_and_the_run_is_the_last(run):
    found = learning_curve_run(run, shares=(0.1, 1.0))
    small, whole = found.points
    assert (small.images, whole.images) == (
        len(nested_subset(run.splits.train.labels, 0.1, 0)),
        len(run.splits.train),
    )
    assert small.accuracy.n == whole.accuracy.n == len(run.splits.test)
    assert whole.accuracy == evaluate(run.classifier, run.splits.test).metrics["accuracy"]
    assert found.gain.value == pytest.approx(whole.accuracy.value - small.accuracy.value)
    assert f"From {small.images:,} to {whole.images:,} training images" in found.sentence
    assert not list(run.folder.glob(".learning-curve-*"))
    saved = json.loads((run.folder / "learning_curve.json").read_text())["curve"]
    assert saved == json.loads(json.dumps(found.as_json()))


def test_finished_trainings_are_not_repeated(run, monkeypatch):
    learning_curve_run(run, shares=(0.1, 1.0))
    trained = []

    def spy(of, share, seed):
        trained.append((share, seed))
        if share == 0.3:
            raise Interrupted("Stopped")
        return _train(of, share, seed)

    _train = learning_curve._train_on_share
    monkeypatch.setattr(learning_curve, "_train_on_share", spy)
    with pytest.raises(Interrupted):
        learning_curve_run(run, shares=(0.1, 0.2, 0.3, 1.0))
    assert trained == [(0.2, 0), (0.3, 0)]
    monkeypatch.setattr(learning_curve, "_train_on_share", _train)
    assert len(learning_curve_run(run, shares=(0.1, 0.2, 0.3, 1.0)).points) == 4
    trained.clear()
    again = replace(run, recipe=run.recipe.replace(epochs=3))
    assert learning_curve._SavedTrainings(again).correct == {}


def test_seeds_are_averaged(run):
    (small, _) = learning_curve_run(run, shares=(0.05, 0.2), seeds=2).points
    assert len(small.seed_accuracies) == 2
    assert small.accuracy.value == pytest.approx(np.mean(small.seed_accuracies))
    assert set(np.unique(small.correct)) <= {0, 0.5, 1}


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.2), (0.0, 1.0), (0.5, 1.5), (0.51, 0.5101)])
def test_impossible_shares_are_refused(run, shares):
    with pytest.raises(RecipeError):
        learning_curve_run(run, shares=shares)
    with pytest.raises(RecipeError, match="not trained"):
        learning_curve_run(replace(run, recipe=run.recipe.replace(epochs=0)))


def points(*errors, n=1000):
    found = []
    for i, error in enumerate(errors):
        right = np.arange(n) >= round(error * n)
        found.append(
            LearningCurvePoint(0.5, 100 * 2**i, wilson(float(right.sum()), n), right.astype(float), (1 - error,))
        )
    return found


def test_only_a_power_law_is_extrapolated():
    halving = LearningCurve.from_points(points(0.4, 0.2, 0.1))
    assert halving.accuracy_at_double == pytest.approx(0.95)
    assert "would probably help, to about 95.0% with twice as many if the trend held" in halving.sentence
    assert LearningCurve.from_points(points(0.4, 0.1, 0.1)).accuracy_at_double is None  # no line passes there
    assert LearningCurve.from_points(points(0.1, 0.2, 0.4)).accuracy_at_double is None  # it gets worse
    assert LearningCurve.from_points(points(0.2, 0.1)).accuracy_at_double is None  # two points make a line always
    assert LearningCurve.from_points(points(0.2, 0.1, 0.0)).accuracy_at_double is None


@pytest.mark.parametrize(
    ("errors", "n", "said"),
    [
        ((0.3, 0.2), 1000, "would probably help"),
        ((0.2, 0.2), 1000, "hardly help"),
        ((0.2, 0.16), 50, "cannot tell"),
    ],
)
def test_the_sentence_follows_the_interval(errors, n, said):
    assert said in LearningCurve.from_points(points(*errors, n=n)).sentence


def test_the_curve_from_the_command_line(run, cli):
    answer = cli("evaluate", run.folder, "--learning-curve", "--json")
    assert answer.code == 0, answer.err
    value = json.loads(answer.out)
    assert [size["share"] for size in value["learning_curve"]["sizes"]] == list(LEARNING_CURVE_SHARES)
    told = cli("evaluate", run.folder, "--learning-curve")
    assert value["learning_curve"]["sentence"] in told.out
    assert "Learning curve, training" not in told.err  # all of it was done before
    refused = cli("evaluate", run.folder, "digits", "--learning-curve")
    assert refused.code == 2
    assert "leave DATA out" in refused.err
