"""Training that begins from weights that exist: what is taken over from where it starts."""

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..classifier import Classifier, find_bundle
from ..data import iterate_batches
from ..errors import RecipeError
from ..layers import Network
from ..models import Architecture, get_head, load_weights
from ..preprocessing import Preprocessing
from ..types import Dataset, Splits
from .recipe import Recipe

INHERIT = "start"
"""The word for the normalisation of the classifier that --weights names."""

HEAD_KEEP_MARGIN, HEAD_TEST_IMAGES = 0.25, 500
"""A last layer from a file is kept where it is right this far from chance to always, about so many images."""

REUSABLE_SURGERY = frozenset({"mirrored", "grown_head"})
"""Changes of a network after which its weights still fit a new one."""


def load_source(recipe: Recipe) -> Classifier | None:
    """The classifier of the run or bundle that the recipe starts from; None for a file of weights, or nothing.

    Raises BundleError for a folder that holds none, RecipeError for one whose weights fit no new network.
    """
    if recipe.weights is None or Path(recipe.weights).is_file():
        if recipe.normalize == INHERIT:
            raise RecipeError(
                "The recipe's normalize is 'start', but --weights names no run or bundle to start from."
            )
        return None
    source = Classifier.load(recipe.weights)
    changes = {name for name, _ in source.architecture.surgery} - REUSABLE_SURGERY
    if changes or source.architecture.name == "ensemble":
        what = f"was changed by {', '.join(sorted(changes))}" if changes else "is an ensemble"
        raise RecipeError(
            f"The classifier of '{recipe.weights}' {what}, so its weights fit no network that could be trained "
            "on: start from what it was made of."
        )
    return source


def inherit_settings(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with what is left open taken from the run or bundle it starts from, and what is worth saying.

    Network, size, channels and normalisation; without such a start the normalisation is ``fitted``.
    """
    source = load_source(recipe)
    if source is None:
        return recipe.replace(normalize=recipe.normalize or "fitted"), ()
    known, asked = source.geometry, vars(recipe)
    if recipe.channels not in (None, known.channels):
        raise RecipeError(
            f"The recipe's channels is {recipe.channels}, but '{recipe.weights}' looks at {known.channels}: "
            "leave it out, or start from other weights."
        )
    found = {"model": architecture_word(source.architecture), "channels": known.channels, "normalize": INHERIT}
    if known.size[0] == known.size[1]:
        found["size"] = known.size[0]
    taken = {name: value for name, value in found.items() if asked[name] is None}
    as_it = {"model": "network", "size": "size", "channels": "channels", "normalize": "normalisation"}
    said = []
    if taken:
        what = ", ".join(word for name, word in as_it.items() if name in taken)
        flags = ", ".join(f"--{name}" for name in as_it if name in taken)
        said.append(f"Taken from '{recipe.weights}', where this starts: {what} ({flags}).")
    if (known.resize_mode, known.interpolation) != (recipe.fit, recipe.filter):
        said.append(
            f"'{recipe.weights}' was trained on images resized by {known.resize_mode}, {known.interpolation}; "
            f"here it is {recipe.fit}, {recipe.filter} (--fit, --filter)."
        )
    return recipe.replace(**taken), tuple(said)


def architecture_word(plan: Architecture) -> str:
    """The word that names an architecture in a recipe.

    >>> word_of(Architecture("mlp", {"classes": 2, "channels": 1, "size": [8, 8], "hidden": [32, 16]}))
    'mlp:hidden=[32,16]'
    """
    own = {name: value for name, value in plan.arguments.items() if name not in ("classes", "channels", "size")}
    return ":".join([plan.name, *(f"{name}={str(value).replace(' ', '')}" for name, value in own.items())])


def is_pretrained(recipe: Recipe) -> bool:
    """Whether the network comes with published weights."""
    return "pretrained=True" in (recipe.model or "").split(":")


def load_initial_weights(
    network: Network, preprocessing: Preprocessing, recipe: Recipe, source: Classifier | None, splits: Splits
) -> tuple[str, ...]:
    """Put the weights into a fresh network that the recipe starts from; says which.

    Raises BundleError where they belong to another network.
    """
    if recipe.weights is None:
        return tuple(filter(None, [network.load_published()]))
    if source is None:
        return (_load_weights_file(network, preprocessing, recipe, splits.train),)
    return (
        _load_source_weights(network, recipe, source, splits.train.classes),
        *warn_of_leakage(recipe, source, splits),
    )


def _load_weights_file(network: Network, preprocessing: Preprocessing, recipe: Recipe, images: Dataset) -> str:
    """A file does not name its classes: a last layer for as many is kept where it shows that it knows these."""
    last = get_head(network)
    fresh = {name: value.clone() for name, value in last.state_dict().items()}
    report = load_weights(network, recipe.weights or "")
    if report.initial or recipe.epochs == 0:
        return str(report)
    share, count = _training_accuracy(network, preprocessing, images)
    chance = 1 / len(images.classes)
    if share >= chance + HEAD_KEEP_MARGIN * (1 - chance):
        return str(report)
    last.load_state_dict(fresh)
    return (
        f"{report} Its last layer is right about {share:.0%} of {count:,} training images, so it was made for "
        "other classes, and starts fresh."
    )


@torch.inference_mode()
def _training_accuracy(network: Network, preprocessing: Preprocessing, images: Dataset) -> tuple[float, int]:
    """The share of some training images that the network is right about, and how many were asked."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), HEAD_TEST_IMAGES)).astype(np.int64))
    training, right = network.training, 0
    network.eval()
    for batch in iterate_batches(images.subset(rows), 128):
        right += int((network(preprocessing(batch.pixels)).argmax(1) == batch.labels).sum())
    network.train(training)
    return right / len(rows), len(rows)


def _load_source_weights(network: Network, recipe: Recipe, source: Classifier, classes: Sequence[str]) -> str:
    """The weights of another Sightline classifier: rows of the last layer go with the names of the classes.

    Those it knew are kept, others stay fresh.
    """
    assert recipe.weights is not None
    last = get_head(network)
    fresh = {name: value.clone() for name, value in last.state_dict().items()}
    load_weights(network, find_bundle(recipe.weights) / "model.safetensors")
    places = {name: k for k, name in enumerate(source.classes)}
    known = [(row, places[name]) for row, name in enumerate(classes) if name in places]
    with torch.no_grad():
        for name, value in last.state_dict().items():
            value.copy_(fresh[name])
            for row, place in known:
                value[row] = get_head(source.network).state_dict()[name][place]
    said = f"Started from the {source.architecture.name} of '{recipe.weights}'; its last layer "
    if len(known) == len(classes):
        return f"{said}is kept, because it knows the classes."
    if not known:
        return f"{said}starts fresh, because its classes are others."
    names = ", ".join(classes[row] for row, _ in known[:5]) + (", ..." if len(known) > 5 else "")
    return f"{said}is kept for {names} and starts fresh for {len(classes) - len(known)} other classes."


def ancestor_fingerprints(network: Network, source: Classifier | None) -> list[str]:
    """Fingerprints of the weights a training starts from, the nearest first: relatives have one in common."""
    before = source.provenance.get("ancestors", []) if source else []
    return [backbone_fingerprint(network), *before]


def backbone_fingerprint(network: Network) -> str:
    """A hash of all weights but the head's: equal for equal features."""
    last = get_head(network)
    prefix = next(name for name, module in network.named_modules() if module is last) + "."
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(network.state_dict().items()):
        if not name.startswith(prefix) and not name.endswith("num_batches_tracked"):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def warn_of_leakage(recipe: Recipe, source: Classifier | None, splits: Splits) -> tuple[str, ...]:
    """A warning where the start learnt from images that are set aside for testing now."""
    if source is None:
        return ()
    same = source.provenance.get("data_fingerprint") == splits.test.fingerprint
    learnt = _read_trained_files(Path(recipe.weights or ""), recipe.data, same=same)
    if learnt is None:
        if not same or source.provenance.get("split_seed") == recipe.data_seed:
            return ()
        what = f"Images of this test may have been training images of '{recipe.weights}'"
    elif count := sum(file in learnt for file in splits.test.files.tolist()):
        what = f"{count:,} of the {len(splits.test):,} test images were training images of '{recipe.weights}'"
    else:
        return ()
    return (f"{what}, where this starts: the result will flatter. Split the images as it did (--split-seed).",)


def _read_trained_files(folder: Path, data: str | None, *, same: bool) -> set[str] | None:
    """The files a run trained or validated on, if its ``data`` are these; None where there is no list of them."""
    if not (folder / "split.csv").is_file() or not (folder / "recipe.toml").is_file():
        return None
    its = Recipe.from_toml(folder / "recipe.toml").data
    if not same and (its is None or data is None or Path(its).resolve() != Path(data).resolve()):
        return None
    with (folder / "split.csv").open(newline="", encoding="utf-8") as stream:
        return {row["file"] for row in csv.DictReader(stream) if row["split"] != "test"}


def start_provenance(recipe: Recipe, network: Network, source: Classifier | None) -> dict[str, Any]:
    """What a bundle tells about where it started; nothing where that was at random."""
    if recipe.weights is None and not is_pretrained(recipe):
        return {}
    name = recipe.model if recipe.weights is None else Path(recipe.weights).name
    return {"start": name, "ancestors": ancestor_fingerprints(network, source)}
