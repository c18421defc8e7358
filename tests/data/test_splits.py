"""split: disjoint, stratified, seeded, and no picture on both sides."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data import find_leak_groups, find_leaks, load_dataset, make_folds, split
from sightline.data import splits as split_module
from sightline.errors import DataError, RecipeError
from sightline.types import Dataset, Geometry, Splits


def dataset(labels, digests=None, given=None, **columns) -> Dataset:
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
        columns=({} if given is None else {"split": np.asarray(given)})
        | {name: np.asarray(column, object) for name, column in columns.items()},
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
def test_drawn_splits_obey_their_laws(sizes, copies, val, test, seed):
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


def test_the_draw_is_noted():
    notes = split(dataset(np.repeat([0, 1], 50)), test=0.1, seed=3).notes
    drawn = "10 of 100 images (10% of each class, seed 3) were drawn for"
    assert notes == (
        f"The data has no test split: {drawn} testing.",
        f"The data has no validation split: {drawn} validation.",
    )


@pytest.mark.parametrize("has", [("train", "val", "test"), ("train", "test"), ("train", "val"), ("train",)])
def test_given_splits_are_kept(has):
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


def test_leaks_between_given_splits_stay_and_are_noted():
    data = dataset([0, 1, 0, 1], [1, 2, 1, 3], ["train", "train", "test", "test"])
    big = dataset(np.tile([0, 1], 50), [*range(99), 0], ["train"] * 90 + ["test"] * 10)
    assert [(leak.held_out, leak.other, leak.indices.tolist()) for leak in find_leaks(data)] == [
        ("test", "train", [2])
    ]
    splits = split(big)
    np.testing.assert_array_equal(splits.test.rows, np.arange(90, 100))
    assert (
        "1 of the 10 given test images are exact copies of train images (for example '99.png')" in splits.notes[0]
    )


def test_tiny_classes_are_noted_and_stay_in_train():
    splits = split(dataset([0] * 50 + [1] * 50 + [2, 2]))
    assert splits.train.counts[2] == 1
    assert any(
        "Classes with too few distinct images to be in the test split: 'class2'" in note for note in splits.notes
    )
    alone = split(dataset([0] * 50 + [1] * 50 + [2]))
    assert alone.train.counts[2] == 1


def test_many_copies_are_one_leak_group():
    data = dataset([0] * 100 + [1] * 100, [*([7] * 95), *range(100, 105), *range(200, 300)])
    assert len(np.unique(find_leak_groups(data))) == 106
    splits = split(data)
    piles = [(part.digests == 7).sum() for part in (splits.train, splits.val, splits.test)]
    assert sorted(piles) == [0, 0, 95]


def test_copies_with_different_labels_stay_together():
    data = dataset([0] * 30 + [1] * 30, [*range(30), *range(30)])
    for part in (splits := split(data)).train, splits.val, splits.test:
        assert part.counts[0] == part.counts[1]


@pytest.mark.parametrize(("val", "test"), [(0.1, 1), (-0.1, 0.1), (0.1, 2.0), (0.6, 0.5), (float("nan"), 0.1)])
def test_impossible_shares(val, test):
    with pytest.raises(RecipeError, match=r"share"):
        split(dataset([0, 1] * 20), val=val, test=test)


def test_nothing_to_train_on():
    with pytest.raises(DataError, match="no training images"):
        split(dataset([0, 1], given=["test", "test"]))


def test_too_few_images_to_draw():
    with pytest.raises(DataError, match="too few images"):
        split(dataset([0, 1]))


def test_digits():
    splits = split(load_dataset("digits", Geometry(size=(8, 8), channels=1)), test=0.1, seed=0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1439, 179, 179)
    assert not set(splits.train.digests) & set(splits.test.digests)


# groups


def patients(rng: np.random.Generator, groups: int, classes: int = 3, largest: int = 12) -> tuple[list, list]:
    """Labels and groups of people with one to ``largest`` images each, most of one class."""
    labels, names = [], []
    for group in range(groups):
        count, own = int(rng.integers(1, largest + 1)), int(rng.integers(classes))
        odd = rng.random(count) < 0.15
        labels += np.where(odd, rng.integers(0, classes, count), own).tolist()
        names += [f"p{group:03d}"] * count
    return labels, names


def overlaps(splits: Splits, column: str) -> set:
    train, val, test = (set(p.columns[column]) for p in (splits.train, splits.val, splits.test))
    return (train & val) | (train & test) | (val & test)


@settings(deadline=None, max_examples=40)
@given(groups=st.integers(12, 60), seed=st.integers(0, 1000), val=st.floats(0.08, 0.3), test=st.floats(0.08, 0.3))
def test_no_group_is_in_two_splits(groups, seed, val, test):
    labels, names = patients(np.random.default_rng(seed), groups)
    data = dataset([0, 1, 2, *labels], group=["a", "b", "c", *names])
    splits = split(data, val=val, test=test, seed=seed)
    assert not overlaps(splits, "group")
    np.testing.assert_array_equal(np.sort(np.concatenate(parts(splits))), np.arange(len(data)))
    for part, share in ((splits.val, val), (splits.test, test)):
        assert 0 < len(part) / len(data) < share + 0.2
    for label in range(3):  # in three groups or more: in every part
        holders = {name for name, each in zip(data.columns["group"], data.labels, strict=True) if each == label}
        if len(holders) >= 9:
            assert all(part.counts[label] for part in (splits.train, splits.val, splits.test))
    for one, two in zip(parts(splits), parts(split(data, val=val, test=test, seed=seed)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_groups_take_precedence_over_stratification_with_a_note():
    """Two large groups of the rare class: it cannot be spread evenly, and the note says what that did."""
    labels = [0] * 200 + [1] * 40
    names = [f"many{i // 2}" for i in range(200)] + ["big1"] * 20 + ["big2"] * 10 + ["big3"] * 10
    splits = split(dataset(labels, group=names), val=0.1, test=0.1)
    assert not overlaps(splits, "group")
    assert [part.counts[1] for part in (splits.train, splits.val, splits.test)] == [20, 10, 10]
    note = splits.notes[-1]
    assert note.startswith(
        "Images of one group (column 'group') stay in one split, which takes precedence over equal"
    )
    label, whole, share, part = re.findall(r"'class(.)' is (.*)% of the images and (.*)% of (.*),", note)[0]
    there = {"train": splits.train, "val": splits.val, "test": splits.test}[part]
    assert float(whole) == pytest.approx([200 / 2.4, 40 / 2.4][int(label)], abs=0.06)
    assert float(share) == pytest.approx(100 * there.counts[int(label)] / len(there), abs=0.06)


def test_shares_of_classes_are_close_where_groups_allow():
    labels, names = patients(np.random.default_rng(1), 600)
    data = dataset(labels, group=names)
    splits = split(data, val=0.1, test=0.2)
    assert not overlaps(splits, "group")
    for part, share in ((splits.val, 0.1), (splits.test, 0.2)):
        np.testing.assert_allclose(part.counts / data.counts, share, atol=0.01)
        sizes = np.unique(part.columns["group"], return_counts=True)[1]
        assert 4 < sizes.mean() < 9  # neither only large groups nor only small ones: 6.5 in all


def test_another_column_can_be_the_group():
    labels, names = patients(np.random.default_rng(2), 40)
    data = dataset(labels, patient=names)
    assert overlaps(split(data), "patient")
    assert not overlaps(split(data, group="patient"), "patient")
    with pytest.raises(RecipeError, match=r"no column 'patent' to keep together.*Did you mean 'patient'"):
        split(data, group="patent")


def test_images_without_a_group_are_groups_of_their_own():
    names = [""] * 90 + ["p1"] * 10
    splits = split(dataset([0, 1] * 50, group=names))
    assert sum("p1" in part.columns["group"] for part in (splits.train, splits.val, splits.test)) == 1
    assert len(splits.val) in range(8, 13)


def test_copies_connect_groups():
    """One picture in two groups ties them: neither may be parted from the other."""
    names = [f"p{i // 4}" for i in range(80)]
    digests = np.arange(80)
    digests[41] = digests[2]  # p0 and p10
    data = dataset([0, 1] * 40, digests, group=names)
    assert find_leak_groups(data)[0] == find_leak_groups(data)[40]
    assert len(np.unique(find_leak_groups(data))) == 19
    splits = split(data)
    sides = [part for part in parts(splits) if {0, 1, 2, 3} & set(part)]
    assert len(sides) == 1
    assert set(range(40, 44)) <= set(sides[0])


def test_too_few_groups():
    with pytest.raises(
        DataError, match=r"There are 2 groups in the column 'group', too few for train and test and val"
    ):
        split(dataset([0, 1] * 20, group=["f", "m"] * 20))


def test_a_group_in_two_given_splits_is_refused():
    data = dataset([0, 1] * 4, given=["train"] * 5 + ["test"] * 3, group=["a", "b", "c", "d", "e", "f", "a", "b"])
    with pytest.raises(
        DataError,
        match=r"'a' is in two given splits \(and 1 more group\): '0.png' is in train and '6.png' in test",
    ):
        split(data)
    names = [f"p{i // 3}" for i in range(60)]
    fine = dataset([0, 1] * 30, given=["train"] * 45 + ["test"] * 15, group=names)
    splits = split(fine)
    np.testing.assert_array_equal(splits.test.rows, np.arange(45, 60))
    assert not overlaps(splits, "group")


def nearly_twice(**columns) -> Dataset:
    """80 pictures: 40, and each of them again a little brighter."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (40, 8, 8, 1), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    twice = np.concatenate([base, np.clip(base.astype(int) + 2, 0, 255).astype(np.uint8)])
    geometry = Geometry(size=(32, 32), channels=1)
    return replace(dataset([0, 1] * 40, **columns), pixels=twice, geometry=geometry)


@pytest.mark.parametrize("most", [20_000, 10])
def test_near_duplicates_stay_in_one_split_of_many_images_too(monkeypatch, most):
    monkeypatch.setattr(split_module, "MAX_NEAR_DUPLICATE_IMAGES", most)
    for part in parts(split(nearly_twice(), near=True)):
        assert {row % 40 for row in part} == {row for row in part if row < 40}


@pytest.mark.parametrize("most", [20_000, 10])
def test_near_duplicates_of_given_splits_are_counted(monkeypatch, most):
    monkeypatch.setattr(split_module, "MAX_NEAR_DUPLICATE_IMAGES", most)
    data = nearly_twice(
        given=["train"] * 60 + ["test"] * 20
    )  # 20 images are tested, and trained on as nearly the same
    notes = " ".join(split(data, near=True).notes)
    assert "20 of the 20 given test images nearly repeat train images" in notes
    copied = replace(data, digests=np.r_[np.arange(60), 20 + np.arange(20)].astype(np.uint64))
    assert "nearly repeat" not in " ".join(split(copied, near=True).notes)  # they are exact copies
    assert not any("nearly repeat" in note for note in split(data, near=False).notes)


def test_near_duplicates_stay_in_one_split():
    data = nearly_twice()
    assert len(np.unique(find_leak_groups(data))) == 40
    assert len(np.unique(find_leak_groups(data, near=False))) == 80
    for part in parts(split(data)):
        assert {row % 40 for row in part} == {row for row in part if row < 40}


# folds


def check_folds(data: Dataset, made: list, k: int) -> None:
    assert len(made) == k
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.held_out.rows for fold in made])), data.rows)
    for fold in made:
        np.testing.assert_array_equal(np.sort(np.r_[fold.train.rows, fold.held_out.rows]), data.rows)


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(10, 60), min_size=2, max_size=5), k=st.integers(2, 10), seed=st.integers(0, 99))
def test_folds_are_as_even_as_scikit_learns(sizes, k, seed):
    from sklearn.model_selection import StratifiedKFold

    data = dataset(np.repeat(np.arange(len(sizes)), sizes))
    made = make_folds(data, k, seed=seed)
    check_folds(data, made, k)
    ours = np.stack([fold.held_out.counts for fold in made])
    theirs = np.stack(
        [
            np.bincount(data.labels[held], minlength=len(sizes))
            for _, held in StratifiedKFold(k).split(np.zeros(len(data)), data.labels)
        ]
    )
    assert np.ptp(ours, axis=0).max() <= np.ptp(theirs, axis=0).max() <= 1
    assert np.ptp(ours.sum(1)) <= 1
    again = make_folds(data, k, seed=seed)
    assert all((a.held_out.rows == b.held_out.rows).all() for a, b in zip(made, again, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_group_folds_are_about_as_even_as_scikit_learns(seed):
    from sklearn.model_selection import StratifiedGroupKFold

    labels, names = patients(np.random.default_rng(seed), 60)
    data = dataset(labels, group=names)
    made = make_folds(data, 5, seed=seed)
    check_folds(data, made, 5)
    for fold in made:
        assert not set(fold.train.columns["group"]) & set(fold.held_out.columns["group"])
    ours = np.stack([fold.held_out.counts for fold in made]) / data.counts
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    theirs = np.stack(
        [np.bincount(data.labels[held], minlength=3) for _, held in splitter.split(labels, labels, names)]
    )
    assert np.abs(ours - 0.2).max() <= max(0.05, 1.5 * np.abs(theirs / data.counts - 0.2).max())


def test_folds_keep_copies_together():
    data = dataset([0, 1] * 30, [*range(30), *range(30)])
    made = make_folds(data, 4)
    check_folds(data, made, 4)
    for fold in made:
        assert not set(fold.train.digests) & set(fold.held_out.digests)


def test_fewer_images_or_groups_than_folds():
    with pytest.raises(DataError, match=r"'class1' has 3 distinct images, too few for 5 folds: use fewer"):
        make_folds(dataset([0] * 20 + [1] * 3), 5)
    with pytest.raises(DataError, match=r"There are 4 groups in the column 'group', too few for 5 folds"):
        make_folds(dataset([0, 1] * 8, group=[f"p{i // 4}" for i in range(16)]), 5)
    with pytest.raises(DataError, match="There is 1 group in the column 'site', too few for 2 folds"):
        make_folds(dataset([0, 1] * 8, site=["here"] * 16), 2, group="site")
    with pytest.raises(RecipeError, match="The number of folds is 1: it must be at least 2"):
        make_folds(dataset([0, 1] * 8), 1)
