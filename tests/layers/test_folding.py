"""Batch norms that convolutions have taken in, compared with the network that keeps them."""

import copy

import pytest
import torch
from torch import nn

from helpers.tiny_classifiers import DISTINCT_WORDS
from sightline.layers import fold_replica, replicate
from sightline.models import build, parse_architecture

OTHER_ORDERS = ("densenet", "fastcnn", "small-cnn")
"""Networks whose norms follow a pool or an activation, or come before the convolution."""


def settle(network: nn.Module) -> nn.Module:
    """Statistics and weights of the norms that are not 0 and 1."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
    return network.eval()


def count_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("word", DISTINCT_WORDS)
def test_a_folded_network_answers_as_in_float64(word):
    torch.manual_seed(0)
    network = settle(build(parse_architecture(word, classes=5, channels=3, size=(32, 32))))
    x = torch.rand(3, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = fold_replica(network, x[:1])
    with torch.inference_mode():
        wanted = copy.deepcopy(network).double()(x.double())
        found, again = folded(x), folded(x)
    assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()
    assert torch.equal(found, again)  # nothing that lasts was overwritten
    assert before.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    if count_norms(network) and not word.startswith(OTHER_ORDERS):
        assert count_norms(folded) < count_norms(network) / 2


class Tricky(nn.Module):
    """A norm that fits, and five that do not."""

    def __init__(self):
        super().__init__()
        self.fits, self.twice, self.shown, self.batch, self.alone = (
            nn.Conv2d(4, 4, 3, padding=1) for _ in range(5)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(5))
        self.of_the_batch = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        x = self.norms[0](self.fits(x))
        x = self.norms[2](self.twice(self.norms[1](self.twice(x))))
        y = self.shown(x)
        x = self.norms[3](y) + y
        return self.norms[4](x + self.of_the_batch(self.batch(x)))


def test_a_convolution_with_another_use_keeps_its_norm():
    torch.manual_seed(0)
    network, x = settle(Tricky()), torch.randn(2, 4, 8, 8)
    folded = fold_replica(network, x)
    assert isinstance(folded.norms[0], nn.Identity)
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in (*folded.norms[1:], folded.of_the_batch))
    with torch.inference_mode():
        torch.testing.assert_close(folded(x), network(x), rtol=1e-5, atol=1e-5)


class Standardised(nn.Conv2d):
    """A convolution that makes its weights of its parameters: what is folded into these is lost."""

    def forward(self, input):
        weight = self.weight / self.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return nn.functional.conv2d(input, weight, self.bias)


def test_a_network_that_would_answer_otherwise_is_not_folded():
    torch.manual_seed(0)
    network = settle(nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)))
    assert fold_replica(network, torch.randn(1, 3, 8, 8)) is network


def test_a_replica_shares_weights_and_has_modules_of_its_own():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    other = replicate(network)
    shared = zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(one.data_ptr() == same.data_ptr() for one, same in shared)
    assert not {*network.modules()} & {*other.modules()}
