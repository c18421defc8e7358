"""The module that is exported, from 8-bit images to probabilities, and the metadata of the file."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from .. import runtime
from ..classifier import Classifier
from ..errors import RequirementNotMet
from ..exported_model import EXPORT_FORMAT
from ..layers import Network
from ..preprocessing import MedianFilter, Normalise, Preprocessing, PreprocessingStep


class ExportModule(nn.Module):
    """``images (N H W C) uint8 -> probabilities (N K)``: preprocessing, network, temperature and softmax.

    With ``features=True`` also the features (N D), the input of the last layer, and the energy (N), minus the
    logarithm of the sum of exponentials of the logits; not for a network without a last layer, as an ensemble. A copy
    of the classifier on the CPU, in eval mode. Raises RequirementNotMet for what no file can reproduce.
    """

    def __init__(self, classifier: Classifier, *, features: bool = False):
        super().__init__()
        self.has_features = features and hasattr(classifier.network, "head")
        check_exportable(classifier)
        classifier = copy.deepcopy(classifier).cpu().float().eval()
        self.preprocessing = to_exportable_steps(classifier.preprocessing)
        self.network = classifier.network
        self.temperature = classifier.temperature
        for member in ensemble_members(self.network):
            member.preprocessing = to_exportable_steps(member.preprocessing)
        first, *others = self.preprocessing.steps
        self.first = FromBytes(first)
        self.preprocessing.steps = nn.ModuleList(others)
        self.requires_grad_(False).eval()

    def forward(self, images: UInt8[Tensor, "N H W C"]) -> Float[Tensor, "N K"] | tuple[Tensor, Tensor, Tensor]:
        """Calibrated probabilities, and with ``features`` the features and the energy."""
        pixels = self.preprocessing(self.first(images.permute(0, 3, 1, 2).float()))
        if not self.has_features:
            return self._calibrate(self.network(pixels))
        features, logits = self.network.features_and_logits(pixels)
        return self._calibrate(logits), features, -torch.logsumexp(logits, 1)

    def _calibrate(self, logits: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        return torch.softmax(logits if self.temperature == 1 else logits / self.temperature, 1)


class IdentityStep(PreprocessingStep):
    """The identity, first step of a classifier without preprocessing."""

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The pixels."""
        return pixels

    def config(self) -> dict[str, Any]:
        """None."""
        return {}


class FromBytes(nn.Module):
    """The first step on values from 0 to 255: a normalisation becomes one product and one sum."""

    factor: Tensor
    shift: Tensor

    def __init__(self, first: PreprocessingStep | nn.Module):
        super().__init__()
        self.then: nn.Module | None = None if isinstance(first, Normalise) else first
        mean, std = (first.mean, first.std) if isinstance(first, Normalise) else (torch.zeros(1), torch.ones(1))
        self.register_buffer("factor", (1 / (255 * std.double())).float())
        self.register_buffer("shift", (-mean.double() / std.double()).float())

    def forward(self, values: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The first step's result."""
        if self.then is None:
            return values * self.factor + self.shift
        return self.then(values / 255)


class SortingMedian(PreprocessingStep):
    """``MedianFilter`` by sorting: the same numbers, by an operator that files have."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The medians."""
        height, width = pixels.shape[2:]
        padded = F.pad(pixels, (self.size // 2,) * 4, mode="replicate")
        places = [(y, x) for y in range(self.size) for x in range(self.size)]
        shifted = torch.stack([padded[:, :, y : y + height, x : x + width] for y, x in places])
        return shifted.topk(len(places) // 2 + 1, dim=0).values[-1]

    def config(self) -> dict[str, Any]:
        """The side of the window, in pixels."""
        return {"size": self.size}


def to_exportable_steps(preprocessing: Preprocessing) -> Preprocessing:
    """The same steps in operators that files have, at least one."""
    steps = [SortingMedian(step.size) if isinstance(step, MedianFilter) else step for step in preprocessing.steps]
    return Preprocessing(
        [step for step in steps if isinstance(step, PreprocessingStep)] or [IdentityStep()]
    ).eval()


def ensemble_members(network: Network) -> list[Any]:
    """The members of an ensemble, and of ensembles inside it."""
    return [inner for one in network.member_list() for inner in (one, *ensemble_members(one.network))]


def check_exportable(classifier: Classifier) -> None:
    """Raise RequirementNotMet, with the reason and the remedy, for a classifier that no file can hold."""
    inside = ensemble_members(classifier.network)
    networks = [classifier.network, *(one.network for one in inside)]
    steps = [step for one in (classifier, *inside) for step in one.preprocessing.steps]
    if refusal := next((one.export_refusal for one in (*networks, *steps) if one.export_refusal), ""):
        raise RequirementNotMet(refusal)
    if classifier.stochastic:
        raise RequirementNotMet(
            "This classifier adds random noise, which no exported file can reproduce: train it without noise to "
            "export it."
        )


def export_metadata(classifier: Classifier) -> dict[str, Any]:
    """The metadata of a file, by key: all that ``open_exported`` reads."""
    plan = classifier.architecture
    known = classifier.provenance.get("data_fingerprint")
    return {
        "format": EXPORT_FORMAT,
        "sightline": runtime.version(),
        "classes": list(classifier.classes),
        "geometry": classifier.geometry.as_json(),
        "threshold": classifier.threshold,
        "model": plan.arguments.get("word") or plan.name,
        "provenance": {} if known is None else {"data_fingerprint": known},
        "int8_bits": classifier.provenance.get("int8", {}).get("bits"),
    }


def example_images(classifier: Classifier) -> UInt8[Tensor, "2 H W C"]:
    """Two random images with which the network is traced."""
    chance = runtime.make_generator(0)
    return torch.randint(0, 256, (2, *classifier.geometry.shape), generator=chance, dtype=torch.uint8)


@contextmanager
def silence_exporters() -> Iterator[None]:
    """Suppress the exporters' own warnings and logs, which concern their developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.__trace")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
