"""The door to timm's networks, ``timm:resnet50``: until it is opened, timm and torchvision are not imported."""

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

TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""Operators that torchvision describes while it is imported, whether or not its compiled part has made them."""

HUB_TIMEOUT = 5.0
"""Seconds to wait for a first answer of the place where timm's weights are."""


@cache
def declare_operators() -> tuple[str, ...]:
    """Let torchvision be imported beside a torch that its compiled part was not built for, such as a CPU torch.

    Its import fails there ("operator torchvision::nms does not exist"), and timm's with it. Where the compiled
    part loads, it makes the operators and nothing is done. Returns the names declared, without code behind them:
    no network here calls them. Safe to call again, and after somebody else did the same.
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
    """Ours for as long as the process lives: its operators go when it does."""
    return torch.library.Library("torchvision", "FRAGMENT")


def import_timm() -> ModuleType:
    """timm, imported safely; its own and torchvision's warnings about what is not used here are not shown."""
    declare_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm
    return timm


class TimmNetwork(Network):
    """A network of timm up to its features, then a head of ours."""

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
        """Put timm's published weights into the body, from its cache or the network, where they were asked for.

        Raises RecipeError where there are none, DataError where they cannot be fetched.
        """
        if not self.pretrained:
            return ""
        settings = _pretrained_settings(self.name)
        if not (settings["hf_hub_id"] or settings["url"]):
            raise RecipeError(
                f"There are no published weights of timm's '{self.name}': leave out pretrained=True."
            )
        overlay = {"file": _fetch_weights(self.name, settings), "custom_load": settings["custom_load"]}
        made = _create_timm(self.name, self.arguments, pretrained=True, pretrained_cfg_overlay=overlay)
        self.body.load_state_dict(made.state_dict())
        return f"Loaded the published weights of timm's '{self.name}'; the head starts fresh."


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
        raise RecipeError(
            f"timm's '{name}' cannot be made for images of {size[0]} x {size[1]} pixels "
            f"({_first_line(error)}): choose another --size, such as the "
            f"{_pretrained_settings(name)['input_size'][-1]} it is made for, or another network."
        ) from error
    return TimmNetwork(name, arguments, body, features, classes, dropout=dropout, pretrained=pretrained)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _check_timm_name(name: object) -> None:
    """Only names of timm's own list: it would take addresses of files and of other people's code too."""
    if not name:
        raise ChoiceError("Say which of timm's networks: --model timm:resnet50, for example.")
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
    """What timm knows of a network: its usual size, its last layer, where its weights are."""
    return vars(import_timm().get_pretrained_cfg(name) or import_timm().models.PretrainedCfg())


def _create_timm(name: str, arguments: Mapping[str, Any], **more: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_timm().create_model(name, **arguments, **more)


@torch.no_grad()
def _count_features(body: nn.Module, channels: int, size: ImageSize) -> int:
    """How many numbers the body makes of an image, found by trying; that it takes such images is so found too."""
    given = body.eval()(torch.zeros(1, channels, *size, device=next(body.parameters()).device))
    body.train()
    if not isinstance(given, Tensor) or given.ndim != 2:
        raise ValueError("it gives no features that a head could take")
    return given.shape[1]


def _fetch_weights(name: str, settings: Mapping[str, Any]) -> str:
    """The path of the file with a network's published weights; raises DataError, soon, where it cannot be had."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    place, file = settings["hf_hub_id"], settings["hf_hub_filename"] or "model.safetensors"
    try:
        if not place:
            return _download_url(settings["url"])
        if isinstance(known := try_to_load_from_cache(place, file), str):
            return known
        get_hf_file_metadata(hf_hub_url(place, file), timeout=HUB_TIMEOUT)
        return hf_hub_download(place, file)
    except Exception as error:  # each library below raises kinds of its own
        raise DataError(
            f"The published weights of timm's '{name}' cannot be fetched from here: leave out pretrained=True and "
            "give a file of them with --weights FILE, or try again with a network."
        ) from error


def _download_url(address: str) -> str:
    """The file at an address, kept where torch keeps such files."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(file), progress=False)
    return str(file)
