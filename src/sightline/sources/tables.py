"""Tables of text (CSV, TSV, JSONL, JSON): columns of strings."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from ..choose import suggest
from ..errors import DataError
from ..files import unquote_formula
from .layout import IMAGE_SUFFIXES, parse_split

PATH_COLUMNS = ("path", "image", "file_name", "filename")
LABEL_COLUMNS = ("label", "class", "target")
OTHER_PATH_COLUMNS = (
    *"filepath imagepath imgpath relativepath imagefile imagefilename imagename imgname img".split(),  # noqa: SIM905
    *"imageid imgid imageindex file files picture photo images fname idcode id".split(),  # noqa: SIM905
)
"""Further usual names of the column of paths, without spaces and underscores; the first that a table has is used."""
OTHER_LABEL_COLUMNS = (
    *"labels targets classes category categories classname classlabel labelname choice breed".split(),  # noqa: SIM905
    *"species diagnosis dx disease categoryname classid categoryid labelid findinglabels".split(),  # noqa: SIM905
    *"variety tag tags y".split(),  # noqa: SIM905
)
_LISTED_IMAGE = re.compile(rf"(.+?\.(?:{'|'.join(sorted(IMAGE_SUFFIXES))})) +(\S.*)", re.IGNORECASE)
"""A line of a list without a header, whose path may have spaces: ``my cat.jpg 3``."""
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

    def find_column(self, accepted: tuple[str, ...], without: tuple[str | None, ...] = ()) -> str | None:
        """The first of these columns that the table has, whatever its case, spaces and underscores."""
        known = {
            re.sub(r"[\W_]", "", name.lower()): name
            for name in reversed(list(self.columns))
            if name not in without
        }
        plain = (re.sub(r"[\W_]", "", name) for name in accepted)
        return next((known[name] for name in plain if name in known), None)

    def require_column(
        self,
        accepted: tuple[str, ...],
        others: tuple[str, ...],
        without: tuple[str | None, ...] = (),
        named: str | None = None,
    ) -> str:
        """The column ``named``, else as ``find_column``, of ``accepted`` and then ``others``.

        Raises DataError where there is none.
        """
        name = self.find_column((named,) if named else (*accepted, *others), without)
        if name is None and named:
            raise DataError(f"'{self.path}' has no column '{named}'. {suggest(named, self.columns)}")
        if name is None:
            raise DataError(
                f"'{self.path}' has no column called {', '.join(accepted[:-1])} or {accepted[-1]}, nor another usual "
                f"name such as {others[0]} (it has: {', '.join(self.columns)}): name the column, --path-column or "
                "--label-column."
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
        mark = first.strip()[-1] if re.fullmatch(r"sep=.\s*", first) else ""  # Excel's word for the delimiter
        second = stream.readline() if mark else first
        delimiter = mark or detect_delimiter(first)
        lines = chain([first, second] if mark else [first], stream)
        listed = _LISTED_IMAGE.fullmatch(second.strip()) if delimiter == " " else None
        if listed and (" " in listed[1] or " " not in listed[2]):
            delimiter, second = "\t", _LISTED_IMAGE.sub(r"\1\t\2", second)
            lines = (_LISTED_IMAGE.sub(r"\1\t\2", line) for line in lines)
        elif delimiter == " " and re.fullmatch(r"[^ ]*/.*\.\w+\s*", second):  # one path with spaces in it
            delimiter = "\t"
        reader = csv.reader(lines, delimiter=delimiter)
        try:
            if mark:
                next(reader)
            if names := _name_bare_columns(next(csv.reader([second], delimiter=delimiter), [])):
                yield [unquote_formula(name) for name in names], reader
            else:
                yield [unquote_formula(name.strip()) for name in next(reader, [])], reader
        except csv.Error as error:
            raise DataError(f"Line {reader.line_num} of '{path}' cannot be read ({error}).") from error
        except UnicodeDecodeError as error:
            raise _encoding_error(path) from error


def _name_bare_columns(cells: list[str]) -> list[str]:
    """Names for the columns of a table whose first line already names an image; none where it is a header."""
    cells = [cell.strip() for cell in cells]
    places = [
        i for i, cell in enumerate(cells) if cell.lower().rpartition(".")[2] in IMAGE_SUFFIXES and "." in cell
    ]
    if len(places) != 1 or len(cells) < 2:
        return []
    names = [f"column{i + 1}" for i in range(len(cells))]
    names[places[0]] = "path"
    rest = [i for i in range(len(cells)) if i != places[0] and not (len(cells) > 2 and parse_split(cells[i]))]
    names[rest[0] if rest else 1 - min(1, places[0])] = "label"
    return names


def _is_blank(row: list[str]) -> bool:
    return not any(row) or (len(row) == 1 and not row[0].strip())


def _find_line(path: Path, wrong: Callable[[list[str]], bool] | None, number: int = 0) -> str:
    """The line where row ``number`` ends, or the first ``wrong`` row; for messages: it reads the file again."""
    with _open_csv(path) as (_, rows):
        wanted = (row for row in rows if not _is_blank(row) and (wrong is None or wrong(row)))
        next(islice(wanted, number, None))
        return f"Line {rows.line_num}"


def detect_delimiter(header: str) -> str:
    """The delimiter of the fields: comma, semicolon or tab, whichever is most frequent in the header, or a space."""
    delimiter = max(",;\t", key=header.count)
    return delimiter if delimiter in header or " " not in header.strip() else " "


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


# JSON


def read_json(path: Path) -> TextTable:
    """A list of objects, as Label Studio exports them (JSON and JSON-MIN) or with fields such as path and label.

    Raises DataError.
    """
    try:
        with _open_text(path) as stream:
            rows = json.load(stream)
    except UnicodeDecodeError as error:
        raise _encoding_error(path) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not valid JSON ({error}).") from error
    if isinstance(rows, dict) and isinstance(rows.get("annotations"), list):
        rows = _flatten_coco(rows, path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"'{path}' is not a list of JSON objects, one for each image, with a path and a label.")
    flat = [_flatten_task(row) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    columns = {name: [cell_text(row.get(name)).strip() for row in flat] for name in names}
    return TextTable(path, columns, lambda row: f"Entry {row + 1}")


def _flatten_coco(found: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The images of a COCO file, each with the one category of its annotations; DataError where it has several."""
    try:
        names = {each["id"]: each["name"] for each in found["categories"]}
        labels: dict[Any, set[str]] = {}
        for each in found["annotations"]:
            labels.setdefault(each["image_id"], set()).add(names[each["category_id"]])
        rows = [{"file_name": each["file_name"], "label": labels.get(each["id"], ())} for each in found["images"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"'{path}' is not a whole COCO file: it lacks {error}.") from error
    for row in rows:
        if len(row["label"]) != 1:
            count = len(row["label"])
            raise DataError(
                f"'{path}' is a COCO file whose image '{row['file_name']}' has {count} categories, not one: "
                "cut the objects out, or write a table with the columns path and label."
            )
    return [{**row, "label": next(iter(row["label"]))} for row in rows]


def _flatten_task(row: dict[str, Any]) -> dict[str, Any]:
    """A task of Label Studio as one row: its data, and the first choice of its first annotation."""
    data, annotations = row.get("data"), row.get("annotations", row.get("completions"))
    if not isinstance(data, dict) or not isinstance(annotations, list):
        return row
    kept = [each for each in annotations if isinstance(each, dict) and not each.get("was_cancelled")]
    results = [result for each in kept[:1] for result in each.get("result") or [] if isinstance(result, dict)]
    values = [value for result in results if isinstance(value := result.get("value"), dict)]
    choices = [value["choices"] for value in values if value.get("choices")]
    choice = choices[0][0] if choices and isinstance(choices[0], list) and len(choices[0]) == 1 else choices[:1]
    return {**data, "choice": choice or None}


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
