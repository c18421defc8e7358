"""The verb features: what a network sees in every image, as an array in a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ..errors import BundleError, ChoiceError
from .output import DEFAULTS, Options, Switch, emit
from .predict import IMAGE_WORD, list_named_images, parse_shard

if TYPE_CHECKING:
    from rich.console import Console

    from ..classifier import Classifier
    from ..sources import Source

EMBEDDED = "embedded"
"""The word for the published network that comes with the installation."""


def features(
    *images: Annotated[str, IMAGE_WORD],
    out: Path | None = None,
    model: str = EMBEDDED,
    shard: str | None = None,
    merge: Path | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    accept_licence: Switch = False,
    options: Options = DEFAULTS,
) -> None:
    """Embed images into a folder: features.npy, and images.csv with the file of each row.

    What is there already is kept, and what was killed goes on where it stopped.

    Parameters
    ----------
    images: str
        Files, folders, archives, addresses, globs, or - for stdin, as of predict; or the name of a dataset.
    out: Path
        Folder of the features, or of their shards.
    model: str
        Whose features: a run or bundle, embedded (the published network that comes with the installation), or
        timm:NAME with its published weights.
    shard: str
        Embed only this part of the images: 3/16 is the third of sixteen, in the order of their names.
    merge: Path
        Join all shards in this folder into one array instead.
    precision: str
        auto is bfloat16 where the processor multiplies it, else float32. Shards made on different machines need the
        same.
    accept_licence: bool
        Use published weights of timm whose licence may restrict commercial use.
    """
    from ..features import merge_features

    if merge is not None:
        if images or out is not None or shard is not None:
            raise ChoiceError("--merge needs only its folder: leave out the images, --out and --shard.")
        facts, place = merge_features(merge), merge
    elif not images or out is None:
        raise ChoiceError("Name the images and a folder for their features: sightline features DATA --out FOLDER")
    else:
        part = (1, 1) if shard is None else parse_shard(shard)
        facts = embed_images(images, out, model, part, precision, options.device, accept_licence=accept_licence)
        place = out if part[1] == 1 else out / f"{part[0]}-of-{part[1]}"
    emit({"out": str(place), **facts}, options.json, print_features)


def open_images(words: Sequence[str]) -> "Source":
    """The images that words name: those of one place under their names in it, others as predict names them."""
    from ..data import source_from_inputs
    from ..sources import find_unlabelled, names_images

    word, *others = words
    if not others and word != "-" and not names_images(word):
        return find_unlabelled(word)
    return source_from_inputs(" ".join(words), list_named_images(words))


def embed_images(
    words: Sequence[str],
    out: Path,
    model: str,
    shard: tuple[int, int],
    precision: str,
    device: str,
    *,
    accept_licence: bool,
) -> dict[str, Any]:
    """Embed the images that words name; raises BundleError for a classifier without features."""
    import torch

    from ..features import write_features

    source = open_images(words)
    classifier = open_model(model, source, device, accept_licence=accept_licence)
    dtype = None if precision == "auto" else {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    try:
        return write_features(classifier, source, out, shard, dtype)
    except BundleError as error:
        raise BundleError(
            f"The {classifier.architecture.name} of '{model}' has no features, because it has no last layer: name a "
            "run of a single network by --model, or leave it out."
        ) from error


def open_model(model: str, source: "Source", device: str, *, accept_licence: bool) -> "Classifier":
    """The network that a word names, for these images."""
    from .. import runtime
    from ..classifier import Classifier
    from ..comparison import open_backbone

    place = runtime.resolve_device(device)
    if model == EMBEDDED:
        return open_backbone(source, place)
    if model.startswith("timm:"):
        return open_backbone(source, place, model, accept_licence=accept_licence)
    return Classifier.load(model).to(place).eval()


def print_features(console: "Console", value: Mapping[str, Any]) -> None:
    """Where the features are."""
    console.print(
        f"{value['width']:,} features an image ({value['network']}, {value['precision']}) are in {value['out']}",
        markup=False,
    )
    if value["unreadable"]:
        console.print(
            f"{value['unreadable']:,} could not be read: images.csv says why, and their features are NaN."
        )
