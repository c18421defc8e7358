"""Streams, and the numbers that a matrix of accuracies gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sightline.choose import choose
from sightline.continual import (
    STREAMS,
    StreamResult,
    corrupt_images,
    hold_out,
    permute_pixels,
    rotate_images,
    split_by_class,
    split_by_column,
)
from sightline.data import load_dataset, split, to_tensor
from sightline.errors import ChoiceError, DataError
from sightline.robustness import CORRUPTIONS
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


def test_numbers_of_random_matrices_are_those_of_the_papers():
    """The sums of Lopez-Paz and Ranzato 2017 (section 3) and of Chaudhry et al. 2018 (equation 3), term by term."""
    rng = np.random.default_rng(0)
    for tasks in (2, 3, 7):
        r, chance = rng.random((tasks, tasks)), rng.random(tasks)
        result = StreamResult("x", r, chance, np.ones(tasks), 0)
        last = tasks - 1
        backward = forward = forgetting = 0.0
        for i in range(last):
            backward += r[last, i] - r[i, i]
            forgetting += max(r[k, i] for k in range(last)) - r[last, i]
        for i in range(1, tasks):
            forward += r[i - 1, i] - chance[i]
        assert result.average_accuracy == pytest.approx(sum(r[last]) / tasks)
        assert result.backward_transfer == pytest.approx(backward / last)
        assert result.forward_transfer == pytest.approx(forward / last)
        assert result.forgetting == pytest.approx(forgetting / last)
        again = StreamResult.from_json(result.as_json())
        assert again.forgetting == pytest.approx(result.forgetting, abs=1e-4)
        assert again.forward_transfer == pytest.approx(result.forward_transfer, abs=1e-4)


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
    with pytest.raises(DataError, match="No test image has the site 'south'"):
        split_by_column(parts[0], parts[1].subset(parts[1].columns["site"] == "north"), "site")


def test_rotation_is_that_of_numpy(splits):
    stream = rotate_images(splits.train, splits.test, 2)
    plain, turned = (train[:5] for train, _ in stream.tasks)
    assert np.array_equal(plain, splits.train[:5])
    assert np.array_equal(turned, np.rot90(plain, axes=(1, 2)))
    assert np.array_equal(stream.tasks[1][1].labels, splits.test.labels)
    assert not np.array_equal(turned, plain)


def test_corrupted_images_are_the_same_whenever_they_are_read(splits):
    chosen = {name: CORRUPTIONS[name] for name in ("brightness", "gaussian-noise")}
    stream = corrupt_images(splits.train, splits.test, chosen, severity=4)
    clean, bright, noisy = (train for train, _ in stream.tasks)
    assert np.array_equal(clean[:], splits.train[:])
    expected = CORRUPTIONS["brightness"](to_tensor(splits.train[:]), 4, torch.Generator())
    assert np.array_equal(bright[:], (expected * 255).round().byte().permute(0, 2, 3, 1).numpy())
    assert np.array_equal(noisy[:][[7, 3]], noisy[[7, 3]])
    assert not np.array_equal(noisy[:], clean[:])
    again = corrupt_images(splits.train, splits.test, chosen, severity=4)
    assert np.array_equal(again.tasks[2][1][:], stream.tasks[2][1][:])
    assert np.array_equal(noisy.labels, clean.labels)


def test_validation_images_are_neither_learned_nor_tested(splits):
    whole = split_by_class(splits.train, splits.test, 5)
    held = hold_out(whole, 0.2, seed=1)
    for (train, test), (before, _), validation in zip(held.tasks, whole.tasks, held.validation, strict=True):
        rows = [set(part.rows.tolist()) for part in (train, test, validation)]
        assert sum(map(len, rows)) == len(set.union(*rows))
        assert rows[0] | rows[2] == set(before.rows.tolist())
        assert len(validation) == pytest.approx(0.2 * len(before), abs=2)


def test_words_of_streams(splits):
    for word, tasks in {"class:2": 2, "task:5": 5, "permuted:3": 3, "rotated:4:degrees=90": 4}.items():
        assert len(choose(STREAMS, word, "stream")(splits.train, splits.test, 0).tasks) == tasks
    stream = choose(STREAMS, "corrupted:fog:snow:severity=2", "stream")(splits.train, splits.test, 0)
    assert stream.name == "clean, then 2 corruptions of severity 2"
    with pytest.raises(ChoiceError, match=r"no corruption called 'fogg'.*fog"):
        choose(STREAMS, "corrupted:fogg", "stream")
    with pytest.raises(DataError, match="two or more"):
        permute_pixels(splits.train, splits.test, 1)
