"""A network as a value: its name, its arguments, what was changed since, and what it costs."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..checks import check_int
from ..choose import choose, lookup, suggest
from ..errors import BundleError, ChoiceError, RecipeError
from ..layers import ImageSize, Network

MEASURED_FILE = Path(__file__).with_name("measured.json")
"""Accuracies after a short training, written by ``benchmarks/zoo.py``."""

Make = Callable[..., Network]
"""``(classes, channels, size, **arguments) -> network``, or a surgery ``(network, **arguments) -> network``."""


@dataclass(frozen=True)
class NetworkEntry:
    """A network that recipes can name: how to make it, and what is known about it."""

    make: Make
    """``(classes, channels, size, **arguments) -> network``."""
    channels: int | None = None
    """Channels of the images that its parameters and cost are stated for; None if they depend on an argument."""
    side: int | None = None
    """Height and width of those images, in pixels."""
    best_sides: tuple[int, int] | None = None
    """Shorter sides, from and to, in pixels, that it is designed for; all others work."""
    lr_factor: float = 1.0
    """Factor on SGD's default learning rate; below 1 for networks that diverge (``benchmarks/rates.py``)."""
    small: str = ""
    """Arguments that make a small network of its kind for tests, such as ``width=0.25``."""


@dataclass(frozen=True)
class Architecture:
    """What ``build`` needs to make a network again, in JSON types."""

    name: str
    """One of ``NETWORKS``."""
    arguments: Mapping[str, Any]
    """``classes``, ``channels``, ``size`` and the network's own arguments."""
    surgery: tuple[tuple[str, Mapping[str, Any]], ...] = field(default=())
    """(name in ``SURGERY``, arguments), in order."""

    def config(self) -> dict[str, Any]:
        """The architecture as JSON."""
        return {
            "name": self.name,
            "arguments": dict(self.arguments),
            "surgery": [{"name": name, "arguments": dict(given)} for name, given in self.surgery],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """The architecture from its JSON; raises BundleError where that is malformed."""
        try:
            surgery = tuple((str(item["name"]), dict(item["arguments"])) for item in config["surgery"])
            return cls(str(config["name"]), dict(config["arguments"]), surgery)
        except KeyError as error:
            raise BundleError(f"The architecture has no field {error}.") from error
        except (TypeError, ValueError) as error:
            raise BundleError(f"The architecture cannot be read: {error}.") from error


def architecture_from_word(
    networks: Mapping[str, NetworkEntry], model: str, *, classes: int, channels: int, size: ImageSize
) -> Architecture:
    """The architecture that ``model``, a name with arguments, means in this dict; see ``parse_architecture``."""
    common = {"classes": classes, "channels": channels, "size": list(size)}

    def parse(name: str, *values: Any, **arguments: Any) -> Architecture:
        make = networks[name].make
        own = [each for each in inspect.signature(make).parameters if each not in common]
        if len(values) > len(own):
            raise ChoiceError(f"The model '{name}' takes {len(own)} arguments: {', '.join(own)}.")
        for argument, value in zip(own, values, strict=False):
            if argument in arguments:
                raise ChoiceError(f"The model '{name}' is given its argument '{argument}' twice: leave one out.")
            arguments[argument] = value
        _check_argument_names(name, make, arguments, "model")
        return Architecture(name, {**common, **arguments})

    return choose({name: partial(parse, name) for name in networks}, model, "model")


def build_network(
    architecture: Architecture, networks: Mapping[str, Make], surgery: Mapping[str, Make]
) -> Network:
    """The network of an architecture, from these dicts of constructors and of surgery; see ``build``."""
    make = lookup(networks, architecture.name, "model")
    size = architecture.arguments.get("size")
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise RecipeError(f"size is (height, width) in pixels, not {size}.")
    for name, least in (("classes", 2), ("channels", 1)):
        check_int(name, architecture.arguments.get(name), least, error=RecipeError)
    for side in size:
        check_int("size", side, 1, error=RecipeError)
    network = _call_checked(architecture.name, make, architecture.arguments, "model")
    for name, arguments in architecture.surgery:
        change = lookup(surgery, name, "change of a network")
        network = _call_checked(name, partial(change, network), arguments, "change of a network")
    return network


def _call_checked(name: str, make: Make, arguments: Mapping[str, Any], what: str) -> Network:
    _check_argument_names(name, make, arguments, what)
    try:
        return make(**arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"The {what} '{name}' cannot be made with {dict(arguments)}: {reason}.") from error


def _check_argument_names(name: str, make: Make, arguments: Mapping[str, Any], what: str) -> None:
    known = inspect.signature(make).parameters
    for argument in arguments:
        if argument not in known:
            raise ChoiceError(f"The {what} '{name}' has no argument '{argument}'. {suggest(argument, known)}")


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
    """(height, width), in pixels, of the images in which its size and cost are stated; other sizes work."""
    best_sizes: tuple[int, int] | None
    """Shorter sides, from and to, in pixels, that it is designed for."""
    quick_accuracy: float | None
    """On the test images of CIFAR-10 after the short training of ``benchmarks/zoo.py``, where measured."""


def describe_network(name: str, entry: NetworkEntry) -> NetworkDescription:
    """A network's description; torch's global generator is not advanced."""
    summary = (entry.make.__doc__ or "").strip().splitlines()[0].replace("``", "")
    accuracy = json.loads(MEASURED_FILE.read_text(encoding="utf-8"))["accuracy"].get(name)
    if entry.channels is None or entry.side is None:
        return NetworkDescription(name, summary, None, None, None, None, None, accuracy)
    size = (entry.side, entry.side)
    with torch.random.fork_rng(devices=[]):
        network = entry.make(10, entry.channels, size)
    cost, count = count_multiply_adds(network, entry.channels, size), count_parameters(network)
    return NetworkDescription(name, summary, count, cost, entry.channels, size, entry.best_sides, accuracy)


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers in a network; frozen ones, such as a whitening, do not count."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def _layer_work(output: Tensor, _: Tensor, weight: Tensor, *__: Any, **___: Any) -> int:
    return output.numel() * weight[0].numel()


def _product_work(output: Tensor, left: Tensor, *_: Any, **__: Any) -> int:
    return output.numel() * left.shape[-1]


def _sum_and_product_work(output: Tensor, _: Tensor, left: Tensor, *__: Any, **___: Any) -> int:
    return output.numel() * left.shape[-1]


MULTIPLY_ADDS_BY_FUNCTION: Mapping[Callable[..., Any], Callable[..., int]] = {
    F.conv1d: _layer_work,
    F.conv2d: _layer_work,
    F.conv3d: _layer_work,
    F.linear: _layer_work,
    F.scaled_dot_product_attention: lambda _, query, key, value, *__, **___: (
        query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    ),  # queries times keys, then weights times values
    torch.matmul: _product_work,
    Tensor.matmul: _product_work,
    Tensor.__matmul__: _product_work,
    torch.mm: _product_work,
    Tensor.mm: _product_work,
    torch.bmm: _product_work,
    Tensor.bmm: _product_work,
    torch.addmm: _sum_and_product_work,
    torch.baddbmm: _sum_and_product_work,
}
"""Function -> ``(output, *its arguments) -> multiply-adds``."""


class _MultiplyAddCounter(TorchFunctionMode):
    """Intercepts every torch function called within it."""

    # torch's own counter works one level below, which imports the compiler: two seconds.
    total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in MULTIPLY_ADDS_BY_FUNCTION:
            self.total += MULTIPLY_ADDS_BY_FUNCTION[func](output, *args, **(kwargs or {}))
        return output


def count_multiply_adds(network: nn.Module, channels: int, size: ImageSize) -> int:
    """Multiply-adds of one image of ``size`` in eval mode; one is two floating-point operations.

    Convolutions, linear layers and the products of attention are counted exactly; norms, activations, pools and biases
    are not, as is usual. The network's modes are restored.
    """
    modes = [(module, module.training) for module in network.modules()]
    # Not on the meta device, because meta tensors import the compiler too.
    image = torch.zeros(1, channels, *size, device=next(chain(network.parameters(), network.buffers())).device)
    try:
        with torch.no_grad(), _MultiplyAddCounter() as counting:
            network.eval()(image)
    finally:
        for module, training in modes:
            module.training = training
    return counting.total


def learnt_tensors(network: nn.Module) -> list[Tensor]:
    """What a network has learned: its parameters and int8 weights, without statistics and scales."""
    return [*network.parameters(), *(b for b in network.buffers() if b.dtype == torch.int8)]
