"""Several classifiers as one: the mean of answers, the mean of weights, and honest tests of both."""

import copy
import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from sightline.classifier import Classifier
from sightline.data.loader import to_tensor
from sightline.ensembles import COMBINERS, GreedySoup, combine, combine_runs, update_bn
from sightline.errors import BundleError, ChoiceError, DataError, OutputError, RecipeError
from sightline.evaluation import evaluate
from sightline.inference import predict_logits
from sightline.models import (
    SURGERY,
    Architecture,
    build,
    count_multiply_adds,
    get_head,
    parse_architecture,
)
from sightline.preprocessing import ContrastNormalise, Normalise, Preprocessing
from sightline.training import Recipe, fit_temperature, train
from sightline.types import Geometry

PLAIN = {"precision": "float32", "memory_format": "contiguous", "cpu_replicas": 1, "augment": ()}
TINY = Recipe(model="small-cnn", size=12, limit=400, epochs=2, batch_size=32, lr=0.05, split_seed=0, **PLAIN)


def make(model="mlp", classes=("ant", "bee", "cow"), seed=0, steps=(), temperature=1.0, size=(12, 12)):
    torch.manual_seed(seed)
    plan = parse_architecture(model, classes=len(classes), channels=1, size=size)
    geometry = Geometry(size=size, channels=1)
    return Classifier(
        Preprocessing(steps), build(plan), architecture=plan, classes=classes, geometry=geometry,
        temperature=temperature,
    ).eval()  # fmt: skip


@pytest.fixture
def three():
    """Another network, another preprocessing, another temperature and another order of the classes each."""
    return [
        make("mlp", seed=1, steps=[Normalise((0.1,), (0.3,))], temperature=0.7),
        make("lenet5", seed=2, steps=[ContrastNormalise()], temperature=1.9, classes=("cow", "ant", "bee")),
        make("resnet20", seed=3, temperature=0.2, classes=("bee", "cow", "ant")),
    ]


def reference(members, pixels):
    """The mean of the members' probabilities in float64, class by class."""
    total = torch.zeros(len(pixels), 3, dtype=torch.float64)
    for one in members:
        own = torch.softmax(one(pixels).double() / one.temperature, 1)
        for k, name in enumerate(members[0].classes):
            total[:, k] += own[:, one.classes.index(name)] / len(members)
    return total


def test_an_ensemble_answers_with_the_mean_of_probabilities(three):
    pixels = torch.rand(6, 1, 12, 12)
    made = combine(three).classifier
    with torch.no_grad():
        torch.testing.assert_close(
            made.probabilities(pixels).double(), reference(three, pixels), rtol=1e-5, atol=1e-7
        )
    assert made.classes == three[0].classes
    assert count_multiply_adds(made.network, 1, (12, 12)) == sum(
        count_multiply_adds(m.network, 1, (12, 12)) for m in three
    )


def test_an_ensemble_is_saved_and_loaded_bit_for_bit(three, tmp_path):
    made = combine(three).classifier
    made.save(tmp_path / "b")
    again = Classifier.load(tmp_path / "b")
    pixels = torch.rand(4, 1, 12, 12)
    with torch.no_grad():
        assert torch.equal(made(pixels), again(pixels))
    assert again.config() == made.config()
    assert {p.name for p in (tmp_path / "b").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert again.predict([np.zeros((12, 12, 1), np.uint8)])[0].label in made.classes


def test_an_ensemble_has_the_gradient_of_the_mean(three):
    pixels = torch.rand(2, 1, 12, 12)
    given, other = pixels.clone().requires_grad_(), pixels.clone().requires_grad_()
    combine(three).classifier.probabilities(given)[:, 1].log().sum().backward()
    reference(three, other)[:, 1].log().sum().backward()
    torch.testing.assert_close(given.grad, other.grad, rtol=1e-3, atol=1e-5 * other.grad.abs().max().item())


def test_members_are_copies(three):
    made = combine(three).classifier
    with torch.no_grad():
        three[0].network.head.weight.zero_()
    assert made.network.member_list()[0].network.head.weight.abs().sum() > 0


def test_answers_that_are_sure_stay_finite():
    sure = [make(seed=s, temperature=1e-3) for s in (1, 2)]
    logits = combine(sure).classifier(torch.rand(4, 1, 12, 12))
    assert logits.isfinite().all()


def test_ensembles_of_ensembles_and_mirrored_ones(three, tmp_path):
    inner = combine(three[:2]).classifier
    mirrored = copy.deepcopy(three[2])
    mirrored.network = SURGERY["mirrored"](mirrored.network)
    mirrored.architecture = replace(mirrored.architecture, surgery=(("mirrored", {}),))
    made = combine([inner, mirrored]).classifier
    made.save(tmp_path / "b")
    pixels = torch.rand(3, 1, 12, 12)
    with torch.no_grad():
        expected = reference([inner, mirrored], pixels)
        torch.testing.assert_close(
            Classifier.load(tmp_path / "b").probabilities(pixels).double(), expected, rtol=1e-4, atol=1e-6
        )


def test_features_of_an_ensemble_are_its_members_side_by_side(three):
    pixels = torch.rand(2, 1, 12, 12)
    made = combine(three).classifier
    with torch.no_grad():
        parts = [one.features(pixels) for one in three]
        assert torch.equal(made.features(pixels), torch.cat(parts, 1))
    with pytest.raises(BundleError, match="no last layer of its own"):
        get_head(made.network)
    assert made.network.embed(pixels).shape == (2, sum(part.shape[1] for part in parts))


MEMBER = {
    "architecture": {"name": "mlp", "arguments": {"classes": 3, "channels": 1, "size": [12, 12]}, "surgery": []},
    "preprocessing": [],
    "temperature": 1.0,
    "order": [0, 1, 2],
}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "no members"),
        ([{}], "cannot be rebuilt"),
        ([MEMBER | {"order": [0, 0, 1]}], "different classes"),
        ([MEMBER | {"order": [0, 1]}], "different classes"),
        ([MEMBER | {"temperature": 0}], "temperature"),
        ([MEMBER | {"temperature": "warm"}], "cannot be rebuilt"),
        ([MEMBER | {"preprocessing": [{"step": "evil"}]}], "evil"),
        ([MEMBER | {"architecture": {"name": "mlp"}}], "has no field"),
        ([MEMBER, MEMBER | {"architecture": MEMBER["architecture"] | {"arguments": {
            "classes": 3, "channels": 3, "size": [12, 12]}}}], "different channels or sizes"),
    ],
)  # fmt: skip
def test_a_config_that_is_no_ensemble_is_refused(members, message):
    common = {"classes": 3, "channels": 1, "size": [12, 12]}
    with pytest.raises(BundleError, match=message):
        build(Architecture("ensemble", {**common, "members": members}))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "at least two classifiers"),
        ([{"classes": ("ant", "bee", "dog")}], "different classes.*'cow'"),
        ([{"classes": ("ant", "bee")}], "different classes.*'cow'"),
        ([{"size": (16, 16)}], r"reads images differently.*size \(16, 16\) instead of size \(12, 12\)"),
    ],
)
@pytest.mark.parametrize("by", COMBINERS)
def test_classifiers_that_do_not_go_together_are_refused(by, others, message):
    with pytest.raises(BundleError, match=message):
        combine([make(), *(make(**other) for other in others)], by)


def test_an_unknown_way_is_refused():
    with pytest.raises(ChoiceError, match="Did you mean 'mean'"):
        combine([make(), make()], "meen")
    with pytest.raises(DataError, match="needs validation images"):
        combine([make(), make()], "mean:refit=True")


# runs and their images


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A start and three runs trained on from it."""
    folder = tmp_path_factory.mktemp("family")
    start = train("digits", TINY, out=folder / "start")
    return start, [
        train("digits", TINY.replace(weights=str(start.folder), seed=s, lr=0.01 * s), out=folder / f"run{s}")
        for s in (1, 2, 3)
    ]


def test_a_refitted_mean_has_the_temperature_of_its_logits(family):
    start, runs = family
    members = [one.classifier for one in runs]
    plain = combine(members).classifier
    made = combine(members, "mean:refit=True", images=start.splits).classifier
    assert made.temperature == pytest.approx(fit_temperature(*predict_logits(plain, start.splits.val)), abs=1e-5)
    assert plain.temperature == 1.0


def test_a_soup_is_the_mean_of_the_weights(family):
    _, runs = family
    made = combine([one.classifier for one in runs], "soup").classifier
    states = [{n: t.double().numpy() for n, t in one.classifier.state_dict().items()} for one in runs]
    for name, value in made.state_dict().items():
        if value.is_floating_point():
            np.testing.assert_allclose(value, np.mean([s[name] for s in states], 0), rtol=1e-5, atol=1e-7)
    temperatures = [one.classifier.temperature for one in runs]
    assert made.temperature == pytest.approx(float(np.exp(np.mean(np.log(temperatures)))))


def test_norms_are_re_estimated(family):
    """The first norm against numpy: mean and variance of what it is given, over all images at once."""
    start, runs = family
    images = start.splits.train.subset(np.arange(100))
    made = copy.deepcopy(runs[0].classifier)
    assert update_bn(made, images, batch_size=100)
    layers = made.network.features
    with torch.no_grad():
        given = layers.relu1(layers.conv(made.preprocessing(to_tensor(images[:])))).double().numpy()
    np.testing.assert_allclose(layers.bn.running_mean, given.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layers.bn.running_var, given.var((0, 2, 3), ddof=1), rtol=1e-3, atol=1e-6)
    assert layers.bn.momentum == runs[0].classifier.network.features.bn.momentum
    assert not update_bn(make("mlp"), images)


def test_a_soup_of_one_classifier_twice_is_that_classifier(family):
    _, runs = family
    one = runs[0].classifier
    pixels = torch.rand(4, 1, 12, 12)
    with torch.no_grad():
        made = combine([one, one], "soup").classifier
        torch.testing.assert_close(made.probabilities(pixels), one.eval().probabilities(pixels))


def test_a_greedy_soup_leaves_out_harmful_members(family):
    start, runs = family
    spoilt = copy.deepcopy(runs[0].classifier)
    with torch.no_grad():
        for parameter in spoilt.network.parameters():
            parameter.mul_(-3)
    members = [spoilt, *(one.classifier for one in runs)]
    names = ["spoilt", "a", "b", "c"]
    made = combine(members, GreedySoup(), images=start.splits, names=names)
    assert 0 not in made.member_indices
    assert made.classifier.provenance["members"] == [names[i] for i in made.member_indices]
    assert made.classifier.provenance["ancestors"] == runs[0].classifier.provenance["ancestors"]
    assert "seed" not in made.classifier.provenance or len(made.member_indices) == 1
    assert made.notes[0].startswith(f"{len(made.member_indices)} of 4 members are in the soup")
    accuracy = (
        predict_logits(made.classifier, start.splits.val)[0].argmax(1).numpy() == start.splits.val.labels
    ).mean()
    assert accuracy >= max(one.facts["val_accuracy"] for one in runs) - 1e-6
    with pytest.raises(DataError, match="chooses members by validation accuracy"):
        combine(members, "greedy-soup")


def test_soups_without_a_common_ancestor_are_refused(family):
    start, runs = family
    one = runs[0].classifier
    with pytest.raises(BundleError, match="not trained from the same weights"):
        combine([make("small-cnn", seed=1), make("small-cnn", seed=2)], "soup")
    with pytest.raises(BundleError, match="has another network"):
        combine([make("mlp"), make("lenet5")], "soup")
    with pytest.raises(BundleError, match="has another preprocessing"):
        combine([make(steps=[ContrastNormalise()]), make()], "soup")
    with pytest.raises(BundleError, match="the classes in another order"):
        combine([make(), make(classes=("bee", "ant", "cow"))], "soup")
    assert combine([start.classifier, one], "soup").member_indices == (0, 1)  # a start is its runs' relative


def listed(folder, *parts):
    with (folder / "split.csv").open() as stream:
        return {row["file"] for row in csv.DictReader(stream) if row["split"] in parts}


def test_runs_are_combined_and_compared_with_their_members(family, tmp_path):
    start, runs = family
    folders = [one.folder for one in runs]
    values = combine_runs(folders, out=tmp_path / "all", device="cpu").values
    made = Classifier.load(tmp_path / "all")
    assert values["n"] == len(start.splits.test)
    tested = evaluate(made, start.splits.test, device="cpu")
    assert values["accuracy"] == pytest.approx(tested.metrics["accuracy"].value)
    assert values["log_loss"] == pytest.approx(tested.metrics["log_loss"].value, rel=1e-4)
    rights = [evaluate(one.classifier, start.splits.test, device="cpu").correct for one in runs]
    for row, right, one in zip(values["rows"], rights, runs, strict=True):
        assert row["member"] == str(one.folder)
        assert row["accuracy"] == pytest.approx(right.mean())
        assert row["difference"]["value"] == pytest.approx(tested.correct.mean() - right.mean(), abs=1e-9)
        assert row["difference"]["low"] <= row["difference"]["value"] <= row["difference"]["high"]
    assert values["gain"]["value"] == pytest.approx(tested.correct.mean() - np.mean(rights), abs=1e-9)
    assert made.provenance["members"] == [str(folder) for folder in folders]
    assert made.provenance["data_fingerprint"] == start.splits.train.fingerprint


def test_images_a_member_was_trained_on_are_not_tested_on(family, tmp_path):
    start, runs = family
    other = train("digits", TINY.replace(split_seed=5, epochs=1), out=tmp_path / "other")
    found = combine_runs([runs[0].folder, other.folder], out=tmp_path / "all", device="cpu")
    fair = listed(runs[0].folder, "test") - listed(other.folder, "train", "val")
    assert 0 < len(fair) < len(start.splits.test)
    # Exact copies of an image are one image, so a few more may be left out.
    assert len(fair) - 5 <= found.values["n"] <= len(fair)
    assert any("split differently" in remark.text for remark in found.remarks)


def test_a_classifier_without_its_run_is_combined_and_not_tested(family, tmp_path):
    _, runs = family
    bundle = runs[0].classifier.save(tmp_path / "bundle")
    found = combine_runs([bundle, runs[1].folder], "soup", out=tmp_path / "all", device="cpu")
    assert "accuracy" not in found.values
    assert any("without its run" in remark.text for remark in found.remarks)
    assert any("members' mean" in remark.text for remark in found.remarks)
    Classifier.load(tmp_path / "all")


def test_the_verb(family, tmp_path, cli):
    _, runs = family
    folders = [one.folder for one in runs]
    answer = cli("combine", *folders, "--by", "soup", "--out", tmp_path / "soup", "--device", "cpu", "--json")
    assert answer.code == 0, answer.err
    value = json.loads(answer.out)
    assert {"run", "by", "members", "kept", "n", "accuracy", "rows", "gain", "remarks"} <= set(value)
    again = cli("combine", *folders, "--out", tmp_path / "soup")
    assert (again.code, again.out) == (2, "")
    assert "exists already" in again.err
    answer = cli("combine", *folders, "--out", tmp_path / "soup", "--overwrite", "--device", "cpu")
    assert answer.code == 0
    assert "mean of 3" in answer.out
    assert str(tmp_path / "soup") in answer.out
    assert Classifier.load(tmp_path / "soup").architecture.name == "ensemble"


def test_mistakes_at_the_shell_are_one_sentence(family, tmp_path, cli):
    _, runs = family
    one, two = runs[0].folder, runs[1].folder
    wrong = {
        "named twice": (one, one),
        "at least two": (one,),
        "no run or bundle": (one, tmp_path / "absent"),
        "Did you mean 'soup'": (one, two, "--by", "soap"),
    }
    for message, words in wrong.items():
        answer = cli("combine", *words, "--out", tmp_path / "x")
        assert answer.code == 2, message
        assert message in answer.err
        assert "Traceback" not in answer.err
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "letter.txt").write_text("")
    with pytest.raises(OutputError, match="is not a classifier"):
        combine_runs([one, two], out=tmp_path / "precious", overwrite=True)
    ensemble = tmp_path / "all"
    combine_runs([one, two], out=ensemble, device="cpu")
    with pytest.raises(RecipeError, match="is an ensemble"):
        train("digits", TINY.replace(weights=str(ensemble)), out=tmp_path / "r")


def test_dropout_is_off_while_norms_are_re_estimated(family):
    """The layers' own train mode would draw; torch's function alone turns it on."""
    start, runs = family
    made = copy.deepcopy(runs[0].classifier)
    made.network.features.conv = torch.nn.Sequential(made.network.features.conv, torch.nn.Dropout(0.9))
    plain = copy.deepcopy(runs[0].classifier)
    assert update_bn(made, start.splits.train)
    assert update_bn(plain, start.splits.train)
    assert torch.equal(made.network.features.bn.running_mean, plain.network.features.bn.running_mean)
    assert not any(module.training for module in made.modules())
