"""Networks of timm, ``timm:resnet50``; timm and torchvision are imported only when one is built."""

import difflib
import importlib.machinery
import importlib.util
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import BundleError, ChoiceError, RecipeError
from ..layers import ImageSize, Network, make_dropout
from .hub import cached_checksum, checksum_of_weights, fetch_published
from .pretrained import EMBEDDED_WEIGHTS, WeightsCard, card_from_settings, read_timm_config

TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""Operators that torchvision's import needs even where its compiled part could not be loaded."""

MIN_IMAGENET_KINDS = 2
"""Classes of ImageNet that end in a word before it counts as one of its subjects: 'beer glass' alone is not enough."""


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
        """Load timm's published weights into the body, from the installation, a cache or the hub, where
        ``pretrained`` asks for them.

        Raises RecipeError where there are none, DataError where they cannot be fetched, BundleError where they do
        not fit.
        """
        if not self.pretrained:
            return ""
        if self.name in EMBEDDED_WEIGHTS:
            overlay: dict[str, Any] = {"state_dict": EMBEDDED_WEIGHTS[self.name].load()}
        else:
            settings = _pretrained_settings(self.name)
            if not (settings["hf_hub_id"] or settings["url"]):
                raise RecipeError(
                    f"There are no published weights of timm's '{self.name}': leave out pretrained=True."
                )
            overlay = {
                "file": str(fetch_published(self.name, settings)),
                "custom_load": settings["custom_load"],
            }
        whole = {name: value for name, value in self.arguments.items() if name != "num_classes"}
        try:  # with its own last layer, without which timm would not mind missing tensors
            made = _create_timm(self.name, whole, pretrained=True, pretrained_cfg_overlay=overlay)
            if missing := self.body.load_state_dict(made.state_dict(), strict=False).missing_keys:
                raise KeyError(missing[0])
        except (RuntimeError, ValueError, KeyError, OSError, SafetensorError, pickle.UnpicklingError) as error:
            raise BundleError(
                f"The published weights in '{overlay.get('file')}' do not fit timm's '{self.name}': remove that file "
                "and try again, or give another with --weights FILE."
            ) from error
        card = find_card(self.name, normalised=False)
        return f"Started from {card.name}, trained on {card.trained_on} ({card.licence}; from {card.source})."


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
        with torch.no_grad():  # which also shows that it takes such images
            given = body.eval()(torch.zeros(1, channels, *size, device=next(body.parameters()).device))
        body.train()
        if not isinstance(given, Tensor) or given.ndim != 2:
            raise ValueError("its output is not a vector of features per image")
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise RecipeError(
            f"timm's '{name}' cannot be made for images of {size[0]} x {size[1]} pixels "
            f"({reason}): choose another --size, such as the "
            f"{_pretrained_settings(name)['input_size'][-1]} it is made for, or another network."
        ) from error
    return TimmNetwork(name, arguments, body, given.shape[1], classes, dropout=dropout, pretrained=pretrained)


def find_card(name: str, file: Path | None = None, *, normalised: bool = True) -> WeightsCard:
    """The card of the published weights of a network of timm, or of a ``file`` of them.

    What a ``config.json`` beside the file says comes first, as the hub keeps it. Raises DataError where mean and
    deviation are asked for (``normalised``) and not known.
    """
    if file is None and name in EMBEDDED_WEIGHTS:
        return EMBEDDED_WEIGHTS[name].card
    settings = _pretrained_settings(name)
    if file is None:
        return replace(card_from_settings(name, settings, normalised=normalised), sha256=cached_checksum(settings))
    known = read_timm_config(file).get("pretrained_cfg", {})
    if known.get("tag", settings["tag"]) != settings["tag"]:  # other weights than those that timm knows
        settings = {**settings, "license": None, "tag": None}
    card = card_from_settings(name, {**settings, **known}, normalised=normalised)
    digest = checksum_of_weights(file) if file.is_file() else None
    source = f"the file {file.name}" + ("" if known else f", taken for timm's {card.name}")
    return replace(card, source=source, sha256=digest)


def find_imagenet_classes(names: Sequence[str]) -> list[str]:
    """Those of ``names`` that ImageNet-1k has as a class, or as the last word of several: 'cats' of 'tabby cat'."""
    import_timm()
    from timm.data import ImageNetInfo

    known = ImageNetInfo()
    words = [set(known.index_to_description(k).lower().split(", ")) for k in range(known.num_classes())]
    exact = set().union(*words)
    ends = Counter(end for those in words for end in {word.split()[-1] for word in those if " " in word})

    def is_known(name: str) -> bool:
        word = re.sub(r"[\W_]+", " ", name.lower()).strip()
        forms = {word, word.removesuffix("s"), word.removesuffix("es")}
        return any(form in exact or ends[form] >= MIN_IMAGENET_KINDS for form in forms)

    return [name for name in names if is_known(name)]


def name_in_config(config: Mapping[str, Any]) -> str:
    """Timm's name of the network in a ``config.json`` of its hub, with the tag of the weights where timm knows it."""
    base = config["architecture"]
    full = f"{base}.{config['pretrained_cfg'].get('tag')}"
    return full if full in import_timm().list_models(f"{base}.*", pretrained=True) else base


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
