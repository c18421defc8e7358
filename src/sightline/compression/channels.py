"""Structured pruning: whole channels go, so that what is left is a smaller network and nothing else."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from .. import runtime
from ..checks import check_int, check_number
from ..choose import suggest
from ..classifier import Classifier
from ..data import iterate_batches
from ..errors import DataError, RecipeError
from ..layers import Network, is_narrowable, layer_widths
from ..models import copy_network, count_multiply_adds
from ..types import Dataset, Splits
from .changing import example_input
from .channel_groups import (
    ChannelGroup,
    RemovedChannels,
    find_channel_groups,
    keep_one_per_layer,
    layer_multiply_adds,
    remove_channels,
    saved_multiply_adds,
)

TAYLOR_IMAGES, TAYLOR_BATCH_SIZE = 1024, 32
"""Training images whose gradients ``taylor`` looks at, and how many at a time."""

MIN_CHANNEL_SHARE = 0.1
"""Share of a group's channels that stays, whatever is asked."""

CHANNEL_SEARCH_STEPS = 10
"""Halvings of the search for the share of channels: to 1 in 1,000."""


@dataclass(frozen=True)
class ChannelCriterion:
    """What a channel is worth: ``score`` of the rows ``(channels, numbers)`` it has in a layer."""

    score: Callable[[Float[Tensor, "n D"]], Float[Tensor, " n"]]
    uses_norms: bool = True
    """Whether scales of norms count too."""
    uses_gradients: bool = False
    """Whether the numbers are what the loss would change by without each weight, not the weights."""


def _distance_to_others(rows: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
    """The sum of the distances to all others: small near the geometric median, where others can stand in."""
    return torch.cdist(rows, rows).sum(1)


CHANNEL_CRITERIA: Mapping[str, ChannelCriterion] = {
    "l1": ChannelCriterion(lambda rows: rows.abs().sum(1)),
    "l2": ChannelCriterion(lambda rows: rows.square().sum(1)),
    "geometric": ChannelCriterion(_distance_to_others, uses_norms=False),
    "taylor": ChannelCriterion(lambda rows: rows.sum(1), uses_gradients=True),
}
"""Filters' magnitude (Li et al. 2017), squared; distance from the geometric median (He et al. 2019); the squared
first-order change of the loss (Molchanov et al. 2019, arXiv 1906.10771, equation 8)."""


def select_channels_per_layer(scores: Sequence[Float[Tensor, " _"]], share: float) -> RemovedChannels:
    """The same share of each group."""
    return [_lowest_mask(score, round(share * len(score))) for score in scores]


def select_channels_globally(scores: Sequence[Float[Tensor, " _"]], share: float) -> RemovedChannels:
    """One threshold for all: groups whose channels are worth little give more."""
    every = torch.cat([*scores])
    chosen = _lowest_mask(every, round(share * len(every)))
    return [*chosen.split([len(score) for score in scores])]


CHANNEL_SCOPES: Mapping[str, Callable[[Sequence[Float[Tensor, " _"]], float], RemovedChannels]] = {
    "layer": select_channels_per_layer,
    "global": select_channels_globally,
}
"""Name -> ``(scores of each group, share of all channels) -> the channels that go``."""


@dataclass(frozen=True)
class Channels:
    """Channels worth least are taken out, until the share ``amount`` of the multiply-adds is gone.

    ``criterion`` is how they are judged (see ``CRITERIA``) and ``scope`` whether each ``layer`` gives the same
    share or all are ranked together (``global``). Widths left are multiples of ``multiple``; CPUs like 8.
    """

    amount: float = 0.4
    criterion: str = "taylor"
    scope: str = "layer"
    multiple: int = 1

    heals: ClassVar[bool] = True
    """A training should follow."""

    def __post_init__(self) -> None:
        """Raise ValueError for a share, criterion, scope or multiple that cannot be."""
        check_number("amount", self.amount, above=0, below=1)
        for name, family in (("criterion", CHANNEL_CRITERIA), ("scope", CHANNEL_SCOPES)):
            if (word := vars(self)[name]) not in family:
                raise ValueError(f"there is no {name} '{word}'. {suggest(str(word), family)}")
        check_int("multiple", self.multiple, 1)

    def __call__(self, classifier: Classifier, data: Splits) -> Classifier:
        """The classifier with fewer channels; ``taylor`` looks at training images, the others at no image.

        Raises RecipeError for a network that was relieved of channels before, has none to give, or cannot give so
        many.
        """
        network = copy_network(classifier.network, classifier.architecture, "widths")
        pixels = example_input(classifier)
        found = find_channel_groups(network, pixels)
        if not found:
            raise RecipeError("This network has no channels that could go alone: choose another compressor.")
        criterion = CHANNEL_CRITERIA[self.criterion]
        if criterion.uses_gradients:
            numbers = taylor_importance(classifier, network, data.train)
        else:
            numbers = {name: weight.detach() for name, weight in _named_weights(network).items()}
        scores = [channel_importance(group, numbers, criterion) for group in found]
        whole = count_multiply_adds(network, classifier.geometry.channels, classifier.geometry.size)
        work = layer_multiply_adds(network, pixels)
        gone = self._search(found, scores, lambda out: saved_multiply_adds(network, work, found, out) / whole)
        small = remove_channels(network, found, gone)
        before, after = (
            {name: layer_widths(layer) for name, layer in of.named_modules() if is_narrowable(layer)}
            for of in (network, small)
        )
        layers = {name: new for name, new in after.items() if new != before[name]}
        return classifier.with_network(small, "widths", {"layers": layers})

    def _search(
        self,
        found: Sequence[ChannelGroup],
        scores: Sequence[Float[Tensor, " _"]],
        taken: Callable[[RemovedChannels], float],
    ) -> RemovedChannels:
        """The fewest channels with which the share asked for is ``taken``; RecipeError where none suffice."""
        low, high, best = 0.0, 1.0, self._select(1.0, found, scores)
        if (most := taken(best)) < self.amount:
            raise RecipeError(
                f"Of this network's multiply-adds {most:.1%} can go with channels, {self.amount:.1%} were asked "
                f"for: ask for {int(most * 100) / 100} or less."
            )
        for _ in range(CHANNEL_SEARCH_STEPS):
            middle = (low + high) / 2
            gone = self._select(middle, found, scores)
            if taken(gone) >= self.amount:
                high, best = middle, gone
            else:
                low = middle
        return best

    def _select(
        self, share: float, found: Sequence[ChannelGroup], scores: Sequence[Float[Tensor, " _"]]
    ) -> RemovedChannels:
        """The channels that go at a share of them: worth least, whole multiples left, some of each group kept."""
        chosen = CHANNEL_SCOPES[self.scope](scores, share)
        return [
            keep_one_per_layer(
                group, _lowest_mask(score, len(score) - self._n_remaining(len(score), int(gone.sum()))), score
            )
            for group, score, gone in zip(found, scores, chosen, strict=True)
        ]

    def _n_remaining(self, count: int, gone: int) -> int:
        """Channels that stay of a group of ``count``."""
        least = max(1, round(MIN_CHANNEL_SHARE * count), count - gone)
        return min(count, -(-least // self.multiple) * self.multiple)


def _lowest_mask(scores: Float[Tensor, " n"], count: int) -> Bool[Tensor, " n"]:
    """Where the so many lowest are."""
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[scores.argsort(stable=True)[:count]] = True
    return chosen


def _named_weights(network: Network) -> dict[str, Tensor]:
    """The weights of each layer that has some, trained or not."""
    return {
        name.removesuffix(".weight"): tensor
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
        if name.endswith(".weight")
    }


def channel_importance(
    group: ChannelGroup, numbers: Mapping[str, Tensor], criterion: ChannelCriterion
) -> Float[Tensor, " channels"]:
    """What each channel of a group is worth over all layers it is found in, 1 on average."""
    total = torch.zeros(group.count)
    for site in group.sites:
        given = numbers[site.layer]
        if given.ndim == 1 and not criterion.uses_norms:
            continue
        turned = given if site.side == "outputs" else given.transpose(0, 1)
        rows = turned[site.places].flatten(1) if given.ndim > 1 else given[site.places].unsqueeze(1)
        total.index_add_(0, site.channels, criterion.score(rows).float())
    mean = float(total.mean())
    return total / mean if mean > 0 else total


def taylor_importance(classifier: Classifier, network: Network, images: Dataset) -> dict[str, Tensor]:
    """``(w dL/dw)^2`` of every weight, summed over pieces of a sample of the training images, dropout off.

    Raises DataError where there are no images.
    """
    if not len(images):
        raise DataError("criterion=taylor looks at training images, and there are none: choose criterion=l2.")
    sample = images.subset(np.sort(runtime.permutation(len(images), 0)[:TAYLOR_IMAGES]))
    found = {name: torch.zeros_like(weight) for name, weight in _named_weights(network).items()}
    preprocessing = copy.deepcopy(classifier.preprocessing).cpu().eval()
    trained = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    learning = {name: trained[f"{name}.weight"] for name in found if f"{name}.weight" in trained}
    for batch in iterate_batches(sample, TAYLOR_BATCH_SIZE):
        loss = F.cross_entropy(network(preprocessing(batch.pixels)), batch.labels)
        slopes = torch.autograd.grad(loss, [*learning.values()], allow_unused=True)
        for (name, weight), slope in zip(learning.items(), slopes, strict=True):
            if slope is not None:
                found[name] += (weight.detach() * slope).square()
    return found
