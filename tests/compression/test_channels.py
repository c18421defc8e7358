"""Channels that go: what is left answers as if they had been silenced, and is rebuilt from its widths."""

import copy
import json
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from helpers.pruned_classifiers import logits, make, saved_and_loaded, splits
from helpers.tiny_classifiers import DISTINCT_WORDS
from sightline import runtime
from sightline.classifier import Classifier
from sightline.compression.channel_groups import (
    ChannelGroup,
    ChannelSite,
    _removable_groups,
    find_channel_groups,
    keep_one_per_layer,
    layer_multiply_adds,
    remove_channels,
    saved_multiply_adds,
)
from sightline.compression.compressor import example_input
from sightline.compression.pruning import (
    CHANNEL_CRITERIA,
    CHANNEL_SCOPES,
    Channels,
    channel_importance,
    taylor_importance,
)
from sightline.errors import BundleError, RecipeError
from sightline.files import write_json
from sightline.layers.pruned import is_narrowable
from sightline.models import SURGERY, count_multiply_adds

words = pytest.mark.parametrize("word", DISTINCT_WORDS)


def cost(classifier):
    return count_multiply_adds(classifier.network, classifier.geometry.channels, classifier.geometry.size)


def kept(old, new):
    """Which outputs of a layer are left, by their numbers: random ones, so hardly any two are alike."""
    rows = old.detach().flatten(1) if old.ndim > 1 else old.detach()[:, None]
    return torch.isin(rows, new.detach()).float().mean(1) > 0.3


def silenced(large, small):
    """The large network with every channel at zero that the small one has not, found without our bookkeeping."""
    quiet = copy.deepcopy(large)
    for name, layer in quiet.named_modules():
        if is_narrowable(layer):
            gone = ~kept(layer.weight if layer.bias is None else layer.bias, _own(small, name))
            layer.weight.data[gone] = 0
            if layer.bias is not None:
                layer.bias.data[gone] = 0
    return quiet


def _own(network, name):
    layer = network.get_submodule(name)
    return layer.weight if layer.bias is None else layer.bias


@words
def test_removing_channels_equals_zeroing_them(word, tmp_path):
    """The law of structured pruning, over every network that a recipe can name."""
    classifier = make(word)
    before = {name: t.clone() for name, t in classifier.state_dict().items()}
    smaller = Channels(0.25, "l2")(classifier, splits(8))
    share = 1 - cost(smaller) / cost(classifier)
    assert 0.25 <= share < 0.45
    quiet = silenced(classifier.network, smaller.network)
    pixels = example_input(classifier, 3)
    with torch.no_grad():
        own, expected = smaller.network(pixels), quiet(pixels)
        changed = classifier.network(pixels)
    scale = expected.abs().max()
    assert torch.allclose(own / scale, expected / scale, atol=1e-5)
    assert not torch.allclose(changed / scale, expected / scale, atol=1e-3)
    assert all(torch.equal(before[name], t) for name, t in classifier.state_dict().items())
    assert smaller.network.head.out_features == classifier.network.head.out_features
    assert torch.equal(logits(saved_and_loaded(smaller, tmp_path)), logits(smaller))


def test_a_bundle_needs_no_torch_pruning(tmp_path, monkeypatch):
    smaller = Channels(0.4, "l1")(make("enhanced"), splits(8))
    expected = logits(smaller)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert torch.equal(logits(saved_and_loaded(smaller, tmp_path)), expected)


@pytest.mark.parametrize("scope", CHANNEL_SCOPES)
@pytest.mark.parametrize("criterion", CHANNEL_CRITERIA)
def test_every_criterion_and_scope_reaches_the_amount(criterion, scope):
    classifier, data = make("plain-cnn:depth=5:width=16"), splits(48)
    smaller = Channels(0.4, criterion, scope)(classifier, data)
    assert 0.4 <= 1 - cost(smaller) / cost(classifier) < 0.45
    again = Channels(0.4, criterion, scope)(classifier, data)
    assert torch.equal(logits(again), logits(smaller))


def test_the_stream_of_a_resnet_without_projections_keeps_its_width():
    """Its shortcuts pad with zeros: which channel is which there, no narrower network would know."""
    smaller = Channels(0.4, "l2")(make("resnet20"), splits(8)).network
    for stage, width in ((smaller.layer1, 16), (smaller.layer2, 32), (smaller.layer3, 64)):
        assert [block.conv2.out_channels for block in stage] == [width] * 3
        assert all(block.conv1.out_channels < width for block in stage)
    assert smaller.conv1.out_channels == 16


def test_the_same_share_of_each_layer_or_one_ranking_of_all():
    classifier = make("vgg11:width=0.25")
    classifier.network.features[0].weight.data.mul_(3)  # a layer is measured by its own mean
    even = Channels(0.5, "l2", "layer")(classifier, splits(8)).architecture.surgery[-1][1]["layers"]
    uneven = Channels(0.5, "l2", "global")(classifier, splits(8)).architecture.surgery[-1][1]["layers"]
    convolutions = [name for name, layer in classifier.network.named_modules() if isinstance(layer, nn.Conv2d)]

    def shares(layers):
        return [
            layers[n][0] / classifier.network.get_submodule(n).out_channels for n in convolutions if n in layers
        ]

    assert max(shares(even)) - min(shares(even)) < 0.07
    assert max(shares(uneven)) - min(shares(uneven)) > 0.07


def test_widths_are_multiples():
    layers = Channels(0.4, "l2", multiple=4)(make("resnet20"), splits(8)).architecture.surgery[-1][1]["layers"]
    assert layers
    assert all(width[0] % 4 == 0 for name, width in layers.items() if name.endswith("conv1"))


def test_magnitudes_are_those_of_torch_pruning():
    torch_pruning = pytest.importorskip("torch_pruning")
    network = make("resnet20").network
    pixels = torch.rand(2, 3, 16, 16)
    graph = torch_pruning.DependencyGraph()
    graph.build_dependency(network, pixels, lambda model, given: model.logits(given), verbose=False)
    names = {module: name for name, module in network.named_modules()}
    theirs = {names[group[0].dep.target.module]: group for group in graph.get_all_groups([network.head])}
    numbers = {n.removesuffix(".weight"): t.detach() for n, t in network.named_parameters() if "weight" in n}
    for p, word in ((1, "l1"), (2, "l2")):
        for group in find_channel_groups(network, pixels):
            expected = torch_pruning.importance.GroupMagnitudeImportance(p=p)(theirs[group.sites[0].layer])
            torch.testing.assert_close(
                channel_importance(group, numbers, CHANNEL_CRITERIA[word]), expected, rtol=1e-4, atol=1e-5
            )


def test_salience_is_the_squared_change_of_the_loss_piece_by_piece():
    classifier, data = make("mlp:hidden=(6,)", side=4), splits(40, side=4)
    found = taylor_importance(classifier, copy.deepcopy(classifier.network), data.train)
    expected = torch.zeros_like(classifier.network.hidden[0].weight)
    order = np.sort(runtime.permutation(40, 0))
    for start, stop in pairwise([0, 32, 40]):
        rows = order[start:stop]
        pixels = torch.tensor(data.train[rows]).permute(0, 3, 1, 2) / 255
        labels = torch.tensor(data.train.labels[rows])
        classifier.zero_grad()
        nn.functional.cross_entropy(classifier(pixels), labels).backward()
        weight = classifier.network.hidden[0].weight
        expected += (weight.detach() * weight.grad).square()
    torch.testing.assert_close(found["hidden.0"], expected, rtol=1e-4, atol=1e-10)


def test_a_group_that_is_not_one_is_found_out():
    """Two layers whose channels have nothing to do with each other, and one group that lacks its reader."""
    network, pixels = make("resnet20").network.double(), torch.rand(2, 3, 16, 16).double()
    every = torch.arange(16)
    site = [
        ChannelSite(f"layer1.0.{name}", side, every, every)
        for name, side in (("conv1", "outputs"), ("bn1", "outputs"))
    ]
    reader = ChannelSite("layer1.0.conv2", "inputs", every, every)
    other = ChannelSite("layer1.1.conv2", "inputs", every, every)
    turned = ChannelSite("layer1.0.conv2", "inputs", every.flip(0), every)
    assert _removable_groups(network, [ChannelGroup(16, (*site, reader))], pixels)
    for wrong in ((*site, other), tuple(site), (*site, turned)):
        assert not _removable_groups(network, [ChannelGroup(16, wrong)], pixels)


@pytest.mark.parametrize(
    "word", ["mobilenet:width=0.25", "densenet:depth=22:growth=8", "vit:depth=1:width=24:heads=2"]
)
def test_saved_multiply_adds_equal_the_count(word):
    """The search adds up layer by layer what ``multiply_adds`` counts in a pass through the narrowed network."""
    network = make(word).network
    pixels = torch.rand(2, 3, 16, 16)
    found = find_channel_groups(network, pixels)
    gone = [torch.arange(group.count) % 3 == 1 for group in found]
    less = count_multiply_adds(network, 3, (16, 16)) - count_multiply_adds(
        remove_channels(network, found, gone), 3, (16, 16)
    )
    assert saved_multiply_adds(network, layer_multiply_adds(network, pixels), found, gone) == less > 0


def test_no_layer_loses_all_it_has():
    """Branches that are put side by side are one group with what they are added to."""
    smaller = Channels(0.85, "l2")(make("enhanced:batch_norm=False"), splits(8)).network
    assert all(min(m.weight.shape[:2]) > 0 for m in smaller.modules() if isinstance(m, nn.Conv2d))
    group = ChannelGroup(4, (ChannelSite("a", "outputs", torch.arange(4), torch.arange(4)),))
    part = ChannelGroup(4, (*group.sites, ChannelSite("b", "outputs", torch.arange(2), torch.tensor([1, 2]))))
    worth_each, gone = torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([False, True, True, True])
    assert torch.equal(keep_one_per_layer(group, gone, worth_each), gone)
    assert torch.equal(keep_one_per_layer(part, gone, worth_each), torch.tensor([False, True, False, True]))


def test_nothing_gone_is_nothing_changed():
    network = make("densenet:depth=22:growth=8").network
    pixels = torch.rand(2, 3, 16, 16)
    found = find_channel_groups(network, pixels)
    none = [torch.zeros(group.count, dtype=torch.bool) for group in found]
    with torch.no_grad():
        assert torch.equal(remove_channels(network, found, none)(pixels), network(pixels))


def test_more_than_there_is():
    with pytest.raises(RecipeError, match=r"saves at most .* multiply-adds, not 99.0%: ask for 0\.\d+ or less"):
        Channels(0.99, "l2")(make("resnet20"), splits(8))


def test_taking_channels_twice_is_refused():
    smaller = Channels(0.3, "l2")(make("lenet5"), splits(8))
    with pytest.raises(RecipeError, match="narrowed already"):
        Channels(0.3, "l2")(smaller, splits(8))


def test_no_channels_to_give():
    with pytest.raises(RecipeError, match="no channels that can be removed"):
        Channels(0.3, "l2")(make("mlp:hidden=()"), splits(8))


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"amount": 1.0}, "above 0 and below 1"),
        ({"criterion": "l3"}, "no criterion 'l3'"),
        ({"scope": "local"}, "no scope 'local'"),
        ({"multiple": 0}, "multiple must be a whole number"),
    ],
)
def test_impossible_values(given, hint):
    with pytest.raises(ValueError, match=hint):
        Channels(**given)


@pytest.mark.parametrize(
    ("layers", "hint"),
    [
        ({"conv9": [4, 3]}, "no layer 'conv9'"),
        ({"conv1": [17, 3]}, "cannot have"),
        ({"conv1": [0, 3]}, "cannot have"),
        ({"conv1": [4]}, "cannot have"),
        ({"layer1": [4]}, "no channels can be removed"),
    ],
)
def test_impossible_widths_are_refused(layers, hint):
    with pytest.raises(ValueError, match=hint):
        SURGERY["widths"](make("resnet20").network, layers)


def test_a_tampered_bundle_is_refused(tmp_path):
    smaller = Channels(0.3, "l2")(make("lenet5"), splits(8))
    smaller.save(tmp_path / "b")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    config["architecture"]["surgery"][0]["arguments"]["layers"]["features.conv1"] = [99, 3]
    write_json(tmp_path / "b" / "config.json", config)
    with pytest.raises(BundleError, match=r"features\.conv1"):
        Classifier.load(tmp_path / "b")
