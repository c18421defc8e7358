"""Tables of text: CSV, TSV and JSONL become columns of strings, read as a stream."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from ..errors import DataError

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
    """Names a row as a person would find it: ``ChartLine 3``."""

    def __len__(self) -> int:
        return max((len(column) for column in self.columns.values()), default=0)

    def find_column(self, accepted: tuple[str, ...]) -> str | None:
        """The column called by one of these names, whatever its case."""
        lower = {name.lower(): name for name in reversed(list(self.columns))}
        return next((lower[name] for name in accepted if name in lower), None)

    def require_column(self, accepted: tuple[str, ...]) -> str:
        """As ``named``; raises DataError where there is none."""
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
            texts = [cell.strip() for cell in column]
            if len(known) < _MAX_INTERNED_CELLS:
                texts = [known.setdefault(text, text) for text in texts]
            cells.extend(texts)


# CSV and TSV


def read_csv(path: Path) -> TextTable:
    """Comma, semicolon or tab; UTF-8, with or without a mark, or UTF-16 with one.

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
            yield [name.strip() for name in next(reader, [])], reader
        except csv.Error as error:
            raise DataError(f"Line {reader.line_num} of '{path}' cannot be read ({error}).") from error
        except UnicodeDecodeError as error:
            raise _encoding_error(path) from error


def _is_blank(row: list[str]) -> bool:
    return not any(row) or (len(row) == 1 and not row[0].strip())


def _find_line(path: Path, wrong: Callable[[list[str]], bool] | None, number: int = 0) -> str:
    """Where a row ends: row ``number``, or the first ``wrong`` one. Asked for messages only, so it reads again."""
    with _open_csv(path) as (_, rows):
        wanted = (row for row in rows if not _is_blank(row) and (wrong is None or wrong(row)))
        next(islice(wanted, number, None))
        return f"Line {rows.line_num}"


def detect_delimiter(header: str) -> str:
    """What separates the fields: whichever of comma, semicolon and tab the header has most of."""
    return max(",;\t", key=header.count)


def detect_encoding(path: Path) -> str:
    """UTF-8 unless a mark says otherwise. Raises DataError for UTF-16 without one."""
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
    """Which line is not in the encoding the file has to be in."""
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
    """An object on each line; its values become text, what a line lacks is empty. Raises DataError."""
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
                if line.strip():
                    yield number, _parse_object(line, number, path)
        except UnicodeDecodeError as error:
            raise _encoding_error(path) from error


def _parse_object(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"Line {number} of '{path}' is not valid JSON ({error}).") from error
    if not isinstance(row, dict):
        raise DataError(f"Line {number} of '{path}' is not a JSON object with fields such as path and label.")
    return row


def cell_text(value: Any) -> str:
    """A cell as text: nothing for null, JSON for what is nested.

    >>> text_of(None), text_of(3), text_of("x"), text_of(["a"])
    ('', '3', 'x', '["a"]')
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
