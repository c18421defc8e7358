"""Features are computed once for each data, geometry and weights, whoever asks."""

import copy
import errno
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn

from helpers.attacked_classifiers import digits, trained
from sightline.features import (
    embed_cached,
    embedding_precision,
    feature_key,
    find_lookalikes,
    nearest_images,
    predict_logits_cached,
    rank_outliers,
    store,
)
from sightline.features.embedding import Embedder, fuse_convolutions
from sightline.inference import embed, predict_logits


@pytest.fixture
def subject():
    _, _, dataset = digits()
    return copy.deepcopy(trained()), dataset.subset(np.arange(90))


def test_features_are_the_input_of_the_last_layer(subject, tmp_path):
    classifier, dataset = subject
    found = embed_cached(classifier, dataset, cache=tmp_path)
    plain = embed(classifier, dataset)
    tolerance = 0.03 if embedding_precision(classifier) is torch.bfloat16 else 1e-5
    assert np.abs(found - plain).max() <= tolerance * np.abs(plain).max()


def test_a_second_use_runs_no_network(subject, tmp_path, monkeypatch):
    classifier, dataset = subject
    first = embed_cached(classifier, dataset, cache=tmp_path)
    monkeypatch.setattr(Embedder, "embed_batch", lambda *_: pytest.fail("embedded again"))
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
    original = Embedder.embed_batch

    def counted(self, rows):
        seen.append(len(rows))
        return original(self, rows)

    monkeypatch.setattr(Embedder, "embed_batch", counted)
    assert np.allclose(embed_cached(classifier, dataset, cache=tmp_path), whole, atol=0.03 * np.abs(whole).max())
    assert sum(seen) == len(dataset) - 40


@pytest.mark.parametrize("damage", ["nonsense", "truncated", "absent", "flipped"])
@pytest.mark.parametrize("name", ["features.npy", "sums.npy"])
def test_a_damaged_store_is_built_again(subject, tmp_path, name, damage):
    classifier, dataset = subject
    whole = embed_cached(classifier, dataset, cache=tmp_path)
    (folder,) = (one for one in (tmp_path / "features").iterdir() if one.is_dir())
    content = bytearray((folder / name).read_bytes())
    content[128:] = bytes(one ^ 255 for one in content[128:])
    cut = {"nonsense": b"nonsense", "truncated": bytes(content[:-7]), "flipped": bytes(content)}
    (folder / name).unlink()
    if damage != "absent":
        (folder / name).write_bytes(cut[damage])
    assert np.array_equal(embed_cached(classifier, dataset, cache=tmp_path), whole)
    assert np.array_equal(embed_cached(classifier, dataset, cache=tmp_path), whole)


def test_an_embedding_that_is_killed_goes_on_and_a_second_process_waits(tmp_path):
    """One process is killed in the middle; two others then share what it kept, and embed each image once."""
    program = (
        "import os, sys, time; import numpy as np; from pathlib import Path\n"
        "from helpers.attacked_classifiers import digits, trained\n"
        "from sightline.features import embed_cached, store\n"
        "from sightline.features.embedding import Embedder\n"
        "store.KEPT_ROWS, original, count = 32, Embedder.embed_batch, [0]\n"
        "def slow(self, rows):\n"
        "    count[0] += len(rows); time.sleep(float(sys.argv[2])); return original(self, rows)\n"
        "Embedder.embed_batch = slow\n"
        "import sightline.features.embedding as engine; engine.MAX_EMBEDDING_BATCH = 16\n"
        "found = embed_cached(trained(), digits()[2].subset(np.arange(160)), cache=Path(sys.argv[1]))\n"
        "print(count[0], float(np.abs(found).sum()), int((~found.any(1)).sum()))"
    )

    def start(delay):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path), str(delay)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    victim = start(0.5)
    while not (kept := [*tmp_path.glob("features/*/sums.npy")]) or (np.load(kept[0]) > 0).sum() < 32:
        assert victim.poll() is None
        time.sleep(0.05)
    victim.kill()
    victim.communicate()
    left = int((np.load(kept[0]) == 0)[:160].sum())
    assert 0 < left <= 128
    answers = [one.communicate()[0].split() for one in [start(0), start(0)]]
    assert sorted(int(count) for count, _, _ in answers) == [0, left]
    assert answers[0][1:] == answers[1][1:]
    assert answers[0][2] == "0"


def test_a_full_disk_costs_the_store_and_not_the_features(subject, tmp_path, monkeypatch, capsys):
    classifier, dataset = subject
    whole = embed_cached(classifier, dataset, cache=tmp_path / "roomy")
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage)
    assert np.array_equal(embed_cached(classifier, dataset, cache=tmp_path / "full"), whole)
    assert "SIGHTLINE_CACHE" in capsys.readouterr().err
    assert not [one for one in (tmp_path / "full" / "features").iterdir() if one.is_dir()]


def test_a_mode_is_left_as_it_was(subject, tmp_path):
    classifier, dataset = subject
    classifier.train()
    embed_cached(classifier, dataset, cache=tmp_path)
    assert classifier.training


def test_a_disk_that_fills_up_costs_the_store_and_not_the_features(subject, tmp_path, monkeypatch, capsys):
    classifier, dataset = subject
    whole = embed_cached(classifier, dataset, cache=tmp_path / "roomy")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "posix_fallocate", full)
    assert np.array_equal(embed_cached(classifier, dataset, cache=tmp_path / "full"), whole)
    assert "SIGHTLINE_CACHE" in capsys.readouterr().err


def test_logits_of_kept_features_are_those_of_the_network(subject, tmp_path, monkeypatch):
    classifier, dataset = subject
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path))
    logits, plain = predict_logits_cached(classifier, dataset), predict_logits(classifier, dataset)[0]
    assert (logits - plain).abs().max() <= 0.03 * plain.abs().max()
    assert (logits.argmax(1) == plain.argmax(1)).float().mean() > 0.97


class Mixed(nn.Module):
    """What fusing must get right: biases, strides, a shared ReLU, a residual sum, a norm without a convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.b, self.nb = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.c, self.nc = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.relu, self.six, self.alone = nn.ReLU(), nn.ReLU6(), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.six(self.na(self.a(x)))
        y = self.relu(self.nb(self.b(x)))
        return self.relu(self.alone(x + self.nc(self.c(y))))


@pytest.mark.parametrize("size", [(32, 32), (17, 23)])
def test_a_fused_network_gives_the_same_answers(size):
    torch.manual_seed(0)
    network = Mixed()
    for _ in range(3):
        network(3 * torch.randn(16, 3, *size) + 1)  # statistics that are not 0 and 1
    network.eval()
    x = torch.randn(5, 3, *size)
    with torch.inference_mode():
        wanted = network(x)
        fuse_convolutions(network, x[:2], torch.float32)
        assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == 1
        assert torch.allclose(network(x), wanted, atol=1e-5)
        assert torch.allclose(network(x.contiguous(memory_format=torch.channels_last)), wanted, atol=1e-5)


def test_embedding_in_streams_gives_the_rows_in_order(subject):
    classifier, dataset = subject
    threads = torch.get_num_threads()
    embedder = Embedder(classifier, dataset, torch.float32)
    embedder.batch_size, embedder.streams = 7, 3
    rows = np.arange(len(dataset))[::-1]
    assert embedder.fused
    assert np.allclose(np.concatenate([*embedder(rows)]), embed(classifier, dataset)[::-1], atol=1e-4)
    assert torch.get_num_threads() == threads


def test_an_interrupted_pass_does_not_embed_the_rest(subject):
    classifier, dataset = subject
    embedder = Embedder(classifier, dataset, torch.float32)
    embedder.batch_size, embedder.streams, seen = 1, 2, []
    original = embedder.embed_batch

    def slow(rows):
        seen.append(rows)
        time.sleep(0.02)
        return original(rows)

    embedder.embed_batch = slow
    batches = embedder(np.arange(len(dataset)))
    next(batches)
    batches.close()
    assert len(seen) < len(dataset) / 2


def test_neighbours_are_those_of_scikit_learn():
    features = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
    found, cosines = nearest_images(features, 4)
    distance, wanted = NearestNeighbors(n_neighbors=5, metric="cosine").fit(features).kneighbors(features)
    assert np.array_equal(found, wanted[:, 1:])
    assert np.allclose(cosines, 1 - distance[:, 1:], atol=1e-5)


def test_a_strange_image_is_an_outlier_and_a_twin_a_lookalike():
    rng = np.random.default_rng(0)
    features = (rng.standard_normal((3, 40))[np.arange(120) % 3] + 0.3 * rng.standard_normal((120, 40))).astype(
        "f4"
    )
    features[17] = 3 * rng.standard_normal(40)
    features[90] = features[4] * 1.01
    rows, similarity = rank_outliers(features)
    assert rows[0] == similarity.argmin() == 17
    centred = features - features.mean(0)
    distance, _ = NearestNeighbors(n_neighbors=6, metric="cosine").fit(centred).kneighbors(centred)
    assert np.allclose(similarity, 1 - distance[:, 1:].mean(1), atol=1e-5)
    pairs, alike = find_lookalikes(features)
    assert pairs[0].tolist() == [4, 90]
    assert alike[0] > 0.999
    assert len(find_lookalikes(features[:1])[0]) == 0
    assert rank_outliers(features[:1])[0].tolist() == [0]
