"""Which images of a collection are most like others, by a run's features or the published network's."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from .. import runtime
from ..classifier import Classifier
from ..data import decode, load_dataset, survey, to_tensor
from ..errors import DataError, ImageError
from ..features import INDEX_SUFFIX, ImageIndex, backbone_fingerprint, embed_cached
from ..files import atomic_replace
from ..metrics import score_retrieval
from ..models import find_card
from ..pictures import contact_sheet
from ..sources import Source, absolute_place, find, find_unlabelled, hide_query, is_address, list_images
from ..training import PHOTO_SIDE, QUALITY_MODELS, build_published_start
from ..types import Dataset, Geometry

MAX_QUERIES = 100
"""Images that are looked for at once."""

MAX_SCORED_IMAGES = 5_000
"""Images, drawn at random, by which retrieval is scored: all against all."""


def find_similar(
    data: str,
    images: Sequence[str] = (),
    *,
    run: Path | None = None,
    k: int = 8,
    limit: int | None = None,
    save: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """The ``k`` images of ``data`` nearest to each of ``images``; and how often neighbours share a class.

    Args:
        data: labelled or unlabelled images, or a saved index.
        images: files, folders and patterns.
        run: the classifier whose features are compared; None for the published network's.
        limit: about how many images of ``data`` to use.
        save: where the index is written.
        out: a picture of the images and what was found.

    Raises DataError, with the remedy, for data, images or an index that cannot be used.
    """
    if k < 1:
        raise DataError(f"--count is {k}: it must be at least 1.")
    place = runtime.resolve_device(device)
    if Path(data).suffix == INDEX_SUFFIX and Path(data).is_file():
        index = ImageIndex.load(Path(data))
        classifier = _open_network(index, run, place)
    else:
        index, classifier = _build_index(data, run, limit, place)
    value: dict[str, Any] = {"data": hide_query(data), "images": len(index), "features": index.facts["network"]}
    if save is not None:
        if save.suffix != INDEX_SUFFIX:
            raise DataError(f"'{save}' is not the name of an index: end it in {INDEX_SUFFIX}.")
        value["index"] = str(index.save(save))
    value["retrieval"] = _score(index)
    queries, pixels, remarks = _decode_queries(images, classifier.geometry)
    value |= {"remarks": remarks, "queries": []}
    if queries:
        found, cosines = index.search(_embed(classifier, pixels), min(k, len(index)))
        for query, rows, near in zip(queries, found, cosines, strict=True):
            value["queries"].append(_describe(index, query, rows, near))
        if out is not None:
            with atomic_replace(out) as temporary:
                _draw(index, queries, pixels, found, cosines).save(temporary)
            value["picture"] = str(out)
    return value


def _find_images(data: str, limit: int | None) -> Source:
    """The images, with their labels where they have some; else all of the class without a name."""
    try:
        return find(data, limit=limit, several=False)
    except DataError:
        if not (is_address(data) or Path(data).exists()):
            raise
        source = find_unlabelled(data)
    if limit is not None and limit < len(source):
        source = source.subset(np.sort(runtime.permutation(len(source), 0)[:limit]))
    return replace(source, classes=("",), labels=np.zeros(len(source), np.int64))


def open_backbone(
    source: Source, device: torch.device, model: str = QUALITY_MODELS["standard"], *, accept_licence: bool = True
) -> Classifier:
    """A published network to embed these images with, its head random.

    ``model`` is a network of timm, ``timm:NAME``, with published weights. Images become pixels as their card says;
    small pictures are enlarged by less.
    """
    model = model if ":pretrained=" in model else f"{model}:pretrained=True"
    card = find_card(model.split(":")[1])
    filter: Any = card.interpolation
    side = card.size if survey(source).short_side.median >= PHOTO_SIDE else card.size // 2
    geometry = Geometry(
        size=(side, side),
        channels=3,
        resize_mode="crop",
        crop_fraction=card.crop_fraction,
        interpolation=filter,
    )
    return build_published_start(_empty_dataset(geometry), device, model, accept_licence=accept_licence)


def _build_index(data: str, run: Path | None, limit: int | None, device: Any) -> tuple[ImageIndex, Classifier]:
    source = _find_images(data, limit)
    if run is None:
        classifier = open_backbone(source, device)
        network = "the published network"
    else:
        classifier = Classifier.load(run).to(device)
        network = str(run)
    dataset = load_dataset(source, classifier.geometry)
    index = ImageIndex.build(
        embed_cached(classifier, dataset),
        dataset.files.astype(str),
        np.array([*dataset.classes, ""], str)[dataset.labels],  # UNLABELLED, -1, is the last: no name
        data=absolute_place(data) or "",
        network=network,
        run=None if run is None else str(run.resolve()),
        backbone=backbone_fingerprint(classifier.network),
        geometry=dataset.geometry.as_json(),
    )
    return index, classifier


def _open_network(index: ImageIndex, run: Path | None, device: Any) -> Classifier:
    """The network that computed the features of an index; ``run`` where it lies elsewhere now."""
    place = run or index.facts["run"]
    geometry = Geometry.from_json(index.facts["geometry"])
    if place is None:
        classifier = build_published_start(_empty_dataset(geometry), device)
    else:
        classifier = Classifier.load(place).to(device)
    if backbone_fingerprint(classifier.network) != index.facts["backbone"]:
        whose = f"'{place}'" if place else "the published network of this release"
        raise DataError(
            f"The features of the index come from other weights than {whose} has: build it again with "
            "sightline nearest DATA --save, or name the right one by --run."
        )
    return classifier


def _score(index: ImageIndex) -> dict[str, Any] | None:
    """How often the nearest images are of the same class; None where classes are not known."""
    labelled = np.flatnonzero(index.labels != "")
    rows = labelled[np.sort(runtime.permutation(len(labelled), 0)[:MAX_SCORED_IMAGES])]
    classes, labels = np.unique(index.labels[rows], return_inverse=True)
    if len(classes) < 2 or np.bincount(labels).max() < 2:
        return None
    return score_retrieval(index.features[rows], labels).as_json() | {"images": len(rows)}


def _decode_queries(images: Sequence[str], geometry: Geometry) -> tuple[list[str], ndarray, list[str]]:
    """Files that could be read, their pixels, and a sentence for each of the others."""
    files = [file for word in images for file in list_images(word)]
    if len(files) > MAX_QUERIES:
        raise DataError(f"At most {MAX_QUERIES} images can be looked for at once, and these are {len(files):,}.")
    kept, pixels, remarks = [], [], []
    for file in files:
        try:
            pixels.append(decode(Path(file).read_bytes(), geometry))
            kept.append(file)
        except (ImageError, OSError) as error:
            remarks.append(f"'{file}' could not be read: {getattr(error, 'strerror', None) or error}.")
    if files and not kept:
        raise DataError(f"No image could be read ({remarks[0]}): give image files, folders of them, or a pattern.")
    return kept, np.stack(pixels) if pixels else np.zeros((0, *geometry.shape), np.uint8), remarks


def _embed(classifier: Classifier, pixels: UInt8[ndarray, "Q H W C"]) -> Float[ndarray, "Q D"]:
    classifier.eval()
    with torch.inference_mode():
        parts = [
            classifier.features(to_tensor(some, classifier.device))
            for some in np.array_split(pixels, -(-len(pixels) // 16))
        ]
    return torch.cat(parts).float().cpu().numpy()


def _describe(
    index: ImageIndex, query: str, rows: Int[ndarray, " k"], cosines: Float[ndarray, " k"]
) -> dict[str, Any]:
    found = [
        {"file": str(index.files[row]), "label": str(index.labels[row]), "similarity": round(float(cosine), 4)}
        for row, cosine in zip(rows, cosines, strict=True)
    ]
    label, votes = Counter(one["label"] for one in found).most_common(1)[0]
    return {"file": query, "nearest": found, "label": label, "votes": votes}


def _empty_dataset(geometry: Geometry) -> Dataset:
    none = np.zeros(0, np.int64)
    pixels = np.zeros((0, *geometry.shape), np.uint8)
    return Dataset(
        pixels=pixels,
        rows=none,
        labels=none,
        classes=("a", "b"),
        files=none.astype(str),
        digests=none.astype(np.uint64),
        geometry=geometry,
        fingerprint="",
    )


def _draw(
    index: ImageIndex,
    queries: Sequence[str],
    pixels: UInt8[ndarray, "Q H W C"],
    found: Int[ndarray, "Q k"],
    cosines: Float[ndarray, "Q k"],
) -> Any:
    """A row for each query: the image, then those found. Raises DataError where the collection is not there now."""
    source = _find_images(str(index.facts["data"]), None)
    places = {str(file): row for row, file in enumerate(source.files)}
    tiles, captions, notes = [], [], []
    for query, own, rows, near in zip(queries, pixels, found, cosines, strict=True):
        tiles.append(own)
        captions.append(Path(query).name)
        notes.append("")
        for row, cosine in zip(rows, near, strict=True):
            place = places.get(str(index.files[row]))
            if place is None:
                raise DataError(
                    f"'{index.files[row]}' is no longer in '{index.facts['data']}': build the index again."
                )
            tiles.append(decode(source.read(place), Geometry.from_json(index.facts["geometry"])))
            captions.append(str(index.labels[row]) or Path(str(index.files[row])).name)
            notes.append(f"{cosine:.2f}")
    return contact_sheet(tiles, captions, columns=1 + found.shape[1], notes=notes)
