"""Robust accuracy over eps, the signs of masked gradients, and the verb that writes them down."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers.attacked_classifiers import GEOMETRY, digits, trained
from sightline.attacks import FGSM, PGD, RayS, Universal, UniversalPerturbation
from sightline.baselines import fit_baseline
from sightline.classifier import Classifier
from sightline.data import load_dataset
from sightline.data.splits import split
from sightline.errors import DataError, GradientError, RecipeError
from sightline.evaluation import evaluate
from sightline.metrics import wilson
from sightline.robustness import (
    adaptive,
    check_masking,
    masking_remarks,
    robust_curve,
)
from sightline.robustness import attack_run as run_attack
from sightline.robustness.attacking import draw_examples, draw_robust_curve, draw_robustness, parse_epsilons
from sightline.runs import open_subject, sample_images
from sightline.training import train
from sightline.training.recipe import Recipe

WRITTEN = {"robustness.json", "robustness.png"}


@pytest.fixture(autouse=True)
def _fewer_queries(monkeypatch):
    """The black-box attack of the checks, for a shorter time."""
    monkeypatch.setattr(adaptive, "MASKING_QUERIES", 150)


def part(count=200, classes=10):
    return digits(classes)[2].subset(np.arange(len(digits(classes)[1]) - count, len(digits(classes)[1])))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run on real digits."""
    recipe = Recipe(
        model="mlp", size=8, limit=500, epochs=6, batch_size=32, lr=0.1, augment=(), precision="float32",
        memory_format="contiguous", cpu_replicas=1,
    )  # fmt: skip
    return train("digits", recipe, out=tmp_path_factory.mktemp("robust") / "run").folder


# The curve


def test_the_first_point_is_the_plain_accuracy_and_the_rest_never_rise():
    curve = robust_curve(trained(), part(), PGD(10), [0.1, 0.02, 0.3, 0.02])
    assert [point.eps for point in curve.points] == [0.0, 0.02, 0.1, 0.3]
    assert curve.points[0].accuracy == evaluate(trained(), part()).metrics["accuracy"]
    values = [point.accuracy.value for point in curve.points]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.05
    for point in curve.points:
        right = int((curve.broken_eps > point.eps).sum())
        assert point.accuracy == wilson(right, 200)


@pytest.mark.parametrize("classes", [2, 10])
def test_a_point_is_the_attack_on_the_images(classes):
    """Against one attack of everything at once, outside our code's batches and bookkeeping."""
    images, labels, _ = digits(classes)
    images, labels = images[-200:], labels[-200:]
    attack = FGSM()
    classifier = trained(classes=classes)
    curve = robust_curve(classifier, part(classes=classes), attack, [0.15])
    with torch.no_grad():
        right = classifier(attack(classifier, images, labels, 0.15)).argmax(1) == labels
    assert curve.points[-1].accuracy.value == right.double().mean().item()
    np.testing.assert_array_equal(np.isinf(curve.broken_eps), right.numpy())


def test_examples_are_fooled_and_near():
    curve = robust_curve(trained(), part(), PGD(10), [0.1, 0.2])
    assert 0 < len(curve.examples) <= 8
    assert len({one.label for one in curve.examples}) == len(curve.examples)
    for one in curve.examples:
        assert np.abs(one.attacked - one.original / 255).max() <= one.eps + 1e-6
        assert one.answer != one.label
        again = trained()(torch.from_numpy(one.attacked).permute(2, 0, 1)[None]).argmax(1).item()
        assert trained().classes[again] == one.answer


def test_a_universal_perturbation_is_made_on_other_images():
    others = digits()[2].subset(np.arange(500))
    attack = Universal(30)
    curve = robust_curve(trained(), part(), attack, [0.2], fit_on=others)
    images, labels, _ = digits()
    made = attack.fit(trained(), images[:500], labels[:500], 0.2)
    assert isinstance(made, UniversalPerturbation)
    with torch.no_grad():
        right = trained()(made(trained(), images[-200:], labels[-200:], 0.2)).argmax(1) == labels[-200:]
    clean = trained()(images[-200:]).argmax(1) == labels[-200:]
    assert curve.points[-1].accuracy.value == pytest.approx((right & clean).float().mean().item())
    assert "500 other images" in curve.notes[0]
    assert "very images" in robust_curve(trained(), part(20), Universal(2), [0.2]).notes[0]


def test_findings_are_json_and_say_what_was_found():
    found = robust_curve(trained(), part(), PGD(10), [0.05, 0.1]).findings()
    values = json.loads(json.dumps(found.values, allow_nan=False))
    assert values["attack"].startswith("PGD(steps=10")
    assert values["robust_accuracy"] == values["points"][-1]["accuracy"] < values["accuracy"]
    bounds = values["points"][1]["intervals"]["accuracy"]
    assert bounds["low"] <= bounds["value"] == values["points"][1]["accuracy"] <= bounds["high"]
    assert f"{values['robust_accuracy']:.1%}" in found.remarks[0].text


def test_pictures_have_a_row_each():
    curve = robust_curve(trained(), part(), PGD(10), [0.1, 0.2])
    above, below, whole = draw_robust_curve(curve), draw_examples(curve.examples), draw_robustness(curve)
    assert whole.size == (max(above.width, below.width), above.height + below.height)
    nothing = robust_curve(trained(), part(10), PGD(1), [1e-6])
    assert not nothing.examples
    assert draw_robustness(nothing).size == above.size


# Masked gradients


class Rounded(nn.Module):
    """Pixels to 16 grey values: a step function, whose gradient is 0 nearly everywhere."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, pixels):
        return self.inner(torch.round(pixels * 15) / 15)


def rounding():
    plain = trained()
    plan, names = plain.architecture, plain.classes
    made = Classifier(plain.preprocessing, plain.network, architecture=plan, classes=names, geometry=GEOMETRY)
    made.preprocessing = Rounded(plain.preprocessing)
    return made.eval()


def test_an_honest_classifier_passes_every_check():
    images, labels, _ = digits()
    for norm, eps in (("linf", 0.1), ("l2", 0.8)):
        checks = check_masking(trained(), images[-40:], labels[-40:], eps, norm=norm)
        assert len(checks) == (6 if norm == "linf" else 5)
        assert all(check.passed for check in checks), [check.sentence for check in checks if not check.passed]
        assert masking_remarks(checks) == ()


def test_a_classifier_that_hides_its_gradient_is_found_out():
    images, labels, _ = digits()
    checks = check_masking(rounding(), images[-40:], labels[-40:], 0.2)
    failed = {check.name for check in checks if not check.passed}
    assert {"there are gradients", "a huge eps breaks everything", "answers alone do not beat gradients"} <= failed
    (remark,) = masking_remarks(checks)
    assert remark.level == "warning"
    assert "masked" in remark.text
    hidden = robust_curve(rounding(), part(40), PGD(10), [0.2]).points[-1].accuracy.value
    seen = robust_curve(rounding(), part(40), RayS(200), [0.2]).points[-1].accuracy.value
    assert hidden > seen + 0.3, "the warning would be needless"


# The verb


def test_a_run_is_attacked_and_keeps_what_was_found(run, cli, tmp_path):
    few = ("--limit", "40", "--out", tmp_path / "p.png")
    answer = cli("attack", run, "--by", "pgd:5", "--eps", "0.1", *few, "--json")
    assert answer.code == 0, answer.err
    value = json.loads(answer.out)
    assert [point["eps"] for point in value["points"]] == [0, 0.025, 0.05, 0.1]
    assert value["n"] == pytest.approx(40, abs=5)
    assert "each class in its share (seed 0)" in value["sample"]
    assert {check["name"] for check in value["masking"]["checks"]} >= {"there are gradients"}
    assert {path.name for path in run.iterdir()} >= WRITTEN
    with Image.open(tmp_path / "p.png") as ours, Image.open(run / "robustness.png") as kept:
        assert ours.size == kept.size
    assert cli("attack", run, "--by", "fgsm", "--eps", "0.05,0.2", "--norm", "linf", "--no-checks").code == 0
    attacks = json.loads((run / "robustness.json").read_text())["attacks"]
    assert [word.partition("(")[0] for word in attacks] == ["PGD", "FGSM"]
    assert [point["eps"] for point in attacks[list(attacks)[1]]["points"]] == [0, 0.05, 0.2]
    assert str(run) not in (run / "robustness.json").read_text()


def test_people_read_a_table(run, cli):
    answer = cli("attack", run, "--steps", "3", "--limit", "30", "--no-checks")
    assert answer.code == 0
    assert "no attack" in answer.out
    assert "eps 8/255" in answer.out
    assert "eps 2/255" in answer.out
    assert "PGD(steps=3" in answer.out


def test_a_bundle_is_attacked_on_other_images(run, cli):
    words = ("--by", "noise", "--eps", "0.2", "--limit", "50")
    answer = cli("attack", run / "classifier", "digits", *words, "--json")
    assert answer.code == 0, answer.err
    assert "of the 1,797 images of 'digits'" in json.loads(answer.out)["sample"]


def test_a_sample_is_stratified_stated_and_repeats():
    images = digits()[2]
    some, sentence = sample_images(images, 300, 1, "test images")
    assert len(some) == pytest.approx(300, abs=5)
    np.testing.assert_allclose(some.counts / len(some), images.counts / len(images), atol=0.005)
    assert sentence == f"{len(some)} of the 1,797 test images, each class in its share (seed 1)."
    np.testing.assert_array_equal(sample_images(images, 300, 1)[0].rows, some.rows)
    assert not np.array_equal(sample_images(images, 300, 2)[0].rows, some.rows)
    assert sample_images(images, None, 0, "test images")[1] == "All 1,797 test images."


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    fitted = fit_baseline(split(load_dataset("digits", GEOMETRY), seed=1), "decision-tree")
    return fitted.save(tmp_path_factory.mktemp("tree") / "bundle")


def test_a_baseline_is_refused_by_gradients_and_attacked_by_answers(tree, cli):
    refused = cli("attack", tree, "digits", "--limit", "30")
    assert refused.code == 2
    assert "decision-tree" in refused.err
    assert "--by rays" in refused.err
    answer = cli("attack", tree, "digits", "--by", "rays:100", "--eps", "0.2", "--limit", "30", "--json")
    assert answer.code == 0, answer.err
    value = json.loads(answer.out)
    assert value["robust_accuracy"] < value["accuracy"]
    assert "masking" not in value
    with pytest.raises(GradientError):
        robust_curve(Classifier.load(tree), part(10), PGD(2), [0.1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--by", "pdg"), "Did you mean 'pgd'"),
        (("--eps", "8"), "write 8/255"),
        (("--eps", "-0.1"), "eps is -0.1"),
        (("--eps", "0"), "eps must be above 0"),
        (("--eps", "much"), "write a number of pixels"),
        (("--by", "fgsm", "--steps", "3"), "no steps"),
        (("--limit", "0"), "at least 1 image"),
        (("--out", "picture.doc"), "is not the name of a picture"),
        (("--by", "pgd:0"), "steps must be"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(run, cli, words, said):
    answer = cli("attack", run, *words)
    assert answer.code == 2
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_a_bundle_alone_and_a_run_without_classifier_are_refused(run, cli, tmp_path):
    assert "name the images" in cli("attack", run / "classifier").err
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "recipe.toml").write_text((run / "recipe.toml").read_text())
    assert "--resume" in cli("attack", tmp_path / "half").err
    with pytest.raises(DataError, match="at least 1 image"):
        open_subject(run, limit=0)


def test_epsilons_of_words_numbers_and_lists():
    assert parse_epsilons("8/255") == pytest.approx([2 / 255, 4 / 255, 8 / 255])
    assert parse_epsilons("0.3, 0.1") == [0.1, 0.3]
    assert parse_epsilons([0.2]) == parse_epsilons(0.2) == pytest.approx([0.05, 0.1, 0.2])
    for nothing in ("", "0", [], [-1.0], float("nan")):
        with pytest.raises(RecipeError, match="eps"):
            parse_epsilons(nothing)


def test_the_verb_takes_objects(run):
    found = run_attack(run, by=FGSM(), eps=[0.1, 0.2], limit=20, checks=False)
    assert found.values["attack"] == "FGSM()"
    assert found.values["eps"] == 0.2
