"""Files of arrays: IDX (MNIST), ``.npz`` (Keras, MedMNIST) and tables of pixels (Kaggle)."""

import csv
import math
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy import ndarray

from ..errors import DataError
from .arrays import ArrayChunk, ImageArrays, concatenate_chunks
from .layout import SPLIT_WORDS
from .source import MAX_FILE_BYTES
from .tables import LABEL_COLUMNS, PATH_COLUMNS, detect_delimiter, detect_encoding

# IDX (LeCun, Cortes, Burges 1998): bytes with a small header

_IDX_IMAGE_NAME = re.compile(r"^(.*?)images?([-._]idx3[-._]?ubyte|[-._]ubyte)?(\.idx|\.gz)*$", re.IGNORECASE)
_IDX_SPLIT_WORDS = {"t10k": "test", **SPLIT_WORDS}
MAX_IDX_BYTES = 16 * MAX_FILE_BYTES
"""Bytes of an IDX file after gzip."""


def select_idx_images(names: Iterable[str]) -> list[str]:
    """The names of IDX files of images: ``train-images-idx3-ubyte`` and the like, with or without ``.gz``."""
    return sorted(name for name in names if "ubyte" in name.lower() and _IDX_IMAGE_NAME.match(PurePath(name).name))


def idx_labels_name(images: str) -> str:
    """The name of the labels that belong to a file of images."""
    path = PurePath(images)
    swap = {"images": "labels", "image": "label", "idx3": "idx1"}
    return str(path.with_name(re.sub("images?|idx3", lambda m: swap.get(m[0].lower(), m[0]), path.name)))


def read_idx(files: Mapping[str, bytes], place: str, names: Sequence[str] | None = None) -> ImageArrays:
    """The labelled images of some IDX files, given by name; train and test by their names.

    ``names`` are the class names, where they are known. Raises DataError for a wrong magic number, a wrong length,
    or images without labels.
    """
    chosen = [name for name in select_idx_images(files) if not (name.endswith(".gz") and name[:-3] in files)]
    chunks = []
    for name in chosen:
        labels = idx_labels_name(name)
        if labels not in files:
            labels = labels.removesuffix(".gz") if labels.endswith(".gz") else labels + ".gz"
        if labels not in files:
            missing = PurePath(idx_labels_name(name)).name
            raise DataError(
                f"'{place}' has the images '{name}' without their labels: put '{missing}' in the same folder."
            )
        words = re.split(r"[-._]", PurePath(name).name.lower()) if len(chosen) > 1 else ()
        split = next((_IDX_SPLIT_WORDS[word] for word in words if word in _IDX_SPLIT_WORDS), None)
        images, known = _parse_idx(files[name], name, 3), _parse_idx(files[labels], labels, 1)
        chunks.append(ArrayChunk(PurePath(name).name, images, known, split))
    if len(chunks) > len({chunk.split for chunk in chunks}):
        names = ", ".join(f"'{chunk.name}'" for chunk in chunks)
        raise DataError(f"'{place}' has several sets of images ({names}): give one of these files instead.")
    return concatenate_chunks(chunks, place, names)


def _parse_idx(data: bytes, name: str, dimensions: int) -> ndarray:
    """The numbers of an IDX file of bytes, which may be compressed by gzip."""
    if data[:2] == b"\x1f\x8b":
        try:
            stream = zlib.decompressobj(wbits=31)
            unpacked = stream.decompress(data, min(MAX_IDX_BYTES, 1_000_000 + 100 * len(data)))
        except zlib.error as error:
            raise DataError(f"'{name}' is a damaged gzip file: copy or download it again.") from error
        if not stream.eof:
            what = "grows beyond what is plausible" if stream.unconsumed_tail else "is cut short"
            raise DataError(f"'{name}' is a gzip file that {what}: copy or download it again.")
        data = unpacked
    if data[:4] != bytes((0, 0, 8, dimensions)):
        what = "images" if dimensions == 3 else "labels"
        raise DataError(
            f"'{name}' is not an IDX file of {what}: it begins with {data[:4].hex(' ')}, not with "
            f"00 00 08 {dimensions:02x}; copy or download it again."
        )
    head = 4 + 4 * dimensions
    shape = np.frombuffer(data[4:head].ljust(head - 4, b"\0"), ">u4").tolist()
    size = head + math.prod(shape)
    if len(data) != size or not size > head:
        raise DataError(
            f"'{name}' has {len(data):,} bytes, but its header announces {size:,} "
            f"({' x '.join(f'{n:,}' for n in shape)}): it was cut; copy or download it again."
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


# npz

NPZ_IMAGE_KEYS = ("images", "image", "imgs", "x", "data", "pixels")
NPZ_LABEL_KEYS = ("labels", "label", "y", "targets", "target")
NPZ_CLASS_NAME_KEYS = ("classes", "class_names", "label_names", "names")
MAX_NPZ_BYTES = 64_000_000_000
"""Bytes of all arrays of an npz file."""
_EXPECTED_ARRAYS = "save the arrays as 'images' (N, H, W) or (N, H, W, 3) and 'labels' (N)"


def read_npz(path: Path) -> ImageArrays:
    """The images of an ``.npz`` file; the arrays' names may give a split (``x_train``, ``val_images``).

    Images are (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W), uint8 in 0 to 255 or floats in 0 to 1; grey ones
    may also be of 16 bits, in 0 to 65535.
    Raises DataError for objects (they would be pickles), missing arrays and impossible values.
    """
    place = str(path)
    try:
        with path.open("rb") as stream:
            with zipfile.ZipFile(stream) as archive:
                size = sum(info.file_size for info in archive.infolist())
            if size > MAX_NPZ_BYTES or size > 1_000_000_000 + 200 * path.stat().st_size:
                raise DataError(f"'{path}' unpacks to {size / 1e9:.0f} GB, more than is plausible: save it again.")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                images, labels = _find_arrays(archive, NPZ_IMAGE_KEYS), _find_arrays(archive, NPZ_LABEL_KEYS)
                if not images or set(images) != set(labels):
                    has = ", ".join(archive) or "nothing"
                    raise DataError(
                        f"'{place}' has no images with their labels (it has: {has}): {_EXPECTED_ARRAYS}."
                    )
                chunks: list[ArrayChunk] = []
                notes: list[str] = []
                for split, name in images.items():
                    known = _parse_labels(_load_array(archive, labels[split], place), labels[split], place)
                    pixels = _parse_images(_load_array(archive, name, place), name, place, notes)
                    chunks.append(ArrayChunk(name, pixels, known, split or None))
                named = [name for name in archive if name.lower() in NPZ_CLASS_NAME_KEYS]
                names = _load_array(archive, named[0], place) if named else None
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise DataError(f"'{path}' is not a complete npz file: copy or download it again.") from error
    numbered = all(chunk.labels.dtype.kind in "iu" for chunk in chunks)
    classes = names.astype(str).tolist() if names is not None and names.ndim == 1 and numbered else None
    return concatenate_chunks(chunks, place, classes, tuple(dict.fromkeys(notes)))


def _find_arrays(archive: Mapping[str, Any], accepted: tuple[str, ...]) -> dict[str, str]:
    """Arrays of one kind by the split in their names: ``""`` where there is none."""
    found: dict[str, str] = {}
    for name in archive:
        words = re.split(r"[_\-. ]", name.lower())
        kinds = [word for word in words if word not in SPLIT_WORDS]
        splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
        if len(kinds) == 1 and kinds[0] in accepted and len(splits) <= 1:
            found.setdefault(splits[0] if splits else "", name)
    return found if "" not in found or len(found) == 1 else {"": found[""]}


def _load_array(archive: Mapping[str, Any], name: str, place: str) -> ndarray:
    try:
        return archive[name]
    except ValueError as error:
        raise DataError(
            f"The array '{name}' of '{place}' holds Python objects, which only a pickle could bring back and a "
            f"pickle may run a program, so it was not read: {_EXPECTED_ARRAYS} as plain numbers."
        ) from error
    except (zipfile.BadZipFile, OSError, EOFError, MemoryError) as error:
        raise DataError(f"The array '{name}' of '{place}' cannot be read ({error}): save it again.") from error


def _parse_labels(labels: ndarray, name: str, place: str) -> ndarray:
    """One number or name for each image, (n,)."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "biuf":
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise DataError(f"'{name}' of '{place}' gives an image several labels or none: give each just one.")
        labels = labels.argmax(axis=1)
    if labels.ndim != 1 or labels.dtype.kind not in "biufUS":
        raise DataError(
            f"'{name}' of '{place}' is {_describe_array(labels)}, not a label for each image: {_EXPECTED_ARRAYS}."
        )
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all() or (labels != np.rint(labels)).any():
            raise DataError(
                f"'{name}' of '{place}' has labels that are no whole numbers: count the classes from 0."
            )
        labels = labels.astype(np.int64)
    return np.char.decode(labels, "utf-8", "replace") if labels.dtype.kind == "S" else labels


def _parse_images(images: ndarray, name: str, place: str, notes: list[str]) -> ndarray:
    """uint8, (n, H, W) or (n, H, W, 3), or grey uint16; what was changed is added to the notes."""
    if images.ndim == 2 and (side := round(images.shape[1] ** 0.5)) ** 2 == images.shape[1]:
        images = images.reshape(-1, side, side)
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
        notes.append("The images had their channels first: moved to the end.")
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3) or not images.size:
        raise DataError(
            f"'{name}' of '{place}' is {_describe_array(images)}, not grey or RGB images: {_EXPECTED_ARRAYS}."
        )
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    if images.dtype.kind not in "biuf":
        raise DataError(f"'{name}' of '{place}' is {_describe_array(images)}, not pixels: {_EXPECTED_ARRAYS}.")
    low, high = images.min(), images.max()
    if images.ndim == 3 and low >= 0 and 255 < high <= 65535:
        if images.dtype != np.uint16:
            notes.append(f"The pixels are {images.dtype} from {low:g} to {high:g}: rounded to 16 bits.")
        return np.rint(images).astype(np.uint16)
    if not (low >= 0 and high <= 255):  # false for NaN too
        raise DataError(
            f"'{name}' of '{place}' has values from {low} to {high}, but pixels are 0 to 255, 0 to 1, or 0 to 65535 if "
            "they are grey: save the images before any standardisation."
        )
    unit = images.dtype.kind in "bf" and high <= 1
    notes.append(f"The pixels are {images.dtype} from 0 to {'1: multiplied by 255' if unit else '255: rounded'}.")
    out = np.empty(images.shape, np.uint8)
    for i in range(0, len(images), 1024):  # a float copy of 1,024 images at a time
        block = images[i : i + 1024].astype(np.float32)
        out[i : i + 1024] = np.rint(block * 255 if unit else block)
    return out


def _describe_array(array: ndarray) -> str:
    return f"an array {array.shape} of {array.dtype}"


# tables of pixels: ``label,pixel0,...,pixel783``, a row an image

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
