"""A last layer computed from class means: exactly the nearest mean, in a bundle and in an exported file."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from helpers.pruned_classifiers import images
from sightline.classifier import Classifier
from sightline.compression import Int8
from sightline.errors import BundleError
from sightline.formats import export, open_exported
from sightline.layers import PrototypeHead
from sightline.models import (
    HANDCRAFTED_FEATURES,
    SURGERY,
    Architecture,
    EstimatorNetwork,
    build,
    get_head,
    parse_architecture,
)
from sightline.preprocessing import Normalise, Preprocessing
from sightline.types import Geometry, Splits


def make(classes: int, model: str = "lenet5", *, normalise: bool = True) -> Classifier:
    """A classifier with a prototype head, its means those of random images."""
    torch.manual_seed(0)
    plan = parse_architecture(model, classes=classes, channels=1, size=(28, 28))
    plan = replace(plan, surgery=(("prototypes", {"normalise": normalise}),))
    names = [f"class {k}" for k in range(classes)]
    steps, geometry = Preprocessing([Normalise((0.1,), (0.3,))]), Geometry(size=(28, 28), channels=1)
    made = Classifier(steps, build(plan), architecture=plan, classes=names, geometry=geometry).eval()
    pixels, labels = torch.rand(12 * classes, 1, 28, 28), torch.arange(12 * classes) % classes
    with torch.no_grad():
        features = made.features(pixels)
        get_head(made.network).fit(features, labels, features.mean(0))
    return made


def test_the_published_example_by_hand():
    """Support (0,0) (0,2) of one class, (4,0) (4,2) of the other: means (0,1) and (4,1)."""
    head = PrototypeHead(2, 2, normalise=False)
    head.fit(torch.tensor([[0.0, 0], [0, 2], [4, 0], [4, 2]]), torch.tensor([0, 0, 1, 1]))
    probabilities = head(torch.tensor([[1.0, 1], [3, 3], [2, 1]])).softmax(1)
    expected = torch.tensor([[0.99966465, 0.00033535], [0.00033535, 0.99966465], [0.5, 0.5]])
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_it_is_the_softmax_of_squared_distances_to_the_class_means(classes, normalise, centred):
    features, labels = torch.randn(40, 7), torch.arange(40) % classes
    centre = features.mean(0) if centred else torch.zeros(7)
    head = PrototypeHead(7, classes, normalise=normalise)
    head.fit(features, labels, centre)
    prepared = F.normalize(features - centre, dim=1) if normalise else features
    means = torch.stack([prepared[labels == k].mean(0) for k in range(classes)])
    expected = (-torch.cdist(prepared, means).square()).softmax(1)
    torch.testing.assert_close(head(features).softmax(1), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 3]])
def test_a_class_without_images_is_refused(labels):
    with pytest.raises(ValueError, match="every one of the 3 classes needs an image"):
        PrototypeHead(4, 3).fit(torch.rand(3, 4), torch.tensor(labels))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_bundle_brings_the_means_back_bit_for_bit(tmp_path, classes, normalise):
    classifier = make(classes, normalise=normalise)
    again = Classifier.load(classifier.save(tmp_path / "bundle"))
    pixels = torch.rand(5, 1, 28, 28)
    assert torch.equal(again(pixels), classifier(pixels))
    assert isinstance(again.network.head, PrototypeHead)
    assert again.network.head.normalise is normalise


@pytest.mark.parametrize("classes", [2, 3])
def test_an_exported_file_answers_alike(tmp_path, classes):
    classifier = make(classes)
    classifier.save(tmp_path / "bundle")
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 1), np.uint8)
    for i, image in enumerate(images):
        folder = tmp_path / "data" / classifier.classes[i % classes]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    export(tmp_path / "bundle", tmp_path / "model.onnx", data=tmp_path / "data")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = classifier.probabilities(pixels).numpy()
    np.testing.assert_allclose(open_exported(tmp_path / "model.onnx").probabilities(images), expected, atol=1e-5)


def test_more_classes_keep_the_old_logits():
    classifier = make(3)
    pixels = torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        before = classifier(pixels)
        grown = SURGERY["grown_head"](classifier.network, classes=5)
        after = grown(classifier.preprocessing(pixels))
    assert isinstance(grown.head, PrototypeHead)
    torch.testing.assert_close(after[:, :3], before)
    assert torch.equal(after[:, 3:], torch.zeros(4, 2))


def test_a_network_without_a_last_layer_is_refused():
    tree = EstimatorNetwork(2, 1, (8, 8), [HANDCRAFTED_FEATURES["pixels"]()])
    with pytest.raises(BundleError, match="no last layer"):
        SURGERY["prototypes"](tree)


def test_surgery_after_prototypes_keeps_the_head_whole(tmp_path):
    """Fewer features still find their centre."""
    plan = Architecture(
        "mlp",
        {"classes": 2, "channels": 1, "size": [8, 8], "hidden": [6, 5]},
        (("prototypes", {}), ("widths", {"layers": {"hidden.3": [3, 6], "head": [2, 3]}})),
    )
    network = build(plan).eval()
    assert network.head.centre.shape == (3,)
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 2)


@pytest.mark.parametrize("classes", [2, 3])
def test_int8_leaves_the_head_in_floats(tmp_path, classes):
    classifier, drawn = make(classes), images(40, side=28, channels=1)
    data = replace(drawn, labels=drawn.labels % classes, classes=classifier.classes)
    data = Splits(data, data, data)
    small = Int8(by="minmax", images=20)(classifier, data)
    assert isinstance(small.network.head, PrototypeHead)
    again = Classifier.load(small.save(tmp_path / "small"))
    pixels = torch.rand(60, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(again(pixels), small(pixels))
        torch.testing.assert_close(small(pixels), classifier(pixels), rtol=0, atol=0.1)
