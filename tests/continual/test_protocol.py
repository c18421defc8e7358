"""Streams, and the numbers that a matrix of accuracies gives."""

from dataclasses import replace

import numpy as np
import pytest

from sightline.continual import StreamResult, permute_pixels, split_by_class, split_by_column
from sightline.data import load_dataset, split
from sightline.errors import DataError
from sightline.sources import find
from sightline.types import Geometry


@pytest.fixture(scope="module")
def splits():
    images = load_dataset(find("digits", limit=200), Geometry(size=(8, 8), channels=1))
    return split(images, val=0.1, test=0.3, seed=0)


def test_numbers_of_a_matrix():
    """GEM's formulas on three tasks, worked out by hand."""
    matrix = np.array([[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.5, 0.7, 1.0]])
    result = StreamResult("x", matrix, np.array([0.1, 0.1, 0.2]), np.ones(3), 0)
    assert result.average_accuracy == pytest.approx((0.5 + 0.7 + 1.0) / 3)
    assert result.forgetting == pytest.approx(((0.9 - 0.5) + (0.8 - 0.7)) / 2)
    assert result.backward_transfer == pytest.approx(((0.5 - 0.9) + (0.7 - 0.8)) / 2)
    assert result.forward_transfer == pytest.approx(((0.2 - 0.1) + (0.3 - 0.2)) / 2)
    assert result.as_json()["accuracy"][2] == [0.5, 0.7, 1.0]


def test_classes_come_once_each(splits):
    stream = split_by_class(splits.train, splits.test, 5, seed=3)
    parts = [set(np.unique(train.labels)) for train, _ in stream.tasks]
    assert all(len(part) == 2 for part in parts)
    assert set.union(*parts) == set(range(10))
    assert all(set(np.unique(test.labels)) <= part for (_, test), part in zip(stream.tasks, parts, strict=True))
    assert len(stream.classes) == 10
    assert stream.classes != split_by_class(splits.train, splits.test, 5).classes
    with pytest.raises(DataError, match="10 classes cannot be divided into 3 tasks"):
        split_by_class(splits.train, splits.test, 3)


def test_permutations_keep_every_pixel(splits):
    stream = permute_pixels(splits.train, splits.test, 3, seed=1)
    first, second, third = (train[:4] for train, _ in stream.tasks)
    assert np.array_equal(first, splits.train[:4])
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)
    assert np.array_equal(np.sort(first.reshape(4, -1)), np.sort(second.reshape(4, -1)))
    again = permute_pixels(splits.train, splits.test, 3, seed=1).tasks[1][1]
    assert np.array_equal(again[:4], stream.tasks[1][1][:4])
    assert stream.kind == "domain"


def test_a_stream_by_site(splits):
    parts = [
        replace(part, columns={"site": np.array(["north", "south"], object)[np.arange(len(part)) % 2]})
        for part in (splits.train, splits.test)
    ]
    stream = split_by_column(*parts, "site")
    assert [set(train.columns["site"]) for train, _ in stream.tasks] == [{"north"}, {"south"}]
    with pytest.raises(DataError, match=r"no column 'date'\. There are: site"):
        split_by_column(*parts, "date")
    same = [replace(part, columns={"site": np.full(len(part), "north", object)}) for part in parts]
    with pytest.raises(DataError, match="single value"):
        split_by_column(*same, "site")
