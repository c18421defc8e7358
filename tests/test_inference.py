"""One loop over batches: whatever is computed equals the classifier applied to the images themselves."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sightline.classifier import Classifier
from sightline.data import to_tensor
from sightline.errors import DataError
from sightline.inference import (
    MIN_IMAGES_TO_FOLD,
    embed,
    map_batches,
    match_labels,
    predict_correct,
    predict_logits,
    predict_probabilities,
    to_probabilities,
    validate,
)
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing
from sightline.types import Dataset, Geometry

GEOMETRY = Geometry(size=(8, 8), channels=3)
CLASSES = ("cat", "dog", "owl")


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    return Dataset(
        pixels=rng.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8),
        rows=np.arange(50),
        labels=rng.integers(3, size=50),
        classes=CLASSES,
        files=np.array([f"{i}.png" for i in range(50)]),
        digests=np.arange(50, dtype=np.uint64),
        geometry=GEOMETRY,
        fingerprint="f",
    )


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    plan = parse_architecture("mlp", classes=3, channels=3, size=(8, 8))
    network = build(plan)
    return Classifier(
        Preprocessing(), network, architecture=plan, classes=CLASSES, geometry=GEOMETRY, temperature=0.5
    )


def test_logits_are_bit_equal_to_a_loop_over_the_batches(classifier, dataset):
    classifier.train()
    logits, labels = predict_logits(classifier, dataset, batch_size=16)
    assert not classifier.training
    with torch.no_grad():
        plain = [classifier(to_tensor(dataset[rows])) for rows in np.split(np.arange(50), [16, 32, 48])]
    assert torch.equal(logits, torch.cat(plain))
    np.testing.assert_array_equal(labels, dataset.labels)
    assert predict_correct(classifier, dataset).tolist() == (logits.argmax(1) == labels).tolist()
    loss, accuracy = validate(classifier, dataset)
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-6)
    assert accuracy == (logits.argmax(1) == labels).double().mean().item()


def test_many_images_are_answered_with_norms_folded_and_the_classifier_stays_as_it_was(dataset):
    torch.manual_seed(0)
    plan = parse_architecture("resnet20", classes=3, channels=3, size=(16, 16))
    geometry = replace(GEOMETRY, size=(16, 16))
    classifier = Classifier(Preprocessing(), build(plan), architecture=plan, classes=CLASSES, geometry=geometry)
    norms = [module for module in classifier.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.get_buffer("running_mean"), 0, 0.2)
        nn.init.uniform_(norm.get_buffer("running_var"), 0.5, 2)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    colours = np.random.default_rng(1).integers(0, 256, (MIN_IMAGES_TO_FOLD, 16, 16, 3), dtype=np.uint8)
    many = replace(
        dataset,
        pixels=colours,
        rows=np.arange(len(colours)),
        labels=np.arange(len(colours)) % 3,
        files=np.array([f"{i}.png" for i in range(len(colours))]),
        digests=np.arange(len(colours), dtype=np.uint64),
        geometry=geometry,
    )
    calls = []
    for norm in norms:
        norm.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    logits, _ = predict_logits(classifier, many)
    assert set(calls) == {1}  # the norms saw one image, to find what follows what and to compare
    del calls[:]
    exact = copy.deepcopy(classifier).double()  # an oracle with its norms, in float64
    with torch.no_grad():
        wanted = exact(to_tensor(colours).double())
    torch.testing.assert_close(logits.double(), wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)
    assert set(calls) == {len(colours)}
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.state_dict().items())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in classifier.modules()) == len(norms) > 0


def test_probabilities_are_those_of_the_classifier_or_of_another_temperature(classifier, dataset):
    logits, _ = predict_logits(classifier, dataset)
    own, labels = predict_probabilities(classifier, dataset)
    with torch.no_grad():
        np.testing.assert_array_equal(own, classifier.probabilities(to_tensor(dataset[:])).numpy())
    np.testing.assert_array_equal(labels, dataset.labels)
    other, _ = predict_probabilities(classifier, dataset, temperature=2.0)
    np.testing.assert_array_equal(other, to_probabilities(logits, 2.0))


def test_labels_are_matched_by_class_name(classifier, dataset):
    turned = replace(dataset, classes=("owl", "cat", "dog"))
    np.testing.assert_array_equal(match_labels(classifier, turned), np.array([2, 0, 1])[dataset.labels])
    with pytest.raises(DataError, match="never trained on: 'cow'"):
        match_labels(classifier, replace(dataset, classes=("cat", "dog", "cow")))
    with pytest.raises(DataError, match="load them with the classifier's geometry"):
        match_labels(classifier, replace(dataset, geometry=Geometry(size=(8, 8), channels=1)))


def test_unlabelled_images_are_predicted_and_not_evaluated(classifier, dataset):
    some = replace(dataset, labels=np.where(np.arange(50) < 10, -1, dataset.labels))
    with pytest.raises(DataError, match="10 of the 50 images have no label"):
        match_labels(classifier, some)
    logits, labels = predict_logits(classifier, some)
    assert torch.equal(logits, predict_logits(classifier, dataset)[0])
    assert (labels == -1).sum() == 10
    np.testing.assert_array_equal(match_labels(classifier, some.labelled), dataset.labels[10:])


def test_features_are_the_input_of_the_last_layer(classifier, dataset):
    features = embed(classifier, dataset, batch_size=7)
    with torch.no_grad():
        np.testing.assert_allclose(features, classifier.features(to_tensor(dataset[:])), atol=1e-5)
    assert len(embed(classifier, dataset.subset(np.array([3])))) == 1


def test_a_function_is_applied_to_every_batch_and_progress_is_reported(classifier, dataset):
    steps = []
    means = map_batches(
        classifier, dataset, lambda x: x.mean((1, 2, 3)), batch_size=20, advance=lambda: steps.append(1)
    )
    np.testing.assert_allclose(means, dataset[:].mean((1, 2, 3)) / 255, atol=1e-6)
    assert len(steps) == 3
    with pytest.raises(DataError, match="no images"):
        map_batches(classifier, dataset.subset(np.zeros(0, int)), classifier)
