"""Declining to answer: calibration in equal masses, risk over coverage, thresholds and what they promise."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from helpers.tiny_classifiers import SETTLED
from sightline.classifier import Classifier, amend_bundle
from sightline.errors import BundleError, DataError, RecipeError
from sightline.evaluation.abstention import beta_interval, threshold_for_coverage, threshold_for_risk
from sightline.evaluation.ood import enable_dropout, predict_with_dropout
from sightline.evaluation.uncertainty import evaluate_uncertainty_run, measure_calibration
from sightline.metrics import equal_mass_reliability, reliability, risk_coverage
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing
from sightline.training import Recipe, train
from sightline.types import Geometry


def classifier_of(model="mlp", classes=4, **more):
    torch.manual_seed(0)
    plan = parse_architecture(model, classes=classes, channels=1, size=(8, 8))
    names = tuple("abcdefghij"[:classes])
    geometry = Geometry(size=(8, 8), channels=1)
    return Classifier(
        Preprocessing(), build(plan), architecture=plan, classes=names, geometry=geometry, **more
    ).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run on real digits."""
    return train(
        "digits", Recipe(model="mlp", size=8, epochs=4, **SETTLED), out=tmp_path_factory.mktemp("sure") / "run"
    )


def drawn(n, accuracy=0.9, seed=0, k=5):
    """Probabilities of a calibrated classifier, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(k, (1 - accuracy) * 0.6), n)
    labels = (p.cumsum(1) > rng.random((n, 1))).argmax(1)
    return p, labels


# Calibration


def plain_equal_mass(confidence, right, bins):
    """Sort, cut into runs of nearly equal length, sum up: in plain Python."""
    pairs = sorted(zip(confidence, right, strict=True), key=lambda pair: pair[0])
    cuts = [round(len(pairs) * i / bins) for i in range(bins + 1)]
    total = 0.0
    for a, b in itertools.pairwise(cuts):
        part = pairs[a:b]
        total += abs(sum(c for c, _ in part) - sum(r for _, r in part))
    return total / len(pairs)


@pytest.mark.parametrize("n", [1, 7, 15, 16, 400])
def test_equal_mass_bins_are_a_plain_loop_and_none_is_empty(n):
    p, labels = drawn(n, seed=n)
    found = equal_mass_reliability(labels, p)
    assert found.counts.sum() == n
    assert found.counts.min() >= 1
    assert found.counts.max() - found.counts.min() <= 1
    right = (p.argmax(1) == labels).astype(float)
    assert found.ece == pytest.approx(plain_equal_mass(p.max(1), right, min(15, n)))
    assert (np.diff(found.edges) >= 0).all()
    assert found.mce >= found.ece


def test_equal_mass_bins_resolve_what_a_single_wide_bin_hides():
    """Half the images claim 0.94 and are always right, half claim 0.999 and are right 94 times of 100."""
    confidence = np.repeat([0.94, 0.999], 500)
    wrong = np.concatenate([np.zeros(500), np.repeat([1, 0], [30, 470])]).astype(int)
    p = np.stack([confidence, 1 - confidence], 1)
    assert reliability(wrong, p).ece == pytest.approx(abs(0.97 - confidence.mean()), abs=1e-9)
    assert equal_mass_reliability(wrong, p, bins=2).ece == pytest.approx((0.06 + 0.059) / 2)


# Risk over coverage


def plain_aurc(confidence, right):
    """Mean over k of the error of the k surest, each by its own count; of ties the mean over all orders."""
    total, count = 0.0, 0
    for order in itertools.permutations(range(len(right))):
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order)):
            count += 1
            total += np.mean([np.mean([not right[i] for i in order[:k]]) for k in range(1, len(order) + 1)])
    return total / count


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6))
def test_aurc_is_the_mean_over_the_orders_of_ties(pairs):
    confidence, right = np.array([c for c, _ in pairs], float), np.array([r for _, r in pairs])
    curve = risk_coverage(confidence, right)
    assert curve.aurc == pytest.approx(plain_aurc(confidence, right))
    assert curve.risk[-1] == pytest.approx(1 - right.mean())
    assert curve.risk_at(1) == curve.risk[-1]


def test_excess_is_zero_for_a_perfect_order_and_the_optimum_is_the_formula():
    right = np.repeat([True, False], [900, 100])
    best = risk_coverage(np.linspace(1, 0, 1000), right)
    assert best.excess_aurc == pytest.approx(0, abs=1e-12)
    assert best.aurc == pytest.approx(0.1 + 0.9 * np.log(0.9), abs=2e-4)  # Geifman et al. 2019
    worst = risk_coverage(np.linspace(0, 1, 1000), right)
    assert worst.excess_aurc > 0.2
    with pytest.raises(ValueError, match="at least one image"):
        risk_coverage(np.zeros(0), np.zeros(0, bool))


def test_saved_points_end_with_every_image():
    p, labels = drawn(5000)
    curve = risk_coverage(p.max(1), p.argmax(1) == labels)
    columns = curve.as_json()
    assert len(columns["risk"]) == 200
    assert columns["coverage"][-1] == 1
    assert columns["risk"][-1] == pytest.approx(curve.risk[-1], abs=1e-6)


# Thresholds


def risk_of(p, labels, threshold):
    kept = p.max(1) >= threshold
    return float((p.argmax(1) != labels)[kept].mean()) if kept.any() else 0.0


def test_a_guaranteed_risk_holds_as_often_as_guaranteed():
    """Many validation sets of a known population: too high a true risk in 5 % of them at most."""
    p, labels = drawn(60_000, seed=1)
    broken, coverages = 0, []
    for seed in range(60):
        rows = np.random.default_rng(seed).choice(60_000, 1500, replace=False)
        found = threshold_for_risk(p[rows].max(1), p[rows].argmax(1) == labels[rows], 0.03)
        assert found.guaranteed
        assert found.risk_bound <= 0.03
        broken += risk_of(p, labels, found.value) > 0.03
        coverages.append(found.coverage.value)
    assert broken <= 7  # 60 x 0.05 is 3; more than 7 has a chance of 1 in 100
    assert np.mean(coverages) > 0.5


def test_too_few_images_give_no_guarantee_and_the_sentence_says_how_many_it_takes():
    p, labels = drawn(100, seed=3)
    confidence, right = p.max(1), p.argmax(1) == labels
    found = threshold_for_risk(confidence, right, 0.01)
    assert not found.guaranteed
    assert found.min_images is not None
    assert found.min_images > 100
    assert (1 - 0.01) ** (found.min_images - 1) > 0.05 / 9  # fewer would not be enough for any step
    kept = confidence >= found.value
    assert (~right[kept]).mean() <= 0.01
    others = [(~right[confidence >= t]).mean() for t in np.unique(confidence) if t < found.value]
    assert all(risk > 0.01 for risk in others)
    assert "no guarantee" in found.sentence
    assert f"{found.min_images:,}" in found.sentence


def test_an_unreachable_risk_is_refused_with_the_lowest():
    right = np.array([False, True, True, False])
    with pytest.raises(DataError, match=r"lowest on the 4 validation images is 33\.33%, with 75\.0% of them"):
        threshold_for_risk(np.array([0.9, 0.8, 0.7, 0.6]), right, 0.2)


def test_an_easy_risk_accepts_every_prediction():
    p, labels = drawn(2000, accuracy=0.97)
    found = threshold_for_risk(p.max(1), p.argmax(1) == labels, 0.5)
    assert (found.value, found.coverage.value) == (0.0, 1.0)
    assert found.guaranteed


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.95])
def test_coverage_on_new_images_follows_the_beta_law(coverage):
    rng, n, hits, shares = np.random.default_rng(5), 200, 0, []
    for _ in range(100):
        held = rng.random(n)
        found = threshold_for_coverage(held, np.ones(n, bool), coverage)
        shares.append(1 - found.value)  # exact: confidences are uniform
        hits += found.coverage.low <= shares[-1] <= found.coverage.high
    assert np.mean(shares) >= coverage - 0.01
    assert hits >= 88  # of 100, where 95 are expected


def test_beta_interval_is_scipys():
    assert beta_interval(99, 10) == pytest.approx(tuple(beta.ppf([0.025, 0.975], 90, 10)))
    assert beta_interval(50, 0) == (1.0, 1.0)
    whole = threshold_for_coverage(np.linspace(0, 1, 50), np.ones(50, bool), 1.0)
    assert (whole.value, whole.coverage.value) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c, r: threshold_for_risk(c, r, -0.1), "risk asked for is -0.1"),
        (lambda c, r: threshold_for_risk(c, r, 1.0), "risk asked for is 1.0"),
        (lambda c, r: threshold_for_coverage(c, r, 0.0), "coverage asked for is 0.0"),
        (lambda c, r: threshold_for_coverage(c, r, 1.1), "coverage asked for is 1.1"),
    ],
)
def test_impossible_targets_are_refused(call, words):
    with pytest.raises(RecipeError, match=words):
        call(np.array([0.5, 0.9]), np.array([True, False]))


def test_no_images_and_confidences_that_are_not_numbers_are_refused():
    with pytest.raises(DataError, match="no validation images"):
        threshold_for_coverage(np.zeros(0), np.zeros(0, bool), 0.9)
    with pytest.raises(DataError, match="not numbers"):
        threshold_for_risk(np.array([np.nan]), np.array([True]), 0.1)


# "Unknown" in the classifier


def test_a_classifier_abstains_below_its_threshold(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    classifier = classifier_of()
    (sure,) = classifier.predict([image])
    assert not sure.abstained
    assert sure.confidence is not None
    classifier.threshold = sure.confidence
    assert not classifier.predict([image])[0].abstained  # at the threshold it answers
    classifier.threshold = np.nextafter(sure.confidence, 1)
    classifier.answers = {"note": 1}
    classifier.save(tmp_path / "bundle")
    again = Classifier.load(tmp_path / "bundle")
    (unsure,) = again.predict([image])
    assert (again.threshold, again.answers) == (classifier.threshold, {"note": 1})
    assert (unsure.abstained, unsure.label, unsure.confidence) == (True, sure.label, sure.confidence)
    (broken,) = again.predict([b"nothing"])
    assert not broken.abstained


def test_a_bundle_without_a_threshold_never_abstains(tmp_path):
    folder = classifier_of().save(tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    del config["threshold"]
    (folder / "config.json").write_text(json.dumps(config))
    old = Classifier.load(folder)
    assert (old.threshold, old.answers) == (0.0, {})


@pytest.mark.parametrize("value", [-0.1, 1.5, True, "high", None])
def test_an_impossible_threshold_in_a_bundle_is_refused(tmp_path, value):
    folder = classifier_of().save(tmp_path / "bundle")
    config = json.loads((folder / "config.json").read_text()) | {"threshold": value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r"config\.json .* cannot be understood"):
        Classifier.load(folder)


def test_amending_touches_neither_tensors_nor_card(tmp_path):
    folder = classifier_of().save(tmp_path / "bundle")
    (folder / "README.md").write_text("My own words.")
    before = {name: (folder / name).read_bytes() for name in ("model.safetensors", "README.md")}
    amend_bundle(folder, threshold=0.5)
    amend_bundle(folder, answers={"conformal": {}})
    after = Classifier.load(folder)
    assert (after.threshold, after.answers) == (0.5, {"conformal": {}})
    assert before == {name: (folder / name).read_bytes() for name in before}
    (folder / "answers.json").write_text("[]")
    with pytest.raises(BundleError, match="wrong checksum"):
        Classifier.load(folder)


# A run


def test_a_run_is_evaluated_and_the_bundle_saves_the_threshold(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    copied = replace(run, folder=folder)
    found = evaluate_uncertainty_run(copied, risk=0.2, save=True)
    assert json.loads((folder / "calibration.json").read_text()) == found
    assert {"risk_coverage.png", "reliability.png"} <= {path.name for path in folder.iterdir()}
    kept = Classifier.load(folder)
    assert kept.threshold == found["abstention"]["threshold"]
    assert kept.answers["conformal"]["images"] == len(run.splits.val)
    test = found["abstention"]["test"]
    answers = kept.predict(list(run.splits.test[:]))
    answered = [not one.abstained for one in answers]
    assert np.mean(answered) == pytest.approx(test["coverage"]["value"])
    right = [
        one.label == run.splits.test.classes[k] for one, k in zip(answers, run.splits.test.labels, strict=True)
    ]
    assert 1 - np.mean(np.array(right)[answered]) == pytest.approx(test["risk"]["value"])
    assert found["risk_at"]["1"] == pytest.approx(1 - found["accuracy"])
    with pytest.raises(RecipeError, match="both asked for"):
        evaluate_uncertainty_run(copied, risk=0.1, coverage=0.9)


def test_calibration_of_two_classes_and_of_no_errors():
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    found = measure_calibration(np.array([0, 1, 0]), p)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["accuracy"], found["aurc"], found["excess_aurc"]) == (1.0, 0.0, 0.0)


def test_predict_abstains_below_the_saved_threshold(cli, run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    answer = cli("evaluate", folder, "--coverage", "0.8", "--save")
    assert answer.code == 0, answer.err
    assert "of the validation images" in answer.out
    assert "Saved in the classifier" in answer.out
    value = json.loads(cli("evaluate", folder, "--coverage", "0.8", "--json").out)
    assert value["abstention"]["coverage"]["value"] >= 0.8
    from PIL import Image

    files = []
    for i, pixels in enumerate(run.splits.test[:30]):
        Image.fromarray(pixels[..., 0]).save(tmp_path / f"{i}.png")
        files.append(tmp_path / f"{i}.png")
    rows = json.loads(cli("predict", folder, *files, "--json").out)["predictions"]
    lines = cli("predict", folder, *files).out.splitlines()
    assert 0 < sum(row["abstained"] for row in rows) < 30
    for row, line in zip(rows, lines, strict=True):
        said = f"{row['label']} {row['confidence']:.1%}"
        assert (f": unknown  ({said}" if row["abstained"] else f": {said}") in line
    every = cli("predict", folder, *files, "--threshold", "1").out.splitlines()
    assert sum(": unknown" in line for line in every) >= 29
    assert ": unknown" not in cli("predict", folder, *files, "--threshold", "0").out
    assert "abstained" in cli("predict", folder, *files[:1], "--format", "csv").out.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--risk", "0.1", "--coverage", "0.9"), "one threshold can meet one of them"),
        (("--risk", "2"), "risk asked for is 2.0"),
        (("--compare-with", "elsewhere"), "--group"),
        (("--group", "width", "--coverage", "0.9"), "one at a time"),
        (("digits", "--coverage", "0.9"), "leave DATA out"),
        (("--coverage", "0.9", "--learning-curve"), "cannot be combined with the other flags"),
    ],
)
def test_impossible_flags_are_refused_in_one_sentence(cli, run, words, said):
    answer = cli("evaluate", run.folder, *words)
    assert answer.code == 2
    assert said in answer.err
    assert len(answer.err.splitlines()) == 1


def test_an_impossible_threshold_on_the_command_line(cli, run):
    answer = cli("predict", run.folder, "x.png", "--threshold", "80")
    assert (answer.code, "0.8" in answer.err) == (2, True)


# Monte Carlo dropout


def test_dropout_passes_are_a_plain_loop():
    classifier = classifier_of("mlp:dropout=0.5")
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    found = predict_with_dropout(classifier, images, passes=6, seed=4)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(module.training for module in classifier.modules())
    with enable_dropout(classifier), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(4)
        passes = torch.stack([classifier.probabilities(images) for _ in range(6)]).double()
    mean = passes.mean(0)
    entropy = -(mean * mean.log()).sum(1)
    torch.testing.assert_close(found.probabilities.double(), mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.entropy.double(), entropy, atol=1e-5, rtol=0)
    mutual = entropy + (passes * passes.log()).sum(2).mean(0)
    torch.testing.assert_close(found.mutual_information.double(), mutual, atol=1e-5, rtol=0)
    assert (found.mutual_information > 0).all()


def test_one_pass_has_no_mutual_information_and_networks_without_dropout_are_refused():
    images = torch.rand(2, 1, 8, 8)
    one = predict_with_dropout(classifier_of("mlp:dropout=0.2"), images, passes=1)
    assert one.mutual_information.abs().max() < 1e-6
    with pytest.raises(DataError, match="this one has none"):
        predict_with_dropout(classifier_of(), images)
    with pytest.raises(ValueError, match="at least 1"):
        predict_with_dropout(classifier_of("mlp:dropout=0.2"), images, passes=0)
