"""The features of a whole source in a folder, by shards: each goes on after a kill, and together they are the whole.

A folder of features has ``features.npy`` (N D, float32, memory-mapped), ``images.csv`` (a row for each image: its file,
and the error of one that could not be read, whose features are NaN) and ``features.json``, written last: what the
features were computed from. A shard is such a folder inside of it, ``3-of-16``.
"""

import errno
import hashlib
import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray

from .. import progress
from ..classifier import Classifier
from ..data import LivePixels
from ..errors import DataError, OutputError
from ..files import atomic_replace, explain_write_errors, read_csv_rows, read_json_object, write_csv, write_json
from ..models import get_head
from ..sources import Source
from ..types import Dataset
from .embedding import Embedder, embedding_precision
from .store import FeatureStore, backbone_fingerprint, checksum_rows, embed_missing, feature_key, lock_store

SHARD_UNIT = 256
"""Images by which shards are cut, and by which one goes on after a kill. Every batch is a part of such a unit, so that
an image is in the same batch, and its features are the same to the byte, however the work is divided."""

FEATURES_FILE, IMAGES_FILE, FACTS_FILE = "features.npy", "images.csv", "features.json"

_DIFFERENCES = {
    "names": "other images",
    "weights": "other weights",
    "geometry": "another size or way to resize",
    "precision": "another precision (--precision)",
    "key": "another preprocessing",
}
"""Facts that shards share, and what it means where they differ."""


def write_features(
    classifier: Classifier,
    source: Source,
    folder: Path,
    shard: tuple[int, int] = (1, 1),
    precision: torch.dtype | None = None,
) -> dict[str, Any]:
    """Embed the images of a source, or of a shard of it, into a folder, and return the facts of ``features.json``.

    Args:
        classifier: the network, whose last layer is not used.
        source: all images; labels are not used.
        folder: where the features are written; shards lie in it side by side.
        shard: its number, from 1, and how many there are.
        precision: None for that of ``embedding_precision``.

    ``unreadable`` counts those that could not be read. What is there already is kept, and what was killed goes on.
    Raises BundleError for a network without a last layer; DataError for more shards than the images have, where no
    image can be read, and where the folder holds other features; OutputError where the disk has no room.
    """
    width, unread = get_head(classifier.network).in_features, dict[int, str]()
    precision = precision or embedding_precision(classifier)
    dataset = _open_images(source, LivePixels(source, classifier.geometry, unread))
    facts = {
        "images": len(source),
        "width": width,
        "names": dataset.fingerprint,
        "network": classifier.architecture.name,
        "weights": backbone_fingerprint(classifier.network),
        "geometry": json.loads(json.dumps(classifier.geometry.as_json())),
        "precision": str(precision).removeprefix("torch."),
        "key": feature_key(classifier, dataset, precision),
    }
    rows = _shard_rows(len(source), *shard)
    target = folder if shard[1] == 1 else folder / f"{shard[0]}-of-{shard[1]}"
    _check_facts(folder, facts)
    for other, (_, count) in _find_shards(folder, r"\.?"):
        _check_facts(other, facts)
        if count != shard[1]:
            raise DataError(
                f"'{other}' is one of {count:,} shards, not of {shard[1]:,}: ask for {count:,}, or choose another "
                "--out."
            )
    work = folder / f".{shard[0]}-of-{shard[1]}"
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_store(work.with_name(f"{work.name}.lock")):
        if (target / FACTS_FILE).exists():
            progress.notify(f"'{target}' is there already and is kept. Delete it to compute it again.")
            return read_json_object(target / FACTS_FILE)
        store = _open_work(work, facts, len(rows))
        _embed_shard(Embedder(classifier, dataset, precision), store, rows, unread)
        if len(unread) == len(rows):
            row, reason = next(iter(sorted(unread.items())))
            raise DataError(
                f"None of the {len(rows):,} images could be read, the first is '{source.files[row]}': {reason}. "
                "Name a folder or archive of photos."
            )
        table = ([str(source.files[row]), unread.get(row, "")] for row in rows.tolist())
        write_csv(work / IMAGES_FILE, [["file", "error"], *table])
        facts["unreadable"] = len(unread)
        write_json(work / FACTS_FILE, facts)
        if shard[1] > 1:
            work.rename(target)
        else:
            for name in (FEATURES_FILE, IMAGES_FILE, FACTS_FILE):
                (work / name).replace(folder / name)
            shutil.rmtree(work)
    return facts


def _embed_shard(
    embedder: Embedder, store: FeatureStore, rows: Int[ndarray, " n"], unread: dict[int, str]
) -> None:
    """Embed the units of a shard that its store lacks, and those with an image that could not be read.

    ``unread`` gets the reasons while images are decoded.
    """
    known = np.zeros(len(rows), np.bool_)
    for start in range(0, len(rows), SHARD_UNIT):
        unit = np.arange(start, min(start + SHARD_UNIT, len(rows)))
        found = np.empty((len(unit), store.width), np.float32)
        known[unit] = store.read(unit, found).all() and np.isfinite(found).all()
    missing = rows[~known]
    embedder.batch_size = 1 << (min(embedder.batch_size, SHARD_UNIT).bit_length() - 1)

    def keep(part: Int[ndarray, " k"], features: ndarray) -> None:
        features[[row in unread for row in part.tolist()]] = np.nan
        store.write(part - rows[0], features)

    embed_missing(embedder, missing, keep, place=store.folder.parent)


def merge_features(folder: Path) -> dict[str, Any]:
    """Join the shards in a folder into what one process would have written; returns the facts of ``features.json``.

    The shards stay. Raises DataError where a shard is missing, damaged, or of other images or weights.
    """
    parts = {number: place for place, number in _find_shards(folder, "")}
    counts = sorted({count for _, count in parts})
    if len(counts) != 1:
        what = "no shards" if not counts else f"shards of different divisions, {' and '.join(map(str, counts))}"
        raise DataError(
            f"'{folder}' has {what}: write all of one division by sightline features DATA --out {folder} "
            "--shard 1/16, and so on."
        )
    (count,) = counts
    if lost := [f"{number}/{count}" for number in range(1, count + 1) if (number, count) not in parts]:
        more = f" and {len(lost) - 5:,} more" if len(lost) > 5 else ""
        raise DataError(
            f"'{folder}' lacks the shards {', '.join(lost[:5])}{more} of {count}: run sightline features with "
            f"--shard {lost[0]} first."
        )
    facts = read_json_object(parts[1, count] / FACTS_FILE)
    for number in range(1, count + 1):
        _check_facts(parts[number, count], facts)
    _check_facts(folder, facts)
    shape, table = (facts["images"], facts["width"]), [["file", "error"]]
    with explain_write_errors(folder), atomic_replace(folder / FEATURES_FILE) as temporary:
        _check_room(folder, *shape)
        merged = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        for number in range(1, count + 1):
            place, rows = parts[number, count], _shard_rows(shape[0], number, count)
            names: list[dict[str, str]] = []
            try:
                features, sums = (np.load(place / name, mmap_mode="r") for name in (FEATURES_FILE, "sums.npy"))
                names = read_csv_rows(place / IMAGES_FILE)
                whole = len(features) == len(names) == len(rows)
                for start in range(0, len(rows) if whole else 0, SHARD_UNIT):
                    some = slice(start, start + SHARD_UNIT)
                    whole &= np.array_equal(checksum_rows(features[some]), sums[some])
                    merged[rows[some]] = features[some]
            except (OSError, ValueError, EOFError, IndexError):
                whole = False
            if not whole:
                raise DataError(f"'{place}' is damaged: delete it and run --shard {number}/{count} again.")
            table += [[row["file"], row["error"]] for row in names]
        merged.flush()
    write_csv(folder / IMAGES_FILE, table)
    facts["unreadable"] = sum(bool(error) for _, error in table[1:])
    write_json(folder / FACTS_FILE, facts)
    return facts


def _open_images(source: Source, pixels: LivePixels) -> Dataset:
    """The images of a source, decoded when they are embedded; their fingerprint is that of their names."""
    names = "\0".join(map(str, source.files)).encode()
    return Dataset(
        pixels=pixels,
        rows=np.arange(len(source)),
        labels=source.labels,
        classes=source.classes,
        files=source.files,
        digests=np.zeros(len(source), np.uint64),
        geometry=pixels.geometry,
        fingerprint=hashlib.blake2b(names, digest_size=16).hexdigest(),
    )


def _shard_rows(images: int, number: int, count: int) -> Int[ndarray, " n"]:
    """Rows of a shard: the shards one after the other are all images, none twice."""
    units = -(-images // SHARD_UNIT)
    if count > units:
        raise DataError(
            f"--shard asks for {count} parts of {images:,} images, and a part has at least {SHARD_UNIT}: ask for at "
            f"most {units}."
        )
    first, last = (min(images, units * n // count * SHARD_UNIT) for n in (number - 1, number))
    return np.arange(first, last)


def _find_shards(folder: Path, prefix: str) -> list[tuple[Path, tuple[int, int]]]:
    """The shards in a folder, with number and count; those whose names begin with ``prefix``, a pattern."""
    found = []
    with suppress(OSError):
        for place in sorted(folder.iterdir()):
            name = re.fullmatch(rf"{prefix}(\d+)-of-(\d+)", place.name)
            if name and (place / FACTS_FILE).exists():
                found.append((place, (int(name[1]), int(name[2]))))
    return found


def _check_facts(place: Path, facts: dict[str, Any]) -> None:
    """Raise DataError where there are features already that differ from those to come."""
    if not (place / FACTS_FILE).exists():
        return
    known = read_json_object(place / FACTS_FILE)
    if different := [what for name, what in _DIFFERENCES.items() if known.get(name) != facts[name]]:
        raise DataError(f"'{place}' has features of {different[0]}: delete it, or choose another --out.")


def _open_work(work: Path, facts: dict[str, Any], rows: int) -> FeatureStore:
    """What a killed process left of a shard, or an empty one; raises OutputError where the disk has no room."""
    if not (work / FACTS_FILE).exists():
        shutil.rmtree(work, ignore_errors=True)
    try:
        store = FeatureStore(work, rows, facts["width"])
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _check_room(work.parent, rows, facts["width"], full=True)
        raise
    write_json(work / FACTS_FILE, facts)
    return store


def _check_room(folder: Path, rows: int, width: int, *, full: bool = False) -> None:
    """Raise OutputError where the disk has no room for these features, or is known to be ``full``."""
    needed, free = 4 * width * rows, shutil.disk_usage(folder).free
    if full or needed > free:
        raise OutputError(
            f"The features of {rows:,} images take {needed / 1e9:,.2f} GB, and the disk of '{folder}' has "
            f"{free / 1e9:,.2f} GB free: free some, or choose another --out."
        )
