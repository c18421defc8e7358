"""An ensemble as one network: the mean of its members' probabilities."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..checks import check_number
from ..errors import BundleError
from ..layers import ImageSize, Network
from ..preprocessing import Preprocessing
from .bundle import TEMPERATURE_RANGE


class EnsembleMember(nn.Module):
    """One classifier of an ensemble: pixels in [0, 1] -> calibrated log-probabilities, in the ensemble's order."""

    def __init__(
        self, preprocessing: Preprocessing, network: Network, temperature: float, order: Sequence[int]
    ) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.network = network
        self.temperature = temperature
        self.order = tuple(order)
        """For each class of the ensemble, its index among the member's outputs."""

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Log softmax(logits / temperature), in float32."""
        logits = self.network(self.preprocessing(pixels)).float()
        answers = torch.log_softmax(logits / self.temperature, 1)
        return answers if self.order == tuple(range(len(self.order))) else answers[:, list(self.order)]


class EnsembleNetwork(Network):
    """``log(mean over members of softmax(z_m / T_m))``: logits whose softmax is the mean of the probabilities.

    It takes pixels in [0, 1]: each member has its own preprocessing.
    """

    def __init__(self, members: Sequence[EnsembleMember]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.differentiable = all(one.network.differentiable for one in members)

    def member_list(self) -> list[EnsembleMember]:
        """The members."""
        return [one for one in self.members if isinstance(one, EnsembleMember)]

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return len(self.member_list()[0].order)

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The features of each member, side by side."""
        return torch.cat([one.network.embed(one.preprocessing(pixels)) for one in self.member_list()], 1)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logarithms of the mean probabilities."""
        answers = torch.stack([member(pixels) for member in self.members])
        return torch.logsumexp(answers, 0) - math.log(len(answers))


def rebuild_ensemble(
    rebuild: Callable[[Mapping[str, Any]], Network],
    classes: int,
    channels: int,
    size: ImageSize,
    members: Sequence[Mapping[str, Any]],
) -> Network:
    """An ensemble from its members' configs: ``architecture``, ``preprocessing``, ``temperature``, ``order``.

    ``rebuild`` makes a network from an architecture's config. Raises BundleError where members cannot be rebuilt
    or differ in classes or pixels.
    """
    try:
        made = []
        for one in members:
            temperature = float(check_number("its temperature", one["temperature"], *TEMPERATURE_RANGE))
            steps = Preprocessing.from_config(one["preprocessing"])
            order = [int(k) for k in one["order"]]
            made.append(EnsembleMember(steps, rebuild(one["architecture"]), temperature, order))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"A member of the ensemble cannot be rebuilt: {error}.") from error
    for one, given in zip(made, members, strict=True):
        shape = given["architecture"]["arguments"]
        if (one.network.n_classes, sorted(one.order)) != (classes, list(range(classes))):
            raise BundleError("The members of the ensemble have different classes.")
        if (shape.get("channels"), list(shape.get("size", ()))) != (channels, list(size)):
            raise BundleError("The members of the ensemble expect different channels or sizes.")
    if not made:
        raise BundleError("The ensemble has no members.")
    return EnsembleNetwork(made)
