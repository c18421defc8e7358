"""A network as a value: its name, its arguments, and what was changed since."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ..choose import choose, lookup, suggest
from ..errors import BundleError, ChoiceError, RecipeError
from .blocks import Network, Size
from .cost import multiply_adds
from .enhanced import enhanced
from .fastcnn import fastcnn
from .lenet import lenet5
from .mlp import mlp
from .plain import plain_cnn, small_cnn, table2
from .residual18 import resnet18
from .resnet import resnet20, resnet32, resnet44, resnet56
from .surgery import SURGERY

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
    "plain-cnn": plain_cnn,
}
"""Name -> ``(classes, channels, size, **arguments) -> network``."""

REFERENCE: dict[str, tuple[int, tuple[int, int]]] = {
    "mlp": (1, (28, 28)),
    "lenet5": (1, (28, 28)),
    "resnet20": (3, (32, 32)),
    "resnet32": (3, (32, 32)),
    "resnet44": (3, (32, 32)),
    "resnet56": (3, (32, 32)),
    "resnet18": (3, (32, 32)),
    "fastcnn": (3, (32, 32)),
    "enhanced": (3, (32, 32)),
    "small-cnn": (1, (28, 28)),
    "table2": (3, (224, 224)),
    "plain-cnn": (3, (32, 32)),
}
"""Channels and size of the images each network is known by."""


@dataclass(frozen=True)
class Architecture:
    """What ``build`` needs to make a network again; all of it JSON."""

    name: str
    """One of ``NETWORKS``."""
    arguments: Mapping[str, Any]
    """``classes``, ``channels``, ``size`` and whatever else the network takes."""
    surgery: tuple[tuple[str, Mapping[str, Any]], ...] = field(default=())
    """(name in ``SURGERY``, arguments), in order."""

    def config(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "name": self.name,
            "arguments": dict(self.arguments),
            "surgery": [{"name": name, "arguments": dict(given)} for name, given in self.surgery],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """From JSON; raises BundleError where it is not what ``config`` writes."""
        try:
            surgery = tuple((str(item["name"]), dict(item["arguments"])) for item in config["surgery"])
            return cls(str(config["name"]), dict(config["arguments"]), surgery)
        except KeyError as error:
            raise BundleError(f"The architecture has no field {error}.") from error
        except (TypeError, ValueError) as error:
            raise BundleError(f"The architecture cannot be read: {error}.") from error


def architecture(model: str, *, classes: int, channels: int, size: Size) -> Architecture:
    """The architecture a word names: ``resnet20``, or with arguments ``enhanced:dropout=0.2``.

    Raises ChoiceError for a name or argument nobody knows.
    """
    common = {"classes": classes, "channels": channels, "size": list(size)}
    family = {name: partial(_with, name, common) for name in NETWORKS}
    return choose(family, model, "model")


def _with(name: str, common: dict[str, Any], **arguments: Any) -> Architecture:
    _check_names(name, NETWORKS[name], arguments, "model")
    return Architecture(name, {**common, **arguments})


def build(architecture: Architecture) -> Network:
    """The network, freshly initialised from torch's global seed, with its surgery done.

    Raises ChoiceError for an unknown name, RecipeError for an impossible value.
    """
    make = lookup(NETWORKS, architecture.name, "model")
    _check_common(architecture)
    network = _apply(architecture.name, make, architecture.arguments, "model")
    for name, arguments in architecture.surgery:
        change = lookup(SURGERY, name, "change of a network")
        network = _apply(name, partial(change, network), arguments, "change of a network")
    return network


def _apply(name: str, make: Callable[..., Network], arguments: Mapping[str, Any], what: str) -> Network:
    _check_names(name, make, arguments, what)
    try:
        return make(**arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"The {what} '{name}' cannot be made with {dict(arguments)}: {reason}.") from error


def _check_names(name: str, make: Callable[..., Network], arguments: Mapping[str, Any], what: str) -> None:
    known = inspect.signature(make).parameters
    for argument in arguments:
        if argument not in known:
            raise ChoiceError(f"The {what} '{name}' has no argument '{argument}'. {suggest(argument, known)}")


def _check_common(architecture: Architecture) -> None:
    """Whole, positive numbers where every network needs them."""
    size = architecture.arguments.get("size")
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise RecipeError(f"size is (height, width) in pixels, not {size}.")
    numbers = {name: architecture.arguments.get(name) for name in ("classes", "channels")}
    for field_name, value in (*numbers.items(), ("size", size[0]), ("size", size[1])):
        least = 2 if field_name == "classes" else 1
        if not isinstance(value, int) or value < least:
            raise RecipeError(f"{field_name} must be a whole number, {least} or more, not {value}.")


def parameter_count(network: nn.Module) -> int:
    """Trainable numbers in a network; frozen ones, such as a whitening, do not count."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@dataclass(frozen=True)
class Description:
    """One line of ``sightline list models``."""

    name: str
    summary: str
    parameters: int
    """Trainable, with 10 classes, at the reference channels and size."""
    multiply_adds: int
    """For one image, the same way."""
    channels: int
    size: tuple[int, int]
    """(height, width) in pixels it is known by; other sizes work."""


def describe() -> tuple[Description, ...]:
    """Every network in a line each; torch's generator is left where it was."""
    lines = []
    for name, make in NETWORKS.items():
        channels, size = REFERENCE[name]
        with torch.random.fork_rng(devices=[]):
            network = make(10, channels, size)
        cost = multiply_adds(network, channels, size)
        summary = (make.__doc__ or "").strip().splitlines()[0].replace("``", "")
        lines.append(Description(name, summary, parameter_count(network), cost, channels, size))
    return tuple(lines)
