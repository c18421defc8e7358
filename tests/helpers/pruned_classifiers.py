"""What tests of structural compression begin with: classifiers that look trained, and a few images."""

import numpy as np
import torch

from sightline.classifier import Classifier
from sightline.layers.pruned import SparseConv2d, SparseLinear
from sightline.models import Architecture, build, parse_architecture
from sightline.preprocessing import Normalise, Preprocessing
from sightline.types import Dataset, Geometry, Splits

CLASSES = ("ant", "bee", "cow", "dog")


def make(word, *, side=16, channels=3, seed=0, surgery=()):
    """A classifier with weights and statistics drawn at random: none of them is 0 or 1, as in a fresh network."""
    torch.manual_seed(seed)
    plan = parse_architecture(word, classes=len(CLASSES), channels=channels, size=(side, side))
    plan = Architecture(plan.name, plan.arguments, tuple(surgery))
    network = build(plan)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for name, weight in network.named_parameters():
            if "noise" not in name:
                weight.normal_(0, (1.5 / weight[0].numel()) ** 0.5 if weight.ndim > 1 else 0.5)
    steps = [Normalise((0.4,) * channels, (0.3,) * channels)]
    geometry = Geometry(size=(side, side), channels=channels)
    return Classifier(
        Preprocessing(steps), network, architecture=plan, classes=CLASSES, geometry=geometry, temperature=1.3
    ).eval()  # fmt: skip


def count_zeros(network):
    """(zero weights, all weights) of the layers that are pruned."""
    weights = [one.weight for one in network.modules() if isinstance(one, SparseConv2d | SparseLinear)]
    return sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)


def images(count, *, side=16, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return Dataset(
        pixels=rng.integers(0, 256, (count, side, side, channels), np.uint8),
        rows=np.arange(count),
        labels=rng.integers(0, len(CLASSES), count),
        classes=CLASSES,
        files=np.array([f"{i}.png" for i in range(count)]),
        digests=np.arange(count, dtype=np.uint64),
        geometry=Geometry(size=(side, side), channels=channels),
        fingerprint="drawn",
    )


def splits(count=32, **how):
    return Splits(images(count, **how), images(count, seed=1, **how), images(count, seed=2, **how))


def pixels_of(classifier, count=4, seed=3):
    torch.manual_seed(seed)
    return torch.rand(count, classifier.geometry.channels, *classifier.geometry.size)


def logits(classifier, count=4):
    with torch.no_grad():
        return classifier.eval()(pixels_of(classifier, count))


def saved_and_loaded(classifier, folder):
    classifier.save(folder / "bundle")
    return Classifier.load(folder / "bundle")
