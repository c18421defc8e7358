"""Parquet: tables of paths, and tables that hold the image files themselves, as Hugging Face writes them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from ..errors import DataError, ImageError
from .layout import SPLIT_WORDS, USUAL_LABELS, LabelRule, Layout
from .manifest import layout_from_table
from .source import Listing
from .tables import PATH_COLUMNS, TextTable, cell_text, read_csv, read_json, read_jsonl

_IMAGE_COLUMNS = (*PATH_COLUMNS, "img", "picture", "photo")
MAX_ROW_GROUP_BYTES = 4_000_000_000
"""Bytes of a row group, which is read whole to read one of its images."""
_MAX_CACHED_GROUPS = 4
MAX_ROWS_PER_BYTE = 4
"""Rows per byte of a file: a name or an image takes more, and equal rows without number take nothing."""


def _import_pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Reading Parquet needs pyarrow: pip install 'sightline[parquet]'.") from error
    return pyarrow


def open_parquet(path: Path) -> Any:
    """The opened file; raises DataError where it is not a whole Parquet file."""
    arrow = _import_pyarrow()
    try:
        file = arrow.parquet.ParquetFile(path)
        size, rows = path.stat().st_size, file.metadata.num_rows
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"'{path}' is not a complete Parquet file: copy or download it again.") from error
    if rows > MAX_ROWS_PER_BYTE * size:
        raise DataError(
            f"'{path}' announces {rows:,} rows in {size:,} bytes, more than a table of images can have: "
            "write it again with a row for each image."
        )
    return file


def find_image_column(schema: Any) -> str | None:
    """The column that holds image files: bytes, or a struct with a field ``bytes``; None for a table of paths."""
    types = _import_pyarrow().types

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    held = [
        each.name
        for each in schema
        if is_bytes(each.type)
        or (types.is_struct(each.type) and any(f.name == "bytes" and is_bytes(f.type) for f in each.type))
    ]
    named = [name for name in held if name.lower() in _IMAGE_COLUMNS]
    return (named or held or [None])[0]


def read_parquet(path: Path) -> TextTable:
    """The columns of a Parquet file as text, without images; class numbers become names where the file has names."""
    return read_parquet_files([path], path)


def read_parquet_files(paths: Sequence[Path], place: Path) -> TextTable:
    """As ``read_parquet`` for several files, one after the other; a split in their names becomes a column."""
    arrow = _import_pyarrow()
    columns: dict[str, list[str]] = {}
    ends: list[int] = []
    done = 0
    for path in paths:
        file = open_parquet(path)
        image = find_image_column(file.schema_arrow)
        names = [name for name in file.schema_arrow.names if name != image]
        if twice := next(
            (name for name in file.schema_arrow.names if file.schema_arrow.names.count(name) > 1), None
        ):
            raise DataError(f"'{path}' has two columns '{twice}': rename or remove one of them.")
        count = file.metadata.num_rows
        classes = _huggingface_class_names(file.schema_arrow)
        read: dict[str, list[str]] = {name: [] for name in names}
        try:
            for batch in file.iter_batches(columns=names, use_threads=False):
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    values = column.to_pylist()
                    if known := classes.get(name):
                        values = [known[v] if isinstance(v, int) and 0 <= v < len(known) else v for v in values]
                    shared: dict[str, str] = {}
                    read[name] += [
                        shared.setdefault(text, text) for text in (cell_text(v).strip() for v in values)
                    ]
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"'{path}' cannot be read ({error}): copy or download it again.") from error
        # train-00000-of-00002.parquet, or train/0000.parquet
        word = path.stem.lower().replace("_", "-").replace(".", "-").split("-")[0]
        split = next((each for each in (word, path.parent.name.lower()) if each in SPLIT_WORDS), None)
        if "split" not in read and split:
            read["split"] = [split] * count
        for name in {**columns, **read}:
            columns.setdefault(name, [""] * done).extend(read.get(name) or [""] * count)
        done += count
        ends.append(done)
    if not done:
        raise DataError(f"'{place}' lists no images: it has no rows.")

    def describe_row(row: int) -> str:
        number = int(np.searchsorted(ends, row, side="right"))
        inside = row - (ends[number - 1] if number else 0)
        return f"Row {inside + 1}" + (f" of {paths[number].name}" if len(paths) > 1 else "")

    return TextTable(place, columns, describe_row)


def _huggingface_class_names(schema: Any) -> dict[str, list[str]]:
    """The class names in Hugging Face's metadata of the file, by column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        named = {name: each["names"] for name, each in features.items() if each.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}
    return {name: [str(each) for each in names] for name, names in named.items() if isinstance(names, list)}


@dataclass(frozen=True, eq=False)
class ParquetReader:
    """Serves the image files that Parquet files hold; a few row groups stay in memory."""

    paths: tuple[Path, ...]
    columns: tuple[str, ...]
    groups: Int64[ndarray, "G 2"]
    """File and row group number, in the order of rows."""
    starts: Int64[ndarray, " G"]
    """The first row of each group."""
    _open: dict[int, Any] = field(default_factory=dict, repr=False)
    _cached: dict[int, Any] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=Lock, repr=False)

    def read(self, key: int) -> bytes:
        """The file in row ``key``; raises ImageError."""
        group = int(np.searchsorted(self.starts, key, side="right")) - 1
        with self._lock:
            value = self._load_group(group)[key - int(self.starts[group])].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise ImageError("the row holds no image")
        return data

    def _load_group(self, group: int) -> Any:
        if group not in self._cached:
            while len(self._cached) >= _MAX_CACHED_GROUPS:
                self._cached.pop(next(iter(self._cached)))
            number, part = self.groups[group].tolist()
            if number not in self._open:
                self._open[number] = open_parquet(self.paths[number])
            try:
                table = self._open[number].read_row_group(part, columns=[self.columns[number]], use_threads=False)
            except (_import_pyarrow().ArrowException, OSError) as error:
                raise ImageError(f"the Parquet file is damaged ({error})") from error
            self._cached[group] = table.column(0)
        return self._cached[group]

    def __reduce__(self) -> Any:
        return ParquetReader, (self.paths, self.columns, self.groups, self.starts)


def read_embedded_images(
    paths: Sequence[Path], place: Path, rule: LabelRule = USUAL_LABELS
) -> tuple[Listing, Layout] | None:
    """The images that Parquet files hold, with their labels; None where they hold none. Raises DataError."""
    columns, groups, starts, done = [], [], [], 0
    for number, path in enumerate(paths):
        file = open_parquet(path)
        name = find_image_column(file.schema_arrow)
        if name is None:
            return None
        columns.append(name)
        for part in range(file.num_row_groups):
            facts = file.metadata.row_group(part)
            if facts.total_byte_size > MAX_ROW_GROUP_BYTES:
                raise DataError(
                    f"'{path}' has {facts.total_byte_size / 1e9:.0f} GB in one row group, which would all have "
                    "to be in memory: write it again with row groups of about 1,000 rows."
                )
            groups.append((number, part))
            starts.append(done)
            done += facts.num_rows
    reader = ParquetReader(tuple(paths), tuple(columns), np.array(groups, np.int64), np.array(starts, np.int64))
    layout = layout_from_table(read_parquet_files(paths, place), None, rule)
    rows = [open_parquet(path).metadata.num_rows for path in paths]
    names = [f"{path.name}:{row}" for path, count in zip(paths, rows, strict=True) for row in range(count)]
    status = [path.stat() for path in paths]
    sizes = np.repeat(np.array([each.st_size for each in status], np.int64), rows)
    stamps = np.repeat(np.array([each.st_mtime_ns for each in status], np.int64), rows)
    return Listing(names, sizes, stamps, frozenset(), reader), layout


TABLE_READERS: dict[str, Callable[[Path], TextTable]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
}
"""The kinds of table, by suffix; a ``.txt`` that names images is read as CSV."""
