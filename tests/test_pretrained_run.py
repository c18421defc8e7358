"""Every verb on a run that began from the embedded weights: timm's network, with its SAME padding at odd sizes."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

import sightline
from helpers.photo_folder import write_photos
from helpers.tiny_classifiers import SETTLED
from sightline.attacks import FGSM
from sightline.classifier import Classifier
from sightline.compression import COMPRESSORS, count_weights
from sightline.data import load_dataset, to_tensor
from sightline.errors import RecipeError, SightlineError
from sightline.evaluation import evaluate_run
from sightline.evidence import write_report
from sightline.explanation import EXPLAINERS
from sightline.formats import FORMATS, TorchRunner, open_exported, write_exported
from sightline.models import count_multiply_adds, find_imagenet_classes
from sightline.models.pretrained import LITE0
from sightline.training import Recipe, train
from sightline.types import Geometry

SIDE = 65
"""Odd in every layer, so that SAME padding is equal on both sides of kernels of stride 2; at 224 it is not."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Names of ImageNet's own, so that the run has to warn."""
    return write_photos(tmp_path_factory.mktemp("photos") / "photos", 20, names=("cats", "stripe"))


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A head on frozen features."""
    out = tmp_path_factory.mktemp("run") / "run"
    return train(photos, Recipe(size=SIDE, method="probe", seed=0, **SETTLED), out=out)


def test_the_network_has_the_padding_in_question(run):
    kinds = [type(module).__name__ for module in run.classifier.network.modules()]
    assert kinds.count("Conv2dSame") == 5


def test_card_and_report_say_whose_weights_these_are(run):
    """Licence, source, checksum and training data; and that ImageNet has cats of its own."""
    known = run.classifier.provenance["weights"]
    assert known == {**LITE0.card.as_json(), "known_classes": ["cats"]}
    evaluate_run(run)
    page = write_report(run.folder).read_text(encoding="utf-8")
    card = (run.folder / "classifier" / "README.md").read_text(encoding="utf-8")
    for text in (page, card):
        for word in ("tf", "apache", "ImageNet-1k", LITE0.card.sha256, LITE0.package, "cats"):
            assert word in text, word
        assert "too optimistic: expect less on other subjects" in " ".join(text.split())
    assert any("cats among its own classes" in note for note in run.notes)


def test_classes_that_imagenet_has_are_found_by_their_kind():
    kinds = ["cats", "Dog", "golden_retriever", "Egyptian cat", "bananas", "trucks"]
    waste = ["cardboard", "glass", "metal", "paper", "plastic", "trash"]
    assert find_imagenet_classes([*kinds, *waste]) == kinds


@pytest.mark.parametrize("name", [name for name in EXPLAINERS if name not in ("rollout", "rise", "occlusion")])
def test_explainers_see_its_layers(run, name):
    images = to_tensor(run.splits.test[:1])
    explain = EXPLAINERS[name]()
    maps = explain(run.classifier, images, torch.tensor([0]))
    assert maps.shape[-2:] == (SIDE, SIDE)
    assert maps.isfinite().all()
    assert maps.std() > 0


def test_attacks_reach_through_it(run):
    batch = to_tensor(run.splits.test[:4])
    labels = torch.from_numpy(run.splits.test.labels[:4])
    with torch.no_grad():
        before = torch.nn.functional.cross_entropy(run.classifier(batch), labels)
    attacked = FGSM()(run.classifier, batch, labels, eps=4 / 255)
    with torch.no_grad():
        after = torch.nn.functional.cross_entropy(run.classifier(attacked), labels)
    assert after > before
    assert (attacked - batch).abs().max() <= 4 / 255 + 1e-6


@pytest.fixture(scope="module")
def answers(run):
    return TorchRunner(run.classifier).probabilities(run.splits.test[:])


@pytest.mark.parametrize("word", ["int8", "channels", "lowrank", "prune"])
def test_compressed_it_is_an_ordinary_bundle(run, answers, word, tmp_path):
    """Saved and loaded it answers the same; int8 and low rank answer about as the original does."""
    make = {
        "int8": lambda: COMPRESSORS["int8"](images=16),
        "channels": lambda: COMPRESSORS["channels"](0.2, criterion="l2"),
        "lowrank": lambda: COMPRESSORS["lowrank"](energy=0.95),
        "prune": lambda: COMPRESSORS["prune"](0.1),
    }[word]
    small = make()(run.classifier, run.splits).eval()
    small.save(tmp_path / "bundle")
    images = run.splits.test[:]
    ours = TorchRunner(small).probabilities(images)
    assert np.array_equal(ours, TorchRunner(sightline.load(tmp_path / "bundle")).probabilities(images))
    if word == "channels":  # which needs fine-tuning; whole vectors for the depthwise kernels
        assert count_multiply_adds(small.network, 3, (SIDE, SIDE)) < 0.85 * count_multiply_adds(
            run.classifier.network, 3, (SIDE, SIDE)
        )
        widths = [m.out_channels for m in small.network.modules() if isinstance(m, torch.nn.Conv2d)]
        assert all(width % 8 == 0 for width in widths)
    elif word == "lowrank":
        assert count_weights(small.network)[0] < count_weights(run.classifier.network)[0]
    if word != "channels":
        assert (ours.argmax(1) == answers.argmax(1)).mean() >= 0.8


@pytest.mark.parametrize(("to", "name"), [("onnx", "model.onnx"), ("torch", "model.pt2")])
def test_exported_at_an_odd_size_it_answers_the_same(run, answers, to, name, tmp_path):
    file = FORMATS[to].open(write_exported(run.classifier, tmp_path / name, to=to))
    images = run.splits.test[:]
    assert np.abs(file.probabilities(images) - answers).max() < 1e-5
    assert np.abs(file.probabilities(images[:1]) - answers[:1]).max() < 1e-5


def test_at_the_size_of_photos_the_file_answers_the_same(run, photos, tmp_path):
    """With the card's crop, and where SAME padding has a pixel more on one side in every layer of stride 2."""
    geometry = Geometry(size=(224, 224), channels=3, resize_mode="crop", crop_fraction=0.875)
    known = run.classifier
    classifier = Classifier(
        known.preprocessing,
        known.network,
        architecture=known.architecture,
        classes=known.classes,
        geometry=geometry,
    ).eval()
    file = open_exported(write_exported(classifier, tmp_path / "model.onnx"))
    images = load_dataset(str(photos), geometry)[:3]
    answers = TorchRunner(classifier).probabilities(images)
    assert file.geometry == geometry
    assert np.abs(file.probabilities(images) - answers).max() < 1e-4
    assert np.abs(file.probabilities(images[:1]) - answers[:1]).max() < 1e-4


def test_the_int8_file_computes_in_integers_throughout(run, answers, tmp_path):
    """No layer is left in floats or padded apart, and none reads anything but 8-bit values; it answers the same."""
    small = COMPRESSORS["int8"](images=32)(run.classifier, run.splits).eval()
    path = write_exported(small, tmp_path / "model.onnx")
    graph = onnx.load(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    types = {one.name: one.data_type for one in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 49  # no norm is left as a layer of its own
    for node in convolutions:
        given, weight = (makers[name] for name in node.input[:2])
        assert (given.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert types[weight.input[0]] == onnx.TensorProto.INT8
    assert "Pad" not in {node.op_type for node in graph.node}
    images = run.splits.test[:]
    ours, theirs = TorchRunner(small).probabilities(images), open_exported(path).probabilities(images)
    assert np.abs(ours - theirs).max() < 0.05
    assert np.abs(theirs - answers).mean() < 0.1


def test_a_child_knows_the_weights_of_its_ancestor(run, photos, tmp_path):
    child = train(photos, Recipe(weights=str(run.folder), epochs=0, **SETTLED), out=tmp_path / "child")
    assert child.classifier.provenance["weights"] == run.classifier.provenance["weights"]


PROGRAM = """
import json, socket, sys
def refuse(*_, **__):
    raise AssertionError("a socket was opened")
socket.socket.connect = socket.socket.connect_ex = refuse
from sightline.training import Recipe, train
from sightline.types import Geometry
for out, fields in json.loads(sys.argv[2]):
    train(sys.argv[1], Recipe(**fields), out=out)
"""


def test_without_a_network_the_weights_are_the_same_to_the_byte(photos, tmp_path):
    """A head, then fine-tuned for a fixed epoch; once with sockets, once without and with HF_HUB_OFFLINE."""
    fields = {"size": 64, "seed": 3, "method": "finetune", "epochs": 1, **SETTLED}
    train(photos, Recipe(**fields), out=tmp_path / "online")
    words = [(str(tmp_path / "offline"), fields)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "SIGHTLINE_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", PROGRAM, str(photos), json.dumps(words)], env=environment, check=True)
    files = [tmp_path / place / "classifier" / "model.safetensors" for place in ("online", "offline")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_one_image_a_class_cannot_be_validated(tmp_path):
    folder = write_photos(tmp_path / "photos", count=1)
    with pytest.raises(SightlineError, match=r"validation"):
        train(folder, Recipe(size=64, val_fraction=0.5, test_fraction=0, **SETTLED), out=tmp_path / "run")


def test_weights_that_need_a_look_are_refused_until_accepted(photos, tmp_path):
    word = "timm:convnextv2_atto.fcmae_ft_in1k:pretrained=True"
    with pytest.raises(RecipeError, match=r"cc-by-nc-4\.0.*--accept-licence"):
        train(photos, Recipe(model=word), out=tmp_path / "run")
