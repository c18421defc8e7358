"""What every change of a network's structure begins and ends with."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import runtime
from ..classifier import Classifier
from ..errors import RecipeError
from ..layers import SPARSE_LAYERS, Network
from ..models import get_head

SURGERY_VERBS = {"masked": "pruned", "widths": "relieved of channels", "factors": "factorised"}
"""Surgery -> what was done to a network that has it."""

UNCOMPRESSIBLE = {
    "ensemble": "An ensemble is made smaller member by member: compress each classifier, then combine them again.",
    "estimator": "A scikit-learn estimator has no network to make smaller: train one, and compress that.",
}
"""Networks without weights of their own, and what to do instead."""

BLOCKING_SURGERY = {
    "noise": "Its weights carry noise, which would undo it: compress a classifier trained without weight_noise.",
    "quantised": "Its weights are whole numbers already: compress the classifier in float first, and int8 last.",
}
"""Surgery that no other may follow, and why."""


def copy_network(classifier: Classifier, change: str, after: Mapping[str, str] | None = None) -> Network:
    """A copy of the classifier's network to carry out ``change`` on, on the CPU and in eval mode.

    Raises RecipeError, in a sentence, where the network has been changed this way before, or cannot be; ``after``
    names surgery that this one may not follow, and why.
    """
    plan = classifier.architecture
    if plan.name in UNCOMPRESSIBLE:
        raise RecipeError(UNCOMPRESSIBLE[plan.name])
    names = [name for name, _ in plan.surgery]
    if change in names:
        raise RecipeError(
            f"This classifier was {SURGERY_VERBS[change]} already: to do it otherwise, start from the one it was made of."
        )
    for name in names:
        if reason := {**BLOCKING_SURGERY, **(after or {})}.get(name):
            raise RecipeError(reason)
    return copy.deepcopy(classifier.network).cpu().eval()


def with_network(
    classifier: Classifier, network: Network, change: str, arguments: Mapping[str, Any]
) -> Classifier:
    """The classifier with ``network`` in place of its own, its architecture saying how to make it again.

    What was calibrated on the old answers is left behind: threshold and conformal sets. The temperature stays.
    """
    plan = classifier.architecture
    return Classifier(
        copy.deepcopy(classifier.preprocessing),
        network,
        architecture=replace(plan, surgery=(*plan.surgery, (change, arguments))),
        classes=classifier.classes,
        geometry=classifier.geometry,
        temperature=classifier.temperature,
        provenance=classifier.provenance,
    ).to(classifier.device).eval()  # fmt: skip


def example_input(classifier: Classifier, count: int = 2) -> Float[Tensor, "B C H W"]:
    """What the network is given for random pixels, on the CPU."""
    height, width = classifier.geometry.size
    shape = (count, classifier.geometry.channels, height, width)
    pixels = torch.rand(shape, generator=runtime.make_generator(0))
    with torch.no_grad():
        return copy.deepcopy(classifier.preprocessing).cpu().eval()(pixels)


@torch.no_grad()
def compressible_layers(network: Network, pixels: Float[Tensor, "B C H W"]) -> dict[str, nn.Conv2d | nn.Linear]:
    """The plain convolutions and linear layers a pass through the network calls, by name, without the head.

    The head stays as it is, because features are what it is given, and classes are added to it. Layers that
    compute with their weights in a way of their own, and frozen ones, are left out.
    """
    last, found = get_head(network), dict[str, nn.Conv2d | nn.Linear]()
    names = {
        layer: name
        for name, layer in network.named_modules()
        if type(layer) in SPARSE_LAYERS and layer is not last
    }

    def called(layer: nn.Module, *_: object) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        found[names[layer]] = layer

    watching = [layer.register_forward_hook(called) for layer in names]
    network.logits(pixels)
    for one in watching:
        one.remove()
    return found
