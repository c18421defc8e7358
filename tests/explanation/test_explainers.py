"""Laws over every explainer, what it finds where the truth is known, and the verb."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers.tiny_classifiers import WORDS
from sightline.choose import choose
from sightline.classifier import Classifier, frozen_eval
from sightline.errors import ChoiceError, DataError, GradientError
from sightline.explanation import (
    EXPLAINERS,
    Explainer,
    build_gallery,
    choose_cam_layers,
    default_explainer,
    explain,
    explain_answers_run,
    measure_faithfulness,
    reduce_channels,
    to_heat_map,
    visualise_features,
)
from sightline.explanation.activation_maps import as_feature_map, check_cam_layer, token_grid
from sightline.explanation.explanation import AnswerFacts, describe_answer, format_probability, locate_heat
from sightline.explanation.faithfulness import MAX_SHUFFLED_SIMILARITY
from sightline.explanation.figures import draw_signed_map, overlay_heat
from sightline.models import build, parse_architecture
from sightline.preprocessing import Normalise, Preprocessing
from sightline.training import Recipe, reopen, train
from sightline.types import Geometry

CNN, VIT = "plain-cnn:depth=4:width=8", "vit:depth=2:width=24:heads=2"
CLASSY = f"{VIT}:pool=class"

QUICK = {
    "rise": "rise:masks=60",
    "smoothgrad": "smoothgrad:samples=4",
    "integrated-gradients": "integrated-gradients:8",
}
"""Words that take less time where only the kind matters."""


def classifier_of(model, classes=3, channels=3, size=(16, 16), seed=0):
    torch.manual_seed(seed)
    plan = parse_architecture(model, classes=classes, channels=channels, size=size)
    steps = Preprocessing([Normalise(mean=[0.5] * channels, std=[0.25] * channels)])
    names = [f"class {k}" for k in range(classes)]
    made = Classifier(
        steps, build(plan), architecture=plan, classes=names, geometry=Geometry(size=size, channels=channels)
    )
    for layer in made.modules():  # statistics of its own, so that eval mode is not the identity
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
    return made.eval()


def images_of(count=3, channels=3, size=(16, 16), seed=1):
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(seed))


def member(name):
    return choose(EXPLAINERS, QUICK.get(name, name), "explainer")


CASES = [
    (name, model)
    for name in EXPLAINERS
    for model in (CNN, VIT, CLASSY)
    if not (name == "rollout" and model == CNN)
]
cases = pytest.mark.parametrize(("name", "model"), CASES)


# Laws


@cases
@pytest.mark.parametrize(("classes", "channels", "size"), [(3, 3, (16, 16)), (2, 1, (18, 26))])
def test_an_attribution_is_finite_and_as_large_as_the_image(name, model, classes, channels, size):
    """K = 2 and grey images of uneven sides, which the transformer pads, among them."""
    classifier = classifier_of(model, classes, channels, size)
    images = images_of(3, channels, size)
    found = member(name)(classifier, images, torch.tensor([0, 1, 0]))
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert found.abs().amax((1, 2, 3)).min() > 0
    assert not found.requires_grad


@cases
def test_a_batch_is_explained_as_its_images_are(name, model):
    classifier, images = classifier_of(model), images_of(5)
    targets = torch.tensor([0, 1, 2, 1, 0])
    whole = member(name)(classifier, images, targets)
    single = torch.cat(
        [member(name)(classifier, images[i : i + 1], targets[i : i + 1]) for i in range(len(images))]
    )
    torch.testing.assert_close(whole, single, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


@cases
def test_the_target_matters_unless_it_is_said_not_to(name, model):
    classifier, images = classifier_of(model), images_of(2)
    one, other = (member(name)(classifier, images, torch.full((2,), k)) for k in (0, 1))
    assert torch.equal(one, other) == (name == "rollout")


@cases
def test_the_classifier_is_left_as_it_was(name, model):
    classifier = classifier_of(model).train()
    inner = next(m for m in classifier.network.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm))
    inner.eval()
    parameters = list(classifier.parameters())
    parameters[0].requires_grad_(False)
    parameters[1].grad = torch.full_like(parameters[1], 7.0)
    before = {n: t.clone() for n, t in classifier.state_dict().items()}
    images = images_of(2)
    given = images.clone()
    member(name)(classifier, images, torch.tensor([0, 1]))
    assert all(torch.equal(t, before[n]) for n, t in classifier.state_dict().items())
    assert [m.training for m in classifier.modules() if m is not inner].count(False) == 0
    assert not inner.training
    assert [p.requires_grad for p in parameters] == [False] + [True] * (len(parameters) - 1)
    assert [p.grad is None for p in parameters].count(False) == 1
    assert (parameters[1].grad == 7).all()
    assert not any(m._forward_hooks or m._backward_hooks for m in classifier.modules())
    assert torch.equal(images, given)
    assert not images.requires_grad


@cases
def test_it_does_not_matter_who_watches(name, model):
    """Under no_grad or inference_mode, with frozen weights, and with images that came out of either."""
    classifier = classifier_of(model)
    targets = torch.tensor([0, 1])
    plain = member(name)(classifier, images_of(2), targets)
    classifier.requires_grad_(False)
    with torch.inference_mode():
        images = images_of(2)
        watched = member(name)(classifier, images, targets)
    torch.testing.assert_close(plain, watched)
    with torch.no_grad():
        torch.testing.assert_close(plain, member(name)(classifier, images_of(2), targets))


@pytest.mark.parametrize("name", EXPLAINERS)
def test_an_explainer_is_a_value_and_no_images_are_none(name):
    explainer = member(name)
    assert eval(repr(explainer), {type(explainer).__name__: type(explainer)}) == explainer
    found = explainer(classifier_of(VIT), torch.zeros(0, 3, 16, 16), torch.zeros(0, dtype=torch.long))
    assert found.shape == (0, 3, 16, 16)


@pytest.mark.parametrize("name", ["gradcam", "gradcam++", "integrated-gradients", "saliency"])
def test_a_mirrored_network_is_explained_alike_for_an_image_and_its_mirror_image(name):
    classifier = classifier_of(CNN)
    classifier.network.flip_tta = True
    images, targets = images_of(2), torch.tensor([0, 2])
    found, mirrored = (member(name)(classifier, each, targets) for each in (images, images.flip(3)))
    torch.testing.assert_close(found, mirrored.flip(3), rtol=1e-3, atol=1e-5)


def test_members_of_an_ensemble_each_have_their_layer():
    from sightline.ensembles import combine

    members = [classifier_of(CNN, seed=0), classifier_of("resnet20", seed=1)]
    made = combine(members).classifier
    layers = choose_cam_layers(made, (3, 16, 16))
    assert [layer.split(".")[1] for layer in layers] == ["0", "1"]
    images, targets = images_of(2), torch.tensor([0, 1])
    found = member("gradcam")(made, images, targets)
    parts = [choose(EXPLAINERS, f"gradcam:layer={layer}", "explainer")(made, images, targets) for layer in layers]
    torch.testing.assert_close(found, sum(parts))
    with pytest.raises(ChoiceError, match="explain the members"):
        member("rollout")(made, images, targets)


def test_a_noisy_network_is_explained_without_its_noise():
    from sightline.models import SURGERY

    classifier, targets = classifier_of(CNN), torch.tensor([0, 1])
    plain = member("gradcam")(classifier, images_of(2), targets)
    SURGERY["noise"](classifier.network)
    torch.testing.assert_close(member("gradcam")(classifier, images_of(2), targets), plain)
    assert classifier.network.noise is not None


# Layers


@pytest.mark.parametrize("word", WORDS)
def test_every_network_has_its_layer_or_says_why_not(word):
    classifier = classifier_of(word, size=(32, 32))
    if word == "mlp":
        assert default_explainer(classifier, (3, 32, 32)) == "integrated-gradients"
        with pytest.raises(ChoiceError, match="keeps the places of an image"):
            choose_cam_layers(classifier, (3, 32, 32))
        return
    (layer,) = choose_cam_layers(classifier, (3, 32, 32))
    with frozen_eval(classifier, weight_noise=False):
        seen = []
        hook = dict(classifier.network.named_modules())[layer].register_forward_hook(
            lambda _, __, output: seen.append(as_feature_map(output, (32, 32)))
        )
        classifier(images_of(1, size=(32, 32)))
        hook.remove()
    assert min(seen[0].shape[2:]) >= 4
    assert member("gradcam")(classifier, images_of(2, size=(32, 32)), torch.tensor([0, 1])).abs().sum() > 0


@pytest.mark.parametrize(
    ("word", "layer"),
    [
        ("resnet20", "layer3"),
        ("lenet5", "features.pool2"),
        ("vgg11:width=0.25", "features.20"),
        (VIT, "norm"),
        (CLASSY, "blocks.1.norm1"),
        ("timm:test_vit", "body.blocks.5.norm1"),
    ],
)
def test_the_layer_is_the_one_a_specialist_would_take(word, layer):
    """The last that tells places apart; in a transformer with a class token, the input of the last attention."""
    size = (64, 64) if word.startswith("timm") else (32, 32)
    assert choose_cam_layers(classifier_of(word, size=size), (3, *size)) == (layer,)


def test_a_map_with_its_channels_last_is_known_as_one():
    assert as_feature_map(torch.zeros(2, 7, 7, 96), (224, 224)).shape == (2, 96, 7, 7)
    assert as_feature_map(torch.zeros(2, 96, 7, 7), (224, 224)).shape == (2, 96, 7, 7)
    assert as_feature_map(torch.zeros(2, 197, 64), (224, 224)).shape == (2, 64, 14, 14)
    assert as_feature_map(torch.zeros(2, 3, 197, 64), (224, 224)) is None
    assert as_feature_map(torch.zeros(2, 64, 1, 1), (224, 224)) is None
    assert as_feature_map(torch.zeros(2, 10), (224, 224)) is None


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [
        (196, (224, 224), (0, 14, 14)),
        (197, (224, 224), (1, 14, 14)),
        (198, (224, 224), (2, 14, 14)),
        (201, (224, 224), (5, 14, 14)),
        (97, (30, 45), (1, 8, 12)),
        (20, (16, 16), (4, 4, 4)),
        (3, (224, 224), None),
    ],
)
def test_tokens_are_laid_out_as_the_image_is(tokens, size, grid):
    assert token_grid(tokens, size) == grid


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("layer33", r"no layer called 'layer33'\. Did you mean 'layer3'\?"),
        ("nothing at all", r"Layers that keep the places of an image: .*'layer3'"),
        ("head", r"'head' keeps no places of the image\. Layers that do: .*'layer3'"),
    ],
)
def test_a_wrong_layer_is_a_sentence(layer, says):
    classifier = classifier_of("resnet20", size=(32, 32))
    with pytest.raises(ChoiceError, match=says):
        check_cam_layer(classifier, layer, (3, 32, 32))
    with pytest.raises(ChoiceError, match=says):
        choose(EXPLAINERS, f"gradcam:layer={layer}", "explainer")(
            classifier, images_of(1, size=(32, 32)), torch.tensor([0])
        )


@pytest.mark.parametrize("word", ["timm:test_mambaout", "timm:test_convnext", "timm:test_efficientnet"])
def test_networks_of_timm(word):
    classifier = classifier_of(word, size=(96, 96))
    found = member("gradcam")(classifier, images_of(1, size=(96, 96)), torch.tensor([1]))
    assert found.isfinite().all()
    assert found.abs().sum() > 0


# Where the truth is known


def stripes(count, seed=0, size=24, patch=8):
    """Noise, a patch of stripes (across is class 0, down is class 1), and a chequered decoy that means nothing.

    The images, their labels, and the masks of both patches."""
    random = np.random.default_rng(seed)
    images = random.uniform(0.3, 0.7, (count, 1, size, size))
    labels, masks = random.integers(2, size=count), np.zeros((2, count, size, size), bool)
    wave = np.tile([[0.0], [0.0], [1.0], [1.0]], (patch // 4, patch))
    decoy = np.kron(np.indices((patch // 2, patch // 2)).sum(0) % 2, np.ones((2, 2)))
    for number, label in enumerate(labels):
        corners = random.integers(0, size - patch, (2, 2))
        while abs(corners[0] - corners[1]).max() < patch:
            corners = random.integers(0, size - patch, (2, 2))
        for (top, left), mask, what in zip(
            corners, masks[:, number], (wave if label == 0 else wave.T, decoy), strict=True
        ):
            images[number, 0, top : top + patch, left : left + patch] = what
            mask[top : top + patch, left : left + patch] = True
    return torch.from_numpy(images).float(), torch.from_numpy(labels), *torch.from_numpy(masks)


@pytest.fixture(scope="module")
def sighted():
    """A small network that tells stripes apart wherever they are."""
    classifier = classifier_of("plain-cnn:depth=4:width=8", 2, 1, (24, 24)).train()
    optimizer = torch.optim.Adam(classifier.parameters(), 0.01)
    for step in range(60):
        images, labels, _, _ = stripes(64, seed=step + 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(images), labels).backward()
        optimizer.step()
    classifier.eval()
    images, labels, _, _ = stripes(200)
    with torch.no_grad():
        assert (classifier(images).argmax(1) == labels).float().mean() > 0.97
    return classifier


SEEING = [name for name in EXPLAINERS if name != "rollout"]


@pytest.mark.parametrize("name", SEEING)
def test_the_evidence_is_found_where_it_was_put(sighted, name):
    images, labels, masks, decoys = stripes(16, seed=500)
    explainer = choose(EXPLAINERS, name, "explainer")
    warm = to_heat_map(reduce_channels(explainer, explainer(sighted, images, labels)))
    inside, misled = (float(((warm * part).sum((1, 2)) / warm.sum((1, 2))).mean()) for part in (masks, decoys))
    assert inside > 2 * masks.float().mean(), f"{name}: {inside:.2f} of the heat on a ninth of the image"
    assert inside > 1.5 * misled, f"{name}: {misled:.2f} of the heat on what does not matter"


@pytest.mark.parametrize("name", SEEING)
def test_every_map_passes_its_tests_on_a_network_that_sees(sighted, name):
    images, labels, _, _ = stripes(8, seed=501)
    found = explain(sighted, images, by=name, targets=labels)
    assert found.remarks == ()
    scores = found.faithfulness.as_json()
    assert scores["similarity_shuffled"] < MAX_SHUFFLED_SIMILARITY
    assert scores["deletion_area"] < scores["deletion_elsewhere"]
    assert scores["insertion_area"] > scores["insertion_elsewhere"]


class EdgeDetector(Explainer):
    """The image's own edges: it looks like an explanation and knows nothing of the network."""

    def run(self, classifier, images, targets, prepared):  # noqa: ARG002
        return nn.functional.pad(images.diff(dim=3).abs(), (0, 1)) + nn.functional.pad(
            images.diff(dim=2).abs(), (0, 0, 0, 1)
        )


class Flat(Explainer):
    def run(self, classifier, images, targets, prepared):  # noqa: ARG002
        return torch.ones_like(images)


@pytest.mark.parametrize("liar", [EdgeDetector(), Flat()])
def test_an_explainer_that_ignores_the_weights_is_found_out(sighted, liar):
    images, labels, _, _ = stripes(8, seed=502)
    found = explain(sighted, images, by=liar, targets=labels)
    assert found.faithfulness.as_json()["similarity_shuffled"] == pytest.approx(1)
    assert any("hardly depends on the network's weights" in remark.text for remark in found.remarks)


def test_a_map_of_the_wrong_places_is_found_out(sighted):
    """The truth passes the curves, its opposite does not."""
    images, labels, masks, _ = stripes(8, seed=503)

    class Pointing(Explainer):
        def __init__(self, where):
            self.where = where

        def run(self, classifier, images, targets, prepared):  # noqa: ARG002
            return self.where[: len(images), None].float().expand_as(images)

    true, false = (
        measure_faithfulness(sighted, images, labels, Pointing(w), Pointing(w)(sighted, images, labels))
        for w in (masks, ~masks)
    )
    assert true.as_json()["deletion_area"] < 0.75 * false.as_json()["deletion_area"]
    assert true.as_json()["insertion_area"] > false.as_json()["insertion_area"]
    assert any("do not rely on it" in remark.text for remark in false.remarks("this"))
    assert not any("do not rely on it" in remark.text for remark in true.remarks("this"))


# Estimators


@pytest.fixture(scope="module")
def estimator():
    from sightline.baselines import fit_baseline
    from sightline.data import load_dataset
    from sightline.data.splits import split

    parts = split(load_dataset("digits", Geometry(size=(8, 8), channels=1)), seed=0)
    parts = replace(parts, train=parts.train.subset(np.arange(300)))
    return fit_baseline(parts, "logistic-regression"), parts


@pytest.mark.parametrize("name", EXPLAINERS)
def test_what_has_no_gradient_is_asked_or_refused(estimator, name):
    classifier, parts = estimator
    images = torch.from_numpy(parts.test[:2]).permute(0, 3, 1, 2) / 255
    if member(name).needs_gradient:
        with pytest.raises(GradientError, match=r"\(logistic.*\) has none\. Use --by occlusion or --by rise"):
            member(name)(classifier, images, torch.tensor([0, 1]))
    else:
        found = explain(classifier, images, by=member(name), gallery=build_gallery(classifier, parts.train))
        assert found.attribution.isfinite().all()
        assert found.faithfulness.similarity is None
        assert len(found.facts[0].neighbours) == 5
    assert default_explainer(classifier, (1, 8, 8)) == "occlusion"


# Heat, sentences, pictures


def test_heat_shows_what_speaks_for_the_target():
    found = torch.tensor([[[-4.0, 0, 1], [2, 0, 0]], [[-1, -1, -1], [-1, -1, -1]]])
    warm = to_heat_map(found)
    assert (warm[0] > 0).tolist() == [[False, False, True], [True, False, False]]
    assert warm[0, 1, 0] == 1
    assert warm[1].max() == 0


def test_where_names_the_place_and_its_size():
    warm = torch.zeros(30, 30)
    warm[2:8, 22:28] = 1
    place = locate_heat(warm)
    assert (place.place, place.inside) == ("upper right", 1.0)
    assert place.share == pytest.approx(18 / 900)
    warm = torch.zeros(30, 30)
    warm[12:18, 12:18] = 1
    assert locate_heat(warm).place == "centre"
    assert locate_heat(torch.zeros(6, 6)).share == 1


FACTS = {
    "answer": "7", "confidence": 0.93, "runner_up": "1", "margin": 0.9, "target": "7", "target_probability": 0.93,
    "by": "gradcam", "share": 0.09, "place": "upper right", "inside": 0.6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "'7' with 93 %, 90 points ahead of '1': half of the evidence lies on 9 % of the image, the largest "
             "part in the upper right (gradcam)."),
        ({"confidence": 0.5, "margin": 0.05}, "'7' with 50 %, hardly more than '1' (45 %): "),
        ({"label": "1"}, "; it is labelled '1'"),
        ({"target": "1", "target_probability": 0.031}, ". Asked about '1' (3 %): "),
        ({"share": 0.41}, "the evidence is spread out, half of it over 41 % of the image"),
        ({"place": ""}, "gradcam finds no evidence for it in the image."),
        ({"neighbours": ({"label": "7", "file": "a.png"}, {"label": "1", "file": "b.png"})},
         "The nearest training image is '7' (a.png); 1 of the 2 nearest is '7'."),
    ],
)  # fmt: skip
def test_sentences_say_what_was_measured(changes, says):
    assert says in describe_answer(AnswerFacts(**{**FACTS, **changes}))


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.5, "50 %"), (1, "100 %"), (0, "0 %"), (0.9999999, "over 99.99 %"), (0.9951, "99.51 %"), (0.004, "0.4 %"),
     (1e-7, "under 0.01 %")],
)  # fmt: skip
def test_a_share_is_never_rounded_to_certainty(share, text):
    assert format_probability(share) == text


@pytest.mark.parametrize("shape", [(8, 8, 1), (20, 30, 3), (400, 300, 3)])
def test_pictures_show_heat_where_it_is(shape):
    image = np.full(shape, 128, np.uint8)
    warm = np.zeros(shape[:2], np.float32)
    warm[: shape[0] // 2, : shape[1] // 2] = 1
    drawn = np.asarray(overlay_heat(image, warm)).astype(int)
    assert drawn.shape[2] == 3
    assert max(drawn.shape[:2]) <= 168
    hot, cold = drawn[2, 2], drawn[-3, -3]
    assert hot.max() - hot.min() > 60
    assert cold.max() - cold.min() == 0
    both = np.asarray(draw_signed_map(warm - warm[::-1])).astype(int)
    assert both[2, 2, 0] > both[2, 2, 2] + 60
    assert both[-3, 2, 2] > both[-3, 2, 0] + 60


# What a class wants to see


def test_a_class_is_shown_what_it_wants(sighted):
    """The stripes come out of noise: the image is answered with near certainty, and runs the right way."""
    found = visualise_features(sighted, torch.tensor([0, 1]), steps=60)
    assert (found.after > found.before + 1).all()
    with torch.no_grad():
        assert (sighted.probabilities(found.images).diagonal() > 0.99).all()
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    down, across = (found.images.diff(dim=axis).abs().mean((1, 2, 3)) for axis in (2, 3))
    assert down[0] > across[0]
    assert across[1] > down[1]


def test_a_unit_is_shown_what_it_wants_and_wrong_ones_are_sentences(sighted):
    layer = choose_cam_layers(sighted, (1, 24, 24))[0]
    found = visualise_features(sighted, torch.tensor([0, 3]), layer=layer, steps=20)
    assert (found.after > found.before).all()
    again = visualise_features(sighted, torch.tensor([0, 3]), layer=layer, steps=20)
    assert torch.equal(found.images, again.images)
    with pytest.raises(ChoiceError, match=r"no unit 99: it has \d+ units, from 0 to \d+\."):
        visualise_features(sighted, torch.tensor([99]), layer=layer, steps=1)
    with pytest.raises(ChoiceError, match=r"no layer called 'featurse'\. Did you mean 'features'\?"):
        visualise_features(sighted, torch.tensor([0]), layer="featurse", steps=1)


# The verb


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained") / "run"
    recipe = Recipe(
        model="lenet5", size=16, limit=600, epochs=4, batch_size=32, precision="float32", cpu_replicas=1
    )
    return train("digits", recipe.replace(memory_format="contiguous"), out=folder).folder


@pytest.fixture(scope="module")
def files(run, tmp_path_factory):
    """Test images as files: as they are, large and with colour, and one that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    test = reopen(run).splits.test
    for i in range(2):
        Image.fromarray(test[i][0][..., 0]).save(folder / f"{i}.png")
    large = Image.fromarray(test[0][0][..., 0]).resize((64, 48)).convert("RGBA")
    large.save(folder / "large.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def test_explain_draws_measures_and_keeps(cli, run, files):
    answer = cli("explain", run, files / "0.png", files / "large.png", files / "bad.png", "--json")
    assert answer.code == 0, answer.err
    value = json.loads(answer.out)
    assert value["methods"] == ["gradcam"]
    assert [row["file"] for row in value["images"]] == [str(files / "0.png"), str(files / "large.png")]
    assert value == json.loads((run / "explanations/explain.json").read_text())
    said = " ".join(remark["text"] for remark in value["remarks"])
    assert "'bad.png'" not in said
    assert "bad.png' could not be read" in said
    assert "large.png' was resized from 64 x 48 to 16 x 16 pixels (squash) and converted to grey" in said
    with Image.open(value["picture"]) as picture:
        assert picture.size == (6 * 180 + 12, picture.height)
    row = value["images"][0]
    assert len(row["neighbours"]) == 5
    assert row["target"] == row["answer"]
    assert re.match(rf"'{row['answer']}' with \d", row["by"]["gradcam"]["sentence"])
    predicted = Classifier.load(run).predict(files / "0.png")[0]
    assert (row["answer"], row["confidence"]) == (predicted.label, pytest.approx(predicted.confidence, abs=1e-5))


def test_features_of_training_images_are_kept(cli, run, files, tmp_path, monkeypatch):
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    first = json.loads(cli("explain", run, files / "0.png", "--json").out)["images"][0]["neighbours"]
    (kept,) = (tmp_path / "cache/features").glob("*/features.npy")
    before = kept.stat().st_mtime_ns
    assert json.loads(cli("explain", run, files / "0.png", "--json").out)["images"][0]["neighbours"] == first
    assert kept.stat().st_mtime_ns == before


def test_all_methods_on_one_sheet(cli, run, files, tmp_path):
    out = tmp_path / "new/why.png"
    answer = cli("explain", run, files / "0.png", files / "1.png", "--by", "all", "--target", "3", "--out", out)
    assert answer.code == 0, answer.err
    assert out.is_file()
    assert "rollout is left out. Attention rollout follows" in answer.out
    assert "Asked about '3'" in answer.out
    for name in set(EXPLAINERS) - {"rollout"}:
        assert re.search(rf"^{re.escape(name)} +0\.\d\d +0\.\d\d +-?\d\.\d\d", answer.out, re.MULTILINE), name


def test_a_change_that_turns_the_answer(cli, run, files):
    value = json.loads(cli("explain", run, files / "0.png", "--counterfactual", "3", "--json").out)
    (row,) = value["images"]
    assert row["reached"] == (row["probability"] >= 0.5)
    assert row["nearest"] is not None
    assert (run / "explanations/counterfactual.png").is_file()


def test_what_the_classes_want_to_see(cli, run, monkeypatch):
    from sightline.explanation import explaining

    monkeypatch.setattr(explaining, "VISUALISATION_STEPS", 10)
    value = json.loads(cli("explain", run, "--visualise", "all", "--json").out)
    assert [row["wanted"] for row in value["images"]] == list("0123456789")
    value = json.loads(cli("explain", run, "--visualise", "0,5", "--layer", "features.conv2", "--json").out)
    assert [(row["layer"], row["wanted"]) for row in value["images"]] == [("features.conv2", n) for n in "05"]


def test_a_bundle_is_explained_without_its_run(cli, run, files, tmp_path):
    answer = cli(
        "explain", run / "classifier", files / "0.png", "--by", "rise:masks=50", "--out", tmp_path / "a.png"
    )
    assert answer.code == 0, answer.err
    assert "training image" not in answer.out
    refused = cli("explain", run / "classifier", files / "0.png")
    assert refused.code == 2
    assert "say where the picture goes, --out explain.png" in refused.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "Name the images to explain"),
        (("0.png", "--target", "seven"), "There is no class called 'seven'. Choose one of: 0, 1, 2"),
        (("0.png", "--by", "gradcan"), "There is no explainer called 'gradcan'. Did you mean 'gradcam'?"),
        (
            ("0.png", "--by", "rise:masks=0"),
            "The explainer 'rise:masks=0' cannot be made: masks must be a whole number from 2",
        ),
        (("0.png", "--layer", "features.conv9"), "no layer called 'features.conv9'. Did you mean 'features.conv"),
        (("0.png", "--layer", "head"), "'head' keeps no places of the image"),
        (("0.png", "--by", "rise", "--layer", "features.conv2"), "--layer is for gradcam and gradcam++"),
        (("0.png", "--by", "rollout"), "this network has none"),
        (("bad.png",), "No image could be read"),
        (("absent.png",), "No image could be read"),
        (("0.png", "--out", "why.txt"), "'why.txt' does not end like a picture"),
        (("0.png", "--counterfactual", "q"), "There is no class called 'q'"),
        (("0.png", "--counterfactual", "3", "--by", "rise"), "leave them out with --counterfactual"),
        (("0.png", "--visualise", "3"), "--visualise creates its own images"),
        (("--visualise", "many"), "There is no class called 'many'"),
        (("--visualise", "one", "--layer", "features.conv2"), "The units of a layer are numbers from 0"),
        (("--visualise", "77", "--layer", "features.conv2"), "has no unit 77: it has 16 units, from 0 to 15"),
    ],
)
def test_what_cannot_be_explained_is_a_sentence(cli, run, files, monkeypatch, words, says):
    monkeypatch.chdir(files)
    answer = cli("explain", run, *words)
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("sightline: ")
    assert says in answer.err


def test_answers_of_the_test_images_are_explained_for_the_page(run):
    value = explain_answers_run(reopen(run), right=3, wrong=3)
    wrong = [row for row in value["images"] if row["answer"] != row["label"]]
    assert 3 <= len(value["images"]) <= 6
    assert [row["confidence"] for row in wrong] == sorted((row["confidence"] for row in wrong), reverse=True)
    assert value == json.loads((run / "explanations/answers.json").read_text())
    assert (run / "explanations/answers.png").is_file()


def test_too_many_images_are_refused(run, files):
    from sightline.explanation.run_files import decode_files

    with pytest.raises(DataError, match="At most 100 images can be explained at once"):
        decode_files([str(files / "0.png")] * 101, Classifier.load(run).geometry)
