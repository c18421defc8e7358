"""An input to run a network with, where only its structure matters."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor

from .. import runtime
from ..classifier import Classifier


def example_input(classifier: Classifier, count: int = 2) -> Float[Tensor, "B C H W"]:
    """What the network is given for random pixels, on the CPU."""
    height, width = classifier.geometry.size
    shape = (count, classifier.geometry.channels, height, width)
    pixels = torch.rand(shape, generator=runtime.make_generator(0))
    with torch.no_grad():
        return copy.deepcopy(classifier.preprocessing).cpu().eval()(pixels)
