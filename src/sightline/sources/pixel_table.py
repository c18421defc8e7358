"""Tables of pixels, as Kaggle's digit recognizer has them: ``label,pixel0,...,pixel783``, a row an image."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy import ndarray

from ..errors import DataError
from .arrays import ArrayChunk, ImageArrays, concatenate_chunks
from .tables import LABEL_COLUMNS, PATH_COLUMNS, detect_delimiter, detect_encoding

_PIXEL_COLUMN_NAME = re.compile(r"(pixel|px|p)?[_ .-]?\d+([x_]\d+)?", re.IGNORECASE)
_BLOCK_BYTES = 1 << 22
_MIN_PIXEL_COLUMNS = 16


def find_pixel_columns(header: list[str]) -> list[int]:
    """Which columns of a table are pixels, by their names; none where they are few or another column names files."""
    found = [i for i, name in enumerate(header) if _PIXEL_COLUMN_NAME.fullmatch(name.strip().strip('"'))]
    paths = any(name.strip().lower() in PATH_COLUMNS for name in header)
    return found if len(found) >= _MIN_PIXEL_COLUMNS and not paths else []


def read_pixel_table(path: Path) -> ImageArrays:
    """The grey images of a table with a label column and a column for each pixel, row by row of the picture.

    It is read in blocks, so that memory stays near the size of the images. Raises DataError, naming the line, for
    values that are not pixels, and where the pixels make no square.
    """
    if detect_encoding(path) == "utf-16":
        raise DataError(f"'{path}' is UTF-16 text, which tables of pixels may not be: save it again in UTF-8.")
    with path.open("rb") as stream:
        first = stream.readline().decode("utf-8-sig", "replace")
        split = detect_delimiter(first)
        header = [name.strip().lower() for name in next(csv.reader([first], delimiter=split))]
        columns = find_pixel_columns(header)
        place = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
        side = round(len(columns) ** 0.5)
        if place is None:
            raise DataError(
                f"'{path}' has {len(columns)} columns of pixels but no column {', '.join(LABEL_COLUMNS[:-1])} or "
                f"{LABEL_COLUMNS[-1]}: a table without labels can be predicted, not learned from."
            )
        if side * side != len(columns):
            raise DataError(f"'{path}' has {len(columns)} columns of pixels, which make no square picture.")
        shape = _RowFormat(len(header), np.array(columns), place, split)
        pixels: list[ndarray] = []
        labels: list[ndarray] = []
        line = 2
        for block in _read_line_blocks(stream):
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # noqa: PLW2901
            table = _parse_fast(block, shape)
            if table is not None and table[:, shape.pixels].max(initial=0) <= 255:
                images, known = table[:, shape.pixels], table[:, shape.label].astype(np.int64)
            else:
                images, known = _parse_strict(block, shape, path, line)
            pixels.append(images.astype(np.uint8))
            labels.append(known)
            line += block.count(b"\n")
    if not sum(map(len, pixels)):
        raise DataError(f"'{path}' lists no images: give it a header and one line for each image.")
    if any(known.dtype.kind == "U" for known in labels):
        labels = [known.astype(str) for known in labels]
    images = np.concatenate(pixels).reshape(-1, side, side)
    return concatenate_chunks([ArrayChunk(path.name, images, np.concatenate(labels))], str(path))


class _RowFormat(NamedTuple):
    """The positions of the pixels and the label in a row."""

    width: int
    pixels: ndarray
    label: int
    delimiter: str


def _read_line_blocks(stream: BinaryIO) -> Iterator[bytes]:
    """The rest of a file in pieces of whole lines."""
    rest = b""
    while data := stream.read(_BLOCK_BYTES):
        cut = data.rfind(b"\n") + 1
        if not cut:
            rest += data
            continue
        yield rest + data[:cut]
        rest = data[cut:]
    if rest.strip():
        yield rest + b"\n"


def _parse_fast(block: bytes, shape: _RowFormat) -> ndarray | None:
    """All numbers of a block (rows, width) as uint16, a digit at a time; None for anything but 0 to 999."""
    data = np.frombuffer(block, np.uint8)
    digit = data - np.uint8(48)
    ends = np.flatnonzero(digit > 9)  # uint8: separators wrap around
    length = np.diff(ends, prepend=-1) - 1
    marks = data[ends]
    if len(ends) % shape.width or length.min(initial=1) < 1 or length.max(initial=1) > 3:
        return None
    rows = marks.reshape(-1, shape.width)
    if (rows[:, -1] != 10).any() or (rows[:, :-1] != ord(shape.delimiter)).any():
        return None
    value = digit[ends - 1].astype(np.uint16)
    value += (length > 1) * digit[ends - 2].astype(np.uint16) * 10
    value += (length > 2) * digit[ends - 3].astype(np.uint16) * 100
    return value.reshape(-1, shape.width)


def _parse_strict(block: bytes, shape: _RowFormat, path: Path, line: int) -> tuple[ndarray, ndarray]:
    """The same for quoted, spaced or decimal numbers and for words as labels; raises DataError, naming the line."""
    pixels, labels = [], []
    text = block.decode("utf-8", "replace").split("\n")
    for number, row in enumerate(csv.reader(text, delimiter=shape.delimiter), line):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != shape.width:
            raise DataError(f"Line {number} of '{path}' has {len(row)} fields, not the header's {shape.width}.")
        try:
            values = np.array(row, object)[shape.pixels].astype(np.float64)
        except ValueError as error:
            raise DataError(f"Line {number} of '{path}' has a pixel that is no number ({error}).") from error
        if not (values.min() >= 0 and values.max() <= 255):
            raise DataError(f"Line {number} of '{path}' has a pixel outside of 0 to 255.")
        if not (label := row[shape.label].strip()):
            raise DataError(f"Line {number} of '{path}' has an empty label: fill it in or remove the line.")
        pixels.append(np.rint(values).astype(np.uint8))
        labels.append(label)
    known = np.array(labels)
    whole = bool(labels) and all(label.isascii() and label.isdigit() and len(label) < 10 for label in labels)
    images = np.array(pixels, np.uint8).reshape(-1, len(shape.pixels))
    return images, known.astype(np.int64) if whole else known
