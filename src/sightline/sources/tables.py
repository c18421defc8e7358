"""Tables of text (CSV, TSV, JSONL): columns of strings, and the labelled files that they name."""

import csv
import json
import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy import ndarray

from ..choose import suggest
from ..errors import DataError
from ..files import unquote_formula
from .layout import SPLIT_WORDS, Layout, check_has_classes, check_train_covers_classes, sort_classes
from .source import FolderReader, Listing, normalise_names

PATH_COLUMNS = ("path", "image", "file_name", "filename")
LABEL_COLUMNS = ("label", "class", "target")
_CHUNK_ROWS = 256
_MAX_INTERNED_CELLS = 1 << 16


@dataclass(frozen=True, eq=False)
class TextTable:
    """The columns of a table, as text without spaces around it."""

    path: Path
    columns: Mapping[str, list[str]]
    describe_row: Callable[[int], str]
    """Names a row as its reader would find it in the file: ``Line 3``."""

    def __len__(self) -> int:
        return max((len(column) for column in self.columns.values()), default=0)

    def find_column(self, accepted: tuple[str, ...]) -> str | None:
        """The first of these columns that the table has, in upper or lower case."""
        lower = {name.lower(): name for name in reversed(list(self.columns))}
        return next((lower[name] for name in accepted if name in lower), None)

    def require_column(self, accepted: tuple[str, ...]) -> str:
        """As ``find_column``; raises DataError where there is none."""
        name = self.find_column(accepted)
        if name is None:
            raise DataError(
                f"'{self.path}' has no column called {', '.join(accepted[:-1])} or {accepted[-1]} "
                f"(it has: {', '.join(self.columns)}): rename the column that holds it."
            )
        return name


class _ColumnBuilder:
    """Columns that grow row by row; equal cells are one string, so that a row costs little memory."""

    def __init__(self, names: list[str]):
        self._columns: list[tuple[list[str], dict[str, str]]] = [([], {}) for _ in names]
        self.cells = {
            name: cells for name, (cells, _) in zip(reversed(names), reversed(self._columns), strict=True)
        }
        self.cells = {name: self.cells[name] for name in names if name}  # of two columns of a name, the first

    def extend(self, rows: list[list[str]]) -> None:
        """Add rows of equal length."""
        for (cells, known), column in zip(self._columns, zip(*rows, strict=True), strict=False):
            texts = [unquote_formula(cell.strip()) for cell in column]
            if len(known) < _MAX_INTERNED_CELLS:
                texts = [known.setdefault(text, text) for text in texts]
            cells.extend(texts)


# CSV and TSV


def read_csv(path: Path) -> TextTable:
    """A table separated by comma, semicolon or tab, in UTF-8, with or without a mark, or UTF-16 with one.

    Raises DataError, naming the line, for other encodings and for rows longer than the header.
    """
    with _open_csv(path) as (header, rows):
        width, done = len(header), 0
        columns = _ColumnBuilder(header)
        while chunk := list(islice(rows, _CHUNK_ROWS)):
            if set(map(len, chunk)) != {width} or not all(map(any, chunk)):
                chunk = [row + [""] * (width - len(row)) for row in chunk if not _is_blank(row)]
            if any(len(row) > width for row in chunk):
                line = _find_line(path, lambda row: len(row) > width)
                raise DataError(f"{line} of '{path}' has more fields than the header: quote it.")
            columns.extend(chunk)
            done += len(chunk)
    if not done:
        raise DataError(f"'{path}' lists no images: give it a header and one line for each image.")
    return TextTable(path, columns.cells, lambda row: _find_line(path, None, row))


def read_table_header(path: Path) -> list[str]:
    """The names of a table's columns. Raises DataError."""
    with _open_csv(path) as (header, _):
        return header


@contextmanager
def _open_csv(path: Path) -> Iterator[tuple[list[str], Any]]:
    """The header and a reader of the rows after it."""
    with _open_text(path) as stream:
        first = stream.readline()
        reader = csv.reader(chain([first], stream), delimiter=detect_delimiter(first))
        try:
            yield [unquote_formula(name.strip()) for name in next(reader, [])], reader
        except csv.Error as error:
            raise DataError(f"Line {reader.line_num} of '{path}' cannot be read ({error}).") from error
        except UnicodeDecodeError as error:
            raise _encoding_error(path) from error


def _is_blank(row: list[str]) -> bool:
    return not any(row) or (len(row) == 1 and not row[0].strip())


def _find_line(path: Path, wrong: Callable[[list[str]], bool] | None, number: int = 0) -> str:
    """The line where row ``number`` ends, or the first ``wrong`` row; for messages: it reads the file again."""
    with _open_csv(path) as (_, rows):
        wanted = (row for row in rows if not _is_blank(row) and (wrong is None or wrong(row)))
        next(islice(wanted, number, None))
        return f"Line {rows.line_num}"


def detect_delimiter(header: str) -> str:
    """The delimiter of the fields: comma, semicolon or tab, whichever is most frequent in the header."""
    return max(",;\t", key=header.count)


def detect_encoding(path: Path) -> str:
    """UTF-8, or UTF-16 by its mark. Raises DataError for UTF-16 without one."""
    with path.open("rb") as stream:
        head = stream.read(4096)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if b"\0" in head:
        raise DataError(f"'{path}' is not UTF-8 text (it has zero bytes): save it again in UTF-8.")
    return "utf-8-sig"


def _open_text(path: Path) -> TextIO:
    stream = path.open(encoding=detect_encoding(path), newline="")
    try:
        stream.read(1)
    except UnicodeDecodeError as error:
        stream.close()
        raise _encoding_error(path) from error
    stream.seek(0)
    return stream


def _encoding_error(path: Path) -> DataError:
    """Which line is not in the encoding that the file must have."""
    if detect_encoding(path) == "utf-16":
        return DataError(f"'{path}' is not whole UTF-16 text: save it again in UTF-8.")
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return DataError(
                    f"Line {number} of '{path}' is not UTF-8 text (byte {line[error.start]:#04x} at position "
                    f"{error.start + 1}): save it again in UTF-8."
                )
    return DataError(f"'{path}' is not UTF-8 text: save it again in UTF-8.")


# JSONL


def read_jsonl(path: Path) -> TextTable:
    """A JSON object on each line; values become text, and a missing field is empty text. Raises DataError."""
    columns: dict[str, list[str]] = {}
    known: dict[str, str] = {}
    count = 0
    for line, row in _iterate_json_rows(path):
        for name, value in row.items():
            text = cell_text(value).strip()
            column = columns.setdefault(name, [])
            column.extend([""] * (count - len(column)))
            if len(column) > count:
                raise DataError(f"Line {line} of '{path}' has the field '{name}' twice.")
            column.append(known.setdefault(text, text) if len(known) < _MAX_INTERNED_CELLS else text)
        count += 1
    for column in columns.values():
        column.extend([""] * (count - len(column)))
    if not count:
        raise DataError(f"'{path}' lists no images: give it a JSON object on a line for each image.")
    return TextTable(path, columns, lambda row: f"Line {next(islice(_iterate_json_rows(path), row, None))[0]}")


def _iterate_json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with _open_text(path) as stream:
        try:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"Line {number} of '{path}' is not valid JSON ({error}).") from error
                if not isinstance(row, dict):
                    raise DataError(
                        f"Line {number} of '{path}' is not a JSON object with fields such as path and label."
                    )
                yield number, row
        except UnicodeDecodeError as error:
            raise _encoding_error(path) from error


def cell_text(value: Any) -> str:
    """A cell as text: nothing for null, JSON for what is nested.

    >>> cell_text(None), cell_text(3), cell_text("x"), cell_text(["a"])
    ('', '3', 'x', '["a"]')
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


# a table that names images and their labels


def read_manifest(table: TextTable) -> tuple[Listing, Layout]:
    """The files that a table names, their labels and its other columns.

    The path column is called path, image, file_name or filename (relative to the table), the label
    column label, class or target; ``split`` is train, val or test. A file named twice with one label
    counts once. Raises DataError, naming the line and the field.
    """
    where = table.require_column(PATH_COLUMNS)
    names = []
    for text in _require_filled(table, where):
        name = text.replace("\\", "/") if "\\" in text else text
        names.append(posixpath.normpath(name) if "./" in name or "//" in name else name)
    layout = layout_from_table(table, {where})
    keep, notes = _drop_repeated_rows(table, names, layout)
    listing = _list_files(table, names)
    if keep is not None:
        layout = replace(
            layout,
            keys=layout.keys[keep],
            labels=layout.labels[keep],
            splits=None if layout.splits is None else layout.splits[keep],
            columns={name: column[keep] for name, column in layout.columns.items()},
        )
    return listing, replace(layout, notes=(*layout.notes, *notes))


def layout_from_table(table: TextTable, known: set[str]) -> Layout:
    """Labels, splits and other columns of a table, ``known`` ones left out. Raises DataError."""
    label_column, split_column = table.require_column(LABEL_COLUMNS), table.find_column(("split",))
    texts = _require_filled(table, label_column)
    plain, notes = normalise_names(set(texts))
    classes = sort_classes(plain.values())
    check_has_classes(classes, str(table.path))
    number = {name: classes.index(label) for name, label in plain.items()}
    labels = np.fromiter(map(number.__getitem__, texts), np.int64, len(texts))
    splits = None
    words = [text.lower() for text in table.columns[split_column]] if split_column else []
    if any(words):
        for word in sorted({*words} - {"", *SPLIT_WORDS}):
            line = table.describe_row(words.index(word))
            raise DataError(f"{line} of '{table.path}' has split '{word}'. {suggest(word, SPLIT_WORDS)}")
        splits = np.array([SPLIT_WORDS.get(word, "train") for word in words])
        pairs = ((name, classes[k]) for name in np.unique(splits) for k in np.unique(labels[splits == name]))
        check_train_covers_classes(pairs, classes, str(table.path))
    known = {"", label_column, *known, *([split_column] if split_column else [])}
    extra = {name: np.array(column, object) for name, column in table.columns.items() if name not in known}
    return Layout(np.arange(len(texts), dtype=np.int64), labels, classes, splits, notes, extra)


def _require_filled(table: TextTable, name: str) -> list[str]:
    column = table.columns[name]
    if "" in column:
        line = table.describe_row(column.index(""))
        raise DataError(f"{line} of '{table.path}' has an empty '{name}': fill it in or remove the line.")
    return column


def _drop_repeated_rows(
    table: TextTable, names: list[str], layout: Layout
) -> tuple[ndarray | None, tuple[str, ...]]:
    """Which rows name a file for the first time (None: all); DataError where two rows disagree on it."""
    hashes = np.fromiter(map(hash, names), np.int64, len(names))
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    rows = np.sort(order[np.append(same, False) | np.append(False, same)])
    labels = np.array(layout.classes, object)[layout.labels]
    first: dict[str, int] = {}
    repeated: list[int] = []
    for row in rows.tolist():
        before = first.setdefault(names[row], row)
        if before != row:
            for what, values in (("label", labels), ("split", layout.splits)):
                if values is not None and values[before] != values[row]:
                    raise DataError(
                        f"'{table.path}' names '{names[row]}' twice with another {what}: "
                        f"{table.describe_row(before).lower()} says '{values[before]}', "
                        f"{table.describe_row(row).lower()} says '{values[row]}'; remove one of the two."
                    )
            repeated.append(row)
    if not repeated:
        return None, ()
    keep = np.ones(len(names), bool)
    keep[repeated] = False
    name = names[repeated[0]]
    lines = f"{table.describe_row(first[name])} and {table.describe_row(repeated[0]).lower()}"
    count = "1 row that names" if len(repeated) == 1 else f"{len(repeated):,} rows that name"
    return keep, (f"Ignored {count} a file again ('{name}', {lines[0].lower()}{lines[1:]}).",)


def _list_files(table: TextTable, names: list[str]) -> Listing:
    """Sizes and times of the named files. Raises DataError, naming the first few that are missing."""
    root = table.path.parent
    prefix = os.path.join(root, "")  # noqa: PTH118
    facts = np.empty((len(names), 2), np.int64)
    missing: list[int] = []
    for row, name in enumerate(names):
        try:
            status = os.stat(name if name[0] == "/" or name[1:2] == ":" else prefix + name)  # noqa: PTH116 half the time of Path
        except (OSError, ValueError):
            forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")} - {name}
            others = [form for form in forms if "\0" not in form and (root / form).exists()]
            if not others:  # composed or decomposed, as another system wrote it
                missing.append(row)
                continue
            names[row] = others[0]
            status = (root / others[0]).stat()
        facts[row] = status.st_size, status.st_mtime_ns
    if missing:
        first = ", ".join(f"'{names[row]}' ({table.describe_row(row).lower()})" for row in missing[:3])
        raise DataError(
            f"{len(missing):,} of the {len(names):,} files named in '{table.path}' do not exist: {first}"
            f"{', ...' if len(missing) > 3 else ''}. Paths are relative to the folder of the table."
        )
    sizes, stamps = facts.T.copy()
    return Listing(names, sizes, stamps, frozenset(), FolderReader(root, names))
