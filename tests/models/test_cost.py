"""Multiply-adds against torch's own counter and against published counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers.tiny_classifiers import WORDS
from sightline.models import SURGERY, build, count_multiply_adds, parse_architecture


def network_of(name, classes=10, channels=3, size=(32, 32)):
    with torch.device("meta"):
        return build(parse_architecture(name, classes=classes, channels=channels, size=size))


@pytest.mark.parametrize("name", [*WORDS, "resnet20:stem=whitened"])
def test_agrees_with_the_counter_of_torch(name):
    """Two floating-point operations are one multiply-add."""
    channels, size = 1, (20, 31)
    network = network_of(name, channels=channels, size=size).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.rand(1, channels, *size, device="meta"))
    assert 2 * count_multiply_adds(network, channels, size) == counter.get_total_flops()


PUBLISHED = [
    # formulas of Table II, layer by layer, with 'same' padding.
    ("table2", 10, 224, 43_352_064 + 231_211_008 + 25_690_112 + 1_280),
    # torchvision's page: 1.814 G multiply-adds ("GFLOPS 1.81").
    ("resnet18", 1000, 224, 1_814_073_344),
    # Idelbayev's ResNet-20 with shortcuts without parameters; with projections (40.81 M) it is 262,144 more.
    ("resnet20", 10, 32, 40_813_184 - 2 * 131_072),
    # The sum of the definition in arXiv 2404.00498; forwards and backwards (three times) over 9.9 epochs it makes
    # 0.35 PFLOP, where the author counts 0.36.
    (
        "fastcnn",
        10,
        32,
        31**2 * (12 * 24 + 9 * 24 * 64) + 15**2 * 9 * 64 * (64 + 256) + (2 * 7**2 + 3**2) * 9 * 256**2 + 2_560,
    ),
]


@pytest.mark.parametrize(("name", "classes", "side", "count"), PUBLISHED)
def test_published_counts(name, classes, side, count):
    assert count_multiply_adds(network_of(name, classes, 3, (side, side)), 3, (side, side)) == count


def test_counting_does_not_change_the_network():
    network = build(parse_architecture("lenet5", classes=10, channels=3, size=(32, 32))).train()
    network.head.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_multiply_adds(network, 3, (32, 32))
    assert network.training
    assert not network.head.training
    assert all(value.device.type == "cpu" for value in network.state_dict().values())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_counts_do_not_depend_on_precision():
    network = network_of("resnet20").to(torch.bfloat16)
    assert count_multiply_adds(network, 3, (32, 32)) == count_multiply_adds(network_of("resnet20"), 3, (32, 32))


def test_flip_tta_doubles_the_multiply_adds():
    plain = count_multiply_adds(network_of("resnet20"), 3, (32, 32))
    assert count_multiply_adds(SURGERY["mirrored"](network_of("resnet20")), 3, (32, 32)) == 2 * plain
