"""Classifiers to attack: some trained in a second on digits, and a plane whose margins are known."""

from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from sightline.classifier import Classifier
from sightline.data import load_dataset
from sightline.data.loader import to_tensor
from sightline.layers import Network
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing, fit_preprocessing
from sightline.types import Geometry

GEOMETRY = Geometry(size=(8, 8), channels=1)


@cache
def digits(classes=10):
    """All images of the first so many digits: pixels (N 1 8 8), labels, dataset."""
    dataset = load_dataset("digits", GEOMETRY)
    dataset = dataset.subset(dataset.labels < classes)
    return to_tensor(dataset[:]).contiguous(), torch.from_numpy(dataset.labels), dataset


@cache
def trained(model="small-cnn", classes=10, steps=100):
    """A classifier of digits, in eval mode; tests that change it take a copy."""
    torch.manual_seed(0)
    pixels, labels, dataset = digits(classes)
    plan = parse_architecture(model, classes=classes, channels=1, size=(8, 8))
    names = dataset.classes[:classes]
    made = Classifier(
        fit_preprocessing(dataset, "fitted", 1), build(plan), architecture=plan, classes=names, geometry=GEOMETRY
    ).train()
    moves = torch.optim.Adam(made.parameters(), 3e-3)
    for step in range(steps):
        some = slice(step * 128 % 1024, step * 128 % 1024 + 128)
        F.cross_entropy(made(pixels[some]), labels[some]).backward()
        moves.step()
        moves.zero_grad()
    return made.eval()


class Line(Network):
    """Two classes on the two sides of a plane: logits (-s / 2, s / 2), s = w . x + b."""

    def __init__(self, weight, bias):
        super().__init__()
        self.head = nn.Linear(weight.numel(), 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.stack([-weight / 2, weight / 2]))
            self.head.bias.copy_(torch.tensor([-bias / 2, bias / 2]))

    def logits(self, pixels):
        return self.head(pixels.flatten(1))


def linear(weight, bias=0.0):
    """A classifier that is a plane."""
    plan = parse_architecture("mlp", classes=2, channels=1, size=(8, 8))
    made = Classifier(
        Preprocessing(), Line(weight, bias), architecture=plan, classes=("no", "yes"), geometry=GEOMETRY
    )
    return made.eval()
