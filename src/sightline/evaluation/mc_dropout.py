"""Monte Carlo dropout: the same image asked many times with dropout on, and how much the answers differ."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..classifier import Classifier
from ..errors import DataError


@dataclass(frozen=True, eq=False)
class MCDropoutPrediction:
    """What T passes with dropout say of B images (Gal and Ghahramani 2016). Entropies are in nats."""

    probabilities: Float[Tensor, "B K"]
    """Mean over the passes: a small ensemble's answer."""
    entropy: Float[Tensor, " B"]
    """Of that mean: all there is to doubt, in [0, ln K]."""
    mutual_information: Float[Tensor, " B"]
    """Entropy of the mean less the mean entropy of the passes: the mutual information of answer and weights,
    the part of the doubt that more training images would lessen; 0 where all passes agree."""


def predict_with_dropout(
    classifier: Classifier, images: Float[Tensor, "B C H W"], *, passes: int = 30, seed: int = 0
) -> MCDropoutPrediction:
    """Ask ``passes`` times with dropout as in training and all else as in answering; the temperature is applied.

    The passes draw from ``seed`` and leave the global generators as they were. Raises DataError for a classifier
    without dropout, ValueError for fewer than one pass.
    """
    if passes < 1:
        raise ValueError(f"passes must be a whole number of at least 1, not {passes}")
    devices = [images.device] if images.device.type == "cuda" else []
    mean, entropies = torch.zeros(0), torch.zeros(0)
    with torch.random.fork_rng(devices), torch.inference_mode(), enable_dropout(classifier):
        torch.manual_seed(seed)
        for number in range(1, passes + 1):
            answer = classifier.probabilities(images)
            if number == 1:
                mean, entropies = torch.zeros_like(answer), torch.zeros_like(answer[:, 0])
            mean += (answer - mean) / number
            entropies += (_entropy(answer) - entropies) / number
    whole = _entropy(mean)
    return MCDropoutPrediction(mean, whole, (whole - entropies).clamp_min(0))


@contextmanager
def enable_dropout(classifier: Classifier) -> Iterator[None]:
    """Within it dropout layers drop, and everything else (norms, above all) is in eval mode.

    Raises DataError for a classifier that has none.
    """
    layers = [m for m in classifier.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    if not layers:
        raise DataError(
            "Monte Carlo dropout needs a network with dropout, and this one has none: train one with --dropout "
            "0.2, or look at another score."
        )
    training = classifier.training
    classifier.eval()
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        classifier.train(training)


def _entropy(probabilities: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    return torch.special.entr(probabilities).sum(1)
