"""What a path may be, and how each kind is read: a folder, an archive, a table, or a file of arrays."""

import hashlib
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..errors import DataError, ImageError
from .archives import ZIP_ENCODING_VARIABLE
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
from .edits import EDITS_SUFFIX
from .flat_parts import label_flat_parts
from .folders import find_run_folders, infer_layout
from .joined import JOINED_SUFFIX
from .layout import USUAL_LABELS, LabelRule, Layout, parse_split, select_images, source_from_files
from .manifest import join_tables, read_manifest
from .parquet import TABLE_READERS, read_embedded_images
from .samples import read_samples
from .shards import read_shards, select_shards
from .source import Listing, Source, file_stamp, list_folder
from .tables import (
    LABEL_COLUMNS,
    OTHER_LABEL_COLUMNS,
    OTHER_PATH_COLUMNS,
    PATH_COLUMNS,
    TextTable,
    read_csv,
    read_table_header,
)

_TABLE_SHARE = 0.9
"""Share of the images that a table must name to go before folders that say something else."""
MAX_ARRAY_FOLDER_FILES = 500
"""Files of a folder or archive up to which it is searched for IDX and CIFAR files, which come few to a folder."""

_UNREAD_ARCHIVES = {
    (b"\x28\xb5\x2f\xfd", (".zst", ".tzst")): "tar --zstd -xf",
    (b"7z\xbc\xaf\x27\x1c", (".7z",)): "7z x",
    (b"Rar!", (".rar",)): "unrar x",
    (b"\x04\x22\x4d\x18", (".lz4",)): "tar -I lz4 -xf",
}
"""The first bytes and suffixes of archives that are not read -> the command that unpacks them."""
_SECONDARY_TABLES = (".json", ".txt")
"""Tables that are read where they are named; next to images they are mostly something else."""


def detect_kind(path: Path) -> str:
    """Which of ``READERS`` a path is for: by its content, or by its name where the content does not show it."""
    if path.is_dir():
        return "folder"
    with path.open("rb") as stream:
        head = stream.read(262)
    name = path.name.lower()
    if kind := {".npz": "npz", JOINED_SUFFIX: "joined", EDITS_SUFFIX: "edited"}.get(path.suffix.lower()):
        return kind
    if select_idx_images([name]) or head[:3] == b"\0\0\x08":
        return "idx"
    if path.suffix.lower() in TABLE_READERS or (path.suffix.lower() == ".txt" and _names_images(path)):
        return "table"
    if name.endswith(
        tuple(f"{suffix}{end}" for suffix in TABLE_READERS for end in (".gz", ".bz2", ".xz", ".zst"))
    ):
        raise DataError(f"'{path}' is a compressed table: decompress it and give the table itself.")
    if name.endswith((".xlsx", ".xls", ".ods")):
        raise DataError(f"'{path}' is a spreadsheet, which is not read: save it as CSV and give that.")
    for (magic, suffixes), command in _UNREAD_ARCHIVES.items():
        if head.startswith(magic) or name.endswith(suffixes):
            raise DataError(
                f"'{path}' is an archive of a kind that is not read (zip and tar are): unpack it, "
                f"{command} {shlex.quote(str(path))}, and give the folder."
            )
    if head[:2] == b"PK" or name.endswith(".zip"):
        return "zip"
    packed = head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\0"
    named_tar = name.endswith((".tar", ".tgz", ".tbz2", ".txz")) or ".tar." in name
    if packed or head[257:262] == b"ustar" or named_tar:
        return "tar"
    raise DataError(
        f"'{path}' is not a kind of data that can be read: give a folder with one sub-folder per class, "
        "a zip or tar of one, a table with the columns 'path' and 'label' (CSV, TSV, JSONL, JSON, Parquet), "
        "or a file of arrays (npz, IDX)."
    )


def read_folder(path: Path, rule: LabelRule = USUAL_LABELS) -> Source:
    """A folder of class folders, of IDX or CIFAR files, or with a table that labels its images."""
    listing = list_folder(path)
    if not rule.given and (rows := _select_array_files(listing)):
        stamp = file_stamp(*(path / listing.names[row] for row in rows))
        return load_or_build(path, stamp, lambda: source_from_arrays(str(path), _read_arrays(listing, rows, path)))

    if shards := select_shards(listing.names):
        return read_shards(str(path), [path / name for name in shards], rule)

    @contextmanager
    def open_tables(names: Sequence[str]) -> Iterator[list[Path]]:
        yield [path / name for name in names]

    return _source_from_listing(listing, path, open_tables, rule)


def _source_from_listing(
    listing: Listing, path: Path, open_tables: Callable[[Sequence[str]], Any], rule: LabelRule
) -> Source:
    """The images of a listing with the labels of its folders, or of the tables next to them.

    ``open_tables`` gives files of these names while its context lasts. Columns that ``rule`` names are those of the
    tables, which then go before folders.
    """
    if (samples := read_samples(listing, str(path), rule)) is not None:
        return source_from_files(str(path), listing, samples)
    tables = find_tables(listing.names)
    parquets = (
        [path / name for name in sorted(listing.names) if name.endswith(".parquet")] if path.is_dir() else []
    )
    chosen = _choose_tables(tables)
    if chosen and all(name.lower().endswith(".txt") for name in chosen):
        with open_tables(chosen) as files:
            chosen = [name for name, file in zip(chosen, files, strict=True) if _names_images(file)]
        tables = chosen
    if rule.path_column or rule.label_column:
        if (found := _read_tables(listing, path, open_tables, chosen or tables, parquets, rule)) is not None:
            return found
        raise DataError(f"'{path}' holds no table for --path-column and --label-column: leave them out.")
    if rule.label_pattern:
        return source_from_files(str(path), listing, infer_layout(listing, str(path), rule))
    try:
        known, told = label_flat_parts(listing, path, open_tables)
        layout = infer_layout(listing, str(path), known=known)
        layout = replace(layout, notes=(*layout.notes, *told))
        if len(layout.classes) == 1 and tables:
            raise single_class_error(str(path), *layout.classes)  # one folder of images, and a table next to it
    except DataError as error:
        if (found := _read_tables(listing, path, open_tables, chosen, parquets, rule)) is not None:
            return found
        if tables:
            more = f"It has the tables {', '.join(tables[:5])}: give one of them instead."
            raise DataError(f"{error} {more}") from error
        raise
    if chosen and not known:
        with suppress(DataError, OSError), open_tables(chosen) as files:
            source = _source_from_tables(listing, path, chosen, files, rule)
            share = np.isin(layout.keys, source.keys).mean()
            if share >= _TABLE_SHARE and not _agree(layout, source):
                return _note_unnamed(source, listing, chosen)
            if share:
                names = " and ".join(f"'{name}'" for name in chosen)
                note = f"The folders are the classes; not used: {names}, with labels of {share:.0%} of the images."
                layout = replace(layout, notes=(*layout.notes, note))
    return source_from_files(str(path), listing, layout)


def _read_tables(
    listing: Listing,
    path: Path,
    open_tables: Callable[[Sequence[str]], Any],
    chosen: Sequence[str],
    parquets: Sequence[Path],
    rule: LabelRule,
) -> Source | None:
    """The images that Parquet files hold, or that the chosen tables of a listing label; None where there are none."""
    if parquets and (held := read_embedded_images(parquets, path, rule)):
        return source_from_files(str(path), *held)
    if not chosen:
        return None
    with open_tables(chosen) as files:
        if len(chosen) == 1 and files[0].parent == path:
            found = _source_from_table(files[0], str(path), rule)
        else:
            found = _source_from_tables(listing, path, chosen, files, rule)
        return _note_unnamed(found, listing, chosen)


def _agree(layout: Layout, source: Source) -> bool:
    """Whether the folders could be the classes of the table: same names, or each a part of one of the others."""
    folder_of = dict(zip(layout.keys.tolist(), layout.labels.tolist(), strict=True))
    names = {name.casefold() for name in layout.classes}
    if names & {name.casefold() for name in source.classes}:
        return True
    pairs = {
        (folder_of.get(key), label)
        for key, label in zip(source.keys.tolist(), source.labels.tolist(), strict=True)
    }
    return len(pairs) <= max(len(layout.classes), len(source.classes))


def find_tables(names: Sequence[str]) -> list[str]:
    """The tables of a listing that could hold labels: the topmost ones, at most two folders deep.

    Where there are none, lists of images called like a split: ``train.txt``, ``val.txt``.
    """
    runs = tuple(f"{folder}/" for folder in find_run_folders(names))
    near = [
        name
        for name in names
        if name.count("/") <= 2 and not name.startswith(runs) and "submission" not in name.lower()
    ]
    suffixes = TABLE_READERS.keys() - {*_SECONDARY_TABLES}
    found = [name for name in near if PurePath(name).suffix.lower() in suffixes] or [
        name for name in near if name.lower().endswith(".txt") and parse_split(PurePath(name).stem)
    ]
    top = min((name.count("/") for name in found), default=0)
    return sorted(name for name in found if name.count("/") == top)


def _choose_tables(tables: Sequence[str]) -> list[str]:
    """The tables that hold the labels: metadata or labels, the only one, or train with val and test; or none."""
    for stem in ("metadata", "labels"):
        if named := [name for name in tables if PurePath(name).stem.lower() == stem]:
            return named
    if len(tables) == 1:
        return [*tables]
    splits = {name: parse_split(PurePath(name).stem) for name in tables}
    named = [name for name in tables if splits[name]]
    return named if "train" in splits.values() else []


def _note_unnamed(source: Source, listing: Listing, tables: Sequence[str]) -> Source:
    """The source with a note of the images that its tables do not name."""
    count = len(select_images(listing.names)[0]) - len(source)
    if count <= 0:
        return source
    subject = "1 image that is" if count == 1 else f"{count:,} images that are"
    names = " and ".join(f"'{name}'" for name in tables)
    return replace(source, notes=(*source.notes, f"Left out {subject} not labelled in {names}."))


def _source_from_tables(
    listing: Listing, path: Path, names: Sequence[str], files: Sequence[Path], rule: LabelRule
) -> Source:
    """The images of a listing with the labels of these tables in it, which can be read from ``files``."""
    read = []
    for name, file in zip(names, files, strict=True):
        split = parse_split(PurePath(name).stem) or parse_split(PurePath(name).parent.name)
        table = TABLE_READERS.get(file.suffix.lower(), read_csv)(file)
        read.append((replace(table, path=Path(name)), split if len(names) > 1 else None, name.rpartition("/")[0]))
    joined, rule = join_tables(path, read, rule), replace(rule, path_column=None)
    return _add_stamp(source_from_files(str(path), *read_manifest(joined, listing, rule=rule)), files)


def single_class_error(place: str, name: str, *, unlabelled: bool = False) -> DataError:
    """The error for data of one class, which nothing can be trained on; perhaps next to images without a label."""
    hint = " If the images without a label are a class, say so: --label-pattern '{label}/*'." if unlabelled else ""
    return DataError(f"'{place}' has only one class, '{name}': a classifier needs at least two.{hint}")


def archive_reader(lister: Callable[[Path], Listing]) -> Callable[[Path, LabelRule], Source]:
    """A reader of archives that ``lister`` lists: class folders, or IDX or CIFAR files."""

    def build(path: Path, rule: LabelRule) -> Source:
        listing = lister(path)
        if not rule.given and (rows := _select_array_files(listing)):
            return source_from_arrays(str(path), _read_arrays(listing, rows, path))

        @contextmanager
        def open_tables(names: Sequence[str]) -> Iterator[list[Path]]:
            with tempfile.TemporaryDirectory() as folder:
                files = [Path(folder, f"{i}{PurePath(name).suffix}") for i, name in enumerate(names)]
                for name, file in zip(names, files, strict=True):
                    try:
                        file.write_bytes(listing.reader.read(listing.names.index(name)))
                    except ImageError as error:
                        raise DataError(f"'{name}' of '{path}' cannot be read: {error}.") from error
                yield files

        return _source_from_listing(listing, path, open_tables, rule)

    def stamp(path: Path, rule: LabelRule) -> str:
        return f"{file_stamp(path)} {os.environ.get(ZIP_ENCODING_VARIABLE, '')}" + (
            f" {rule}" if rule.given else ""
        )

    return lambda path, rule: load_or_build(path, stamp(path, rule), lambda: build(path, rule))


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


def refuse_rule(place: Path | str, rule: LabelRule) -> None:
    """Raise DataError where a column or a pattern is named for images without names."""
    if rule.given:
        raise DataError(
            f"'{place}' holds arrays, which have no columns of labels and no file names: leave --path-column, "
            "--label-column and --label-pattern out."
        )


def refuse_remote_pointer(copy: Path) -> None:
    """Raise DataError where what came from elsewhere names places of this machine."""
    if copy.is_file() and detect_kind(copy) in ("joined", "edited"):
        raise DataError(f"'{copy}' names other places, which an address may not: copy it, and give its path.")


def read_idx_pair(path: Path, rule: LabelRule = USUAL_LABELS) -> Source:
    """An IDX file of images with its file of labels."""
    refuse_rule(path, rule)
    labels = path.with_name(idx_labels_name(path.name))
    other = labels.with_suffix("") if labels.suffix == ".gz" else labels.with_name(labels.name + ".gz")
    pair = [path, next((each for each in (labels, other) if each.is_file() and each != path), path)]

    def build() -> Source:
        return source_from_arrays(str(path), read_idx({each.name: each.read_bytes() for each in pair}, str(path)))

    return load_or_build(path, file_stamp(*pair), build)


def read_npz_file(path: Path, rule: LabelRule = USUAL_LABELS) -> Source:
    """An ``.npz`` file of images and labels."""
    refuse_rule(path, rule)
    return load_or_build(path, file_stamp(path), lambda: source_from_arrays(str(path), read_npz(path)))


def read_table_file(path: Path, rule: LabelRule = USUAL_LABELS) -> Source:
    """A table that names images, holds them (Parquet), or has a column for each pixel (CSV)."""
    suffix = path.suffix.lower()
    if suffix == ".parquet" and (held := read_embedded_images([path], path, rule)):
        return source_from_files(str(path), *held)
    if not rule.given and suffix in (".csv", ".tsv") and find_pixel_columns(read_table_header(path)):
        return load_or_build(path, file_stamp(path), lambda: source_from_arrays(str(path), read_pixel_table(path)))
    return _source_from_table(path, str(path), rule)


def _names_images(path: Path) -> bool:
    """Whether a text file is a table with a column of paths."""
    try:
        header = TextTable(path, {name: [] for name in read_table_header(path)}, str)
    except (DataError, OSError):
        return False
    accepted = (*LABEL_COLUMNS, *OTHER_LABEL_COLUMNS)
    return bool(header.find_column((*PATH_COLUMNS, *OTHER_PATH_COLUMNS)) and header.find_column(accepted))


def _source_from_table(path: Path, name: str, rule: LabelRule) -> Source:
    reader = TABLE_READERS.get(path.suffix.lower(), read_csv)
    return _add_stamp(source_from_files(name, *read_manifest(reader(path), rule=rule)), [path])


def _add_stamp(source: Source, tables: Sequence[Path]) -> Source:
    """The source with a fingerprint that follows the content of the tables too."""
    fingerprint = source.fingerprint
    for path in tables:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        fingerprint = hashlib.blake2b(f"{digest} {fingerprint}".encode(), digest_size=16).hexdigest()
    return replace(source, fingerprint=fingerprint)
