"""Features are computed once for each data, geometry and weights, whoever asks."""

import copy

import numpy as np
import pytest
import torch

from helpers.attacked_classifiers import digits, trained
from sightline import features
from sightline.classifier import Classifier
from sightline.features import embed_cached, feature_key
from sightline.inference import embed


@pytest.fixture
def subject():
    _, _, dataset = digits()
    return copy.deepcopy(trained()), dataset.subset(np.arange(90))
    return copy.deepcopy(trained()), dataset.subset(np.arange(90))


def test_features_are_the_input_of_the_last_layer(subject, tmp_path):
    classifier, dataset = subject
    found = embed_cached(classifier, dataset, cache=tmp_path)
    plain = embed(classifier, dataset)
    tolerance = 0.03 if features.inference_precision(classifier) is torch.bfloat16 else 1e-5
    assert np.abs(found - plain).max() <= tolerance * np.abs(plain).max()


def test_a_second_use_runs_no_network(subject, tmp_path, monkeypatch):
    classifier, dataset = subject
    first = embed_cached(classifier, dataset, cache=tmp_path)
    monkeypatch.setattr(Classifier, "features", lambda *_: pytest.fail("embedded again"))
    assert np.array_equal(first, embed_cached(classifier, dataset, cache=tmp_path))
    some = np.array([7, 3, 50])
    assert np.array_equal(first[some], embed_cached(classifier, dataset.subset(some), cache=tmp_path))


def test_another_head_shares_the_store_and_other_weights_do_not(subject):
    classifier, dataset = subject
    key = feature_key(classifier, dataset)
    with torch.no_grad():
        classifier.network.head.weight.add_(1)
    assert feature_key(classifier, dataset) == key
    with torch.no_grad():
        next(p for n, p in classifier.network.named_parameters() if not n.startswith("head")).add_(1)
    assert feature_key(classifier, dataset) != key


def test_an_interrupted_embedding_goes_on_where_it_stopped(subject, tmp_path, monkeypatch):
    classifier, dataset = subject
    whole = embed_cached(classifier, dataset, cache=tmp_path / "whole")
    embed_cached(classifier, dataset.subset(np.arange(40)), cache=tmp_path)
    seen = []
    original = Classifier.features

    def counted(self, pixels):
        seen.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(Classifier, "features", counted)
    assert np.allclose(embed_cached(classifier, dataset, cache=tmp_path), whole, atol=0.03 * np.abs(whole).max())
    assert sum(seen) == len(dataset) - 40


def test_a_damaged_store_is_built_again(subject, tmp_path):
    classifier, dataset = subject
    whole = embed_cached(classifier, dataset, cache=tmp_path)
    (folder,) = (one for one in (tmp_path / "features").iterdir() if one.is_dir())
    (folder / "done.npy").write_bytes(b"nonsense")
    assert np.array_equal(embed_cached(classifier, dataset, cache=tmp_path), whole)


def test_a_full_disk_costs_the_store_and_not_the_features(subject, tmp_path, monkeypatch, capsys):
    classifier, dataset = subject
    whole = embed_cached(classifier, dataset, cache=tmp_path / "roomy")
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: usage)
    assert np.array_equal(embed_cached(classifier, dataset, cache=tmp_path / "full"), whole)
    assert "SIGHTLINE_CACHE" in capsys.readouterr().err
    assert not list((tmp_path / "full" / "features").iterdir())


def test_a_mode_is_left_as_it_was(subject, tmp_path):
    classifier, dataset = subject
    classifier.train()
    embed_cached(classifier, dataset, cache=tmp_path)
    assert classifier.training
