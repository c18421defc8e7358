"""Transfer learning: weights to start from, what is inherited with them, and layers that keep them (freezing)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checks import check_int, check_number
from ..classifier import Classifier, find_bundle
from ..data import iterate_batches
from ..errors import RecipeError
from ..features import backbone_fingerprint
from ..files import read_csv_rows
from ..layers import Network
from ..models import Architecture, find_stages, get_head, load_weights, name_in_config, read_timm_config
from ..preprocessing import Preprocessing
from ..types import Dataset
from .recipe import INHERIT, Recipe
from .run_folder import RunFolder

HEAD_KEEP_MARGIN = 0.25
"""A loaded head is kept where its accuracy on training images is at least chance + this fraction of (1 - chance)."""

HEAD_TEST_IMAGES = 500
"""Training images by which a loaded head is judged."""

REUSABLE_SURGERY = frozenset({"mirrored", "flip_tta", "grown_head", "cosine"})
"""Changes of a network after which its weights still fit a new one."""


def name_weights_file(recipe: Recipe) -> Recipe:
    """The recipe with the file of weights in a folder of timm's hub, and the network that its config.json names."""
    if recipe.weights is None:
        return recipe
    path = Path(recipe.weights)
    file = path / "model.safetensors" if path.is_dir() else path
    known = read_timm_config(file)
    if not known or not file.is_file():
        return recipe
    model = recipe.model or f"timm:{name_in_config(known)}"
    return recipe.replace(weights=str(file), model=model)


def load_source(weights: str | None, normalize: str | None) -> Classifier | None:
    """The classifier of the run or bundle that training starts from; None for a file of weights, or nothing.

    Raises RecipeError where ``weights`` is not there, or fits no new network, or is no bundle although ``normalize``
    is to be inherited; BundleError for a folder without a bundle.
    """
    if weights is not None and not Path(weights).exists():
        raise RecipeError(f"There is no file of weights '{weights}', and no run or bundle there.")
    if weights is None or Path(weights).is_file():
        if normalize == INHERIT:
            raise RecipeError(
                f"The recipe's normalize is '{INHERIT}', but --weights names no run or bundle to inherit from."
            )
        return None
    source = Classifier.load(weights)
    changes = {name for name, _ in source.architecture.surgery} - REUSABLE_SURGERY
    if changes or source.architecture.name == "ensemble":
        what = f"was changed by {', '.join(sorted(changes))}" if changes else "is an ensemble"
        raise RecipeError(
            f"The classifier of '{weights}' {what}, so its weights fit no network that could be trained: start "
            "from the classifier it was made of."
        )
    return source


def inherit_settings(recipe: Recipe, source: Classifier | None) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with the open ones of model, size, channels and normalize taken from ``source``; and notes."""
    if source is None:
        return recipe, ()
    known, asked = source.geometry, vars(recipe)
    if recipe.channels not in (None, known.channels):
        raise RecipeError(
            f"The recipe's channels is {recipe.channels}, but '{recipe.weights}' expects {known.channels}: "
            "leave it out, or start from other weights."
        )
    found = {"model": architecture_word(source.architecture), "channels": known.channels, "normalize": INHERIT}
    if known.size[0] == known.size[1]:
        found["size"] = known.size[0]
    taken = {name: value for name, value in found.items() if asked[name] is None}
    words = {"model": "network", "size": "size", "channels": "channels", "normalize": "normalisation"}
    notes = []
    if taken:
        what = ", ".join(word for name, word in words.items() if name in taken)
        flags = ", ".join(f"--{name}" for name in words if name in taken)
        notes.append(f"Inherited from '{recipe.weights}': {what} ({flags}).")
    mode, interpolation = recipe.resize_mode or "squash", recipe.interpolation or "bilinear"
    if (known.resize_mode, known.interpolation) != (mode, interpolation):
        notes.append(
            f"'{recipe.weights}' was trained on images resized by {known.resize_mode}, {known.interpolation}; this run "
            f"resizes by {mode}, {interpolation} (--resize-mode, --interpolation)."
        )
    return recipe.replace(**taken), tuple(notes)


def architecture_word(architecture: Architecture) -> str:
    """The word that names an architecture in a recipe.

    >>> architecture_word(Architecture("mlp", {"classes": 2, "channels": 1, "size": [8, 8], "hidden": [32, 16]}))
    'mlp:hidden=[32,16]'
    >>> architecture_word(Architecture("timm", {"classes": 2, "pretrained": True, "name": "resnet18"}))
    'timm:resnet18:pretrained=True'
    """
    own = {n: value for n, value in architecture.arguments.items() if n not in ("classes", "channels", "size")}
    first = [str(own.pop("name"))] if "name" in own else []  # as a word, since the argument is called like ours
    words = (f"{n}={str(value).replace(' ', '')}" for n, value in own.items())
    return ":".join([architecture.name, *first, *words])


def load_initial_weights(
    network: Network,
    preprocessing: Preprocessing,
    weights: str,
    source: Classifier | None,
    train: Dataset,
    keep_head: bool,
) -> str:
    """Copy ``weights`` into a new network; returns a note.

    Of a classifier (``source``) the head's rows of known class names are copied, the others stay random; of a file,
    which names no classes, a head that fits is kept with ``keep_head``, or where its accuracy shows that it knows them.
    Raises BundleError where they belong to another network.
    """
    last = get_head(network)
    fresh = {name: value.clone() for name, value in last.state_dict().items()}
    if source is None:
        return _load_weights_file(network, preprocessing, weights, train.labelled, fresh, keep_head)
    load_weights(network, find_bundle(weights) / "model.safetensors", source.state_dict())
    classes, places = train.classes, {name: k for k, name in enumerate(source.classes)}
    same = fresh.keys() == get_head(source.network).state_dict().keys()
    known = [(row, places[name]) for row, name in enumerate(classes) if name in places and same]
    with torch.no_grad():
        for name, value in last.state_dict().items():
            value.copy_(fresh[name])
            for row, place in known if name != "centre" else ():
                value[row] = get_head(source.network).state_dict()[name][place]
    start = f"Started from the {source.architecture.name} of '{weights}'; its head "
    if len(known) == len(classes):
        return f"{start}is kept, because it knows the classes."
    if not same:
        return f"{start}starts from random weights, because it is of another kind (--loss)."
    if not known:
        return f"{start}starts from random weights, because it was trained for other classes."
    names = ", ".join(classes[row] for row, _ in known[:5]) + (", ..." if len(known) > 5 else "")
    new = len(classes) - len(known)
    return f"{start}is kept for {names} and starts from random weights for {new} other classes."


@torch.inference_mode()
def _load_weights_file(
    network: Network,
    preprocessing: Preprocessing,
    weights: str,
    images: Dataset,
    fresh: dict[str, torch.Tensor],
    keep_head: bool,
) -> str:
    report = load_weights(network, weights)
    if report.initial or keep_head:
        return str(report)
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), HEAD_TEST_IMAGES)).astype(np.int64))
    training, correct = network.training, 0
    network.eval()
    for batch in iterate_batches(images.subset(rows), 128):
        correct += int((network(preprocessing(batch.pixels)).argmax(1) == batch.labels).sum())
    network.train(training)
    accuracy, chance = correct / len(rows), 1 / len(images.classes)
    if accuracy >= chance + HEAD_KEEP_MARGIN * (1 - chance):
        return str(report)
    get_head(network).load_state_dict(fresh)
    return (
        f"{report} Its head is right about {accuracy:.0%} of {len(rows):,} training images, so it was trained for "
        "other classes, and starts from random weights."
    )


def start_provenance(start: str | None, network: Network, source: Classifier | None) -> dict[str, Any]:
    """What a bundle says of its start: the name of the weights, and fingerprints of all ancestors, nearest first.

    Relatives have a fingerprint in common. Nothing where ``start`` is None, at random weights.
    """
    if start is None:
        return {}
    before = source.provenance.get("ancestors", []) if source else []
    return {"start": start, "ancestors": [backbone_fingerprint(network), *before]}


def warn_of_leakage(
    weights: str, source: Classifier, test: Dataset, data: str | None, data_seed: int
) -> tuple[str, ...]:
    """A warning where the source was trained on images that are test images now; ``data`` is where these come from."""
    folder, trained = Path(weights), None
    digests = RunFolder(folder).read_digests("train", "val")
    same = source.provenance.get("data_fingerprint") == test.fingerprint
    if digests is None and (folder / "split.csv").is_file() and (folder / "recipe.toml").is_file():
        theirs = Recipe.from_toml(folder / "recipe.toml").data
        if same or (theirs and data and Path(theirs).resolve() == Path(data).resolve()):
            trained = {row["file"] for row in read_csv_rows(folder / "split.csv") if row["split"] != "test"}
    if digests is not None:
        count = int(np.isin(test.digests, digests).sum())
        what = f"{count:,} of the {len(test):,} test images were training images of '{weights}'"
        if not count:
            return ()
    elif trained is None:
        if not same or source.provenance.get("split_seed") == data_seed:
            return ()
        what = f"Some test images may have been training images of '{weights}'"
    elif count := sum(file in trained for file in test.files.tolist()):
        what = f"{count:,} of the {len(test):,} test images were training images of '{weights}'"
    else:
        return ()
    return (f"{what}, from which this run starts, so test accuracy will be too optimistic: use its --split-seed.",)


class FreezeSchedule(ABC):
    """Which stages keep their weights in an epoch: always the first ones, counted from the pixels."""

    freezes: ClassVar[bool] = True
    """Whether anything is ever frozen."""
    head_only: ClassVar[bool] = False
    """Whether only the head ever learns: a linear probe."""
    depthwise: ClassVar[bool] = False
    """Whether the kernels of depthwise convolutions are frozen in every stage."""

    @abstractmethod
    def n_frozen(self, names: Sequence[str], epoch: int) -> int:
        """Number of the stages ``names`` that are frozen in this epoch (from 0); the head is the last of them."""

    def first_change(self) -> int:
        """First epoch in which another number of stages is frozen; 0 where the number never changes."""
        return 0


@dataclass(frozen=True)
class NoFreezing(FreezeSchedule):
    """All of the network learns from the first step."""

    freezes = False

    def n_frozen(self, names: Sequence[str], epoch: int) -> int:  # noqa: ARG002
        """None."""
        return 0


@dataclass(frozen=True)
class FreezeBackbone(FreezeSchedule):
    """Only the head learns: a linear probe."""

    head_only = True

    def n_frozen(self, names: Sequence[str], epoch: int) -> int:  # noqa: ARG002
        """All but the last."""
        return len(names) - 1


@dataclass(frozen=True)
class UntilEpoch(FreezeSchedule):
    """Only the head learns for the first ``epochs`` epochs; then all of the network."""

    epochs: int

    def __post_init__(self) -> None:
        check_int("epochs", self.epochs, 1)

    def n_frozen(self, names: Sequence[str], epoch: int) -> int:
        """All but the last, or none."""
        return len(names) - 1 if epoch < self.epochs else 0

    def first_change(self) -> int:
        """When all begins to learn."""
        return self.epochs


@dataclass(frozen=True)
class UpToStage(FreezeSchedule):
    """The stages up to this one are frozen: its number from the pixels (from 1), or its name."""

    stage: int | str

    def __post_init__(self) -> None:
        if not isinstance(self.stage, str):
            check_int("stage", self.stage, 1)

    def n_frozen(self, names: Sequence[str], epoch: int) -> int:  # noqa: ARG002
        """Up to the stage; raises RecipeError where the network has no such stage before its head."""
        able = [*names[:-1]]
        if self.stage in able:
            return able.index(self.stage) + 1
        if isinstance(self.stage, int) and self.stage <= len(able):
            return self.stage
        raise RecipeError(
            f"The recipe's freeze is 'stage:{self.stage}', but the network's stages before the head are "
            f"{', '.join(able) or 'none'}: name one of them, or a number from 1 to {len(able)}."
        )


@dataclass(frozen=True)
class EarlyStages(FreezeSchedule):
    """The first ``share`` of the stages before the head is frozen, and so are all kernels of depthwise convolutions.

    Early stages see the most pixels and change least in fine-tuning; a step takes about a third of the time.
    """

    depthwise = True
    share: float = 0.45

    def __post_init__(self) -> None:
        check_number("share", self.share, 0, 1)

    def n_frozen(self, names: Sequence[str], epoch: int) -> int:  # noqa: ARG002
        """The share, rounded down."""
        return int(self.share * (len(names) - 1))


@dataclass(frozen=True)
class GradualUnfreezing(FreezeSchedule):
    """The head learns first; every ``epochs`` epochs one more stage joins it (Howard & Ruder 2018)."""

    epochs: int

    def __post_init__(self) -> None:
        check_int("epochs", self.epochs, 1)

    def n_frozen(self, names: Sequence[str], epoch: int) -> int:
        """One fewer after each ``epochs`` epochs."""
        return max(0, len(names) - 1 - epoch // self.epochs)

    def first_change(self) -> int:
        """When the first stage joins the head."""
        return self.epochs


class Freezer:
    """Freezes stages of a classifier epoch by epoch: no gradients; norms and dropout as in eval mode."""

    def __init__(self, classifier: Classifier, schedule: FreezeSchedule, *, freeze_norms: bool = False) -> None:
        self.schedule = schedule
        norms = (module for module in classifier.network.modules() if isinstance(module, _BatchNorm))
        self.norms = [*norms] if freeze_norms else []
        self.stages = find_stages(classifier.network) if schedule.freezes else ()
        self.trained = [[p for p in stage.parameters() if p.requires_grad] for stage in self.stages]
        convolutions = (m for m in classifier.network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
        kernels = (m.weight for m in convolutions if m.weight.shape[1] == 1 and m.weight.requires_grad)
        self.depthwise = [*kernels] if schedule.depthwise else []

    def __call__(self, epoch: int) -> None:
        """Freeze the stages of this epoch; call it when the classifier is in training mode."""
        for norm in self.norms:
            norm.eval()
        count = self.schedule.n_frozen([stage.name for stage in self.stages], epoch)
        for number, (stage, trained) in enumerate(zip(self.stages, self.trained, strict=True)):
            for parameter in trained:
                parameter.requires_grad_(number >= count)
            if number < count:
                for module in stage.modules:
                    module.eval()
        for kernel in self.depthwise:
            kernel.requires_grad_(False)

    def unfreeze(self) -> None:
        """Let all stages learn again."""
        for trained in self.trained:
            for parameter in trained:
                parameter.requires_grad_()
