"""A network as a value: its name, its arguments, and what was changed since."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checks import check_int
from ..choose import choose, lookup, suggest
from ..errors import ChoiceError, RecipeError
from ..layers import ImageSize, Network
from .alexnet import alexnet, alexnet_small
from .architecture import Architecture
from .cost import count_multiply_adds
from .densenet import densenet
from .enhanced import enhanced
from .ensemble import rebuild_ensemble
from .estimator import rebuild_estimator
from .fastcnn import fastcnn
from .inception import inception
from .lenet import lenet5
from .mlp import mlp
from .mobilenet import efficientnet, mobilenet
from .plain import plain_cnn, small_cnn, strided_cnn, table2
from .resnet import resnet20, resnet32, resnet44, resnet56
from .resnet18 import resnet18
from .surgery import SURGERY
from .timm_network import timm
from .vgg import vgg11, vgg13, vgg16
from .vit import vit

NETWORKS: dict[str, Callable[..., Network]] = {
    "mlp": mlp,
    "lenet5": lenet5,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet18": resnet18,
    "fastcnn": fastcnn,
    "enhanced": enhanced,
    "small-cnn": small_cnn,
    "table2": table2,
    "strided-cnn": strided_cnn,
    "plain-cnn": plain_cnn,
    "alexnet": alexnet,
    "alexnet-small": alexnet_small,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "inception": inception,
    "densenet": densenet,
    "mobilenet": mobilenet,
    "efficientnet": efficientnet,
    "vit": vit,
    "timm": timm,
}
"""Name -> ``(classes, channels, size, **arguments) -> network``."""


@dataclass(frozen=True)
class ReferenceImages:
    """The images a network is known by, and those it is made for."""

    channels: int
    size: tuple[int, int]
    best: tuple[int, int]
    """Shorter sides, from and to, in pixels; all others work."""


REFERENCE_IMAGES: dict[str, ReferenceImages] = {
    "mlp": ReferenceImages(1, (28, 28), (28, 32)),
    "lenet5": ReferenceImages(1, (28, 28), (28, 32)),
    "resnet20": ReferenceImages(3, (32, 32), (28, 64)),
    "resnet32": ReferenceImages(3, (32, 32), (28, 64)),
    "resnet44": ReferenceImages(3, (32, 32), (28, 64)),
    "resnet56": ReferenceImages(3, (32, 32), (28, 64)),
    "resnet18": ReferenceImages(3, (32, 32), (28, 224)),
    "fastcnn": ReferenceImages(3, (32, 32), (28, 64)),
    "enhanced": ReferenceImages(3, (32, 32), (28, 64)),
    "small-cnn": ReferenceImages(1, (28, 28), (28, 32)),
    "table2": ReferenceImages(3, (224, 224), (28, 224)),
    "strided-cnn": ReferenceImages(1, (28, 28), (28, 32)),
    "plain-cnn": ReferenceImages(3, (32, 32), (28, 64)),
    "alexnet": ReferenceImages(3, (224, 224), (128, 224)),
    "alexnet-small": ReferenceImages(3, (32, 32), (28, 64)),
    "vgg11": ReferenceImages(3, (32, 32), (28, 64)),
    "vgg13": ReferenceImages(3, (32, 32), (28, 64)),
    "vgg16": ReferenceImages(3, (32, 32), (28, 64)),
    "inception": ReferenceImages(3, (32, 32), (28, 64)),
    "densenet": ReferenceImages(3, (32, 32), (28, 64)),
    "mobilenet": ReferenceImages(3, (32, 32), (28, 224)),
    "efficientnet": ReferenceImages(3, (32, 32), (28, 224)),
    "vit": ReferenceImages(3, (32, 32), (28, 64)),
}
"""Of each network that has a form of its own; ``timm`` has those of another's."""

MEASURED_FILE = Path(__file__).with_name("measured.json")
"""Accuracies that ``benchmarks/zoo.py`` measured, and how."""


def parse_architecture(model: str, *, classes: int, channels: int, size: ImageSize) -> Architecture:
    """The architecture a word names: ``resnet20``, or with arguments ``enhanced:dropout=0.2``.

    Raises ChoiceError for a name or argument nobody knows.
    """
    common = {"classes": classes, "channels": channels, "size": list(size)}
    family = {name: partial(_architecture_with, name, common) for name in NETWORKS}
    return choose(family, model, "model")


def _architecture_with(name: str, common: dict[str, Any], *values: Any, **arguments: Any) -> Architecture:
    own = [each for each in inspect.signature(NETWORKS[name]).parameters if each not in common]
    if len(values) > len(own):
        raise ChoiceError(f"The model '{name}' takes {len(own)} arguments: {', '.join(own)}.")
    for argument, value in zip(own, values, strict=False):
        if argument in arguments:
            raise ChoiceError(f"The model '{name}' is given its argument '{argument}' twice: leave one out.")
        arguments[argument] = value
    _check_argument_names(name, NETWORKS[name], arguments, "model")
    return Architecture(name, {**common, **arguments})


def build(architecture: Architecture) -> Network:
    """The network, freshly initialised from torch's global seed, with its surgery done.

    Raises ChoiceError for an unknown name, RecipeError for an impossible value.
    """
    make = lookup({**NETWORKS, **COMPOSITE_NETWORKS}, architecture.name, "model")
    _check_common_arguments(architecture)
    network = _call_checked(architecture.name, make, architecture.arguments, "model")
    for name, arguments in architecture.surgery:
        change = lookup(SURGERY, name, "change of a network")
        network = _call_checked(name, partial(change, network), arguments, "change of a network")
    return network


def _build_from_config(config: Mapping[str, Any]) -> Network:
    return build(Architecture.from_config(config))


COMPOSITE_NETWORKS: dict[str, Callable[..., Network]] = {
    "ensemble": partial(rebuild_ensemble, _build_from_config),
    "estimator": partial(rebuild_estimator, _build_from_config),
}
"""What is made of trained classifiers, and rebuilt with them; no words of a recipe."""


def _call_checked(name: str, make: Callable[..., Network], arguments: Mapping[str, Any], what: str) -> Network:
    _check_argument_names(name, make, arguments, what)
    try:
        return make(**arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"The {what} '{name}' cannot be made with {dict(arguments)}: {reason}.") from error


def _check_argument_names(
    name: str, make: Callable[..., Network], arguments: Mapping[str, Any], what: str
) -> None:
    known = inspect.signature(make).parameters
    for argument in arguments:
        if argument not in known:
            raise ChoiceError(f"The {what} '{name}' has no argument '{argument}'. {suggest(argument, known)}")


def _check_common_arguments(architecture: Architecture) -> None:
    """Whole, positive numbers where every network needs them."""
    size = architecture.arguments.get("size")
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise RecipeError(f"size is (height, width) in pixels, not {size}.")
    numbers = {name: architecture.arguments.get(name) for name in ("classes", "channels")}
    for field_name, value in (*numbers.items(), ("size", size[0]), ("size", size[1])):
        least = 2 if field_name == "classes" else 1
        check_int(field_name, value, least, error=RecipeError)


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers in a network; frozen ones, such as a whitening, do not count."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@dataclass(frozen=True)
class NetworkDescription:
    """One line of ``sightline list models``."""

    name: str
    summary: str
    parameters: int | None
    """Trainable, with 10 classes, at the reference channels and size."""
    multiply_adds: int | None
    """For one image, the same way."""
    channels: int | None
    size: tuple[int, int] | None
    """(height, width) in pixels it is known by; other sizes work."""
    best_sizes: tuple[int, int] | None
    """Shorter sides, from and to, in pixels, that it is made for."""
    quick_accuracy: float | None
    """On the test images of CIFAR-10 after the short training of ``benchmarks/zoo.py``, where measured."""


def describe_networks() -> tuple[NetworkDescription, ...]:
    """Every network in a line each; torch's generator is left where it was."""
    measured = json.loads(MEASURED_FILE.read_text(encoding="utf-8"))["accuracy"]
    return tuple(_describe_network(name, make, measured.get(name)) for name, make in NETWORKS.items())


def _describe_network(name: str, make: Callable[..., Network], accuracy: float | None) -> NetworkDescription:
    summary = (make.__doc__ or "").strip().splitlines()[0].replace("``", "")
    if name not in REFERENCE_IMAGES:
        return NetworkDescription(name, summary, None, None, None, None, None, accuracy)
    known = REFERENCE_IMAGES[name]
    with torch.random.fork_rng(devices=[]):
        network = make(10, known.channels, known.size)
    cost, count = count_multiply_adds(network, known.channels, known.size), count_parameters(network)
    return NetworkDescription(name, summary, count, cost, known.channels, known.size, known.best, accuracy)
