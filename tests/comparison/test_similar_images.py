"""Retrieval scores against a published vector and an oracle, the index of images, and the verb nearest."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from sightline.cli import main
from sightline.comparison import find_similar
from sightline.errors import DataError
from sightline.features import ImageIndex
from sightline.metrics import score_retrieval


def test_retrieval_has_its_published_values():
    points = np.array([[0.0], [1], [2], [10], [11], [3.5]], np.float32)
    found = score_retrieval(points, np.array([0, 0, 1, 1, 1, 0]), at=(1, 2))
    assert found.recall == pytest.approx({1: 4 / 6, 2: 5 / 6})
    assert found.r_precision == pytest.approx(2.5 / 6)
    assert found.map_at_r == pytest.approx(0.375)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_retrieval_equals_the_oracle(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 5, 60)
    features = (random.standard_normal((60, 4)) + labels[:, None] * 0.6).astype(np.float32)
    found = score_retrieval(features, labels, at=(1,))

    def brute(query, k, reference, same_source):
        neighbours = NearestNeighbors(n_neighbors=k + same_source).fit(reference)
        distances, rows = neighbours.kneighbors(query)
        return distances[:, same_source:], rows[:, same_source:]

    import torch

    oracle = AccuracyCalculator(
        include=("mean_average_precision_at_r", "r_precision", "precision_at_1"),
        k="max_bin_count",
        knn_func=lambda query, k, reference, same: tuple(
            map(torch.from_numpy, brute(query.numpy(), k, reference.numpy(), same))
        ),
    )
    wanted = oracle.get_accuracy(torch.from_numpy(features), torch.from_numpy(labels))
    assert found.map_at_r == pytest.approx(wanted["mean_average_precision_at_r"], abs=1e-6)
    assert found.r_precision == pytest.approx(wanted["r_precision"], abs=1e-6)
    assert found.recall[1] == pytest.approx(wanted["precision_at_1"], abs=1e-6)


def test_images_without_another_of_their_class_ask_for_nothing():
    features = np.arange(5, dtype=np.float32)[:, None]
    assert score_retrieval(features, np.array([0, 0, 1, 2, 3])).queries == 2
    with pytest.raises(ValueError, match="no class has two images"):
        score_retrieval(features, np.arange(5))


def test_an_index_finds_what_brute_force_finds_and_survives_saving(tmp_path):
    random = np.random.default_rng(0)
    features = random.standard_normal((50, 6)).astype(np.float32)
    names = np.array([f"{i}.png" for i in range(50)])
    index = ImageIndex.build(features, names, np.full(50, ""), network="a")
    again = ImageIndex.load(index.save(tmp_path / "a.safetensors"))
    assert again.facts == {"network": "a"}
    queries = random.standard_normal((3, 6)).astype(np.float32)
    wanted = NearestNeighbors(n_neighbors=4, metric="cosine").fit(features).kneighbors(queries)
    for one in (index, again):
        rows, cosines = one.search(queries, 4)
        assert np.array_equal(rows, wanted[1])
        np.testing.assert_allclose(cosines, 1 - wanted[0], atol=1e-5)
    with pytest.raises(DataError, match="6 features"):
        index.search(queries[:, :5], 1)
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-9])
    (tmp_path / "c.safetensors").write_text("nothing")
    for name in "bc":
        with pytest.raises(DataError, match="is not an index"):
            ImageIndex.load(tmp_path / f"{name}.safetensors")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """40 digits of four classes as PNG files, enlarged."""
    folder, images = tmp_path_factory.mktemp("nearest") / "digits", load_digits()
    for digit in range(4):
        (folder / str(digit)).mkdir(parents=True)
        for row in np.flatnonzero(images.target == digit)[:10]:
            picture = np.uint8(images.images[row] * 15).repeat(4, 0).repeat(4, 1)
            Image.fromarray(picture).save(folder / str(digit) / f"{row}.png")
    return folder


def test_an_image_is_nearest_to_itself_and_the_index_answers_alike(digits, tmp_path):
    asked = sorted((digits / "2").iterdir())[:3]
    saved, picture = tmp_path / "digits.safetensors", tmp_path / "found.png"
    value = find_similar(str(digits), [str(one) for one in asked], k=5, save=saved, out=picture)
    for one, path in zip(value["queries"], asked, strict=True):
        assert one["nearest"][0]["file"] == f"2/{path.name}"
        assert one["nearest"][0]["similarity"] == pytest.approx(1, abs=0.01)
        votes = [near["label"] for near in one["nearest"]]
        assert votes[0] == "2"
        assert one["votes"] == votes.count(one["label"]) == max(map(votes.count, votes))
    assert value["retrieval"]["recall"]["1"] > 0.6  # by chance 0.23
    with Image.open(picture) as drawn:
        width, height = drawn.size
    assert width > height  # three rows of six
    again = find_similar(str(saved), [str(asked[0])], k=5)
    assert [one["file"] for one in again["queries"][0]["nearest"]] == [
        one["file"] for one in value["queries"][0]["nearest"]
    ]


def test_images_without_labels_are_searched_too(digits, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in digits.glob("*/*.png"):
        shutil.copy(path, flat / f"{path.parent.name}-{path.name}")
    one = sorted(flat.iterdir())[0]
    assert main(["nearest", str(flat), str(one), "-k", "3", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["retrieval"] is None
    assert value["queries"][0]["nearest"][0]["file"] == one.name


def test_an_image_without_a_label_has_no_class(digits, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(digits, mixed)
    shutil.copytree(mixed / "0", mixed / "unlabelled")
    shutil.rmtree(mixed / "0")
    asked = sorted((mixed / "unlabelled").iterdir())[0]
    value = find_similar(str(mixed), [str(asked)], k=1)
    assert value["images"] == 40
    assert value["retrieval"]["images"] == 30
    (found,) = value["queries"]
    assert found["nearest"][0]["file"] == f"unlabelled/{asked.name}"
    assert found["nearest"][0]["label"] == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ["none.png"]}, "none.png"),
        ({"k": 0}, "--count is 0"),
        ({"save": "index.txt"}, "end it in .safetensors"),
        ({"data": "nowhere"}, "nothing at 'nowhere'"),
    ],
)
def test_what_cannot_be_used_is_refused(digits, change, message, tmp_path):
    from pathlib import Path

    from sightline.errors import SightlineError

    given = {"data": str(digits), "images": [], **change}
    if "save" in given:
        given["save"] = Path(given["save"])
    with pytest.raises(SightlineError, match=message):
        find_similar(**given)


def test_an_index_of_other_weights_is_refused(digits, tmp_path):
    saved = tmp_path / "other.safetensors"
    find_similar(str(digits), save=saved)
    index = ImageIndex.load(saved)
    index.facts["backbone"] = "0" * 32
    index.save(saved)
    with pytest.raises(DataError, match="other weights"):
        find_similar(str(saved))
