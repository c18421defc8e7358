"""An exported file gives the classifier's answers, or is not handed over."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import helpers.warm_exporter  # noqa: F401
from helpers.tiny_classifiers import WORDS
from sightline import runtime
from sightline.baselines import fit_baseline
from sightline.classifier import Classifier
from sightline.compression import Int8
from sightline.data import load_dataset, to_tensor
from sightline.ensembles import combine
from sightline.errors import BundleError, ChoiceError, DataError, OutputError, RequirementNotMet
from sightline.evaluation import evaluate
from sightline.formats import (
    FORMATS,
    TorchRunner,
    export,
    measure_latencies,
    open_exported,
    parity,
    write_exported,
)
from sightline.models import build, parse_architecture
from sightline.preprocessing import (
    BitDepthFilter,
    ContrastNormalise,
    JpegFilter,
    MedianFilter,
    NoiseFilter,
    Normalise,
    Preprocessing,
    Zca,
    fit_preprocessing,
)
from sightline.types import Geometry, Splits

COLOUR = Geometry(size=(16, 16), channels=3)
GREY = Geometry(size=(12, 10), channels=1)
QUICK = ("mlp", "small-cnn", "vit:depth=2:width=48:heads=2")
"""Networks whose int8 form is exported here too; the others' are in test_quantised."""


@pytest.fixture(scope="module")
def images():
    return load_dataset("shapes:64", COLOUR)


@pytest.fixture(scope="module")
def digits():
    found = load_dataset("digits", GREY)
    return found.subset(found.labels < 2)


def made(word, geometry=COLOUR, classes=("circle", "square", "star", "triangle"), steps=None, surgery=(), **more):
    torch.manual_seed(0)
    plan = parse_architecture(word, classes=len(classes), channels=geometry.channels, size=geometry.size)
    plan = replace(plan, surgery=tuple(surgery))
    network = build(plan)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
        elif isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias, 0, 0.1)
    with torch.no_grad():
        network.train()(torch.randn(16, geometry.channels, *geometry.size))  # norms learn what they are given
    nn.init.normal_(network.head.weight, 0, 0.3)
    classes = [*classes, *(f"more{k}" for k in range(network.n_classes - len(classes)))]
    steps = [Normalise([0.4] * geometry.channels, [0.3] * geometry.channels)] if steps is None else steps
    given = {"temperature": 1.7, "threshold": 0.3} | more
    return Classifier(
        Preprocessing(steps), network, architecture=plan, classes=classes, geometry=geometry, **given
    ).eval()


def same(classifier, file, images, tolerance=2e-5):
    """The file's answers are the classifier's for 1, 2 and 7 images."""
    for count in (1, 2, 7):
        some = images[:count]
        ours, theirs = TorchRunner(classifier).probabilities(some), file.probabilities(some)
        assert theirs.dtype == np.float32
        assert theirs.shape == (count, len(classifier.classes))
        assert np.abs(theirs - ours).max() <= tolerance
    assert ours.std(0).max() > 1e-3  # answers that depend on the image


# Laws.


FURTHER = ("vit:depth=1:width=24:heads=2:pool=class", "resnet20:attention=cbam")
SAMPLED = ("lenet5", "fastcnn", "enhanced", "densenet", "efficientnet", "vit", "timm")
"""Networks with operators that others have not: following one takes seconds. ``benchmarks/export_parity.py`` does
all of them, in float32 and in int8."""


@pytest.mark.parametrize("word", [*(w for w in WORDS if w.partition(":")[0] in SAMPLED), *FURTHER])
def test_every_network_exports(word, images, tmp_path):
    classifier = made(word)
    same(classifier, open_exported(write_exported(classifier, tmp_path / "m.onnx")), images)


@pytest.mark.parametrize("surgery", [("mirrored", {}), ("grown_head", {"classes": 6})], ids=lambda s: s[0])
def test_every_change_exports(surgery, images, tmp_path):
    classifier = made("lenet5", surgery=[surgery])
    same(classifier, open_exported(write_exported(classifier, tmp_path / "m.onnx")), images)


STEPS = {
    "contrast and normalise": lambda _: [ContrastNormalise(), Normalise([0.1], [0.5])],
    "zca": lambda data: [*fit_preprocessing(data[:], "zca", 1).steps],
    "zca of some directions": lambda data: [*fit_preprocessing(data[:], "zca:rank=9", 1).steps],
    "median, bits and normalise": lambda _: [MedianFilter(3), BitDepthFilter(3), Normalise([0.1], [0.5])],
}


@pytest.mark.parametrize("steps", STEPS)
def test_every_preprocessing_exports(steps, digits, tmp_path):
    found = STEPS[steps](digits)
    classifier = made("mlp", GREY, ("0", "1"), found)
    assert any(isinstance(one, Zca) for one in found) == steps.startswith("zca")
    same(classifier, open_exported(write_exported(classifier, tmp_path / "m.onnx")), digits, 1e-4)


@pytest.mark.parametrize("word", QUICK)
def test_int8_stays_int8(word, images, tmp_path):
    parent = made(word)
    classifier = Int8(by="minmax", images=32)(parent, Splits(images, images, images))
    small = write_exported(classifier, tmp_path / "8.onnx")
    ours, theirs = TorchRunner(classifier).probabilities(images[:]), open_exported(small).probabilities(images[:])
    assert np.abs(ours - theirs).max() < 0.05
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.95
    held = [numpy_helper.to_array(one) for one in onnx.load(small).graph.initializer]
    codes = sum(one.size for one in held if one.dtype == np.int8)
    weights = sum(p.numel() for p in parent.network.parameters() if p.ndim > 1)
    assert codes > 0.8 * weights
    assert small.stat().st_size < 0.6 * 4 * weights  # which a file of floats has at least


@pytest.mark.parametrize(
    ("bits", "vnni", "warned"), [(8, False, True), (8, True, False), (8, None, False), (7, False, False)]
)
def test_weights_of_8_bits_are_named_where_their_sums_overflow(
    bits, vnni, warned, images, tmp_path, monkeypatch, capsys
):
    classifier = Int8(by="minmax", images=32, bits=bits)(made("small-cnn"), Splits(images, images, images))
    file = write_exported(classifier, tmp_path / "8.onnx")
    capsys.readouterr()
    monkeypatch.setattr(runtime, "has_vnni", lambda: vnni)
    open_exported(file)
    assert ("overflow on this processor" in capsys.readouterr().err) is (bits == 8 and vnni is False)


def test_an_ensemble_exports(images, tmp_path):
    members = [made("mlp"), made("lenet5", steps=[ContrastNormalise()], temperature=0.6)]
    classifier = combine(members).classifier
    same(classifier, open_exported(write_exported(classifier, tmp_path / "m.onnx")), images)


@pytest.mark.parametrize("int8", [False, True])
def test_torch_reads_its_own_file(int8, images, tmp_path):
    classifier = made("small-cnn")
    if int8:
        classifier = Int8(by="minmax", images=32)(classifier, Splits(images, images, images))
    file = write_exported(classifier, tmp_path / "m.pt2", to="torch")
    program = FORMATS["torch"].open(file)
    same(classifier, program, images)
    extra = {"sightline.json": ""}
    torch.export.load(file, extra_files=extra)
    assert json.loads(extra["sightline.json"])["classes"] == list(classifier.classes)
    with pytest.raises(BundleError, match="could run code"):
        open_exported(file)
    with pytest.raises(BundleError, match="could run code"):
        Classifier.load(file)


def test_openvino_or_how_to_get_it(images, tmp_path):
    classifier = made("small-cnn")
    try:
        import openvino  # noqa: F401
    except ImportError:
        with pytest.raises(RequirementNotMet, match=r"pip install 'sightline\[openvino\]'"):
            write_exported(classifier, tmp_path / "m", to="openvino")
        assert not list(tmp_path.iterdir())
        pytest.skip("OpenVINO is not installed")
    folder = write_exported(classifier, tmp_path / "m", to="openvino")
    assert {"model.xml", "model.bin", "sightline.json"} == {one.name for one in folder.iterdir()}
    same(classifier, FORMATS["openvino"].open(folder), images)


# Int8 files compute in integers.


def test_convolutions_and_sums_of_an_int8_file_run_in_integers(images, tmp_path):
    """What onnxruntime makes of the graph: every convolution, sum and linear layer is its integer kernel."""
    classifier = Int8(by="minmax", images=32)(made("resnet20"), Splits(images, images, images))
    write_exported(classifier, tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 19
    assert kinds.count("QLinearAdd") == 9
    assert not {"Conv", "FusedConv", "Gemm", "MatMul", "Relu"} & set(kinds)
    assert kinds.count("Add") <= 1  # the normalisation's


def test_the_scales_of_the_file_are_the_networks_own(images, tmp_path):
    classifier = Int8(by="minmax", images=32)(made("lenet5"), Splits(images, images, images))
    graph = onnx.load(write_exported(classifier, tmp_path / "m.onnx")).graph
    held = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    both = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    rounding = [node for node in both if len(node.input) == 3 and held[node.input[2]].dtype == np.uint8]
    pairs = {(held[node.input[1]].item(), held[node.input[2]].item()) for node in rounding}
    own = {(grid.scale.item(), grid.zero.item()) for grid in classifier.network.rounding.grids}
    assert pairs <= own
    assert len(pairs) >= len(own) - 1  # nothing follows the logits
    layer = classifier.network.features.conv1
    same_codes = [name for name, value in held.items() if np.array_equal(value, layer.codes.numpy())]
    (weight,) = [node for node in graph.node if node.input[0] in same_codes]
    np.testing.assert_allclose(held[weight.input[1]], (layer.step * layer.gain).detach().flatten().numpy())
    biases = [value for value in held.values() if value.dtype == np.int32 and value.shape == (6,)]
    step = classifier.network.rounding.grids[0].scale.item() * layer.step.flatten().numpy()
    (bias,) = biases
    assert np.abs(bias * step - layer.bias.detach().numpy()).max() <= step.max() / 2 + 1e-9


# The file by itself.


def test_the_file_holds_its_metadata(images, tmp_path):
    geometry = Geometry(size=(16, 16), channels=3, resize_mode="pad", interpolation="bicubic", window=None)
    classifier = made("mlp", geometry, threshold=0.25, provenance={"data": "/home/me/x"})
    write_exported(classifier, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    facts = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["classes"] == list(classifier.classes)
    assert facts["geometry"] == json.loads(json.dumps(geometry.as_json()))
    assert facts["threshold"] == 0.25
    assert facts["format"] == 1
    assert "/home/me" not in json.dumps(facts)
    (given,), (answers, *others) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["N", 16, 16, 3])
    assert (answers.name, answers.type, answers.shape) == ("probabilities", "tensor(float)", ["N", 4])
    width = classifier.network.head.in_features
    assert [(one.name, one.shape) for one in others] == [("features", ["N", width]), ("energy", ["N"])]
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    text = (tmp_path / "m.onnx").read_bytes()
    assert b"/site-packages/" not in text
    assert b"sightline/" not in text


def test_the_file_gives_the_classifiers_features_and_energy(images, tmp_path):
    classifier = made("small-cnn")
    found = open_exported(write_exported(classifier, tmp_path / "m.onnx")).outputs(images[:9])
    pixels = to_tensor(images[:9], classifier.device)
    with torch.inference_mode():
        features, energy = classifier.features(pixels), -torch.logsumexp(classifier(pixels).double(), 1)
    assert np.allclose(found.features, features, atol=1e-5)
    assert np.allclose(found.energy, energy, atol=1e-5)


def test_a_file_with_other_features_is_refused(images, tmp_path, monkeypatch):
    classifier = made("small-cnn")
    other = made("small-cnn")
    with torch.no_grad():  # the same answers from features twice as large
        other.network.features.fc.weight *= 2
        other.network.features.fc.bias *= 2
        other.network.head.weight /= 2
    faulty = replace(FORMATS["onnx"], write=lambda _, path: FORMATS["onnx"].write(other, path))
    monkeypatch.setattr("sightline.formats.FORMATS", {"onnx": faulty})
    with pytest.raises(RequirementNotMet, match="other features"):
        export(classifier, tmp_path / "m.onnx", data=images)
    assert not [*tmp_path.iterdir()]


def test_a_file_passes_for_a_classifier(images, tmp_path):
    classifier = made("small-cnn", threshold=0.4, provenance={"data_fingerprint": images.fingerprint})
    again = Classifier.load(write_exported(classifier, tmp_path / "m.onnx"))
    assert again.classes == classifier.classes
    assert again.geometry == classifier.geometry
    assert again.threshold == 0.4
    assert again.provenance == {"data_fingerprint": images.fingerprint}
    assert not again.differentiable
    one, other = (evaluate(each, images) for each in (classifier, again))
    np.testing.assert_allclose(other.probabilities, one.probabilities, atol=2e-5)
    assert other.metrics["accuracy"] == one.metrics["accuracy"]
    picture = images[:1][0]
    assert again.predict([picture])[0].label == classifier.predict([picture])[0].label
    assert again.predict(["nothing.png"])[0].error
    with pytest.raises(OutputError, match="copy the file"):
        again.save(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(RequirementNotMet, match="already"):
        write_exported(again, tmp_path / "n.onnx")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_exported(made("mlp"), tmp_path_factory.mktemp("whole") / "m.onnx")


def changed(whole, path, **facts):
    model = onnx.load(whole)
    props = {one.key: one.value for one in model.metadata_props} | facts
    del model.metadata_props[:]
    for name, value in props.items():
        if value is not None:
            model.metadata_props.add(key=name, value=value)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"classes": None}, "names no classes"),
        ({"classes": "["}, "makes no sense"),
        ({"classes": '["a", "a", "b", "c"]'}, "different names"),
        ({"classes": '["a", "b"]'}, "gives 4 numbers"),
        ({"geometry": '{"size": [8, 8], "channels": 3}'}, r"takes \[16, 16, 3\]"),
        ({"geometry": '{"size": [0, 16]}'}, "makes no sense"),
        ({"threshold": "2"}, "from 0 to 1"),
        ({"format": "99"}, "newer"),
    ],
)
def test_files_that_contradict_themselves(facts, text, whole, tmp_path):
    path = changed(whole, tmp_path / "m.onnx", **facts)
    with pytest.raises(BundleError, match=text):
        Classifier.load(path)


def test_files_that_are_none(tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="cannot be read by onnxruntime"):
        Classifier.load(bad)
    with pytest.raises(BundleError, match="no file"):
        open_exported(tmp_path / "none.onnx")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(BundleError, match="not a bundle"):
        Classifier.load(tmp_path / "x.txt")


# The gate.


def test_a_file_that_agrees_is_kept(images, tmp_path):
    classifier = made("mlp")
    found = export(classifier, tmp_path / "m.onnx", data=images)
    right = (TorchRunner(classifier).probabilities(images[:]).argmax(1) == images.labels).mean()
    assert found.agreement == 1.0
    assert 0 < found.largest_difference < 1e-4
    assert found.accuracy.value == found.accuracy_before.value == pytest.approx(right)
    assert found.n == len(images)
    assert found.size_mb == (tmp_path / "m.onnx").stat().st_size / 1e6
    assert [one.batch_size for one in found.latency] == [1, 32]
    assert all(0 < one.p50_ms <= one.p95_ms for one in (*found.latency, *found.latency_before))
    json.dumps(found.as_json())
    with pytest.raises(OutputError, match="--overwrite"):
        export(classifier, tmp_path / "m.onnx", data=images)
    assert export(classifier, tmp_path / "m.onnx", data=images, limit=20, overwrite=True).n == 20


def test_a_file_that_disagrees_is_not_kept(images, tmp_path, monkeypatch):
    """A file of other weights, as a faulty exporter would write it."""
    classifier, other = made("mlp"), made("mlp")
    with torch.no_grad():
        other.network.head.bias += torch.tensor([0.5, 0, 0, 0])
    faulty = replace(FORMATS["onnx"], write=lambda _, path: FORMATS["onnx"].write(other, path))
    monkeypatch.setattr("sightline.formats.FORMATS", {"onnx": faulty})
    (tmp_path / "m.onnx").write_bytes(b"the old one")
    with pytest.raises(RequirementNotMet, match="other answers") as refusal:
        export(classifier, tmp_path / "m.onnx", data=images, overwrite=True)
    assert refusal.value.exit_code == 3
    assert (tmp_path / "m.onnx").read_bytes() == b"the old one"
    assert [one.name for one in tmp_path.iterdir()] == ["m.onnx"]


def test_answers_that_are_no_numbers_disagree(images):
    class Broken:
        def probabilities(self, images):
            return np.full((len(images), 4), np.nan, np.float32)

    found = parity.compare_answers(made("mlp"), Broken(), images)
    assert found["agreement"] == 0
    assert found["largest_difference"] == 1


def test_runners_are_timed_in_turn(images, monkeypatch):
    monkeypatch.setattr(parity, "MAX_LATENCY_REPEATS", 20)
    order = []

    class Runner:
        def __init__(self, name):
            self.name = name

        def probabilities(self, images):
            order.append((self.name, len(images)))
            return np.zeros((len(images), 4), np.float32)

    found = measure_latencies({"a": Runner("a"), "b": Runner("b")}, images[:3], seconds=1e6)
    asked = [name for name, size in order if size == 32][4:]
    assert asked == ["a", "b"] * 20
    assert found["a"][1].repetitions == 20


def test_export_without_images_is_refused(images, tmp_path):
    classifier = made("mlp")
    with pytest.raises(DataError, match="--data"):
        export(classifier, tmp_path / "m.onnx")
    bundle = classifier.save(tmp_path / "b")
    with pytest.raises(DataError, match="--data"):
        export(bundle, tmp_path / "m.onnx")
    with pytest.raises(BundleError, match="no run or bundle"):
        export(tmp_path / "none", tmp_path / "m.onnx")
    with pytest.raises(DataError, match="--limit"):
        export(classifier, tmp_path / "m.onnx", data=images, limit=0)
    with pytest.raises(DataError, match="decoded"):
        export(classifier, tmp_path / "m.onnx", data=load_dataset("digits", GREY))
    assert not list(tmp_path.glob("*.onnx"))


# What no file can hold.


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": [NoiseFilter(0.1), Normalise([0.1], [0.5])]}, "noise"),
        ({"surgery": [("noise", {})]}, "noise"),
        ({"steps": [JpegFilter(50)]}, "JPEG"),
    ],
    ids=["pixel noise", "weight noise", "jpeg"],
)
@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_classifiers_that_are_refused(change, text, to, tmp_path):
    classifier = made("mlp", GREY, ("0", "1"), **change)
    with pytest.raises(RequirementNotMet, match=text):
        write_exported(classifier, tmp_path / f"m{FORMATS[to].suffix}", to=to)
    inside = combine([classifier, made("mlp", GREY, ("0", "1"))]).classifier
    with pytest.raises(RequirementNotMet, match=text):
        write_exported(inside, tmp_path / f"m{FORMATS[to].suffix}", to=to)
    assert not list(tmp_path.iterdir())


def test_a_scikit_learn_estimator_is_refused(digits, tmp_path):
    with pytest.raises(RequirementNotMet, match="no converter"):
        write_exported(fit_baseline(Splits(digits, digits, digits), "knn"), tmp_path / "m.onnx")


def test_a_network_that_cannot_be_traced_is_refused_in_a_sentence(tmp_path):
    classifier = made("mlp")

    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    classifier.network.hidden.append(Odd())
    with pytest.raises(RequirementNotMet, match="ONNX cannot hold this network") as refusal:
        write_exported(classifier, tmp_path / "m.onnx")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("to", "name", "error", "text"),
    [
        ("onx", "m.onnx", ChoiceError, "Did you mean 'onnx'"),
        ("onnx", "m.pt2", OutputError, r"call it m\.onnx"),
        ("torch", "m.onnx", OutputError, r"call it m\.pt2"),
        ("openvino", "m.onnx", OutputError, "is a folder"),
        ("onnx", "folder", OutputError, r"folder\.onnx"),
    ],
)
def test_names_that_do_not_go_together(to, name, error, text, tmp_path):
    with pytest.raises(error, match=text):
        write_exported(made("mlp"), tmp_path / name, to=to)


def test_unwritable_paths_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "m.onnx").mkdir()
    (tmp_path / "m.onnx" / "inside").write_text("x")
    classifier = made("mlp")
    with pytest.raises(OutputError, match="not a folder"):
        write_exported(classifier, tmp_path / "file" / "m.onnx")
    with pytest.raises(OutputError, match="folder of that name"):
        write_exported(classifier, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx" / "inside").is_file()
    assert {one.name for one in Path(tmp_path).iterdir()} == {"file", "m.onnx"}
