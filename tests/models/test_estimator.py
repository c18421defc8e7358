"""A baseline is a classifier: the same bundle, the same verbs, and no file that can bring code of its own."""

import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import skops.io
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from sightline.baselines import BASELINES, fit_baseline
from sightline.classifier import Classifier
from sightline.data import load_dataset
from sightline.data.loader import to_tensor
from sightline.data.splits import split
from sightline.errors import BundleError
from sightline.evaluation import evaluate
from sightline.files import checksum
from sightline.models import Architecture, build, parse_architecture
from sightline.models.estimator import ESTIMATOR_FILE, _to_float32, estimator_scores
from sightline.preprocessing import fit_preprocessing
from sightline.types import Geometry

GEOMETRY = Geometry(size=(8, 8), channels=1)


@pytest.fixture(scope="module")
def digits():
    return split(load_dataset("digits", GEOMETRY), seed=1)


@pytest.fixture(scope="module")
def pixels(digits):
    return to_tensor(digits.test[:])


@pytest.fixture
def bundle(digits, tmp_path):
    return fit_baseline(digits, "decision-tree").save(tmp_path / "bundle")


def rechecked(folder):
    """The bundle with the checksums of its files as they are now: what somebody who wants to harm would write."""
    config = json.loads((folder / "config.json").read_text())
    config["files"] = {name: checksum(folder / name) for name in config["files"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", BASELINES)
def test_saved_and_loaded_it_answers_the_same(name, digits, pixels, tmp_path):
    word = {"gradient-boosting": f"{name}:rounds=3", "random-forest": f"{name}:trees=10"}.get(name, name)
    classifier = fit_baseline(digits, f"{word}@hog+edges")
    folder = classifier.save(tmp_path / "bundle")
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        ESTIMATOR_FILE,
    }
    assert json.loads((folder / "config.json").read_text())["files"][ESTIMATOR_FILE] == checksum(
        folder / ESTIMATOR_FILE
    )
    again = Classifier.load(folder)
    assert torch.equal(again(pixels), classifier(pixels))
    assert again.temperature == classifier.temperature
    assert f"{word}@hog+edges" in (folder / "README.md").read_text()


def test_it_evaluates_and_predicts_like_any_classifier(bundle, digits):
    classifier = Classifier.load(bundle)
    found = evaluate(classifier, digits.test)
    assert found.metrics["accuracy"].value > 0.75
    assert found.probabilities.sum(1) == pytest.approx(np.ones(len(digits.test)), abs=1e-5)
    assert (found.efficiency.parameters, found.efficiency.multiply_adds) == (0, 0)
    answers = classifier.predict([digits.test[i][0] for i in range(5)])
    assert [one.label for one in answers] == [found.classes[k] for k in found.predicted[:5]]
    assert str(classifier.device) == "cpu"


def test_the_architecture_builds_it_without_its_estimator(bundle):
    config = json.loads((bundle / "config.json").read_text())["architecture"]
    assert config["name"] == "estimator"
    network = build(Architecture.from_config(config))
    assert network.n_classes == 10
    assert network.estimator is None


def test_an_embedding_feature_is_saved_with_its_network(digits, pixels, tmp_path):
    torch.manual_seed(0)
    plan = parse_architecture("mlp", classes=10, channels=1, size=(8, 8))
    steps = fit_preprocessing(digits.train, "fitted", 1)
    network = Classifier(steps, build(plan), architecture=plan, classes=digits.train.classes, geometry=GEOMETRY)
    network.save(tmp_path / "network")
    classifier = fit_baseline(digits, f"logistic-regression@embedding:{tmp_path / 'network'}")
    saved = classifier.save(tmp_path / "bundle")
    shutil.rmtree(tmp_path / "network")
    again = Classifier.load(saved)
    assert torch.equal(again(pixels), classifier(pixels))
    expected = network.eval().features(pixels)
    assert torch.allclose(again.network.feature_vectors(pixels), expected, atol=1e-6)
    again.train()
    assert not again.network.embeddings[0].network.training
    assert evaluate(again, digits.test).efficiency.multiply_adds > 0


def test_the_prediction_survives_rounding_to_float32():
    close = np.array([[1.0, 1.0 + 1e-12, 0.0], [3.0, 2.0, 1.0], [-1e-3, -1e-3 + 1e-12, -1e-3]])
    assert (close.astype(np.float32).argmax(1) == [0, 0, 0]).all()
    single = _to_float32(close)
    assert single.dtype == np.float32
    assert (single.argmax(1) == [1, 0, 1]).all()
    assert single == pytest.approx(close, abs=1e-6)


def test_a_binary_decision_becomes_two_scores():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), np.arange(60) % 2
    logistic = BASELINES["logistic-regression"]().fit(x, y)
    found = torch.softmax(torch.from_numpy(estimator_scores(logistic, x)), 1).numpy()
    assert found == pytest.approx(logistic.predict_proba(x))


# what is refused


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (FunctionTransformer(func=shutil.rmtree), "shutil.rmtree"),
        (FunctionTransformer(func=np.sqrt), "baseline"),
        ({"not": "an estimator"}, "holds a dict, which is not a baseline"),
    ],
)
def test_objects_that_are_not_baselines_are_refused(thing, says, bundle):
    skops.io.dump(thing, bundle / ESTIMATOR_FILE)
    with pytest.raises(BundleError, match=says):
        Classifier.load(rechecked(bundle))


def test_a_pickle_is_never_read(bundle):
    (bundle / ESTIMATOR_FILE).write_bytes(pickle.dumps(DecisionTreeClassifier()))
    with pytest.raises(BundleError, match="cannot be read"):
        Classifier.load(rechecked(bundle))


def test_an_estimator_that_unpacks_to_far_more_is_refused(bundle):
    with zipfile.ZipFile(bundle / ESTIMATOR_FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", bytes(50_000_000))
    with pytest.raises(BundleError, match="unpacks to 50 MB"):
        Classifier.load(rechecked(bundle))


def test_a_changed_or_missing_estimator_file_is_refused(bundle):
    content = (bundle / ESTIMATOR_FILE).read_bytes()
    (bundle / ESTIMATOR_FILE).write_bytes(content + b"x")
    with pytest.raises(BundleError, match=f"'{ESTIMATOR_FILE}' .* wrong checksum"):
        Classifier.load(bundle)
    (bundle / ESTIMATOR_FILE).unlink()
    with pytest.raises(BundleError, match=f"lacks its file '{ESTIMATOR_FILE}'"):
        Classifier.load(bundle)
    config = json.loads((bundle / "config.json").read_text())
    del config["files"][ESTIMATOR_FILE]
    (bundle / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=f"lacks its file '{ESTIMATOR_FILE}'"):
        Classifier.load(bundle)


def test_an_estimator_of_other_features_is_refused(digits, bundle, tmp_path):
    other = fit_baseline(digits, "decision-tree@hog").save(tmp_path / "other")
    shutil.copy(other / ESTIMATOR_FILE, bundle / ESTIMATOR_FILE)
    with pytest.raises(BundleError, match="fitted on other features or classes"):
        Classifier.load(rechecked(bundle))


def altered(tree, **changes):
    """The tree with some fields of its nodes changed, as no training makes it."""
    state = tree.__getstate__()
    nodes = state["nodes"].copy()
    for name, (node, value) in changes.items():
        nodes[name][node] = value
    made = type(tree)(tree.n_features, tree.n_classes, tree.n_outputs)
    made.__setstate__(state | {"nodes": nodes})
    return made


@pytest.mark.parametrize(
    "changes",
    [{"left_child": (0, 10**9)}, {"right_child": (0, 0)}, {"feature": (0, 10**6)}, {"left_child": (0, -7)}],
)
@pytest.mark.parametrize("forest", [False, True])
def test_trees_with_indices_out_of_range_or_cycles_are_refused(changes, forest, digits, tmp_path):
    """Asking them would read foreign memory, or never end."""
    classifier = fit_baseline(digits, "random-forest:trees=2" if forest else "decision-tree")
    estimator = classifier.network.estimator
    assert isinstance(estimator, RandomForestClassifier if forest else DecisionTreeClassifier)
    holder = estimator.estimators_[1] if forest else estimator
    holder.tree_ = altered(holder.tree_, **changes)
    with pytest.raises(BundleError, match="its nodes lead nowhere"):
        Classifier.load(classifier.save(tmp_path / "bundle"))


@pytest.mark.parametrize("field", ["left", "feature_idx"])
def test_boosted_trees_are_checked_too(field, digits, tmp_path):
    classifier = fit_baseline(digits, "gradient-boosting:rounds=2")
    nodes = classifier.network.estimator._predictors[1][3].nodes
    nodes[field][0] = 10**6
    with pytest.raises(BundleError, match="its nodes lead nowhere"):
        Classifier.load(classifier.save(tmp_path / "bundle"))


def test_inconsistent_support_vectors_are_refused(digits, tmp_path):
    classifier = fit_baseline(digits, "svm-rbf")
    estimator = classifier.network.estimator
    assert isinstance(estimator, SVC)
    estimator._dual_coef_ = estimator._dual_coef_[:, :2]
    with pytest.raises(BundleError, match="support vectors"):
        Classifier.load(classifier.save(tmp_path / "bundle"))
