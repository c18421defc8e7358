"""int8: formulas written out, the laws of every network, and what cannot be calibrated."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.tiny_classifiers import DISTINCT_WORDS
from sightline.classifier import Classifier
from sightline.compression import Int8
from sightline.compression.calibration import CALIBRATORS, ActivationHistogram
from sightline.compression.quantize import quantize_weights
from sightline.data import load_dataset, to_tensor
from sightline.errors import BundleError, ChoiceError, DataError, RecipeError
from sightline.layers import Network
from sightline.layers.quantised import Int8Conv2d, Int8Linear, int8_like, quantise_layers, quantise_weight
from sightline.layers.rounding import ActivationGrid, ActivationRounding
from sightline.models import Architecture, build, count_multiply_adds, parse_architecture
from sightline.models.timm_network import import_timm
from sightline.preprocessing import Normalise, Preprocessing
from sightline.types import Geometry, Splits

GEOMETRY = Geometry(size=(16, 16), channels=3)


@pytest.fixture(scope="module")
def shapes():
    return load_dataset("shapes:96", GEOMETRY)


def made(word, images, surgery=(), classes=4):
    """A classifier whose norms know the images."""
    torch.manual_seed(0)
    geometry = images.geometry
    plan = parse_architecture(word, classes=classes, channels=geometry.channels, size=geometry.size)
    plan = replace(plan, surgery=tuple(surgery))
    steps = Preprocessing([Normalise([0.4] * geometry.channels, [0.3] * geometry.channels)])
    network = build(plan)
    names = [str(k) for k in range(network.n_classes)]
    found = Classifier(steps, network, architecture=plan, classes=names, geometry=geometry).train()
    for norm in found.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        found(to_tensor(images[:32]))
    return found.eval()


def splits(images):
    return Splits(images, images, images)


# Formulas.


@pytest.mark.parametrize(("bits", "most"), [(7, 64), (8, 127)])
def test_codes_of_weights_are_the_nearest_and_symmetric(bits, most):
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 3, 3, 3), torch.randn(5)
    weight[2] = 0
    layer = Int8Conv2d(3, 5, 3, padding=1)
    quantise_weight(layer, weight, bias, bits)
    for channel in range(5):
        step = weight[channel].abs().max().item() / most
        assert layer.codes[channel].abs().max() == (most if channel != 2 else 0)
        assert (layer.weight[channel] - weight[channel]).abs().max() <= step / 2 + 1e-7
    assert torch.equal(layer.weight[2], weight[2])
    assert layer.codes.dtype == torch.int8
    assert {name for name, _ in layer.named_parameters()} == {"gain", "bias"}
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, bias, padding=1))


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-1.0, 2.0), (0.5, 4.0), (-3.0, -1.0)])
def test_levels_include_zero_and_round_to_the_nearest(low, high):
    grid = ActivationGrid()
    grid.set_range(low, high)
    x = torch.linspace(min(low, 0), max(high, 0), 1001)
    scale = (max(high, 0) - min(low, 0)) / 255
    assert (grid(x) - x).abs().max() <= scale / 2 + 1e-6
    assert grid(torch.zeros(1)).item() == 0
    beyond = torch.tensor([-100.0, 100.0])
    assert (grid(beyond) - torch.tensor([min(low, 0), max(high, 0)])).abs().max() <= scale / 2 + 1e-6


def test_gradients_pass_within_the_levels_and_stop_outside():
    grid = ActivationGrid()
    grid.set_range(-1.0, 1.0)
    x = torch.tensor([-2.0, -0.51, 0.0, 0.37, 3.0], requires_grad=True)
    (grid(x) * torch.arange(1.0, 6)).sum().backward()
    assert x.grad.tolist() == [0, 2, 3, 4, 0]


def test_a_residual_block_is_rounded_where_integers_are_added():
    """Every place, written out by hand: what enters a layer, what leaves it after its ReLU, and the sum."""
    images = load_dataset("shapes:96", GEOMETRY)
    found = Int8(by="minmax", images=32)(made("resnet18:stem=small", images), splits(images))
    network, grids = found.network, found.network.rounding.grids
    x = found.preprocessing(to_tensor(images[:4]))
    with torch.no_grad():
        first = grids[0](x)  # number 0 is the pixels, then each layer's result in order
        stem = grids[1](F.relu(network.conv1(first)))
        block = network.layer1[0]
        inner = grids[2](F.relu(block.conv1(stem)))
        outer = grids[3](block.conv2(inner))
        whole = grids[4](F.relu(outer + stem))
        seen = []
        network.layer1[1].conv1.register_forward_hook(lambda *given: seen.append(given[1][0]))
        network(x)
    torch.testing.assert_close(grids[4](seen[0]), whole)


def test_folding_changes_nothing_but_rounding(shapes):
    """With weights and activations left in floats, the folded network is the network; no batch norm is left."""
    parent = made("enhanced", shapes)
    found = Int8(images=16)(parent, splits(shapes))
    assert not any(isinstance(one, nn.BatchNorm2d) for one in found.modules())
    counted = [count_multiply_adds(one.network, 3, (16, 16)) for one in (parent, found)]
    lone = dict(found.architecture.surgery)["quantised"]["lone"]
    assert bool(lone)  # those after a concatenation became convolutions, which count
    assert counted[1] >= counted[0]


# Laws.


DEEP = {"mobilenet:width=0.25", "efficientnet:width=0.25"}
"""With random weights, what all images share is far larger than what tells them apart: rounding shows as much."""


@pytest.mark.parametrize("word", DISTINCT_WORDS)
def test_every_network_in_int8_answers_nearly_the_same_and_survives_its_bundle(word, shapes, tmp_path):
    parent = made(word, shapes)
    before = copy.deepcopy(parent.state_dict())
    some = shapes.subset(np.arange(24))
    found = Int8(by="minmax", images=24, bits=8 if word in DEEP else 7)(parent, splits(some))
    pixels = to_tensor(some[:])
    with torch.no_grad():
        wanted, own = parent(pixels), found(pixels)
        assert (own - wanted).square().mean().sqrt() < (1.5 if word in DEEP else 0.4) * wanted.std()
        assert not torch.equal(own, wanted)
        assert (found(pixels[:3]) - own[:3]).abs().max() < 0.05 * own.abs().max()  # last digits decide some levels
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())
    codes = sum(one.codes.numel() for one in found.modules() if isinstance(one, Int8Conv2d | Int8Linear))
    floats = sum(t.numel() for t in found.state_dict().values() if t.is_floating_point())
    assert codes > 0.9 * sum(p.numel() for p in parent.parameters() if p.ndim > 1 and p.requires_grad) - 5000
    assert floats < 0.25 * codes + 5000
    again = Classifier.load(found.save(tmp_path / "b"))
    with torch.no_grad():
        assert torch.equal(again(pixels), own)
    assert again.config() == found.config()


@pytest.mark.parametrize("word", ["lenet5", "resnet20", "mobilenet:width=0.25", "vit:depth=1:width=24:heads=2"])
def test_fine_tuning_changes_gains_and_biases_but_no_code(word, shapes):
    found = Int8(by="minmax", images=32)(made(word, shapes), splits(shapes)).train()
    codes = {n: t.clone() for n, t in found.state_dict().items() if t.dtype == torch.int8}
    pixels, labels = to_tensor(shapes[:]), torch.from_numpy(shapes.labels)
    moves = torch.optim.Adam(found.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(found(pixels), labels)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in found.parameters())
        moves.step()
        moves.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(found.state_dict()[name], code) for name, code in codes.items())


def test_pixels_have_a_gradient_through_the_rounding(shapes):
    found = Int8(images=16)(made("resnet20", shapes), splits(shapes))
    pixels = to_tensor(shapes[:2]).requires_grad_()
    found(pixels)[:, 0].sum().backward()
    assert pixels.grad.abs().max() > 0


@pytest.mark.parametrize(
    "surgery",
    [(("mirrored", {}),), (("grown_head", {"classes": 6}),), (("masked", {"layers": ["conv1", "head"]}),)],
    ids=lambda one: one[0][0],
)
def test_int8_follows_other_surgery(surgery, shapes, tmp_path):
    parent = made("resnet20", shapes, surgery)
    found = Int8(by="minmax", images=32)(parent, splits(shapes))
    pixels = to_tensor(shapes[:16])
    again = Classifier.load(found.save(tmp_path / "b"))
    with torch.no_grad():
        assert torch.equal(again(pixels), found(pixels))
        assert (found(pixels) - parent(pixels)).abs().max() < 0.3 * parent(pixels).abs().max()
    assert [name for name, _ in again.architecture.surgery] == [surgery[0][0], "quantised"]


def test_grey_images_and_two_classes():
    images = load_dataset("digits", Geometry(size=(12, 12), channels=1))
    images = images.subset(images.labels < 2)
    parent = made("lenet5", images, classes=2)
    found = Int8()(parent, splits(images))
    with torch.no_grad():
        apart = found.probabilities(to_tensor(images[:])) - parent.probabilities(to_tensor(images[:]))
    assert apart.abs().max() < 0.05


# Calibration.


def seen_of(values):
    one = ActivationHistogram()
    one.update_range(values)
    one.update_counts(values)
    return one


def test_spans_of_a_sample_with_an_outlier():
    values = torch.cat([torch.rand(100_000, generator=torch.Generator().manual_seed(0)), torch.tensor([50.0])])
    spans = {name: span(seen_of(values)) for name, span in CALIBRATORS.items()}
    assert spans["minmax"] == pytest.approx((values.min().item(), 50.0))
    assert spans["percentile"][1] < 1.1

    def error(span):
        grid = ActivationGrid()
        grid.set_range(*span)
        return (grid(values) - values).square().sum().item()

    tried = {high: error((0.0, high)) for high in np.linspace(15, 50, 36)}
    assert error(spans["mse"]) <= 1.02 * min(tried.values())


def test_the_calibration_of_smallest_divergence_is_chosen(shapes):
    parent = made("small-cnn", shapes)
    auto = Int8(images=40)(parent, splits(shapes))
    tried = auto.provenance["int8"]["divergence_nats"]
    assert set(tried) == set(CALIBRATORS)
    best = min(tried, key=tried.get)
    assert auto.provenance["int8"]["by"] == best
    alone = Int8(by=best, images=40)(parent, splits(shapes))
    assert all(torch.equal(t, alone.state_dict()[name]) for name, t in auto.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({"by": "min-max"}, "Did you mean 'minmax'"), ({"images": 0}, "1, not 0"), ({"bits": 4}, "VNNI")],
)
def test_impossible_arguments(arguments, text):
    with pytest.raises(ValueError, match=text):
        Int8(**arguments)


def test_images_that_cannot_calibrate(shapes):
    parent = made("lenet5", shapes)
    none = shapes.subset(np.zeros(0, np.int64))
    with pytest.raises(DataError, match="no training images"):
        Int8()(parent, Splits(none, shapes, shapes))
    other = load_dataset("shapes:96", Geometry(size=(20, 20), channels=3))
    with pytest.raises(DataError, match=r"20, 20.*16, 16"):
        Int8()(parent, splits(other))


def test_networks_that_cannot_be_int8(shapes):
    parent = made("lenet5", shapes)
    once = Int8(images=16)(parent, splits(shapes))
    with pytest.raises(BundleError, match="int8 already"):
        Int8()(once, splits(shapes))
    with pytest.raises(BundleError, match="adds noise to its weights"):
        Int8()(made("lenet5", shapes, [("noise", {})]), splits(shapes))
    plan = once.architecture
    twice = replace(plan, surgery=(*plan.surgery, plan.surgery[-1]))
    with pytest.raises(RecipeError, match="int8 already"):
        build(twice)


@pytest.mark.parametrize(
    "change", [{"layers": ["nothing"]}, {"layers": ["features.relu1"]}, {"sites": -1}, {"more": 1}]
)
def test_a_bundle_with_impossible_surgery_is_refused(change, shapes):
    plan = Int8(images=16)(made("lenet5", shapes), splits(shapes)).architecture
    arguments = {**plan.surgery[-1][1], **change}
    with pytest.raises((RecipeError, ChoiceError), match=r"quantised"):
        build(Architecture(plan.name, plan.arguments, (("quantised", arguments),)))


def test_rounding_refuses_a_path_it_was_not_calibrated_on():
    network = quantise_layers(
        build(parse_architecture("mlp", classes=2, channels=1, size=(8, 8))), [], [], [], 1
    ).eval()
    assert isinstance(network.rounding, ActivationRounding)
    with pytest.raises(ValueError, match="calibrated"):
        network(torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("side", "stride", "kernel", "groups"), [(9, 2, 3, 1), (8, 2, 5, 4), (7, 1, 3, 4), (8, 3, 3, 1)]
)
def test_same_padding_is_that_of_timm(side, stride, kernel, groups):
    """timm's layer with the weight that the codes stand for."""
    torch.manual_seed(0)
    theirs = import_timm().layers.Conv2dSame(4, 8, kernel, stride=stride, groups=groups)
    ours = int8_like(theirs)
    quantise_weight(ours, theirs.weight.detach(), theirs.bias.detach())
    images = torch.randn(2, 4, side, side + 1)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)
        assert torch.equal(ours(images), theirs(images))


def test_a_bias_makes_up_for_the_mean_error_of_its_rounded_weights(shapes):
    """On the images that corrected it, a 1x1 convolution of pixels has the float network's mean in every channel."""
    torch.manual_seed(0)
    classifier = made("plain-cnn:depth=2:width=8", shapes)
    first = next(m for m in classifier.network.modules() if isinstance(m, nn.Conv2d))
    quantised, _, _ = quantize_weights(classifier, shapes, 7)
    ours = next(m for m in quantised.network.modules() if isinstance(m, Int8Conv2d))
    seen = {}

    def means(network, layer, norm=None):
        hook = (norm or layer).register_forward_hook(lambda _, __, out: seen.update(mean=out.mean((0, 2, 3))))
        with torch.no_grad():
            network(to_tensor(shapes[:64]))
        hook.remove()
        return seen["mean"]

    norm = next(m for m in classifier.network.modules() if isinstance(m, nn.BatchNorm2d))
    quantised.network.rounding.observer = lambda *_: None  # activations stay in floats
    wanted, corrected = means(classifier, first, norm), means(quantised, ours)
    bias = ours.bias.detach().clone()
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * factor
    with torch.no_grad():  # without the correction: the folded bias as it is
        ours.bias.copy_(shift + (0 if first.bias is None else first.bias * factor))
    plain = means(quantised, ours)
    assert (ours.bias - bias).abs().max() > 0
    assert (corrected - wanted).abs().mean() < 0.5 * (plain - wanted).abs().mean()


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.0, 1.0), (0.4, 0.3)])
def test_every_value_of_a_pixel_is_a_level(mean, std, shapes):
    """Where mean and deviation are the same for all channels: no pixel is rounded, and logits are the same."""
    classifier = made("vit:depth=1:width=24:heads=2", shapes)  # its first convolution pads nothing
    classifier.preprocessing = Preprocessing([Normalise([mean] * 3, [std] * 3)])
    small = Int8("minmax", images=32)(classifier, splits(shapes))
    every = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16) / 255
    given = small.preprocessing(every)
    grid = small.network.rounding.grids[0]
    assert (grid(given) - given).abs().max() < 1e-5
    assert len(grid(given).unique()) == 256
    shift = (given - classifier.preprocessing(every)).abs().max() * std * 255
    assert shift <= 0.5 + 1e-4


def test_means_that_differ_by_channel_stay(shapes):
    classifier = made("lenet5", shapes)
    steps = Preprocessing([Normalise([0.4, 0.5, 0.6], [0.3] * 3)])
    classifier.preprocessing = steps
    small = Int8("minmax", images=32)(classifier, splits(shapes))
    assert small.preprocessing.config() == steps.config()


def test_zeros_around_a_rounded_image_are_not_rounded_again():
    """The site that earlier releases had there keeps its number, so their bundles answer as they did."""

    class Padded(Network):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Linear(2, 2)

        def logits(self, pixels):
            return self.head(self.second(F.pad(self.first(pixels), (1, 1, 1, 1))).mean((2, 3)))

    torch.manual_seed(0)
    network = Padded().eval()
    network.rounding = ActivationRounding(5)
    called = []
    network.rounding.observer = lambda site, x: called.append((site, tuple(x.shape)))
    with torch.no_grad():
        network(torch.rand(1, 1, 8, 8))
        observed, network.rounding.observer = called, None
        for grid in network.rounding.grids:
            grid.set_range(-2, 2)
        network.rounding.grids[2].set_range(0, 1e-3)  # the passed over one, which would wipe out everything
        values = network(torch.rand(1, 1, 8, 8))
    assert [site for site, _ in observed] == [0, 1, 3, 4]
    assert values.std() > 1e-3
