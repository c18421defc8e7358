"""Initialisations against torch's own and against the formulas' variances."""

import math

import pytest
import torch
from torch import nn

from sightline.errors import ChoiceError
from sightline.layers import INITIALISATIONS, initialise
from sightline.models import build, parse_architecture

LAYERS = [lambda: nn.Conv2d(12, 20, 5), lambda: nn.Linear(150, 70)]
LINEAR = {"nonlinearity": "linear"}
ORACLES = {
    "glorot-uniform": nn.init.xavier_uniform_,
    "glorot-normal": nn.init.xavier_normal_,
    "he-uniform": lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    "he-normal": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "lecun-uniform": lambda w: nn.init.kaiming_uniform_(w, **LINEAR),
    "lecun-normal": lambda w: nn.init.kaiming_normal_(w, **LINEAR),
}
"""torch's gain for 'linear' is 1, which makes He's variance LeCun's."""

SHARES = {"glorot": (2, 1, 1), "he": (2, 1, 0), "lecun": (1, 1, 0)}
"""(a, b, c) of the variance a / (b n_in + c n_out)."""

members = pytest.mark.parametrize("name", INITIALISATIONS)


@members
@pytest.mark.parametrize("make", LAYERS)
def test_draws_what_torch_draws(name, make):
    ours, theirs = make(), make()
    torch.manual_seed(0)
    initialise(ours, name)
    torch.manual_seed(0)
    ORACLES[name](theirs.weight)
    assert torch.allclose(ours.weight, theirs.weight, rtol=1e-5)
    assert ours.bias.abs().sum() == 0


@members
@pytest.mark.parametrize(("make", "n_in", "n_out"), [(LAYERS[0], 300, 500), (LAYERS[1], 150, 70)])
def test_variance_and_bounds_are_those_of_the_formula(name, make, n_in, n_out):
    layer = make()
    torch.manual_seed(0)
    initialise(layer, name)
    family, _, shape = name.partition("-")
    share, of_inputs, of_outputs = SHARES[family]
    wanted = share / (of_inputs * n_in + of_outputs * n_out)
    n = layer.weight.numel()
    # The variance of a sample variance is (kurtosis - 1) / n: 2 for a normal, 0.8 for a uniform.
    spread = math.sqrt((2 if shape == "normal" else 0.8) / n)
    assert abs(layer.weight.var().item() / wanted - 1) < 4 * spread
    largest = layer.weight.abs().max().item() / math.sqrt(3 * wanted)
    assert (0.99 < largest <= 1 + 1e-6) if shape == "uniform" else largest > 1.5


@members
def test_only_convolutions_and_linear_layers_change(name):
    """Norms stay, and so does the frozen whitening; the same seed gives the same weights."""
    network = build(parse_architecture("fastcnn:width=0.25", classes=3, channels=3, size=(32, 32)))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(7)
    initialise(network, INITIALISATIONS[name])
    after = network.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {f"groups.{i}.conv{j}.weight" for i in range(3) for j in (1, 2)} | {"head.weight"}
    again = build(parse_architecture("fastcnn:width=0.25", classes=3, channels=3, size=(32, 32)))
    torch.manual_seed(7)
    initialise(again, name)
    assert all(torch.equal(after[key], value) for key, value in again.state_dict().items())


def test_he_preserves_the_variance_through_twenty_relu_layers():
    """What it is for; the old heuristic U(-1/sqrt(n), 1/sqrt(n)) of paper 002's equation 4 loses it."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(part for _ in range(20) for part in (nn.Linear(256, 256), nn.ReLU())))
    x = torch.randn(64, 256)
    with torch.no_grad():
        for name in ("he-uniform", "he-normal"):
            initialise(layers, name)
            assert 0.2 < layers(x).square().mean() / x.square().mean() < 5
        for layer in layers[::2]:
            layer.weight.uniform_(-1 / 16, 1 / 16)
        assert layers(x).square().mean() < 1e-6


def test_unknown_names_are_suggested():
    with pytest.raises(ChoiceError, match="Did you mean 'he-normal'"):
        initialise(nn.Linear(2, 2), "he_normal")
