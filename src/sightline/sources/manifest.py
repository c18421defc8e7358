"""A CSV that names images and their labels."""

import csv
import hashlib
import io
import os
from pathlib import Path

import numpy as np
from numpy import ndarray

from ..choose import suggest
from ..errors import DataError
from .layout import SPLITS, Layout, check_several, check_unseen, ordered
from .listing import FolderReader, Listing

PATHS = ("path", "image", "file_name", "filename")
LABELS = ("label", "class", "target")


def read_manifest(path: Path) -> tuple[Listing, Layout, dict[str, ndarray], str]:
    """The files a CSV names, their labels, its other columns, and a hash of the CSV itself.

    The path column is called path, image, file_name or filename (relative to the CSV), the label
    column label, class or target; ``split`` is train, val or test. Comma, semicolon or tab.
    Raises DataError, naming the line and the field.
    """
    data = path.read_bytes()
    header, rows, lines = _table(path, data)
    where, what = _column(path, header, PATHS), _column(path, header, LABELS)
    names = [row[where].strip().replace("\\", "/") for row in rows]
    texts = _filled(path, [row[what].strip() for row in rows], lines, header[what])
    listing = _listing(path, names, lines)
    classes = ordered(texts)
    check_several(classes, str(path))
    splits = _splits(path, header, rows, lines)
    if splits is not None:
        check_unseen(zip(splits.tolist(), texts, strict=True), classes, str(path))
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[text] for text in texts], np.int64)
    layout = Layout(np.arange(len(rows), dtype=np.int64), labels, classes, splits, ())
    known = {where, what, *(i for i, name in enumerate(header) if name.lower() == "split")}
    extra = {
        name: np.array([row[i].strip() for row in rows])
        for i, name in enumerate(header)
        if i not in known and name
    }
    return listing, layout, extra, hashlib.blake2b(data, digest_size=16).hexdigest()


def _table(path: Path, data: bytes) -> tuple[list[str], list[list[str]], list[int]]:
    """Header, rows of equal length, and the line each row ends on."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text: save it again as CSV in UTF-8.") from error
    first = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    header = [name.strip() for name in next(reader, [])]
    rows, lines = [], []
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > len(header):
                raise DataError(f"Line {reader.line_num} of '{path}' has more fields than the header: quote it.")
            rows.append(row + [""] * (len(header) - len(row)))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"Line {reader.line_num} of '{path}' cannot be read ({error}).") from error
    if not rows:
        raise DataError(f"'{path}' lists no images: give it a header and one line for each image.")
    return header, rows, lines


def _column(path: Path, header: list[str], accepted: tuple[str, ...]) -> int:
    lower = [name.lower() for name in header]
    for name in accepted:
        if name in lower:
            return lower.index(name)
    raise DataError(
        f"'{path}' has no column called {', '.join(accepted[:-1])} or {accepted[-1]} "
        f"(it has: {', '.join(header)}): rename the column that holds it."
    )


def _filled(path: Path, texts: list[str], lines: list[int], column: str) -> list[str]:
    for text, line in zip(texts, lines, strict=True):
        if not text:
            raise DataError(f"Line {line} of '{path}' has an empty '{column}': fill it in or remove the line.")
    return texts


def _listing(path: Path, names: list[str], lines: list[int]) -> Listing:
    facts: list[tuple[int, int]] = []
    missing: list[int] = []
    for i, name in enumerate(names):
        try:
            status = os.stat(path.parent / name)  # noqa: PTH116
        except OSError:
            missing.append(i)
        else:
            facts.append((status.st_size, status.st_mtime_ns))
    if missing:
        first = ", ".join(f"'{names[i]}' (line {lines[i]})" for i in missing[:3])
        raise DataError(
            f"{len(missing):,} of the {len(names):,} files named in '{path}' do not exist: {first}"
            f"{', ...' if len(missing) > 3 else ''}. Paths are relative to the folder of the CSV."
        )
    sizes, stamps = np.array(facts, np.int64).reshape(-1, 2).T
    return Listing(names, sizes, stamps, frozenset(), FolderReader(path.parent, names))


def _splits(path: Path, header: list[str], rows: list[list[str]], lines: list[int]) -> ndarray | None:
    """The split column as train, val or test; None where there is none or it is all empty."""
    lower = [name.lower() for name in header]
    if "split" not in lower:
        return None
    column = lower.index("split")
    texts = [row[column].strip().lower() for row in rows]
    if not any(texts):
        return None
    for text, line in zip(texts, lines, strict=True):
        if text and text not in SPLITS:
            raise DataError(f"Line {line} of '{path}' has split '{text}'. {suggest(text, SPLITS)}")
    return np.array([SPLITS[text] if text else "train" for text in texts])
