"""Pruning: single weights become zero (``Prune``), or whole channels are removed (``Channels``)."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import runtime
from ..checks import check_int, check_number
from ..choose import suggest
from ..classifier import Classifier
from ..data import iterate_batches
from ..errors import DataError, RecipeError
from ..layers import Network, is_narrowable, keep_zeros, layer_widths
from ..models import compressible_layers, copy_network, count_multiply_adds
from ..types import Dataset, Splits
from .channel_groups import (
    ChannelGroup,
    RemovedChannels,
    find_channel_groups,
    keep_one_per_layer,
    layer_multiply_adds,
    remove_channels,
    saved_multiply_adds,
)
from .compressor import Compressor, example_input

TAYLOR_IMAGES, TAYLOR_BATCH_SIZE = 1024, 32
"""Training images whose gradients ``taylor`` uses, and images per batch."""

MIN_CHANNEL_SHARE = 0.1
"""Smallest share of a group's channels that remains."""

VECTOR_CHANNELS = 8
"""Channels that the vector instructions of common CPUs take at once."""

CHANNEL_SEARCH_STEPS = 10
"""Bisections of the search for the share of channels: to 1 in 1,000."""


def smallest_weights(weights: Tensor, amount: float) -> Bool[Tensor, "..."]:
    """A mask of the share ``amount`` of the numbers smallest in magnitude; of equal ones the first."""
    magnitudes = weights.abs().flatten()
    if not (count := round(amount * len(magnitudes))):
        return torch.zeros_like(weights, dtype=torch.bool)
    last = magnitudes.kthvalue(count).values
    chosen = magnitudes < last
    equal = (magnitudes == last).nonzero().squeeze(1)
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen.view(weights.shape)


def prune_per_layer(weights: Sequence[Tensor], amount: float) -> list[Bool[Tensor, "..."]]:
    """Masks of the same share of each layer."""
    return [smallest_weights(weight, amount) for weight in weights]


def prune_globally(weights: Sequence[Tensor], amount: float) -> list[Bool[Tensor, "..."]]:
    """Masks by one threshold for all layers."""
    chosen = smallest_weights(torch.cat([weight.flatten() for weight in weights]), amount)
    masks = chosen.split([weight.numel() for weight in weights])
    return [mask.view(weight.shape) for mask, weight in zip(masks, weights, strict=True)]


PRUNING_SCOPES: Mapping[str, Callable[[Sequence[Tensor], float], list[Bool[Tensor, "..."]]]] = {
    "global": prune_globally,
    "layer": prune_per_layer,
}
"""Name -> ``(weights of each layer, amount) -> masks of the weights that become zero``."""


@dataclass(frozen=True)
class Prune(Compressor):
    """The share ``amount`` of the weights, the smallest in magnitude, becomes zero (Han et al. 2015).

    ``scope`` is ``global``, one threshold for all layers (arXiv 1506.02626), or ``layer``, the same share of each.
    Biases, norms, a frozen whitening and the last layer, which is small and decides, are not pruned.
    """

    amount: float = 0.5
    scope: str = "global"

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible share or scope."""
        check_number("amount", self.amount, above=0, below=1)
        if self.scope not in PRUNING_SCOPES:
            raise ValueError(f"there is no scope '{self.scope}'. {suggest(str(self.scope), PRUNING_SCOPES)}")

    def __call__(self, classifier: Classifier, data: Splits | None = None) -> Classifier:
        """The classifier with its smallest weights at zero for good: see ``layers.keep_zeros``. Uses no images.

        Raises RecipeError for a network that was pruned before, has nothing to prune, or would lose a whole layer.
        """
        del data
        network = copy_network(classifier.network, classifier.architecture, "masked")
        found = compressible_layers(network, example_input(classifier))
        if not found:
            raise RecipeError("This network has no layer to prune but its last one: choose another compressor.")
        masks = PRUNING_SCOPES[self.scope]([layer.weight.detach() for layer in found.values()], self.amount)
        for (name, layer), mask in zip(found.items(), masks, strict=True):
            if mask.all():
                raise RecipeError(
                    f"Pruning {self.amount:.1%} would remove the whole layer '{name}': choose a smaller amount, "
                    "or scope=layer for the same share of each."
                )
            layer.weight.data[mask] = 0
        return classifier.with_network(keep_zeros(network, [*found]), "masked", {"layers": [*found]})

    def at_strength(self, strength: float) -> Compressor:
        """The same with ``amount``."""
        return replace(self, amount=strength)


@dataclass(frozen=True)
class ChannelCriterion:
    """How a channel's importance is computed: ``score`` of its rows ``(channels, numbers)`` in each layer."""

    score: Callable[[Float[Tensor, "n D"]], Float[Tensor, " n"]]
    uses_norms: bool = True
    """Whether the scales of batch norms count too."""
    uses_gradients: bool = False
    """Whether the numbers are the change of the loss without each weight, instead of the weights."""


CHANNEL_CRITERIA: Mapping[str, ChannelCriterion] = {
    "l1": ChannelCriterion(lambda rows: rows.abs().sum(1)),
    "l2": ChannelCriterion(lambda rows: rows.square().sum(1)),
    "geometric": ChannelCriterion(lambda rows: torch.cdist(rows, rows).sum(1), uses_norms=False),
    "taylor": ChannelCriterion(lambda rows: rows.sum(1), uses_gradients=True),
}
"""Name -> criterion: the filters' magnitude (Li et al. 2017), and squared; the distance from the geometric median
(He et al. 2019); the squared first-order change of the loss (Molchanov et al. 2019, arXiv 1906.10771, equation
8)."""


def select_channels_per_layer(scores: Sequence[Float[Tensor, " _"]], share: float) -> RemovedChannels:
    """Masks of the same share of each group."""
    return [_lowest_mask(score, round(share * len(score))) for score in scores]


def select_channels_globally(scores: Sequence[Float[Tensor, " _"]], share: float) -> RemovedChannels:
    """Masks by one threshold for all groups: a group of unimportant channels loses more."""
    every = torch.cat([*scores])
    chosen = _lowest_mask(every, round(share * len(every)))
    return [*chosen.split([len(score) for score in scores])]


CHANNEL_SCOPES: Mapping[str, Callable[[Sequence[Float[Tensor, " _"]], float], RemovedChannels]] = {
    "layer": select_channels_per_layer,
    "global": select_channels_globally,
}
"""Name -> ``(scores of each group, share of all channels) -> masks of the channels to remove``."""


@dataclass(frozen=True)
class Channels(Compressor):
    """The least important channels are removed, until the share ``amount`` of the multiply-adds is gone.

    Args:
        amount: share of the multiply-adds to remove, in (0, 1).
        criterion: how importance is computed: one of ``CHANNEL_CRITERIA``.
        scope: ``layer``, the same share of each group, or ``global``, all groups ranked together.
        multiple: remaining widths are multiples of this. None: 8 in a network with depthwise convolutions, whose
            kernels for CPUs take whole vectors of channels (other widths are slower than the original), else 1.
    """

    amount: float = 0.4
    criterion: str = "taylor"
    scope: str = "layer"
    multiple: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible share, criterion, scope or multiple."""
        check_number("amount", self.amount, above=0, below=1)
        for name, family in (("criterion", CHANNEL_CRITERIA), ("scope", CHANNEL_SCOPES)):
            if (word := vars(self)[name]) not in family:
                raise ValueError(f"there is no {name} '{word}'. {suggest(str(word), family)}")
        if self.multiple is not None:
            check_int("multiple", self.multiple, 1)

    def __call__(self, classifier: Classifier, data: Splits) -> Classifier:
        """The classifier with fewer channels; only ``taylor`` uses (training) images.

        Raises RecipeError for a network that was narrowed before, has no removable channel, or cannot lose
        ``amount``.
        """
        network = copy_network(classifier.network, classifier.architecture, "widths")
        pixels = example_input(classifier)
        found = find_channel_groups(network, pixels)
        if not found:
            raise RecipeError("This network has no channels that can be removed: choose another compressor.")
        if self.multiple is None:
            # whole vectors where wide convolutions are depthwise: their kernels are faster
            deep = (
                one for one in network.modules() if isinstance(one, nn.Conv2d) and one.groups == one.in_channels
            )
            wide = any(one.groups >= 4 * VECTOR_CHANNELS for one in deep)
            return replace(self, multiple=VECTOR_CHANNELS if wide else 1)(classifier, data)
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
        """The fewest channels that save ``amount``, by bisection; RecipeError where all save less."""
        low, high, best = 0.0, 1.0, self._select(1.0, found, scores)
        if (most := taken(best)) < self.amount:
            raise RecipeError(
                f"Removing channels saves at most {most:.1%} of this network's multiply-adds, not "
                f"{self.amount:.1%}: ask for {int(most * 100) / 100} or less."
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
        """The least important channels at this share, in whole multiples, none of the groups emptied."""
        removed, multiple = [], self.multiple or 1
        for group, score, chosen in zip(found, scores, CHANNEL_SCOPES[self.scope](scores, share), strict=True):
            count = len(score)
            least = max(1, round(MIN_CHANNEL_SHARE * count), count - int(chosen.sum()))
            remaining = min(count, -(-least // multiple) * multiple)
            removed.append(keep_one_per_layer(group, _lowest_mask(score, count - remaining), score))
        return removed

    def at_strength(self, strength: float) -> Compressor:
        """The same with ``amount``."""
        return replace(self, amount=strength)


def _lowest_mask(scores: Float[Tensor, " n"], count: int) -> Bool[Tensor, " n"]:
    """A mask of the ``count`` lowest scores."""
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[scores.argsort(stable=True)[:count]] = True
    return chosen


def _named_weights(network: Network) -> dict[str, Tensor]:
    """The weight of each layer that has one, trained or not, by the layer's name."""
    return {
        name.removesuffix(".weight"): tensor
        for name, tensor in (*network.named_parameters(), *network.named_buffers())
        if name.endswith(".weight")
    }


def channel_importance(
    group: ChannelGroup, numbers: Mapping[str, Tensor], criterion: ChannelCriterion
) -> Float[Tensor, " channels"]:
    """The importance of each channel of a group, summed over all its layers; 1 on average."""
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
    """``(w dL/dw)^2`` of every weight, summed over batches of ``TAYLOR_IMAGES`` training images, in eval mode.

    Raises DataError where there are no labelled images.
    """
    images = images.labelled
    if not len(images):
        raise DataError(
            "criterion=taylor needs labelled training images, and there are none: choose criterion=l2."
        )
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
