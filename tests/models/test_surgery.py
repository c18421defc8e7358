"""Answers that are the mean over an image and its mirror image, inside the network."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from helpers.tiny_classifiers import DISTINCT_WORDS
from sightline.models import SURGERY, Architecture, build, get_head, load_weights, parse_architecture

networks = pytest.mark.parametrize("name", DISTINCT_WORDS)


def network_of(name, classes=4):
    torch.manual_seed(0)
    return build(parse_architecture(name, classes=classes, channels=3, size=(16, 16)))


def close(one, other):
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())


@networks
def test_flip_tta_is_the_mean_over_both_flips(name):
    plain = network_of(name).eval()
    mirrored = SURGERY["mirrored"](copy.deepcopy(plain))
    pixels = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        right = (plain(pixels) + plain(torch.flip(pixels, (3,)))) / 2
        assert close(mirrored(pixels), right)
        assert close(mirrored(pixels), mirrored(torch.flip(pixels, (3,))))
        assert not close(plain(pixels), right)


@networks
def test_training_sees_each_image_once(name):
    plain = network_of(f"{name}:dropout=0.0").train()
    mirrored = SURGERY["mirrored"](copy.deepcopy(plain))
    pixels = torch.rand(3, 3, 16, 16)
    assert torch.equal(mirrored(pixels), plain(pixels))
    assert list(mirrored.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("changes", [("grown_head", "mirrored"), ("mirrored", "grown_head")])
@networks
def test_a_head_grows_before_or_after_flip_tta(name, changes):
    arguments = {"grown_head": {"classes": 6}, "mirrored": {}}
    plan = parse_architecture(name, classes=4, channels=3, size=(16, 16))
    torch.manual_seed(0)
    network = build(Architecture(plan.name, plan.arguments, tuple((c, arguments[c]) for c in changes))).eval()
    before = SURGERY["mirrored"](network_of(name)).eval()
    pixels = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        assert close(network(pixels)[:, :4], before(pixels))
    assert get_head(network).out_features == 6


def test_flip_tta_twice_is_flip_tta_once():
    once = SURGERY["mirrored"](network_of("lenet5")).eval()
    twice = SURGERY["mirrored"](copy.deepcopy(once))
    pixels = torch.rand(3, 3, 16, 16)
    assert torch.equal(once(pixels), twice(pixels))


@networks
def test_weights_load_with_and_without_flip_tta(name, tmp_path):
    plain = network_of(name)
    save_file(plain.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(1)
    target = SURGERY["mirrored"](build(parse_architecture(name, classes=4, channels=3, size=(16, 16))))
    report = load_weights(target, tmp_path / "w.safetensors")
    assert report.initial == ()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in target.state_dict().items())


def test_gradients_through_flip_tta_reach_both_flips():
    """An attack in eval mode has to see all of the classifier."""
    network = SURGERY["mirrored"](network_of("mlp")).eval()
    plain = network_of("mlp").eval()
    pixels = torch.rand(1, 3, 16, 16, requires_grad=True)
    network(pixels)[0, 0].backward()
    other = pixels.detach().clone().requires_grad_()
    ((plain(other) + plain(other.flip(3))) / 2)[0, 0].backward()
    assert torch.allclose(pixels.grad, other.grad, atol=1e-7)
