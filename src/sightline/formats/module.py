"""What is exported: the whole waist, from 8-bit images to probabilities, and what the file says of itself."""

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
from ..layers import Network
from ..models import EXPORT_FORMAT
from ..preprocessing import JpegFilter, MedianFilter, Normalise, Preprocessing, PreprocessingStep


class ExportModule(nn.Module):
    """``images (N H W C) uint8 -> probabilities (N K)``: preprocessing, network, temperature and softmax.

    A copy of the classifier on the CPU, in eval mode. Raises Refused for what no file could answer alike.
    """

    def __init__(self, classifier: Classifier):
        super().__init__()
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

    def forward(self, images: UInt8[Tensor, "N H W C"]) -> Float[Tensor, "N K"]:
        """Calibrated probabilities."""
        logits = self.network(self.preprocessing(self.first(images.permute(0, 3, 1, 2).float())))
        return torch.softmax(logits if self.temperature == 1 else logits / self.temperature, 1)


class IdentityStep(PreprocessingStep):
    """Nothing: what stands first where a classifier prepares nothing."""

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The pixels."""
        return pixels

    def config(self) -> dict[str, Any]:
        """None."""
        return {}


class FromBytes(nn.Module):
    """The first step, of values from 0 to 255: a normalisation becomes one product and one sum."""

    factor: Tensor
    shift: Tensor

    def __init__(self, first: PreprocessingStep | nn.Module):
        super().__init__()
        self.then: nn.Module | None = None if isinstance(first, Normalise) else first
        mean, std = (first.mean, first.std) if isinstance(first, Normalise) else (torch.zeros(1), torch.ones(1))
        self.register_buffer("factor", (1 / (255 * std.double())).float())
        self.register_buffer("shift", (-mean.double() / std.double()).float())

    def forward(self, values: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """What the next step takes."""
        if self.then is None:
            return values * self.factor + self.shift
        return self.then(values / 255)


class SortingMedian(PreprocessingStep):
    """``Median`` by sorting: the same numbers, by an operator that other programs have."""

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
    """The same steps in operators that files have; never empty."""
    steps = [SortingMedian(step.size) if isinstance(step, MedianFilter) else step for step in preprocessing.steps]
    return Preprocessing(
        [step for step in steps if isinstance(step, PreprocessingStep)] or [IdentityStep()]
    ).eval()


def ensemble_members(network: Network) -> list[Any]:
    """The members of an ensemble and of ensembles in it."""
    return [inner for one in network.member_list() for inner in (one, *ensemble_members(one.network))]


def check_exportable(classifier: Classifier) -> None:
    """Raise Refused, saying why and what to do, for a classifier that no file could hold."""
    inside = ensemble_members(classifier.network)
    networks = [classifier.network, *(one.network for one in inside)]
    steps = [step for one in (classifier, *inside) for step in one.preprocessing.steps]
    if refusal := next((one.export_refusal for one in networks if one.export_refusal), ""):
        raise RequirementNotMet(refusal)
    if classifier.stochastic:
        raise RequirementNotMet(
            "This classifier defends itself with noise drawn from each image, which no file can draw alike: train "
            "it without noise to export it."
        )
    if any(isinstance(step, JpegFilter) for step in steps):
        raise RequirementNotMet(
            "This classifier compresses its images to JPEG before it looks at them, which no exported file can: "
            "train it without jpeg in --normalize to export it."
        )


def export_metadata(classifier: Classifier) -> dict[str, Any]:
    """What a file says of itself, JSON by name: all that ``open_exported`` reads."""
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
    }


def example_images(classifier: Classifier) -> UInt8[Tensor, "2 H W C"]:
    """Two images to follow through the network while it is written down."""
    chance = runtime.make_generator(0)
    return torch.randint(0, 256, (2, *classifier.geometry.shape), generator=chance, dtype=torch.uint8)


@contextmanager
def silence_exporters() -> Iterator[None]:
    """Without the exporters' own remarks and traces, which are for their authors."""
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
