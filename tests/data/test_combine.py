"""Datasets joined and relabelled are views: equal pixels, no copies, opened again by other processes."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from sightline.data import (
    audit,
    concat,
    find_faulty_images,
    iterate_batches,
    load_dataset,
    make_folds,
    relabel,
    split,
    strip_labels,
)
from sightline.data.dataset import JoinedPixels
from sightline.errors import DataError
from sightline.sources import find
from sightline.types import UNLABELLED, Dataset, Geometry

GREY = Geometry(size=(8, 8), channels=1)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", GREY)


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return relabel(replace(load_dataset("shapes:40", GREY), classes=("3", "1", "4", "5")), tuple("0123456789"))


def test_concat_is_a_view_with_the_same_pixels(digits, shapes):
    some = digits.subset(np.arange(5, 100, 3))
    joined = concat([shapes, some, digits.subset(np.arange(10))])
    assert isinstance(joined.pixels, JoinedPixels)
    assert len(joined.pixels.parts) == 2  # the store of the digits is kept once
    expected = np.concatenate([shapes[:], some[:], digits[:10]])
    np.testing.assert_array_equal(joined[:], expected)
    mixed = np.random.default_rng(0).permutation(len(joined))
    np.testing.assert_array_equal(joined[mixed], expected[mixed])
    np.testing.assert_array_equal(joined[expected.any((1, 2, 3))], expected[expected.any((1, 2, 3))])
    assert joined.pixels.shape == (len(digits) + len(shapes), 8, 8, 1)
    assert joined.labels.tolist() == [*shapes.labels, *some.labels, *digits.labels[:10]]
    assert joined.files.tolist() == [*shapes.files, *some.files, *digits.files[:10]]
    assert joined.columns["width"].tolist() == [*shapes.columns["width"], *some.columns["width"], *[8] * 10]
    for batch in iterate_batches(joined, 7):
        shown = (batch.pixels.permute(0, 2, 3, 1) * 255).round().byte().numpy()
        np.testing.assert_array_equal(shown, expected[batch.index])


def test_joined_pixels_pickle_as_the_paths_of_their_stores(digits, shapes):
    joined = concat([shapes, digits])
    data = pickle.dumps(joined.pixels)
    assert len(data) < 2_000
    np.testing.assert_array_equal(pickle.loads(data)[np.arange(50)], joined.pixels[np.arange(50)])


def test_joined_stores_that_decode_on_read_are_prefetched(digits, tmp_path):
    live = load_dataset("digits", GREY, cache=tmp_path, keep=False)
    joined = concat([digits.subset(np.arange(3)), live.subset(np.arange(3))])
    assert joined.pixels.decodes_on_read
    np.testing.assert_array_equal(joined[:3], joined[3:])


def test_concat_has_a_fingerprint_of_its_parts_and_order(digits):
    one, two = digits.subset(np.arange(10)), digits.subset(np.arange(10, 20))
    prints = {concat(parts).fingerprint for parts in ([one, two], [two, one], [one, one], [one])}
    assert len(prints) == 4
    assert concat([one, two]).fingerprint == concat([one, two]).fingerprint


def test_columns_that_some_lack_are_blank_or_left_out(digits):
    some = digits.subset(np.arange(3))
    more = replace(
        some, columns={**some.columns, "group": np.array(["a", "b", "a"], object), "score": np.arange(3.0)}
    )
    joined = concat([some, more])
    assert joined.columns["group"].tolist() == ["", "", "", "a", "b", "a"]
    assert "score" not in joined.columns


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"geometry": Geometry(size=(8, 8), channels=1, resize_mode="pad")}, "Datasets of different geometries"),
        ({"classes": tuple("1234567890")}, "Datasets of different classes .*'0', '1', .* relabel them"),
    ],
)
def test_datasets_of_other_geometry_or_classes_are_not_joined(digits, change, message):
    with pytest.raises(DataError, match=message):
        concat([digits, replace(digits, **change)])


def test_concat_of_nothing_is_refused():
    with pytest.raises(DataError, match="no datasets"):
        concat([])


def test_relabel_matches_classes_by_name(digits):
    words = tuple("9876543210")
    turned = relabel(digits, words)
    assert [words[k] for k in turned.labels] == [digits.classes[k] for k in digits.labels]
    wide = relabel(digits, ("x", *digits.classes))
    assert wide.counts[0] == 0
    assert wide.counts[1:].tolist() == digits.counts.tolist()


def test_relabel_refuses_or_drops_unknown_classes(digits):
    with pytest.raises(DataError, match=r"never trained on: '8', '9'\. Rename or leave out"):
        relabel(digits, tuple("01234567"))
    left = relabel(digits, tuple("01234567"), drop_unknown=True)
    assert len(left) == int((digits.labels < 8).sum())
    none = digits.subset(digits.labels < 5)  # a class without images is no mismatch
    assert relabel(none, tuple("01234")).classes == tuple("01234")


# unlabelled images


@pytest.fixture(scope="module")
def partly(digits) -> Dataset:
    """300 labelled digits, 200 others without a label, and unlabelled copies of the first ten."""
    return concat(
        [
            digits.subset(np.arange(300)),
            strip_labels(digits.subset(np.arange(300, 500))),
            strip_labels(digits.subset(np.arange(10))),
        ]
    )


def test_unlabelled_images_have_no_class(digits, partly):
    assert partly.labels.min() == UNLABELLED
    assert partly.counts.tolist() == digits.subset(np.arange(300)).counts.tolist()
    assert relabel(partly, tuple("9876543210")).labels[-1] == UNLABELLED


def test_unlabelled_images_are_in_train_alone_without_copies_of_held_out_ones(partly):
    splits = split(partly, val=0.2, test=0.2, near=False)
    assert splits.val.is_labelled.all()
    assert splits.test.is_labelled.all()
    held_out = np.concatenate([splits.val.digests, splits.test.digests])
    assert not np.isin(splits.train.digests, held_out).any()
    copies = int(np.isin(partly.digests[500:], held_out).sum())
    assert copies > 0
    assert f"Left out {copies} unlabelled images that copy a held-out image." in splits.notes
    assert int((~splits.train.is_labelled).sum()) == 210 - copies


def test_unlabelled_images_do_not_change_the_draw(digits, partly):
    whole, own = split(partly, near=False), split(digits.subset(np.arange(300)), near=False)
    assert whole.test.files.tolist() == own.test.files.tolist()
    assert whole.val.files.tolist() == own.val.files.tolist()


def test_unlabelled_images_of_given_splits_are_left_out(partly):
    given = np.array(["test", "train"] * 255, object)
    splits = split(replace(partly, columns={**partly.columns, "split": given}), near=False)
    assert splits.test.is_labelled.all()
    assert "Left out 105 unlabelled images of the given val and test splits." in splits.notes


def test_folds_hold_out_labelled_images_once(partly):
    folds = make_folds(partly, 3, near=False)
    assert sum(len(fold.held_out) for fold in folds) == 300
    for fold in folds:
        assert fold.held_out.is_labelled.all()
        assert not np.isin(fold.train.digests, fold.held_out.digests).any()
        assert int((~fold.train.is_labelled).sum()) >= 200


def test_an_unlabelled_copy_of_a_test_image_is_a_leak(partly):
    given = np.where(np.arange(len(partly)) < 100, "test", "train").astype(object)
    data = replace(partly, columns={**partly.columns, "split": given})
    findings = audit(data)
    assert findings.values["unlabelled"] == 210
    assert findings.values["leaks"] == {"test in train": 10}
    assert findings.values["conflicting_sets"] == 0
    faults = find_faulty_images(data)
    assert {i for i in faults if i >= 500} == set(range(500, 510))


def test_a_limit_keeps_the_shares_of_splits_and_classes():
    assert len(find("digits", limit=100)) == pytest.approx(100, abs=5)
