"""Networks of timm, ``timm:resnet50``; timm and torchvision are imported only when one is built."""

import difflib
import importlib.machinery
import importlib.util
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import ChoiceError, DataError, RecipeError
from ..layers import ImageSize, Network, make_dropout
from .pretrained import EMBEDDED_WEIGHTS, WeightsCard, card_from_settings

TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""Operators that torchvision's import needs even where its compiled part could not be loaded."""

HUB_TIMEOUT = 5.0
"""Seconds to wait for the first response of the host of timm's weights."""


@cache
def declare_operators() -> tuple[str, ...]:
    """Make torchvision importable where its compiled part was built for another torch, such as a CPU torch.

    Its import fails there with "operator torchvision::nms does not exist", and timm's with it. Where the compiled
    part loads, nothing is done. Returns the names of the operators declared; they have no implementation, because
    no network here calls them. It is safe to call again.
    """
    spec = importlib.util.find_spec("torchvision")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    for file in (folder / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES):
        if file.is_file():
            try:
                torch.ops.load_library(str(file))
            except (OSError, RuntimeError):  # built for another torch
                continue
    declared = tuple(s for s in TORCHVISION_SCHEMAS if not hasattr(torch.ops.torchvision, s.partition("(")[0]))
    for schema in declared:
        _operator_library().define(schema)
    return tuple(schema.partition("(")[0] for schema in declared)


@cache
def _operator_library() -> torch.library.Library:
    """Held as long as the process lives, because its operators vanish with it."""
    return torch.library.Library("torchvision", "FRAGMENT")


def import_timm() -> ModuleType:
    """The module timm, imported without warnings of timm or torchvision about parts that are not used here."""
    declare_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm
    return timm


class TimmNetwork(Network):
    """A network of timm up to its features, then our head."""

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        body: nn.Module,
        features: int,
        classes: int,
        *,
        dropout: float,
        pretrained: bool,
    ):
        super().__init__()
        self.name, self.arguments, self.pretrained = name, arguments, pretrained
        self.body = body
        self.dropout = make_dropout(dropout)
        self.head = nn.Linear(features, classes)
        last = _pretrained_settings(name)["classifier"] or "head"
        self.key_prefixes = ((f"{last if isinstance(last, str) else last[0]}.", "head."), ("", "body."))

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.head(self.dropout(self.body(pixels)))

    def load_published(self) -> str:
        """Load timm's published weights into the body, from its cache or its hub, where ``pretrained`` asks for
        them.

        Raises RecipeError where there are none, DataError where they cannot be fetched.
        """
        if not self.pretrained:
            return ""
        if self.name in EMBEDDED_WEIGHTS:
            weights = EMBEDDED_WEIGHTS[self.name]
            overlay: dict[str, Any] = {"state_dict": weights.load()}
            made = _create_timm(self.name, self.arguments, pretrained=True, pretrained_cfg_overlay=overlay)
            self.body.load_state_dict(made.state_dict())
            card = weights.card
            return (
                f"Started from {card.name}, trained on {card.trained_on} ({card.licence}; from the installation)."
            )
        settings = _pretrained_settings(self.name)
        if not (settings["hf_hub_id"] or settings["url"]):
            raise RecipeError(
                f"There are no published weights of timm's '{self.name}': leave out pretrained=True."
            )
        overlay = {"file": _fetch_weights(self.name, settings), "custom_load": settings["custom_load"]}
        made = _create_timm(self.name, self.arguments, pretrained=True, pretrained_cfg_overlay=overlay)
        self.body.load_state_dict(made.state_dict())
        return f"Loaded the published weights of timm's '{self.name}'; the head is freshly initialised."


def timm(
    classes: int,
    channels: int,
    size: ImageSize,
    name: str = "",
    pretrained: bool = False,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Network:
    """Any network of timm by its name: timm:resnet50, or timm:resnet50:pretrained=True.

    Published weights are fetched where training begins, never by building: a bundle has its own. ``drop_path``
    is timm's stochastic depth, for the networks that have it.
    """
    _check_timm_name(name)
    arguments: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    if _pretrained_settings(name)["fixed_input_size"]:
        arguments["img_size"] = tuple(size)
    try:
        body = _create_timm(name, arguments)
        features = _count_features(body, channels, size)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise RecipeError(
            f"timm's '{name}' cannot be made for images of {size[0]} x {size[1]} pixels "
            f"({reason}): choose another --size, such as the "
            f"{_pretrained_settings(name)['input_size'][-1]} it is made for, or another network."
        ) from error
    return TimmNetwork(name, arguments, body, features, classes, dropout=dropout, pretrained=pretrained)


def find_card(name: str) -> WeightsCard:
    """The card of the published weights of a network of timm; DataError where it lacks what is needed."""
    if name in EMBEDDED_WEIGHTS:
        return EMBEDDED_WEIGHTS[name].card
    return card_from_settings(name, _pretrained_settings(name))


def _check_timm_name(name: object) -> None:
    """Raise ChoiceError for names outside timm's list: timm would also load files and other people's code."""
    if not name:
        raise ChoiceError("Name a network of timm, for example --model timm:resnet50.")
    known = import_timm().list_models()
    base, _, tag = str(name).partition(".")
    if tag and base in known:
        known = import_timm().list_models(f"{base}.*", pretrained=True)
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = (
        f"Did you mean '{near[0]}'?" if near else 'Its names: python -c "import timm; print(*timm.list_models())"'
    )
    raise ChoiceError(f"There is no network of timm called '{name}'. {hint}")


def _pretrained_settings(name: str) -> Mapping[str, Any]:
    """What timm knows of a network: its usual size, its last layer, the address of its weights."""
    return vars(import_timm().get_pretrained_cfg(name) or import_timm().models.PretrainedCfg())


def _create_timm(name: str, arguments: Mapping[str, Any], **more: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_timm().create_model(name, **arguments, **more)


@torch.no_grad()
def _count_features(body: nn.Module, channels: int, size: ImageSize) -> int:
    """Features per image, found by running the body, which also shows that it takes such images."""
    given = body.eval()(torch.zeros(1, channels, *size, device=next(body.parameters()).device))
    body.train()
    if not isinstance(given, Tensor) or given.ndim != 2:
        raise ValueError("its output is not a vector of features per image")
    return given.shape[1]


def _fetch_weights(name: str, settings: Mapping[str, Any]) -> str:
    """The file with a network's published weights; raises DataError within seconds where it cannot be fetched."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    place, file = settings["hf_hub_id"], settings["hf_hub_filename"] or "model.safetensors"
    try:
        if not place:
            cached = Path(torch.hub.get_dir()) / "checkpoints" / settings["url"].rpartition("/")[2]
            if not cached.is_file():
                cached.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(settings["url"], str(cached), progress=False)
            return str(cached)
        if isinstance(known := try_to_load_from_cache(place, file), str):
            return known
        get_hf_file_metadata(hf_hub_url(place, file), timeout=HUB_TIMEOUT)
        return hf_hub_download(place, file)
    except Exception as error:  # each library raises its own exceptions
        raise DataError(
            f"The published weights of timm's '{name}' cannot be fetched from here: leave out pretrained=True and "
            "give a file of them with --weights FILE, or try again with a network."
        ) from error
