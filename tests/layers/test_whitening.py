"""The frozen whitening layer, and the speed network that begins with it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.tiny_classifiers import WORDS
from sightline.layers import initialise
from sightline.layers.whitening import WHITENING_EPS, Whitening
from sightline.models import build, parse_architecture


def images(n=40, channels=3, side=12, seed=0):
    """Smooth pictures, whose neighbouring pixels and channels go together."""
    noise = torch.randn(n, channels, side + 4, side + 4, generator=torch.Generator().manual_seed(seed))
    mixed = torch.einsum("ij,njhw->nihw", torch.eye(channels) + 0.5, noise)
    return F.avg_pool2d(mixed, 5, 1) * 3 + 0.2


def whitened(layer, pixels):
    """Second moments of the layer's answers without its bias, in float64."""
    answers = F.conv2d(pixels.double(), layer.weight.double(), padding=layer.padding)
    flat = answers.transpose(0, 1).flatten(1)
    return flat @ flat.T / flat.shape[1]


@pytest.mark.parametrize(("channels", "kernel", "padding"), [(3, 2, 0), (1, 2, 0), (3, 3, 1), (1, 3, 1)])
def test_whitened_patches_have_unit_second_moments(channels, kernel, padding):
    layer = Whitening(channels, kernel, padding=padding, both_signs=False, bias=False)
    pixels = images(channels=channels)
    layer.fit(pixels, eps=1e-9)
    assert torch.allclose(whitened(layer, pixels), torch.eye(channels * kernel**2).double(), atol=1e-4)


@pytest.mark.parametrize("eps", [WHITENING_EPS, 0.1])
def test_epsilon_keeps_small_directions_small(eps):
    """U diag(s / (s + eps)) U^T in the eigenvectors' own axes, largest first."""
    layer = Whitening(3, 2, both_signs=False, bias=False)
    pixels = images()
    layer.fit(pixels, eps)
    patches = pixels.double().unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values = torch.linalg.eigvalsh(patches.T @ patches / len(patches)).flip(0)
    assert torch.allclose(whitened(layer, pixels), torch.diag(values / (values + eps)), atol=1e-5)


def test_both_signs_are_each_others_negatives_and_the_bias_starts_at_zero():
    layer = Whitening(3, 2, both_signs=True, bias=True)
    layer.fit(images())
    assert layer.weight.shape == (24, 3, 2, 2)
    assert torch.equal(layer.weight[:12], -layer.weight[12:])
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert layer.bias.abs().sum() == 0


def test_channels_without_variance_stay_finite():
    pixels = images()
    pixels[:, 2] = 0
    pixels[:, 1] = pixels[:, 0]
    layer = Whitening(3, 2, both_signs=True, bias=True)
    layer.fit(pixels)
    with torch.no_grad():
        answers = layer(pixels)
    assert answers.isfinite().all()
    assert answers.square().mean((0, 2, 3)).max() < 1.01


def test_the_same_images_give_the_same_weight_and_others_another():
    one, same, other = (Whitening(3, 2, both_signs=True, bias=True) for _ in range(3))
    one.fit(images())
    same.fit(images())
    other.fit(images(seed=1))
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)


def test_many_images_are_sampled_evenly(monkeypatch):
    """Beyond the limit, every so many images are looked at, not the first ones."""
    pixels = images(100)
    monkeypatch.setattr("sightline.layers.whitening.MAX_WHITENED_PATCHES", 10 * 12 * 12)
    some, chosen = (Whitening(3, 2, both_signs=False, bias=False) for _ in range(2))
    some.fit(pixels)
    chosen.fit(pixels[::10])
    assert torch.equal(some.weight, chosen.weight)


WHITENED = ["fastcnn", "resnet20:stem=whitened", "resnet18:stem=whitened"]


@pytest.mark.parametrize("name", WHITENED)
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_initialise_their_whitening_from_images(name, channels):
    network = build(parse_architecture(name, classes=3, channels=channels, size=(12, 12)))
    pixels = images(channels=channels)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.init_from_data(pixels)
    changed = [key for key, value in network.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["whiten.weight"]
    rows = network.whiten.weight.shape[0] // (2 if name == "fastcnn" else 1)
    strength = whitened(network.whiten, pixels).diagonal()[:rows]
    assert (strength <= 1 + 1e-5).all()
    assert strength[0] > 0.99


@pytest.mark.parametrize("name", WORDS)
def test_init_from_data_does_not_change_trained_weights(name):
    network = build(parse_architecture(name, classes=3, channels=3, size=(12, 12)))
    before = [parameter.clone() for parameter in network.parameters()]
    network.init_from_data(images())
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("name", WHITENED)
def test_training_and_initialisation_do_not_change_the_whitening(name):
    network = build(parse_architecture(name, classes=3, channels=3, size=(12, 12)))
    network.init_from_data(images())
    kept = network.whiten.weight.clone()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.1)
    for _ in range(2):
        F.cross_entropy(network(images(4)), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    initialise(network, "he-normal")
    assert torch.equal(network.whiten.weight, kept)


# The speed network against its publication.


def published(widths=(64, 256, 256), classes=10):
    """The network of arXiv 2404.00498, from its listing, in plain torch."""

    def group(inputs, outputs):
        def convolution(i):
            return nn.Conv2d(i, outputs, 3, padding="same", bias=False)

        def norm():
            return nn.BatchNorm2d(outputs, eps=1e-12, momentum=1 - 0.6)

        return [convolution(inputs), nn.MaxPool2d(2), norm(), nn.GELU(), convolution(outputs), norm(), nn.GELU()]

    first = [nn.Conv2d(3, 24, 2, padding=0, bias=True), nn.GELU()]
    groups = [*group(24, widths[0]), *group(widths[0], widths[1]), *group(widths[1], widths[2])]
    return nn.Sequential(*first, *groups, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(widths[2], classes, bias=False))


@pytest.mark.parametrize("training", [True, False])
def test_fastcnn_is_the_published_network(training):
    torch.manual_seed(0)
    ours = build(parse_architecture("fastcnn:width=0.25:eps=1e-12", classes=10, channels=3, size=(32, 32)))
    theirs = published((16, 64, 64))
    with torch.no_grad():
        for value in ours.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.1)
    assert [v.shape for v in ours.state_dict().values()] == [v.shape for v in order(theirs).values()]
    theirs.load_state_dict(dict(zip(order(theirs), ours.state_dict().values(), strict=True)))
    pixels = torch.randn(6, 3, 32, 32)
    ours.train(training)
    theirs.train(training)
    with torch.no_grad():
        for _ in range(2):  # twice, so that the running statistics' momentum counts
            mine, right = ours(pixels), theirs(pixels) / 9
    assert torch.allclose(mine, right, atol=1e-5 * right.abs().max().item())
    running = [(m.running_mean, m.running_var) for m in ours.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = [(m.running_mean, m.running_var) for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)]
    for one, other in zip(running, expected, strict=True):
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(one, other, strict=True))


def order(network):
    """The tensors of the published network in the order of ours: parameters, then buffers, in each layer."""
    state, names = network.state_dict(), []
    for prefix in dict.fromkeys(name.rpartition(".")[0] for name in state):
        kinds = ("bias", "weight") if f"{prefix}.bias" in state else ("weight",)
        kinds = (*kinds, "running_mean", "running_var", "num_batches_tracked")
        frozen_last = f"{prefix}.running_mean" in state
        kinds = ("bias", *kinds[2:], "weight") if frozen_last else kinds
        names += [f"{prefix}.{kind}" for kind in kinds if f"{prefix}.{kind}" in state]
    return {name: state[name] for name in names}


def test_convolutions_of_fastcnn_start_as_the_identity():
    network = build(parse_architecture("fastcnn:width=0.25", classes=10, channels=3, size=(32, 32)))
    x = torch.randn(2, 24, 9, 9)
    with torch.no_grad():
        assert torch.equal(network.groups[0].conv1(x), x[:, :16])
        assert torch.equal(network.groups[1].conv1(x[:, :16])[:, :16], x[:, :16])
        assert torch.equal(network.groups[1].conv2(torch.ones(1, 64, 4, 4)), torch.ones(1, 64, 4, 4))


def test_one_set_of_weights_works_at_every_size():
    """Progressive resizing: what is trained on small images goes on with larger ones."""
    small, large = (
        build(parse_architecture("fastcnn", classes=4, channels=3, size=(s, s))).eval() for s in (16, 32)
    )
    large.load_state_dict(small.state_dict())
    for side in (16, 20, 24, 32, 48):
        pixels = torch.rand(2, 3, side, side)
        with torch.no_grad():
            assert torch.equal(small(pixels), large(pixels))


def test_rounding_does_not_flip_the_sign_of_a_direction():
    """Patches of pictures look alike when turned over, so entries of their directions are equal in pairs."""
    chance = torch.Generator().manual_seed(0)
    pixels = torch.rand(200, 1, 12, 12, generator=chance).cumsum(3)
    pixels = torch.cat([pixels, pixels.flip(2), pixels.flip(3), pixels.flip(2, 3)])
    layer = Whitening(1, 2, both_signs=True, bias=False)
    layer.fit(pixels)
    expected = layer.weight.clone()
    for _ in range(20):
        layer.fit(pixels * (1 + 1e-6 * torch.randn(pixels.shape, generator=chance)))
        torch.testing.assert_close(layer.weight, expected, rtol=1e-2, atol=1e-3)
