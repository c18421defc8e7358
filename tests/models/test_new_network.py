"""A stranger's network: one file, one line in NETWORKS, and everything else works with it."""

import importlib
import sys

import pytest
import torch

from helpers.tiny_classifiers import SETTLED
from sightline.classifier import Classifier
from sightline.models import NETWORKS, NetworkEntry, build, describe_networks, parse_architecture
from sightline.training import Recipe, train

FILE = '''
"""A network that someone else wrote."""

from torch import nn

from sightline.layers import Network, make_dropout


class Tiny(Network):
    """One convolution, the mean, the head."""

    def __init__(self, classes, channels, width, dropout):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = make_dropout(dropout)
        self.head = nn.Linear(width, classes)

    def logits(self, pixels):
        return self.head(self.dropout(self.norm(self.conv(pixels)).relu().mean((2, 3))))


def tiny(classes, channels, size, width=8, dropout=0.0):
    """The smallest network that can be called one."""
    return Tiny(classes, channels, width, dropout)
'''


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The file, and the line."""
    (tmp_path / "strangers_network.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = importlib.import_module("strangers_network").tiny
    monkeypatch.setitem(NETWORKS, "tiny", NetworkEntry(made, 1, 28, (28, 32), lr_factor=0.5, small="width=4"))
    yield
    sys.modules.pop("strangers_network")


@pytest.mark.parametrize("classes", [2, 10])
def test_a_word_builds_it(tiny, classes):
    plan = parse_architecture("tiny:width=16", classes=classes, channels=3, size=(20, 24))
    assert build(plan).eval()(torch.rand(2, 3, 20, 24)).shape == (2, classes)


def test_it_is_listed_with_its_cost(tiny):
    line = describe_networks()[-1]
    assert (line.name, line.channels, line.size, line.best_sizes) == ("tiny", 1, (28, 28), (28, 32))
    assert line.parameters == 8 * 9 + 8 + 2 * 8 + 10 * 8 + 10
    assert line.multiply_adds == 28 * 28 * 8 * 9 + 80
    assert line.summary == "The smallest network that can be called one."


def test_it_trains_is_saved_and_answers(tiny, tmp_path):
    recipe = Recipe(model="tiny", size=8, epochs=1, limit=200, batch_size=64, **SETTLED)
    run = train("digits", recipe, out=tmp_path / "run", device="cpu")
    usual = train("digits", recipe.replace(model="resnet20"), out=tmp_path / "usual", device="cpu")
    assert run.recipe.lr == pytest.approx(usual.recipe.lr / 2)
    pixels = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(Classifier.load(tmp_path / "run")(pixels), run.classifier.eval()(pixels))
    assert run.classifier.architecture.name == "tiny"
