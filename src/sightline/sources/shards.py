"""Images in several tars, as WebDataset writes them: each tar is listed once, and its members are read in place."""

import glob
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import progress
from ..errors import DataError
from ..types import UNLABELLED
from .archives import ArchiveReader, ShardReader, list_tar
from .cache import load_or_build
from .folders import infer_layout
from .layout import (
    USUAL_LABELS,
    LabelRule,
    check_train_covers_classes,
    expand_braces,
    is_pattern,
    parse_split,
    select_images,
    source_from_files,
)
from .samples import read_samples
from .source import Listing, Source, file_stamp
from .unlabelled import list_prefixes

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Endings of the tars of a set; a compressed one is decompressed into the cache, once."""


def select_shards(names: Sequence[str]) -> list[str]:
    """The tars among the files of a folder, sorted; none where there are images next to them, or a table."""
    found = sorted(name for name in names if name.lower().endswith(SHARD_SUFFIXES) and "/." not in f"/{name}")
    others = found and [name for name in names if name.lower().endswith((".csv", ".tsv", ".jsonl", ".parquet"))]
    return [] if not found or others or select_images(names)[0] else found


def match_shards(word: str) -> list[Path]:
    """The tars of a pattern such as ``shard-*.tar`` or ``shard-{000..009}.tar``; none where the word is no pattern.

    Raises DataError where a file that the braces name is missing.
    """
    if not word.lower().endswith(SHARD_SUFFIXES) or not is_pattern(word):
        return []
    found: dict[str, None] = {}
    for each in map(os.path.expanduser, expand_braces(word)):
        matches = sorted(glob.glob(each, recursive=True)) if glob.has_magic(each) else [each]  # noqa: PTH207
        found |= dict.fromkeys(matches)
    paths = [*map(Path, found)]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(
            f"'{word}' names {len(paths):,} tars, and {len(missing):,} of them are missing, the first is "
            f"'{missing[0]}': copy them there, or name those that are."
        )
    if not paths:
        raise DataError(f"No tar fits the pattern '{word}': check the folder and the name.")
    return paths


def list_shards(paths: Sequence[Path]) -> Listing:
    """The members of several tars, each under the name of its tar; raises DataError as ``list_tar`` does."""
    names: list[str] = []
    plain, parts = [], []
    with progress.progress_bar(f"Listing {len(paths):,} tars", len(paths)) as advance:
        for number, (path, shard) in enumerate(zip(paths, _name_shards(paths), strict=True)):
            listing = list_tar(path)
            assert isinstance(listing.reader, ArchiveReader)
            plain.append(listing.reader.path)
            names += [f"{shard}/{name}" for name in listing.names]
            parts.append(
                (np.full(len(listing.names), number), listing.reader.offsets, listing.sizes, listing.stamps)
            )
            advance(1)
    shards, offsets, sizes, stamps = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Listing(names, sizes, stamps, frozenset(), ShardReader(tuple(plain), shards, offsets, sizes))


def _name_shards(paths: Sequence[Path]) -> list[str]:
    """The path of each tar below the folder that holds all."""
    root = os.path.commonpath([path.absolute().parent for path in paths])
    return [Path(os.path.relpath(path.absolute(), root)).as_posix() for path in paths]


def read_shards(place: str, paths: Sequence[Path], rule: LabelRule = USUAL_LABELS) -> Source:
    """The labelled images of several tars: samples with a ``.cls`` or ``.json``, or class folders.

    A word in a tar's path (``train-000.tar``, ``val/000.tar``) gives the split of its images. The images are in the
    order of the tars. Raises DataError, naming ``place``, where they have no labels.
    """

    def build() -> Source:
        listing, names = list_shards(paths), _name_shards(paths)
        assert isinstance(listing.reader, ShardReader)
        shards = listing.reader.shards
        words = [next(filter(None, map(parse_split, reversed(name.split("/")))), None) for name in names]
        splits = np.array([word or "train" for word in words]) if any(words) else None
        layout = read_samples(listing, place, rule)
        if layout is None:
            begins = ["" if splits is None else f"{splits[number]}/" for number in range(len(names))]
            inner = [
                begins[shard] + name[len(names[shard]) + 1 :]
                for name, shard in zip(listing.names, shards.tolist(), strict=True)
            ]
            folders = {name.rpartition("/")[0] for name in inner}
            folders = frozenset(each for name in folders for each in list_prefixes(name))
            layout = infer_layout(replace(listing, names=inner, folders=folders), place, rule)
            order = np.argsort(np.array([listing.names[key] for key in layout.keys], object), kind="stable")
            parted = None if layout.splits is None else layout.splits[order]
            layout = replace(layout, keys=layout.keys[order], labels=layout.labels[order], splits=parted)
        elif splits is not None and layout.splits is None:
            layout = replace(layout, splits=splits[shards[layout.keys]])
            cells = {*zip(splits[shards[layout.keys]].tolist(), layout.labels.tolist(), strict=True)}
            pairs = [(split, layout.classes[label]) for split, label in cells if label != UNLABELLED]
            check_train_covers_classes(pairs, layout.classes, place)
        return source_from_files(place, listing, layout)

    return load_or_build(Path(place), file_stamp(*paths) + (f" {rule}" if rule.given else ""), build)
