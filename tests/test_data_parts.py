"""split: disjoint, stratified, seeded, and no picture on both sides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data import leaks, load, split, units
from sightline.errors import DataError, RecipeError
from sightline.types import Dataset, Geometry


def dataset(labels, digests=None, given=None) -> Dataset:
    """A dataset without interesting pixels."""
    labels = np.asarray(labels, np.int64)
    count = len(labels)
    return Dataset(
        pixels=np.zeros((count, 1, 1, 1), np.uint8),
        rows=np.arange(count),
        labels=labels,
        classes=tuple(f"class{i}" for i in range(labels.max() + 1)),
        files=np.array([f"{i}.png" for i in range(count)], object),
        digests=np.arange(count, dtype=np.uint64) if digests is None else np.asarray(digests, np.uint64),
        geometry=Geometry(size=(1, 1), channels=1),
        fingerprint="",
        columns={} if given is None else {"split": np.asarray(given)},
    )


def parts(splits):
    return [part.rows for part in (splits.train, splits.val, splits.test)]


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(3, 40), min_size=2, max_size=6),
    copies=st.integers(0, 30),
    val=st.floats(0.02, 0.45),
    test=st.floats(0.02, 0.45),
    seed=st.integers(0, 1000),
)
def test_laws(sizes, copies, val, test, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(seed)
    twins = rng.integers(0, len(labels), copies)  # exact copies of images, in the same class
    digests = np.concatenate([np.arange(len(labels)), twins])
    data = dataset(np.concatenate([labels, labels[twins]]), digests)
    splits = split(data, val=val, test=test, seed=seed)
    train, validation, testing = parts(splits)
    together = np.sort(np.concatenate([train, validation, testing]))
    np.testing.assert_array_equal(together, np.arange(len(data)))
    for a, b in ((train, validation), (train, testing), (validation, testing)):
        assert not set(digests[a]) & set(digests[b])
    for label in range(len(sizes)):  # three distinct images or more: in each part
        for part in (train, validation, testing):
            assert (data.labels[part] == label).any()
    again = split(data, val=val, test=test, seed=seed)
    for one, two in zip(parts(splits), parts(again), strict=True):
        np.testing.assert_array_equal(one, two)


def test_shares_are_kept_in_every_class():
    data = dataset(np.repeat([0, 1, 2], [1000, 500, 100]))
    splits = split(data, val=0.1, test=0.2)
    np.testing.assert_array_equal(splits.test.counts, [200, 100, 20])
    np.testing.assert_array_equal(splits.val.counts, [100, 50, 10])
    other = split(data, val=0.1, test=0.2, seed=1)
    assert set(other.test.rows) != set(splits.test.rows)


def test_what_was_drawn_is_said():
    notes = split(dataset(np.repeat([0, 1], 50)), test=0.1, seed=3).notes
    drawn = "10 of 100 images (10% of each class, seed 3) were set aside for"
    assert notes == (
        f"No test part was given: {drawn} testing.",
        f"No validation part was given: {drawn} validation.",
    )


@pytest.mark.parametrize("has", [("train", "val", "test"), ("train", "test"), ("train", "val"), ("train",)])
def test_given_parts_are_kept(has):
    names = np.resize(has, 120)
    data = dataset(np.arange(120) // 6 % 2, given=names)
    splits = split(data)
    for name, part in (("val", splits.val), ("test", splits.test)):
        if name in has:
            np.testing.assert_array_equal(part.rows, np.flatnonzero(names == name))
        else:
            assert set(part.rows) <= set(np.flatnonzero(names == "train"))
            assert len(part)
    assert len(splits.notes) == 3 - len(has)


def test_leaks_of_given_parts_stay_and_are_said():
    data = dataset([0, 1, 0, 1], [1, 2, 1, 3], ["train", "train", "test", "test"])
    big = dataset(np.tile([0, 1], 50), [*range(99), 0], ["train"] * 90 + ["test"] * 10)
    assert [(leak.held_out, leak.other, leak.indices.tolist()) for leak in leaks(data)] == [("test", "train", [2])]
    splits = split(big)
    np.testing.assert_array_equal(splits.test.rows, np.arange(90, 100))
    assert "1 of the 10 given test images are exact copies of train images ('99.png' is one)" in splits.notes[0]


def test_tiny_classes_are_said_and_stay_in_train():
    splits = split(dataset([0] * 50 + [1] * 50 + [2, 2]))
    assert splits.train.counts[2] == 1
    assert any("Too few distinct images to be in the test part: 'class2'" in note for note in splits.notes)
    alone = split(dataset([0] * 50 + [1] * 50 + [2]))
    assert alone.train.counts[2] == 1


def test_a_pile_of_copies_is_one_unit():
    data = dataset([0] * 100 + [1] * 100, [*([7] * 95), *range(100, 105), *range(200, 300)])
    assert len(np.unique(units(data))) == 106
    splits = split(data)
    piles = [(part.digests == 7).sum() for part in (splits.train, splits.val, splits.test)]
    assert sorted(piles) == [0, 0, 95]


def test_copies_with_different_labels_stay_together():
    data = dataset([0] * 30 + [1] * 30, [*range(30), *range(30)])
    for part in (splits := split(data)).train, splits.val, splits.test:
        assert part.counts[0] == part.counts[1]


@pytest.mark.parametrize(
    ("val", "test"), [(0, 0.1), (0.1, 1), (-0.1, 0.1), (0.1, 2.0), (0.6, 0.5), (float("nan"), 0.1)]
)
def test_impossible_shares(val, test):
    with pytest.raises(RecipeError, match=r"share"):
        split(dataset([0, 1] * 20), val=val, test=test)


def test_nothing_to_train_on():
    with pytest.raises(DataError, match="no training images"):
        split(dataset([0, 1], given=["test", "test"]))


def test_too_few_to_set_aside():
    with pytest.raises(DataError, match="too few images"):
        split(dataset([0, 1]))


def test_digits():
    splits = split(load("digits", Geometry(size=(8, 8), channels=1)), test=0.1, seed=0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1439, 179, 179)
    assert not set(splits.train.digests) & set(splits.test.digests)
