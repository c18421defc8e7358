"""Where labelled images come from: a name or a path becomes a ``Source``."""

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np

from ..choose import choose
from ..errors import DataError, ImageError
from .archives import list_zip
from .arrays import ImageArrays
from .builtin import BUILTIN_DATASETS
from .cache import load_or_build
from .cifar import read_cifar, select_cifar_files
from .idx import idx_labels_name, read_idx, select_idx_images
from .layout import infer_layout
from .listing import Listing, file_stamp, list_folder
from .manifest import read_manifest
from .npz import read_npz
from .parquet import read_embedded_images, read_parquet
from .pixel_table import find_pixel_columns, read_pixel_table
from .published import PUBLISHED_DATASETS, download_dataset, verify_checksums
from .source import Source, source_from_arrays, source_from_files, stratified_subset
from .tables import TextTable, read_csv, read_jsonl, read_table_header
from .tars import list_tar

_MAX_ARRAY_FOLDER_FILES = 500
"""Array files come few to a folder: in larger ones their names are not looked for."""


TABLE_READERS: dict[str, Callable[[Path], TextTable]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".parquet": read_parquet,
}
"""The kinds of table, by the end of the file's name."""


def find(path: str | Path, *, limit: int | None = None, seed: int = 0, several: bool = True) -> Source:
    """Labelled images at ``path``: a folder, an archive, a table, a file of arrays, or a name (see ``READERS``).

    ``limit`` keeps about that many, drawn by ``seed`` in equal shares of every split and class,
    at least one of each. Images of one class are enough to test on, not ``several`` to train on.
    Raises DataError, saying what to do, when the data cannot be used.
    """
    source = _find_by_name(str(path)) or _find_by_path(Path(path))
    if several and len(source.classes) == 1:
        raise _single_class_error(str(path), source.classes[0])
    return source if limit is None else _limit_source(source, limit, seed)


def _find_by_name(name: str) -> Source | None:
    """A built-in or published set, unless something of that name lies in the current folder."""
    if name.partition(":")[0] in BUILTIN_DATASETS and not Path(name).exists():
        return source_from_arrays(name, choose(BUILTIN_DATASETS, name, "built-in data set"))
    if name in PUBLISHED_DATASETS and not Path(name).exists():
        paths = download_dataset(name)
        return replace(
            load_or_build(paths[0], file_stamp(*paths), lambda: _load_published(name, paths)), name=name
        )
    return None


def _load_published(name: str, paths: list[Path]) -> Source:
    verify_checksums(name, paths)
    return source_from_arrays(name, PUBLISHED_DATASETS[name].read(paths))


def _find_by_path(path: Path) -> Source:
    if not path.exists():
        known = ", ".join((*BUILTIN_DATASETS, *PUBLISHED_DATASETS))
        raise DataError(f"There is nothing at '{path}'.{_suggest_path(path)} Sets known by name: {known}.")
    return READERS[_detect_kind(path)](path)


def _suggest_path(path: Path) -> str:
    """A hint at a name much like the missing one, in the same folder."""
    parent = path.parent
    try:
        known = [entry.name for entry in parent.iterdir()]
    except OSError:
        return f" Not even the folder '{parent}' is there."
    near = difflib.get_close_matches(path.name, known, n=1)
    return f" Did you mean '{parent / near[0]}'?" if near else ""


def _detect_kind(path: Path) -> str:
    """Which of ``READERS`` a path is for: by its content; by its name where the content does not tell."""
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
    called_tar = name.endswith((".tar", ".tgz", ".tbz2", ".txz")) or ".tar." in name
    if packed or head[257:262] == b"ustar" or called_tar:
        return "tar"
    raise DataError(
        f"'{path}' is not a kind of data that can be read: give a folder with one sub-folder per class, "
        "a zip or tar of one, a table with the columns 'path' and 'label' (CSV, TSV, JSONL, Parquet), "
        "or a file of arrays (npz, IDX)."
    )


def _read_folder(path: Path) -> Source:
    listing = list_folder(path)
    if rows := _select_array_files(listing):
        stamp = file_stamp(*(path / listing.names[row] for row in rows))
        return load_or_build(path, stamp, lambda: source_from_arrays(str(path), _read_arrays(listing, rows, path)))
    try:
        layout = infer_layout(listing, str(path))
    except DataError as error:
        return _read_folder_table(path, listing, error)
    if len(layout.classes) == 1 and _list_tables(listing):  # one folder of images, and a table beside it
        return _read_folder_table(path, listing, _single_class_error(str(path), layout.classes[0]))
    return source_from_files(str(path), listing, layout)


def _read_folder_table(path: Path, listing: Listing, error: DataError) -> Source:
    """What a table inside the folder says; raises ``error`` where there is none."""
    parquets = [path / name for name in sorted(listing.names) if name.endswith(".parquet")]
    if parquets and (held := read_embedded_images(parquets, path)):
        return source_from_files(str(path), *held)
    return _source_from_table(_choose_table(path, listing, error), str(path))


def _single_class_error(place: str, name: str) -> DataError:
    return DataError(f"'{place}' has only one class, '{name}': a classifier needs at least two.")


def _list_tables(listing: Listing) -> list[str]:
    return sorted(
        name for name in listing.names if "/" not in name and PurePath(name).suffix.lower() in TABLE_READERS
    )


def _choose_table(path: Path, listing: Listing, error: DataError) -> Path:
    """The table that labels a folder's images: metadata, labels, or the only one; else the error is raised."""
    tables = _list_tables(listing)
    chosen = [name for stem in ("metadata", "labels") for name in tables if PurePath(name).stem.lower() == stem]
    if chosen or len(tables) == 1:
        return path / (chosen or tables)[0]
    if tables:
        more = f"It has the tables {', '.join(tables[:5])}: one of them may be what to give."
        raise DataError(f"{error} {more}") from error
    raise error


def _archive_reader(lister: Callable[[Path], Listing]) -> Callable[[Path], Source]:
    def read(path: Path) -> Source:
        return load_or_build(path, file_stamp(path), lambda: look(path))

    def look(path: Path) -> Source:
        listing = lister(path)
        if rows := _select_array_files(listing):
            return source_from_arrays(str(path), _read_arrays(listing, rows, path))
        return source_from_files(str(path), listing, infer_layout(listing, str(path)))

    return read


def _select_array_files(listing: Listing) -> list[int]:
    """Which files of a listing are IDX or CIFAR's."""
    if len(listing.names) > _MAX_ARRAY_FOLDER_FILES:
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


def _read_idx_pair(path: Path) -> Source:
    labels = path.with_name(idx_labels_name(path.name))
    other = labels.with_suffix("") if labels.suffix == ".gz" else labels.with_name(labels.name + ".gz")
    pair = [path, next((each for each in (labels, other) if each.is_file() and each != path), path)]

    def look() -> Source:
        return source_from_arrays(str(path), read_idx({each.name: each.read_bytes() for each in pair}, str(path)))

    return load_or_build(path, file_stamp(*pair), look)


def _read_npz_file(path: Path) -> Source:
    return load_or_build(path, file_stamp(path), lambda: source_from_arrays(str(path), read_npz(path)))


def _read_table_file(path: Path) -> Source:
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


READERS: dict[str, Callable[[Path], Source]] = {
    "folder": _read_folder,
    "zip": _archive_reader(list_zip),
    "tar": _archive_reader(list_tar),
    "table": _read_table_file,
    "idx": _read_idx_pair,
    "npz": _read_npz_file,
}
"""What a path may be, each with its reader; a folder or archive may hold class folders, IDX or CIFAR files."""


def _limit_source(source: Source, limit: int, seed: int) -> Source:
    """About ``limit`` images, in equal shares of each (split, class)."""
    if limit < 1:
        raise DataError(f"The limit is {limit}: it must be at least 1 image.")
    if limit >= len(source):
        return source
    splits = source.columns.get("split")
    cell = source.labels
    if splits is not None:
        cell = cell + len(source.classes) * np.unique(splits, return_inverse=True)[1]
    order = np.random.default_rng([seed, 1]).permutation(len(source))
    chosen = stratified_subset(cell, order, limit=limit)
    note = f"Limited to {len(chosen):,} of {len(source):,} images, in equal shares of every class (seed {seed})."
    return replace(source.subset(chosen), notes=(*source.notes, note))
