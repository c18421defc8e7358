"""The head of a frozen backbone, against scikit-learn's logistic regression."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sightline.errors import DataError
from sightline.training import heads
from sightline.training.heads import PROBE_PENALTIES, VARIANCE_PRIOR_IMAGES, fit_linear_probe


def blobs(count, width, classes, seed=0, spread=2.0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    centres = rng.normal(size=(classes, width))
    scale = rng.uniform(0.1, 10, width)  # features of very different units
    features = ((centres[labels] + spread * rng.normal(size=(count, width))) * scale + 5).astype(np.float32)
    return features, labels.astype(np.int64)


def standardise(features):
    """Each feature's variance, shrunk towards the mean of all."""
    variance, count = features.var(0), len(features)
    shrunk = (count * variance + VARIANCE_PRIOR_IMAGES * variance.mean()) / (count + VARIANCE_PRIOR_IMAGES)
    return (features - features.mean(0)) / np.sqrt(shrunk)


@pytest.mark.parametrize(("count", "width"), [(300, 20), (60, 200)])
@pytest.mark.parametrize("classes", [3, 5])
def test_it_is_the_logistic_regression_of_its_penalty(count, width, classes):
    features, labels = blobs(count, width, classes)
    probe = fit_linear_probe(features, labels, classes)
    standard = standardise(features)
    oracle = LogisticRegression(C=1 / (probe.facts["penalty"] * count), max_iter=5000, tol=1e-8).fit(
        standard, labels
    )
    ours = torch.softmax(torch.from_numpy(features) @ probe.weight.T + probe.bias, 1).numpy()
    assert np.abs(ours - oracle.predict_proba(standard)).max() < 0.01


def test_two_classes_are_the_binary_regression():
    """Softmax over two classes shares the weight between both: half the penalty of the binary form."""
    features, labels = blobs(200, 10, 2)
    probe = fit_linear_probe(features, labels, 2)
    standard = standardise(features)
    oracle = LogisticRegression(C=2 / (probe.facts["penalty"] * 200), max_iter=5000, tol=1e-8).fit(
        standard, labels
    )
    ours = torch.softmax(torch.from_numpy(features) @ probe.weight.T + probe.bias, 1).numpy()
    assert np.abs(ours - oracle.predict_proba(standard)).max() < 0.01


def test_noise_asks_for_a_stronger_penalty_than_signal():
    clear = fit_linear_probe(*blobs(300, 20, 3, spread=0.3), 3)
    rng = np.random.default_rng(1)
    noise = fit_linear_probe(rng.normal(size=(300, 20)).astype(np.float32), np.arange(300) % 3, 3)
    assert clear.facts["penalty"] < noise.facts["penalty"] == PROBE_PENALTIES[0]
    assert clear.facts["cross_validated_accuracy"] > 0.95
    assert abs(noise.facts["cross_validated_accuracy"] - 1 / 3) < 0.12


def test_the_same_images_and_seed_give_the_same_head():
    features, labels = blobs(100, 30, 4)
    one, two = (fit_linear_probe(features, labels, 4, seed=3) for _ in range(2))
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)


@pytest.mark.parametrize("seconds", [0.0, 1.0, 5.0, 20.0, 1000.0])
@pytest.mark.parametrize("width", [20, 400])
def test_it_takes_no_more_time_than_it_has(monkeypatch, seconds, width):
    features, labels = blobs(300, width, 3, spread=1.0)
    whole = fit_linear_probe(features, labels, 3)
    clock, evaluate = SimpleNamespace(now=0.0), heads._ProbeLoss.__call__

    def slow(loss, penalty):
        clock.now += 0.05
        return evaluate(loss, penalty)

    monkeypatch.setattr(heads, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(heads._ProbeLoss, "__call__", slow)
    probe = fit_linear_probe(features, labels, 3, seconds=seconds)
    assert clock.now <= 1.1 * seconds + 40 * 0.05
    assert probe.facts.get("shortened", False) == (seconds < 20)
    assert probe.facts["cross_validated_accuracy"] > 0.7
    if seconds == 1000:
        assert probe.facts == whole.facts
        assert torch.equal(probe.weight, whole.weight)


def test_one_image_a_class_is_enough_and_leaves_nothing_out():
    features, labels = blobs(3, 50, 3)
    probe = fit_linear_probe(features, labels, 3)
    assert probe.facts["cross_validated_losses"] == {}
    assert probe.facts["cross_validated_accuracy"] is None
    assert np.array_equal((features @ probe.weight.numpy().T + probe.bias.numpy()).argmax(1), labels)


def test_a_class_without_images_is_refused():
    features, labels = blobs(20, 5, 2)
    with pytest.raises(DataError, match="has no image"):
        fit_linear_probe(features, labels, 3)


def test_only_the_proportions_of_weights_count_and_a_heavy_class_wins_the_doubtful_images():
    features, labels = blobs(120, 4, 2, spread=6.0)
    plain = fit_linear_probe(features, labels, 2)
    doubled = fit_linear_probe(features, labels, 2, weights=np.full(120, 2.0))
    assert torch.allclose(plain.weight, doubled.weight, atol=1e-4)
    heavy = fit_linear_probe(features, labels, 2, weights=np.where(labels == 1, 10.0, 1.0))

    def ones(probe):
        return (features @ probe.weight.numpy().T + probe.bias.numpy()).argmax(1).sum()

    assert ones(heavy) > ones(plain)
