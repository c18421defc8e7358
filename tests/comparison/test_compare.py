"""Cross-validation and comparison: the statistics against other people's, and what a failing entrant does."""

import csv
import dataclasses
import json
import shutil
from itertools import combinations
from math import comb, sqrt
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import t as student
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from helpers.photo_folder import write_photos
from helpers.tiny_classifiers import SETTLED
from sightline.baselines import BASELINES, DEFAULT_BASELINES
from sightline.classifier import Classifier
from sightline.comparison import cross_validate
from sightline.comparison.candidates import Candidate, Trial, parse_candidate
from sightline.comparison.cross_validation import assign_folds, cross_validation_pool, fold_splits
from sightline.comparison.model_comparison import PHOTO_BASELINES, PHOTO_MODELS, SECOND_NETWORK, compare
from sightline.comparison.ranking import CandidateResult, rank_candidates
from sightline.data import load_dataset
from sightline.data.splits import make_folds
from sightline.errors import ChoiceError, DataError, OutputError, RecipeError, TrainingError
from sightline.metrics import (
    bootstrap_difference,
    holm,
    mcnemar,
    nadeau_bengio_interval,
    paired_difference,
    wilson,
)
from sightline.models import NETWORKS
from sightline.training.recipe import Recipe
from sightline.types import Geometry

GEOMETRY = Geometry(size=(8, 8), channels=1)
TINY = Recipe(size=8, channels=1, epochs=1, limit=300, seed=2)
QUICK = {"models": ["mlp"], "baselines": ["knn", "naive-bayes"], "recipe": TINY}


@pytest.fixture(scope="module")
def digits():
    whole = load_dataset("digits", GEOMETRY)
    return whole.subset(np.arange(600))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# statistics


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 0), (7, 3), (3, 7), (12, 12), (40, 21)])
def test_mcnemar_equals_the_binomial_sum(first, second):
    one = np.array([True] * (first + 30) + [False] * second)
    other = np.array([False] * first + [True] * (30 + second))
    n = first + second
    tails = sum(comb(n, k) for k in range(min(first, second) + 1)) / 2**n
    assert mcnemar(one, other) == pytest.approx(min(1.0, 2 * tails))


def test_holm_of_a_worked_example():
    """Holm's procedure by hand: sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    rng = np.random.default_rng(1)
    p = rng.uniform(0, 0.1, 12)
    corrected = np.array(holm(list(p)))
    assert (corrected >= p).all()
    assert (corrected <= 12 * p + 1e-12).all()
    assert np.array_equal(np.argsort(corrected, kind="stable")[0], p.argmin())


def test_the_paired_bootstrap_agrees_with_its_formula():
    rng = np.random.default_rng(4)
    before = rng.random(800) < 0.8
    after = np.where(rng.random(800) < 0.9, before, rng.random(800) < 0.9)
    found, formula = bootstrap_difference(after, before), paired_difference(after, before)
    assert found.value == pytest.approx(after.mean() - before.mean())
    assert (found.low, found.high) == pytest.approx((formula.low, formula.high), abs=0.002)
    same = bootstrap_difference(before, before)
    assert same.low < 0 < same.high
    shares = (after.astype(float) + 2 * before) / 3
    thirds = bootstrap_difference(shares, before)
    assert (3 * thirds.value, thirds.n) == (pytest.approx(found.value), 800)
    assert 3 * thirds.low == pytest.approx(found.low, abs=0.006)
    with pytest.raises(ValueError, match="same images"):
        bootstrap_difference(after, before[:-1])


def test_the_paired_bootstrap_covers_the_true_difference():
    rng = np.random.default_rng(0)
    held = 0
    for number in range(300):
        both, first, second = 0.9, 0.05, 0.03
        cell = rng.choice(3, 250, p=[both + 0.02, first, second])
        found = bootstrap_difference(cell == 1, cell == 2, rounds=1000, seed=number)
        held += found.low <= first - second <= found.high
    assert 0.92 < held / 300 < 0.99


def test_the_interval_over_folds_is_nadeau_and_bengio():
    values = [0.91, 0.93, 0.90, 0.95, 0.92]
    found = nadeau_bengio_interval(values, 1 / 4)
    half = student.ppf(0.975, 4) * sqrt((1 / 5 + 1 / 4) * np.var(values, ddof=1))
    assert (found.value, found.n) == (pytest.approx(0.922), 5)
    assert (found.low, found.high) == pytest.approx((0.922 - half, 0.922 + half))
    plain = student.ppf(0.975, 4) * sqrt(np.var(values, ddof=1) / 5)
    assert half / plain == pytest.approx(1.5)
    assert nadeau_bengio_interval([0.99, 1.0], 1.0, bounds=(0, 1)).high == 1.0
    with pytest.raises(ValueError, match="at least two"):
        nadeau_bengio_interval([0.5], 0.25)


# entrants


def test_names_of_networks_and_baselines_are_apart():
    assert not set(NETWORKS) & set(BASELINES)
    assert set(SECOND_NETWORK) | set(SECOND_NETWORK.values()) <= set(NETWORKS)


def test_words_become_candidates():
    assert parse_candidate("mlp").kind == "network"
    assert parse_candidate("knn:3", features="hog") == Candidate("knn:3@hog", "baseline", Recipe())
    assert parse_candidate("svm-rbf@edges:canny+lbp").folder_name == "svm-rbf@edges_canny+lbp"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("lenet", "Did you mean 'lenet5'"),
        ("svm-rfb", "Did you mean 'svm-rbf'"),
        ("mlp@hog", "no baseline called 'mlp'"),
        ("hog", "'hog' is a feature: name the baseline that learns from it, for example svm-rbf@hog"),
        ("knn@hogg", "Did you mean 'hog'"),
        ("mlp:dropuot=0.1", "Did you mean 'dropout'"),
    ],
)
def test_unknown_candidates_are_refused(word, says):
    with pytest.raises(ChoiceError, match=says):
        parse_candidate(word)


def test_trials_survive_json():
    right = np.random.default_rng(0).random(77) < 0.5
    trial = Trial("fold 2", 3, right, 1.5, 0.001, 1234, 0.5, ("a note",))
    again = Trial.from_json(json.loads(json.dumps(trial.as_json())))
    assert np.array_equal(again.correct, right)
    assert again.as_json() == trial.as_json()


# cross-validation


def test_every_image_is_held_out_once_a_repetition(digits, tmp_path):
    found = cross_validate(digits, "knn", folds=4, seeds=2, folder=tmp_path / "cv")
    assert (found.folds, found.repetitions, len(found.trials)) == (4, 2, 8)
    assert sum(len(trial.correct) for trial in found.trials[:4]) == 600
    assert set(np.unique(found.correct)) <= {0.0, 0.5, 1.0}
    accuracies = [trial.accuracy for trial in found.trials]
    assert found.accuracy.value == pytest.approx(np.mean(accuracies))
    assert found.std == pytest.approx(np.std(accuracies, ddof=1))
    expected = nadeau_bengio_interval(accuracies, 1 / 3)
    assert (found.accuracy.low, found.accuracy.n) == (pytest.approx(expected.low), 8)
    assert found.pooled == wilson(float(found.correct.sum()), 600)
    x, y = digits[:].reshape(600, -1) / 255, digits.labels
    parts = StratifiedKFold(4, shuffle=True, random_state=0)
    theirs = cross_val_score(KNeighborsClassifier(5, weights="distance"), x, y, cv=parts).mean()
    assert found.accuracy.value == pytest.approx(theirs, abs=0.03)
    assert json.loads(json.dumps(found.as_json()))["repetitions"] == 2


def test_what_is_finished_is_not_repeated(digits, tmp_path):
    place = tmp_path / "cv"
    first = cross_validate(digits, "decision-tree", folds=3, folder=place)
    content = json.loads((place / "trials.json").read_text())
    content["trials"] = content["trials"][:2]
    content["trials"][0]["seconds"] = 12345.0
    (place / "trials.json").write_text(json.dumps(content))  # as if it had been stopped in the third fold
    again = cross_validate(digits, "decision-tree", folds=3, folder=place)
    assert again.trials[0].seconds == 12345.0
    assert np.array_equal(again.correct, first.correct)
    assert {path.name for path in place.iterdir()} == {"trials.json"}
    other = cross_validate(digits, "decision-tree", folds=3, recipe=Recipe(seed=5), folder=place)
    assert all(trial.seconds != 12345.0 for trial in other.trials)


def test_a_network_is_validated_on_images_of_its_own(digits):
    found = cross_validate(digits, "mlp", folds=2, recipe=Recipe(epochs=1, seed=1))
    assert found.pooled.n == 600
    assert all(trial.val_accuracy is not None for trial in found.trials)
    pool = cross_validation_pool(digits)
    for held in assign_folds(pool, 2, 1, Recipe()):
        splits = fold_splits(pool, held, Recipe())
        parts = [set(part.rows.tolist()) for part in (splits.train, splits.val, splits.test)]
        assert sum(map(len, parts)) == 600
        assert all(a.isdisjoint(b) for a, b in combinations(parts, 2))
        assert len(parts[1]) == pytest.approx(30, abs=10)


def test_groups_stay_together_and_a_class_of_one_group_gives_a_note(digits):
    groups = np.arange(600) // 6
    groups[digits.labels == 7] = 1000
    grouped = dataclasses.replace(digits, columns={**digits.columns, "group": groups.astype(str)})
    for held in assign_folds(grouped, 3, 1, Recipe()):
        splits = fold_splits(grouped, held, Recipe())
        names = [set(part.columns["group"]) for part in (splits.train, splits.val, splits.test)]
        assert all(a.isdisjoint(b) for a, b in combinations(names, 2))
    found = cross_validate(grouped, "naive-bayes", folds=3)
    assert any("no images of '7' to train on" in note for note in found.notes)
    assert any("no images of '7' to test" in note for note in found.notes)


def test_a_given_test_split_is_not_used(digits):
    part = np.where(np.arange(600) < 100, "test", "train")
    parted = dataclasses.replace(digits, columns={**digits.columns, "split": part})
    found = cross_validate(parted, "naive-bayes", folds=2)
    assert found.pooled.n == 500


def test_unlabelled_images_are_never_tested_nor_fitted(digits):
    labels = np.where(np.arange(600) % 3 == 0, -1, digits.labels)
    some = dataclasses.replace(digits, labels=labels)
    found = cross_validate(some, "knn", folds=2)
    alone = cross_validate(some.labelled, "knn", folds=2)
    assert found.pooled == alone.pooled
    assert len(found.correct) == 400
    np.testing.assert_array_equal(found.correct, alone.correct)


def test_impossible_folds_are_refused(digits):
    rare = digits.subset(np.flatnonzero((digits.labels != 3) | (np.cumsum(digits.labels == 3) <= 4)))
    with pytest.raises(DataError, match="class '3' has 4 distinct images, too few for 5 folds"):
        cross_validate(rare, "knn", folds=5)
    with pytest.raises(RecipeError, match="number of folds is 1"):
        cross_validate(digits, "knn", folds=1)
    with pytest.raises(RecipeError, match="0 repetitions"):
        cross_validate(digits, "knn", seeds=0)


# comparison


def result(word, right, seconds=0.001, validation=0.9, folds=1):
    right = np.asarray(right, bool)
    trials = tuple(
        Trial("test", i, part, 2.0, seconds, 1000, validation) for i, part in enumerate(np.split(right, folds))
    )
    return CandidateResult(
        word, "baseline", wilson(float(right.sum()), len(right)), right.astype(float), trials, f"runs/{word}"
    )


def test_candidates_are_ranked_and_tested_against_the_first():
    rng = np.random.default_rng(3)
    good = rng.random(400) < 0.95
    near = np.where(rng.random(400) < 0.98, good, ~good)
    far = rng.random(400) < 0.7
    found = rank_candidates(
        "data", 0, 1, [result("far", far), result("good", good), result("near", near, validation=0.99)]
    )
    best = found.results[0]
    assert best.candidate == ("good" if good.mean() > near.mean() else "near")
    raw = [mcnemar(one.correct > 0.5, best.correct > 0.5) for one in found.results[1:]]
    assert [a.p for a in found.versus_best[1:]] == pytest.approx(raw)
    assert [a.p_holm for a in found.versus_best[1:]] == pytest.approx(holm(raw))
    assert found.versus_best[0] is None
    assert found.versus_best[2].difference.value == pytest.approx(far.mean() - best.accuracy.value)
    said = " ".join(found.sentences)
    assert f"{best.candidate} is first" in said
    assert "slightly optimistic" in said
    assert "Validation alone would choose near" in said
    row = json.loads(json.dumps(found.as_json()))["entrants"][2]
    assert (row["rank"], row["entrant"], row["ms_per_image"], row["bytes"]) == (3, "far", 1.0, 1000)


def test_folds_are_in_the_same_order_for_every_candidate():
    rng = np.random.default_rng(0)
    a, b = rng.random(90) < 0.9, rng.random(90) < 0.6
    found = rank_candidates("data", 3, 1, [result("a", a, folds=3), result("b", b, folds=3)])
    assert found.versus_best[1].p == pytest.approx(mcnemar(a, b))
    assert "held-out" in found.sentences[0]


def test_photos_are_compared_by_heads_fine_tuning_and_a_small_network(tmp_path):
    """Without a name: on pixels as the card of the weights says, which the small network normalises for itself."""
    photos = write_photos(tmp_path / "photos", 12)
    found = compare(photos, recipe=Recipe(size=64, epochs=0, val_fraction=0.2, **SETTLED), out=tmp_path / "c")
    assert {one.candidate for one in found.results} == {*PHOTO_MODELS, *PHOTO_BASELINES}
    assert not found.failures
    assert len({one.accuracy.n for one in found.results}) == 1
    runs = {one.candidate: Classifier.load(one.folder) for one in found.results if one.kind == "network"}
    for word in PHOTO_MODELS[:-1]:
        assert runs[word].provenance["weights"]["licence"] == "apache-2.0"
    assert {(one.geometry.resize_mode, one.geometry.interpolation) for one in runs.values()} == {
        ("crop", "bicubic")
    }
    assert "weights" not in runs["small-cnn"].provenance
    best = max(one.accuracy.value for one in found.results)
    assert next(one for one in found.results if one.candidate == "prototypes").accuracy.value == best


@pytest.mark.parametrize(("word", "says"), [("prob", "Did you mean 'probe'"), ("probe:penlty=1", "penalty")])
def test_misspelt_heads_are_refused(word, says):
    with pytest.raises(ChoiceError, match=says):
        parse_candidate(word)


def test_a_failing_candidate_is_listed_with_its_reason(tmp_path):
    found = compare(
        "digits", models=["mlp"], baselines=["knn:100000", "naive-bayes"], recipe=TINY, out=tmp_path / "c"
    )
    assert {one.candidate for one in found.results} == {"mlp", "naive-bayes"}
    ((word, reason),) = found.failures
    assert word == "knn:100000"
    assert reason.startswith("The baseline 'knn:100000' cannot be fitted: ")
    assert reason.count("\n") == 0
    content = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert content["failures"] == [{"entrant": word, "error": reason}]
    with Image.open(tmp_path / "c" / "compare.png") as drawn:
        assert drawn.size[0] > 600
    assert not list((tmp_path / "c" / "knn_100000").glob("classifier"))


def test_a_candidate_that_runs_out_of_memory_does_not_end_the_comparison(tmp_path):
    """A real one: its histograms would be more than any machine can address."""
    words = ["svm-rbf@hog:orientations=10000000000000", "naive-bayes", "knn:p=-1"]
    found = compare("digits", models=[], baselines=words, recipe=TINY, out=tmp_path / "c")
    assert [one.candidate for one in found.results] == ["naive-bayes"]
    reasons = dict(found.failures)
    assert reasons[words[0]].startswith("It ran out of memory: choose a smaller --size")
    assert "cannot be fitted" in reasons["knn:p=-1"]


def test_a_stopped_comparison_continues(tmp_path):
    place = tmp_path / "c"
    first = compare("digits", out=place, **QUICK)
    kept = {word: (place / word / "trials.json").read_text() for word in ("mlp", "knn")}
    shutil.rmtree(place / "naive-bayes")
    again = compare("digits", out=place, **(QUICK | {"baselines": ["knn", "naive-bayes", "decision-tree"]}))
    assert {word: (place / word / "trials.json").read_text() for word in kept} == kept
    assert len(again.results) == 4
    before = {one.candidate: one.accuracy for one in first.results}
    assert all(one.accuracy == before[one.candidate] for one in again.results if one.candidate in before)
    with pytest.raises(OutputError, match="something other than this comparison"):
        compare("digits", out=place, **(QUICK | {"recipe": TINY.replace(seed=9)}))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="Choose another --out"):
        compare("digits", out=tmp_path / "other", **QUICK)


def test_the_default_folder_is_in_runs_and_is_found_again(tmp_path):
    words = {"models": [], "baselines": ["naive-bayes", "decision-tree"]}
    one = compare("digits", recipe=TINY, **words)
    assert one.results[0].folder.startswith("runs/digits-compare/")
    compare("digits", recipe=TINY, **words)
    compare("digits", recipe=TINY.replace(seed=5), **words)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"digits-compare", "digits-compare-2"}


def test_folds_and_features_of_a_comparison(tmp_path):
    words = {"models": ["mlp"], "baselines": ["knn", "naive-bayes@lbp"], "features": ["pixels", "hog"]}
    found = compare("digits", **words, folds=2, recipe=TINY, out=tmp_path / "c")
    assert {one.candidate for one in found.results} == {"mlp", "knn", "knn@hog", "naive-bayes@lbp"}
    assert all(one.accuracy.n == 300 and one.fold_interval.n == 2 for one in found.results)
    assert not list((tmp_path / "c").glob("*/classifier"))
    assert all(row["over_folds"]["n"] == 2 for row in found.as_json()["entrants"])


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"models": ["mpl"]}, ChoiceError, "Did you mean 'mlp'"),
        ({"baselines": ["knm"]}, ChoiceError, "Did you mean 'knn'"),
        ({"features": ["hogg"]}, ChoiceError, "Did you mean 'hog'"),
        ({"models": ["knn"]}, RecipeError, "'knn' is a baseline: name it with --baselines"),
        ({"baselines": ["mlp"]}, RecipeError, "'mlp' is a network: name it with --models"),
        ({"models": [], "baselines": ["knn"]}, RecipeError, "at least two candidates"),
        ({"recipe": TINY.replace(model="mlp")}, RecipeError, "name them with --models"),
        ({"folds": 1}, RecipeError, "--folds is 1: it takes at least 2"),
        ({"folds": 100}, DataError, "too few for 100 folds"),
        ({"seeds": 0}, RecipeError, "--seeds is 0: it takes at least 1"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(changes, kind, says, tmp_path):
    with pytest.raises(kind, match=says):
        compare("digits", **(QUICK | changes))
    assert not (tmp_path / "runs").exists()


def test_when_all_fail_the_error_has_the_first_reason(tmp_path):
    with pytest.raises(TrainingError, match=r"No candidate gave a result\. knn:100000: "):
        compare("digits", models=[], baselines=["knn:100000", "svm-rbf:C=-1"], recipe=TINY, out=tmp_path / "c")


# from a shell


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("cli") / "c"


def test_compare_from_a_shell_keeps_bundles_that_answer(cli, place, tmp_path):
    words = (
        "compare",
        "digits",
        "--models",
        "mlp",
        "--baselines",
        "knn,random-forest:trees=20",
        "--features",
        "hog",
    )
    flags = ("--limit", "300", "--size", "8", "--epochs", "2", "--out", place)
    answer = cli(*words, *flags, "--json")
    assert answer.code == 0, answer.err
    value = json.loads(answer.out)
    assert [row["rank"] for row in value["entrants"]] == [1, 2, 3]
    assert {row["entrant"] for row in value["entrants"]} == {"mlp", "knn@hog", "random-forest:trees=20@hog"}
    assert "3 candidates: networks (1), 2 epochs each; baselines (2)." in answer.err
    table = cli(*words, *flags)
    assert "minus the first" in table.out
    assert "slightly optimistic" in table.out
    assert f"a run of each are in {place}" in table.out
    for row in (one for one in value["entrants"] if one["entrant"] == "knn@hog"):
        tested = cli("evaluate", row["folder"], "--json")
        assert tested.code == 0, tested.err
        found = json.loads(tested.out)
        assert (found["accuracy"], found["n"]) == (pytest.approx(row["accuracy"]), row["n"])
        assert (Path(row["folder"]) / "report.html").is_file()
    with (place / "knn@hog" / "predictions.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == value["n"]
    listed = json.loads(cli("runs", place, "--json").out)["runs"]
    assert {row["model"] for row in listed} == {"mlp", "knn@hog", "random-forest:trees=20@hog"}


def test_predict_by_a_baseline(cli, place, digits, tmp_path):
    for i in range(3):
        Image.fromarray(digits[i][0, ..., 0]).save(tmp_path / f"{i}.png")
    answer = cli("predict", place / "knn@hog", tmp_path, "--json")
    assert answer.code == 0, answer.err
    assert all(one["label"] in "0123456789" for one in json.loads(answer.out)["predictions"])


def test_lists_name_baselines_and_features(cli):
    rows = json.loads(cli("list", "baselines", "--json").out)["baselines"]
    assert {row["name"] for row in rows} == set(BASELINES) > set(DEFAULT_BASELINES)
    assert {"hog", "embedding"} < {
        row["name"] for row in json.loads(cli("list", "features", "--json").out)["features"]
    }
    assert all(row["what"] for row in rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--baselines", "svm"), "There is no model or baseline called 'svm'"),
        (("--baselines", "knn:kk=3"), "The baseline 'knn' has no argument 'kk'. Did you mean 'k'?"),
        (("--model", "mlp"), "Did you mean --models?"),
        (("--folds", "1"), "--folds is 1: it takes at least 2"),
        (("--folds", "-3"), "--folds is -3: it takes at least 2"),
        (("--seeds", "0"), "--seeds is 0: it takes at least 1"),
    ],
)
def test_command_line_mistakes_are_refused_before_an_image_is_read(words, said, cli):
    answer = cli("compare", "digits", "--models", "none", *words)
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert said in answer.err


def test_folds_of_the_data_stage_are_those_of_the_comparison(digits):
    ours = assign_folds(digits, 3, 1, Recipe(seed=4))
    theirs = make_folds(digits, 3, seed=4)
    for held, fold in zip(ours, theirs, strict=True):
        assert np.array_equal(digits.rows[held.indices], fold.held_out.rows)
