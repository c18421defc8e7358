"""Suspect labels: confident learning by its definition, planted errors found, and what is written."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.comparison.confident_learning import confident_joint, count_wrong_labels, rank_issues
from sightline.comparison.label_issues import (
    DEFAULT_LABEL_CHECKER,
    find_label_issues,
    write_label_issues,
)
from sightline.data import load_dataset
from sightline.errors import ChoiceError, DataError, RecipeError
from sightline.training.recipe import Recipe
from sightline.types import Geometry

GEOMETRY = Geometry(size=(8, 8), channels=1)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", GEOMETRY)


def planted(dataset, where, seed=0):
    """The dataset with these labels changed to other classes."""
    rng, labels = np.random.default_rng(seed), dataset.labels.copy()
    labels[where] = (labels[where] + rng.integers(1, 10, len(where))) % 10
    return replace(dataset, labels=labels)


def plain_joint(labels, p):
    """Northcutt 2021, equation 1, image by image."""
    k = p.shape[1]
    thresholds = []
    for j in range(k):
        own = [p[i, j] for i in range(len(labels)) if labels[i] == j]
        thresholds.append(sum(own) / len(own) if own else float("inf"))
    joint = np.zeros((k, k), int)
    for i, label in enumerate(labels):
        above = [j for j in range(k) if p[i, j] >= thresholds[j] - 1e-12]
        if above:
            joint[label, max(above, key=lambda j, i=i: p[i, j])] += 1
    return joint


def draw_predictions(n=2000, k=10, own=0.05, seed=0):
    """True labels, and probabilities of a judge that errs on a share ``own``, by small margins."""
    rng = np.random.default_rng(seed)
    true, logits = rng.integers(0, k, n), rng.normal(0, 1, (n, k))
    logits[np.arange(n), true] += rng.uniform(6, 12, n)
    errs = np.flatnonzero(rng.random(n) < own)
    logits[errs, (true[errs] + 1) % k] = logits[errs, true[errs]] + rng.exponential(1.5, len(errs))
    p = np.exp(logits - logits.max(1, keepdims=True))
    return true, p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("own", [0.01, 0.05, 0.15])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1])
def test_the_judges_own_errors_bound_the_list(own, share):
    """Clean labels list next to nothing; planted noise is counted, and most of the list is wrong labels."""
    true, p = draw_predictions(own=own)
    rng, labels = np.random.default_rng(1), true.copy()
    where = rng.choice(len(true), round(share * len(true)), replace=False)
    labels[where] = (labels[where] + rng.integers(1, 10, len(where))) % 10
    listed, expected = count_wrong_labels(labels, p)
    right = np.isin([i for i, _ in rank_issues(labels, p)[:listed]], where).sum()
    contradicted = (p.argmax(1) != labels).sum()
    assert contradicted >= own * len(true) / 2
    if len(where) < 0.15 * contradicted:  # its own errors hide so few
        assert listed <= 3
        return
    assert abs(expected - len(where)) < 0.35 * len(where)
    assert right > max(0.6 * listed, 0.6 * len(where))


@pytest.mark.parametrize("seed", range(4))
def test_the_confident_joint_is_its_definition(seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(5, 0.5), 300)
    labels = np.where(rng.random(300) < 0.7, p.argmax(1), rng.integers(0, 4, 300))  # class 4 is rare
    if seed == 3:
        labels[labels == 4] = 0  # and here absent
    np.testing.assert_array_equal(confident_joint(labels, p), plain_joint(labels, p))


def test_a_small_example_of_the_paper():
    """Three clear images of each class, one of them under the other's label."""
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.1, 0.9], [0.85, 0.15]])
    labels = np.array([0, 0, 1, 1, 0, 0])
    assert confident_joint(labels, p).tolist() == [[3, 1], [0, 1]]


def test_planted_labels_are_ranked_first(digits):
    where = np.arange(100, 1700, 200)
    found = find_label_issues(planted(digits, where), "logistic-regression", probe=False)
    first = found.issues[:4]
    assert all(one.index in where for one in first)
    assert [one.suggested for one in first] == [digits.classes[digits.labels[one.index]] for one in first]
    margins = [np.log(one.p_suggested / one.p_label) for one in found.issues]
    assert margins == sorted(margins, reverse=True)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.10])
def test_planted_noise_is_found_with_precision_and_recall(digits, share):
    where = np.random.default_rng(1).choice(len(digits), round(share * len(digits)), replace=False)
    found = find_label_issues(planted(digits, where), "svm-rbf", probe=False)
    listed = np.array([one.index for one in found.issues])
    recall, precision = np.isin(where, listed).mean(), np.isin(listed, where).mean()
    assert recall > 0.65
    assert precision > {0.01: 0.5, 0.05: 0.75, 0.10: 0.85}[share]
    first = listed[: len(where)]
    assert np.isin(first, where).mean() > 0.75  # ranked: errors come first
    assert abs(found.estimated_error_rate - share) < 0.04


def test_the_probe_predicts_recall_on_other_planted_errors(digits):
    """Its recall and precision against errors of our own planting, in the same data."""
    found = find_label_issues(digits, "svm-rbf")
    assert found.probe is not None
    where = np.random.default_rng(9).choice(len(digits), found.probe.n_planted, replace=False)
    ours = find_label_issues(planted(digits, where, seed=2), "svm-rbf", probe=False)
    listed = {one.index for one in ours.issues}
    recall = np.mean([i in listed for i in where])
    assert abs(recall - found.probe.recall.value) < 0.15
    assert found.probe.recall.low < found.probe.recall.high
    assert f"{found.probe.n_planted:,} deliberately changed labels" in found.sentence


def test_random_labels_have_many_issues_and_clean_labels_few(digits):
    few = digits.subset(np.arange(0, 1797, 4))
    clean = find_label_issues(few, "svm-rbf", probe=False)
    assert clean.accuracy.value > 0.85
    assert len(clean.issues) < 0.12 * len(few)
    shuffled = replace(few, labels=np.random.default_rng(0).permutation(few.labels))
    noise = find_label_issues(shuffled, "svm-rbf", probe=False)
    assert noise.accuracy.low < 0.1 < noise.accuracy.high + 0.03
    assert noise.estimated_error_rate > 0.6


def test_a_network_can_check_labels(digits):
    few = digits.subset(np.arange(600))
    where = np.arange(5, 600, 60)
    recipe = Recipe(epochs=10, batch_size=32, lr=0.05, augment=())
    found = find_label_issues(planted(few, where), "mlp", folds=2, recipe=recipe)
    assert found.probe is None
    assert np.isin(where, [one.index for one in found.issues[:20]]).sum() >= 6


def test_rare_classes_lower_the_folds_and_single_images_are_left_out(digits):
    rare = np.concatenate([np.flatnonzero(digits.labels < 4), np.flatnonzero(digits.labels == 5)[:3]])
    rare = np.append(rare, np.flatnonzero(digits.labels == 7)[0])
    data = digits.subset(rare)
    found = find_label_issues(data, "svm-rbf", probe=False)
    assert (found.folds, found.n) == (3, len(rare) - 1)
    assert "'7'" in found.remarks[0]
    assert all(one.label != "7" for one in found.issues)


def test_unlabelled_images_are_no_issues(digits):
    few = digits.subset(np.arange(300))
    some = replace(few, labels=np.where(np.arange(300) % 4 == 0, -1, few.labels))
    found = find_label_issues(some, "logistic-regression", probe=False)
    assert found.n == 225
    assert all(one.index % 4 for one in found.issues)


def test_impossible_arguments_are_refused(digits):
    lonely = digits.subset(np.array([np.flatnonzero(digits.labels == k)[0] for k in range(10)]))
    with pytest.raises(DataError, match="have two distinct images each"):
        find_label_issues(lonely)
    with pytest.raises(RecipeError, match="at least 2"):
        find_label_issues(digits, folds=1)
    with pytest.raises(ChoiceError, match="Did you mean 'svm-rbf'"):
        find_label_issues(digits, "svm-rfb")


def test_files_of_label_issues(digits, tmp_path):
    where = np.arange(3, 1700, 50)
    data = planted(digits, where)
    found = find_label_issues(data, "svm-rbf")
    files = write_label_issues(found, data, tmp_path / "out")
    with Path(files["table"]).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == [one.file for one in found.issues]
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    value = json.loads((tmp_path / "out" / "suspects.json").read_text())
    assert value == found.as_json()
    assert value["probe"]["recall"]["n"] == found.probe.n_planted  # type: ignore[union-attr]
    with Image.open(files["gallery"]) as picture:
        assert picture.width > 500
    none = write_label_issues(replace(found, issues=()), data, tmp_path / "out")
    assert "gallery" not in none
    assert not (tmp_path / "out" / "suspects.png").exists()


def test_check_label_issues(cli, tmp_path):
    words = ("check", "digits", "--limit", "400", "--label-issues", "--out-dir", tmp_path / "s")
    answer = cli(*words)
    assert answer.code == 0, answer.err
    assert "of 401, which its own errors can explain" in answer.out
    assert f"fits of {DEFAULT_LABEL_CHECKER}" in answer.err
    value = json.loads(cli(*words, "--by", "svm-rbf", "--json").out)
    assert value["suspects"]["by"] == "svm-rbf"
    assert value["suspects"]["files"]["table"] == str(tmp_path / "s" / "suspects.csv")
    assert {path.name for path in (tmp_path / "s").iterdir()} >= {"suspects.csv", "suspects.json"}
    assert "suspects" not in json.loads(cli("check", "digits", "--limit", "100", "--json").out)


@pytest.fixture
def discs(tmp_path):
    """Two classes that differ by colour alone, or by nothing."""

    def draw(name, colours):
        for kind, colour in enumerate(colours):
            (tmp_path / name / f"class{kind}").mkdir(parents=True)
            for i in range(40):
                rng = np.random.default_rng([kind, i])
                pixels, (y, x) = np.full((16, 16, 3), 230), np.mgrid[:16, :16]
                pixels[(x - rng.uniform(6, 10)) ** 2 + (y - rng.uniform(6, 10)) ** 2 < rng.uniform(9, 36)] = colour
                noisy = np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(tmp_path / name / f"class{kind}" / f"{i}.png")
        return load_dataset(str(tmp_path / name), Geometry(size=(16, 16)))

    return draw


def test_classes_that_differ_by_colour_alone_are_judged_by_their_pixels(discs):
    found = find_label_issues(discs("ripe", [(200, 30, 30), (60, 160, 40)]), probe=False)
    assert found.by == "svm-rbf"
    assert found.accuracy.value > 0.9
    assert len(found.issues) <= 2


@pytest.mark.parametrize("by", [None, "svm-rbf@hog"])
def test_a_judge_that_guesses_lists_nothing_and_says_so(discs, by):
    found = find_label_issues(discs("same", [(90, 90, 90), (90, 90, 90)]), by)
    assert found.issues == ()
    assert found.probe is None
    assert "too weak to judge them" in found.sentence
    assert found.as_json()["suspects"] == []
