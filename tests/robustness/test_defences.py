"""Filters of pixels, noise in pixels and weights: what they do, that they are saved, and who sees through them."""

import copy
import io
import json

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from helpers.tiny_classifiers import DISTINCT_WORDS
from sightline import runtime
from sightline.attacks.gradient import FGSM, PGD
from sightline.classifier import Classifier
from sightline.errors import BundleError, ChoiceError, RecipeError
from sightline.models import SURGERY, Architecture, build, load_weights, parse_architecture
from sightline.preprocessing import (
    PIXEL_FILTERS,
    BitDepthFilter,
    JpegFilter,
    MedianFilter,
    NoiseFilter,
    Normalise,
    PixelFilter,
    Preprocessing,
    check_normalisation,
    fit_preprocessing,
)
from sightline.robustness.adaptive import (
    EOTClassifier,
    attack_view,
    evaluate_adaptive,
    strip_defences,
)
from sightline.training.gradients import is_stochastic
from sightline.training.recipe import Recipe
from sightline.training.run import reopen, train
from sightline.types import Geometry

filters = pytest.mark.parametrize("name", PIXEL_FILTERS)
shapes = pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 33, 20), (1, 3, 8, 8)])


def images_of(*shape, seed=0):
    return torch.rand(shape, generator=runtime.make_generator(seed))


def classifier_of(steps=(), surgery=(), word="lenet5", classes=2, channels=1, side=28):
    torch.manual_seed(0)
    plan = parse_architecture(word, classes=classes, channels=channels, size=(side, side))
    plan = Architecture(plan.name, plan.arguments, tuple(surgery))
    return Classifier(
        Preprocessing([*steps, Normalise([0.5] * channels, [0.25] * channels)]),
        build(plan),
        architecture=plan,
        classes=[str(k) for k in range(classes)],
        geometry=Geometry(size=(side, side), channels=1 if channels == 1 else 3),
    ).eval()


def alpha_of(network):
    """The strengths of the noise in its weights."""
    assert network.noise is not None
    return network.noise.alpha


# Filters


@shapes
@filters
def test_a_filter_keeps_shape_and_range(name, shape):
    images = images_of(*shape)
    before = images.clone()
    for layout in (torch.contiguous_format, torch.channels_last):
        seen = PIXEL_FILTERS[name]()(images.contiguous(memory_format=layout))
        assert seen.shape == images.shape
        assert seen.dtype == torch.float32
        assert seen.min() >= 0
        assert seen.max() <= 1
        assert not torch.equal(seen, images)
        assert torch.equal(images, before)


@filters
def test_answers_through_a_filter_repeat_and_do_not_depend_on_the_batch(name):
    step = PIXEL_FILTERS[name]().eval()
    images = images_of(6, 3, 16, 16)
    with torch.no_grad():
        seen = step(images)
        assert torch.equal(step(images), seen)
        alone = torch.cat([step(one[None]) for one in images])
        assert torch.equal(alone, seen)
        assert torch.equal(step(images.flip(0)).flip(0), seen)
        assert torch.equal(step(images.contiguous(memory_format=torch.channels_last)), seen)


@filters
def test_gradients_come_through_a_filter(name):
    images = images_of(2, 3, 16, 16).requires_grad_()
    weights = images_of(2, 3, 16, 16, seed=1)
    (PIXEL_FILTERS[name]()(images) * weights).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    if name in ("jpeg", "bits"):
        assert torch.equal(images.grad, weights), "as if it had not been there"
    else:
        assert images.grad.abs().sum() > 0.5 * weights.sum()


@pytest.mark.parametrize("size", [3, 5, 7, 9])
def test_median_equals_scipy(size):
    images = images_of(2, 3, 20, 17)
    right = scipy.ndimage.median_filter(images.numpy(), size=(1, 1, size, size), mode="nearest")
    assert np.array_equal(MedianFilter(size)(images).numpy(), right)


def test_the_gradient_of_the_median_goes_to_the_median():
    images = images_of(1, 1, 3, 3).requires_grad_()
    MedianFilter(3)(images)[0, 0, 1, 1].backward()
    assert images.grad is not None
    place = images.detach().flatten().argsort()[4]
    assert torch.equal(images.grad.flatten(), nn.functional.one_hot(place, 9).float())


@shapes
@pytest.mark.parametrize("quality", [1, 50, 100])
def test_jpeg_equals_pillow(shape, quality):
    images = images_of(*shape)
    seen = (JpegFilter(quality)(images) * 255).round().byte()
    for image, found in zip((images * 255).round().byte(), seen, strict=True):
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy().squeeze()).save(stream, "jpeg", quality=quality)
        right = np.asarray(Image.open(stream)).reshape(shape[2], shape[3], -1)
        assert np.array_equal(right, found.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_leave_so_many_levels(bits):
    images = images_of(1, 1, 200, 200)
    seen = BitDepthFilter(bits)(images)
    levels = np.arange(2**bits) / (2**bits - 1)
    nearest = np.abs(images.numpy()[..., None] - levels).min(-1)
    assert len(seen.unique()) == 2**bits
    assert np.isin(seen.numpy(), levels.astype(np.float32)).all()
    assert np.allclose((seen - images).abs().numpy(), nearest, atol=1e-6)


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_noise_has_its_deviation_in_training_and_in_answers(kind):
    grey = (torch.arange(20).view(-1, 1, 1, 1) + 118).expand(20, 3, 32, 32) / 255
    step = NoiseFilter(0.1, kind)
    afresh = step(grey) - grey
    step.eval()
    with torch.no_grad():
        own = step(grey) - grey
    for noise in (afresh, own):
        assert noise.mean().item() == pytest.approx(0, abs=2e-3)
        assert noise.std().item() == pytest.approx(0.1, rel=0.02)
        if kind == "uniform":
            assert noise.abs().max().item() <= 0.1 * 3**0.5 + 1e-6
    assert len({round(row.sum().item(), 4) for row in own}) == 20, "each image has noise of its own"


def test_noise_is_fresh_in_training_and_under_attack_only():
    step, images = NoiseFilter(0.1), images_of(2, 1, 8, 8)
    assert not torch.equal(step(images), step(images))
    with torch.no_grad():
        assert not torch.equal(step(images), step(images))
    step.eval()
    assert not torch.equal(step(images), step(images)), "a gradient might be asked for"
    with torch.no_grad():
        first = step(images)
    with torch.inference_mode():
        assert torch.equal(step(images), first)
        changed = images + 1 / 255
        assert not torch.allclose(step(changed) - changed, first - images, atol=0.01), (
            "another image, another draw"
        )


@pytest.mark.parametrize(
    ("how", "steps"),
    [
        ("median:3+fitted", "MedianFilter Normalise"),
        ("jpeg:60", "JpegFilter"),
        ("bits:bits=3+noise:0.05:kind=uniform+gcn", "BitDepthFilter NoiseFilter ContrastNormalise"),
        ("median+zca:eps=0.1", "MedianFilter Zca"),
    ],
)
def test_words_of_filters(how, steps):
    check_normalisation(how)
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
    made = fit_preprocessing(images, how, 3)
    assert " ".join(type(step).__name__ for step in made.steps) == steps
    again = fit_preprocessing(images, how, 3)
    assert json.dumps(again.config()) == json.dumps(made.config()), "fitting draws nothing of its own"


def test_what_follows_a_filter_is_measured_on_what_it_leaves():
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), dtype=np.uint8)
    made = fit_preprocessing(images, "median:5+fitted", 1)
    seen = MedianFilter(5)(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    (spread,) = made.config()[1]["std"]
    assert spread == pytest.approx(seen.std(correction=0).item(), rel=1e-4)
    assert spread < 0.5 * images.std() / 255


@pytest.mark.parametrize(
    ("how", "hint"),
    [
        ("fitted+median:3", "'median:3' filters pixels in [0, 1]: put it first"),
        ("median:4", "size must be one of 3, 5, 7, 9, not 4"),
        ("jpeg:0", "quality must be a whole number from 1 to 100, not 0"),
        ("jpeg:7.5", "quality must be a whole number"),
        ("bits:9", "bits must be a whole number from 1 to 8, not 9"),
        ("noise:0", "sigma must be a number above 0 and at most 1, not 0"),
        ("noise:0.1:pink", "kind must be one of gaussian, uniform, not 'pink'"),
        ("medain:3", "Did you mean 'median'"),
    ],
)
def test_impossible_filters_are_refused_without_images(how, hint):
    with pytest.raises(ChoiceError) as caught:
        check_normalisation(how)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    "step",
    [
        {"step": "median", "size": 4},
        {"step": "jpeg", "quality": "high"},
        {"step": "bits", "bits": 0},
        {"step": "noise", "sigma": float("nan")},
        {"step": "noise", "sigma": 0.1, "kind": ["gaussian"]},
    ],
)
def test_a_config_of_an_impossible_filter_is_refused(step):
    with pytest.raises(BundleError, match="preprocessing"):
        Preprocessing.from_config([step])


# Noise in the weights


@pytest.mark.parametrize("word", DISTINCT_WORDS)
def test_weight_noise_disturbs_every_network(word):
    torch.manual_seed(0)
    plain = build(parse_architecture(word, classes=3, channels=3, size=(16, 16))).eval()
    noisy = SURGERY["noise"](copy.deepcopy(plain), 0.3)
    pixels = images_of(3, 3, 16, 16)
    with torch.no_grad():
        answers = noisy(pixels)
        assert torch.equal(noisy(pixels), answers), "an answer repeats"
        alone = torch.cat([noisy(one[None]) for one in pixels])
        assert torch.allclose(alone, answers, rtol=1e-4, atol=1e-5 * answers.abs().max().item())
        assert not torch.allclose(answers, plain(pixels), rtol=1e-2)
        assert torch.equal(noisy.forward_clean(pixels), plain(pixels)), "the weights themselves are as they were"
        assert torch.equal(noisy.embed(pixels), plain.embed(pixels))
    assert not torch.equal(noisy(pixels), noisy(pixels)), "an attacker sees another draw each time"
    noisy.train()
    noisy(pixels).square().sum().backward()
    alpha = alpha_of(noisy)
    assert noisy.noise is not None
    weights = [noisy.get_parameter(name) for name in noisy.noise.names]
    trained = torch.tensor([w.grad is not None and bool((w.grad != 0).any()) for w in weights])
    assert trained.any()
    assert torch.equal(alpha.grad != 0, trained), "wherever weights learn, so does their noise"
    assert {*noisy.state_dict()} - {*plain.state_dict()} == {"noise.alpha"}


def test_the_noise_has_the_deviation_of_the_layers_weights():
    """A linear layer's outputs then have the variance that the weights' noise gives them."""
    torch.manual_seed(0)
    plain = build(parse_architecture("mlp:hidden=[]", classes=2, channels=1, size=(16, 16)))
    noisy = SURGERY["noise"](copy.deepcopy(plain), 0.5)
    pixel = images_of(1, 1, 16, 16)
    with torch.enable_grad():
        seen = torch.stack([noisy(pixel)[0].detach() for _ in range(1500)])
    spread = 0.5 * plain.head.weight.std(correction=0) * pixel.square().sum().sqrt()
    assert torch.allclose(seen.mean(0), plain(pixel)[0], atol=4 * spread.item() / 1500**0.5)
    assert torch.allclose(seen.std(0), spread.expand(2), rtol=0.08)


def test_images_choose_different_draws():
    noisy = classifier_of(surgery=[("noise", {"alpha": 0.5})])
    plain = strip_defences(noisy)
    pixels = images_of(40, 1, 28, 28)
    with torch.no_grad():
        change = noisy(pixels) - plain(pixels)
    assert change.std(0).min() > 0.3 * change.abs().mean(), "not one shift for all of them"


@pytest.mark.parametrize("first", ["plain", "noisy"])
def test_weights_fit_with_and_without_noise(first, tmp_path):
    plan = parse_architecture("lenet5", classes=3, channels=1, size=(28, 28))
    plain, noisy = build(plan), SURGERY["noise"](build(plan), 0.2)
    source, target = (plain, noisy) if first == "plain" else (noisy, plain)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(target.head.weight, source.head.weight)
    assert torch.equal(alpha_of(noisy), torch.full_like(alpha_of(noisy), 0.2))


@pytest.mark.parametrize("alpha", [0, -1, 11, "much", True])
def test_impossible_weight_noise_is_refused(alpha):
    plan = parse_architecture("lenet5", classes=3, channels=1, size=(28, 28))
    with pytest.raises(RecipeError, match="alpha"):
        build(Architecture(plan.name, plan.arguments, (("noise", {"alpha": alpha}),)))


# In classifiers and runs


EVERY = {name: [make()] for name, make in PIXEL_FILTERS.items()} | {"weights": []}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("classes", [2, 10])
def test_defences_survive_save_and_load_bit_for_bit(name, classes, tmp_path):
    surgery = [("mirrored", {}), ("noise", {"alpha": 0.3})] if name == "weights" else []
    one = classifier_of(EVERY[name], surgery, classes=classes)
    again = Classifier.load(one.save(tmp_path / "bundle"))
    pixels = images_of(7, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(again(pixels), one(pixels))
        assert not torch.equal(again(pixels), strip_defences(one)(pixels))
    bare = strip_defences(again)
    assert not bare.stochastic
    assert not any(isinstance(module, PixelFilter) for module in bare.modules())
    assert again.stochastic == (name in ("noise", "weights"))
    assert is_stochastic(again) == again.stochastic, "replicas would draw in no certain order"
    (answer, same) = (again.predict(np.full((28, 28, 1), 99, np.uint8)) for _ in range(2))
    assert answer == same


def test_a_trained_run_keeps_its_defences(tmp_path, cli):
    words = ("--model", "mlp", "--size", "8", "--limit", "300", "--epochs", "2", "--precision", "float32")
    words += ("--memory-format", "contiguous", "--cpu-replicas", "1", "--normalize", "noise:0.1+fitted")
    done = cli("train", "digits", *words, "--weight-noise", "0.2", "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    run = reopen(tmp_path / "run", device="cpu")
    assert type(run.classifier.preprocessing.steps[0]).__name__ == "NoiseFilter"
    alpha = alpha_of(run.classifier.network)
    assert not torch.equal(alpha, torch.full_like(alpha, 0.2)), "training adjusts it"
    assert run.recipe.weight_noise == 0.2
    again = cli("evaluate", tmp_path / "run", "--device", "cpu", "--json")
    first, second = (json.loads(one.out)["accuracy"] for one in (done, again))
    assert first == second, "random, and yet the same answers each time"


def test_a_run_with_noise_resumes_and_repeats(tmp_path):
    recipe = Recipe(model="mlp", size=8, limit=200, epochs=2, batch_size=32, lr=0.1, precision="float32")
    recipe = recipe.replace(
        normalize="noise:0.2+fitted", weight_noise=0.3, memory_format="contiguous", cpu_replicas=1
    )
    one, other = (train("digits", recipe, out=tmp_path / name, device="cpu").classifier for name in "ab")
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())


# Who knows the defence


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A classifier of digits that is nearly always right, and 120 of its test images."""
    recipe = Recipe(model="mlp", size=8, epochs=12, batch_size=64, lr=0.1, limit=1200, precision="float32")
    recipe = recipe.replace(memory_format="contiguous", cpu_replicas=1)
    run = train("digits", recipe, out=tmp_path_factory.mktemp("digits") / "run", device="cpu")
    test = run.splits.test.subset(np.arange(120))
    images = torch.from_numpy(np.ascontiguousarray(test[:])).permute(0, 3, 1, 2).float() / 255
    return run.classifier, images, torch.from_numpy(test.labels)


def behind(classifier, *steps, alpha=None):
    """The same classifier behind filters, or with noise in its weights."""
    defended = copy.deepcopy(classifier)
    defended.preprocessing.steps = nn.ModuleList([*steps, *defended.preprocessing.steps])
    if alpha:
        SURGERY["noise"](defended.network, alpha)
    return defended.eval()


def test_an_averaged_classifier_answers_as_it_is_and_looks_like_its_mean(digits):
    classifier, images, _ = digits
    random = behind(classifier, NoiseFilter(0.2))
    seen = EOTClassifier(random, 200)
    with torch.no_grad():
        assert torch.equal(seen(images), random(images))
        rows = torch.stack([random(images + 0) for _ in range(2)])
        assert torch.equal(rows[0], rows[1])
    torch.manual_seed(1)
    one = torch.stack([random(images[:4]).detach() for _ in range(400)])
    assert torch.allclose(seen(images[:4]).detach(), one.mean(0), atol=6 * (one.std(0) / 200**0.5).max().item())
    assert attack_view(random).draws == 10
    assert attack_view(classifier) is classifier
    with pytest.raises(RecipeError, match="draws must be a whole number"):
        EOTClassifier(random, 0)


def test_averaging_makes_gradients_steadier(digits):
    classifier, images, labels = digits

    def slopes(seen):
        found = []
        for _ in range(12):
            at = images[:8].clone().requires_grad_()
            nn.functional.cross_entropy(seen(at), labels[:8]).backward()
            found.append(at.grad)
        return torch.stack(found).std(0).mean().item()

    random = behind(classifier, NoiseFilter(0.2), alpha=0.2)
    assert slopes(EOTClassifier(random, 10)) < 0.5 * slopes(random)


@pytest.mark.parametrize(
    ("steps", "alpha"),
    [
        ((BitDepthFilter(1),), None),
        ((MedianFilter(3),), None),
        ((JpegFilter(30),), None),
        ((NoiseFilter(0.25),), None),
        ((), 0.3),
    ],
    ids=["bits", "median", "jpeg", "noise", "weights"],
)
def test_an_attacker_who_knows_does_no_worse(digits, steps, alpha):
    """Each defence seems to help against who does not know it; that is not what it is worth."""
    classifier, images, labels = digits
    defended = behind(classifier, *steps, alpha=alpha)
    found = evaluate_adaptive(defended, images, labels, 0.15, PGD(steps=15))
    assert found.clean.value > 0.5
    assert found.adaptive.value <= found.oblivious.value + 0.05
    assert found.eot.value <= found.adaptive.value + 0.05
    assert found.worst.value == min(found.oblivious.value, found.adaptive.value, found.eot.value)
    assert found.worst.value < found.clean.value - 0.2
    if alpha is None and not isinstance(steps[0], NoiseFilter):
        assert found.eot == found.adaptive, "nothing is random: there is nothing to average"
    value = found.as_json()
    assert value.keys() == {"eps", "draws", "n", "clean", "oblivious", "adaptive", "eot"}
    assert json.loads(json.dumps(value))["clean"]["value"] == found.clean.value


def test_three_attackers_repeat_and_leave_the_generator_alone(digits):
    classifier, images, labels = digits
    defended = behind(classifier, NoiseFilter(0.2))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, other = (evaluate_adaptive(defended, images[:40], labels[:40], 0.1, FGSM(), draws=3) for _ in range(2))
    assert one == other
    assert torch.equal(torch.rand(1), expected)


def test_what_bits_hide_is_seen_through(digits):
    """Rounding is flat: its own gradient is 0, so that an attack that follows it goes nowhere."""
    classifier, images, labels = digits
    defended = behind(classifier, BitDepthFilter(2))
    found = evaluate_adaptive(defended, images, labels, 0.2, PGD(steps=15, random_start=False))

    class Flat(nn.Module):
        def forward(self, pixels):
            return (pixels * 3).round() / 3

    flat = copy.deepcopy(defended)
    flat.preprocessing.steps[0] = Flat()
    hidden = PGD(steps=15, random_start=False)(flat, images, labels, 0.2)
    with torch.no_grad():
        assert (flat(hidden).argmax(1) == labels).float().mean() == found.clean.value
    assert found.adaptive.value < found.clean.value - 0.3
