"""What a path may be, and how each kind is read: a folder, an archive, a table, or a file of arrays."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np

from ..errors import DataError, ImageError
from .array_files import (
    find_pixel_columns,
    idx_labels_name,
    read_idx,
    read_npz,
    read_pixel_table,
    select_idx_images,
)
from .arrays import ImageArrays, source_from_arrays
from .cache import load_or_build
from .cifar import read_cifar, select_cifar_files
from .layout import infer_layout, source_from_files
from .parquet import read_embedded_images, read_parquet
from .source import Listing, Source, file_stamp, list_folder, stratified_subset
from .tables import TextTable, read_csv, read_jsonl, read_manifest, read_table_header

MAX_ARRAY_FOLDER_FILES = 500
"""Files of a folder or archive up to which it is searched for IDX and CIFAR files, which come few to a folder."""

TABLE_READERS: dict[str, Callable[[Path], TextTable]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".parquet": read_parquet,
}
"""The kinds of table, by suffix."""


def detect_kind(path: Path) -> str:
    """Which of ``READERS`` a path is for: by its content, or by its name where the content does not show it."""
    if path.is_dir():
        return "folder"
    with path.open("rb") as stream:
        head = stream.read(262)
    name = path.name.lower()
    if name.endswith(".npz"):
        return "npz"
    if select_idx_images([name]) or head[:3] == b"\0\0\x08":
        return "idx"
    if path.suffix.lower() in TABLE_READERS:
        return "table"
    if head[:2] == b"PK" or name.endswith(".zip"):
        return "zip"
    packed = head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\0"
    named_tar = name.endswith((".tar", ".tgz", ".tbz2", ".txz")) or ".tar." in name
    if packed or head[257:262] == b"ustar" or named_tar:
        return "tar"
    raise DataError(
        f"'{path}' is not a kind of data that can be read: give a folder with one sub-folder per class, "
        "a zip or tar of one, a table with the columns 'path' and 'label' (CSV, TSV, JSONL, Parquet), "
        "or a file of arrays (npz, IDX)."
    )


def read_folder(path: Path) -> Source:
    """A folder of class folders, of IDX or CIFAR files, or with a table that labels its images."""
    listing = list_folder(path)
    if rows := _select_array_files(listing):
        stamp = file_stamp(*(path / listing.names[row] for row in rows))
        return load_or_build(path, stamp, lambda: source_from_arrays(str(path), _read_arrays(listing, rows, path)))
    tables = sorted(
        name for name in listing.names if "/" not in name and PurePath(name).suffix.lower() in TABLE_READERS
    )
    try:
        layout = infer_layout(listing, str(path))
        if len(layout.classes) > 1 or not tables:
            return source_from_files(str(path), listing, layout)
        raise single_class_error(str(path), *layout.classes)  # one folder of images, and a table next to it
    except DataError as error:
        parquets = [path / name for name in sorted(listing.names) if name.endswith(".parquet")]
        if parquets and (held := read_embedded_images(parquets, path)):
            return source_from_files(str(path), *held)
        chosen = [
            name for stem in ("metadata", "labels") for name in tables if PurePath(name).stem.lower() == stem
        ]
        if chosen or len(tables) == 1:
            return _source_from_table(path / (chosen or tables)[0], str(path))
        if tables:
            more = f"It has the tables {', '.join(tables[:5])}: give one of them instead."
            raise DataError(f"{error} {more}") from error
        raise


def single_class_error(place: str, name: str) -> DataError:
    """The error for data of one class, which nothing can be trained on."""
    return DataError(f"'{place}' has only one class, '{name}': a classifier needs at least two.")


def archive_reader(lister: Callable[[Path], Listing]) -> Callable[[Path], Source]:
    """A reader of archives that ``lister`` lists: class folders, or IDX or CIFAR files."""

    def build(path: Path) -> Source:
        listing = lister(path)
        if rows := _select_array_files(listing):
            return source_from_arrays(str(path), _read_arrays(listing, rows, path))
        return source_from_files(str(path), listing, infer_layout(listing, str(path)))

    return lambda path: load_or_build(path, file_stamp(path), lambda: build(path))


def _select_array_files(listing: Listing) -> list[int]:
    """Which files of a listing are IDX or CIFAR's."""
    if len(listing.names) > MAX_ARRAY_FOLDER_FILES:
        return []
    if select_idx_images(listing.names):
        return [i for i, name in enumerate(listing.names) if "ubyte" in name.lower()]
    known = set(select_cifar_files(listing.names))
    return [i for i, name in enumerate(listing.names) if name in known]


def _read_arrays(listing: Listing, rows: Sequence[int], path: Path) -> ImageArrays:
    files = {}
    for row in rows:
        try:
            files[listing.names[row]] = listing.reader.read(row)
        except ImageError as error:
            raise DataError(f"'{listing.names[row]}' of '{path}' cannot be read: {error}.") from error
    return read_idx(files, str(path)) if select_idx_images(files) else read_cifar(files, str(path))


def read_idx_pair(path: Path) -> Source:
    """An IDX file of images with its file of labels."""
    labels = path.with_name(idx_labels_name(path.name))
    other = labels.with_suffix("") if labels.suffix == ".gz" else labels.with_name(labels.name + ".gz")
    pair = [path, next((each for each in (labels, other) if each.is_file() and each != path), path)]

    def build() -> Source:
        return source_from_arrays(str(path), read_idx({each.name: each.read_bytes() for each in pair}, str(path)))

    return load_or_build(path, file_stamp(*pair), build)


def read_npz_file(path: Path) -> Source:
    """An ``.npz`` file of images and labels."""
    return load_or_build(path, file_stamp(path), lambda: source_from_arrays(str(path), read_npz(path)))


def read_table_file(path: Path) -> Source:
    """A table that names images, holds them (Parquet), or has a column for each pixel (CSV)."""
    suffix = path.suffix.lower()
    if suffix == ".parquet" and (held := read_embedded_images([path], path)):
        return source_from_files(str(path), *held)
    if suffix in (".csv", ".tsv") and find_pixel_columns(read_table_header(path)):
        return load_or_build(path, file_stamp(path), lambda: source_from_arrays(str(path), read_pixel_table(path)))
    return _source_from_table(path, str(path))


def _source_from_table(path: Path, name: str) -> Source:
    source = source_from_files(name, *read_manifest(TABLE_READERS[path.suffix.lower()](path)))
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    fingerprint = hashlib.blake2b(f"{digest} {source.fingerprint}".encode(), digest_size=16).hexdigest()
    return replace(source, fingerprint=fingerprint)


def limit_source(source: Source, limit: int, seed: int) -> Source:
    """About ``limit`` images, drawn by ``seed`` with each (split, class) in its share and at least once."""
    if limit < 1:
        raise DataError(f"The limit is {limit}: it must be at least 1 image.")
    if limit >= len(source):
        return source
    cell = source.labels
    if (splits := source.columns.get("split")) is not None:
        cell = cell + len(source.classes) * np.unique(splits, return_inverse=True)[1]
    order = np.random.default_rng([seed, 1]).permutation(len(source))
    chosen = stratified_subset(cell, order, limit=limit)
    note = f"Limited to {len(chosen):,} of {len(source):,} images, each class in its share (seed {seed})."
    return replace(source.subset(chosen), notes=(*source.notes, note))
