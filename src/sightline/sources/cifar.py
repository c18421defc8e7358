"""CIFAR-10 and CIFAR-100 as published (Krizhevsky 2009): pickled batches, or their binary version.

A pickle may run any program, so these are read by an unpickler that allows lists, dicts, numbers, text and numpy's
arrays of bytes (rebuilt by the few lines here), and refuses everything else by name.
"""

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy import ndarray

from ..errors import DataError
from .arrays import ArrayChunk, ImageArrays, concatenate_chunks

_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_CIFAR_FILES: dict[str, tuple[dict[str, str], str, str]] = {
    "cifar-10": ({**dict.fromkeys(_BATCHES, "train"), "test_batch": "test"}, "batches.meta", "label_names"),
    "cifar-100": ({"train": "train", "test": "test"}, "meta", "fine_label_names"),
}
"""Version -> (its files with their splits, the file of class names, the key of the names in it)."""
_CLASS_NAME_FILES = {"cifar-10": "batches.meta.txt", "cifar-100": "fine_label_names.txt"}
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


def detect_cifar(names: Sequence[str]) -> str | None:
    """``cifar-10`` or ``cifar-100`` where these are the names of its files (with ``.bin``: the binary version)."""
    bare = {PurePath(name).name.removesuffix(".bin") for name in names}
    binary = any(name.endswith(".bin") for name in names)
    if {"train", "test"} <= bare and ("meta" in bare or (binary and _CLASS_NAME_FILES["cifar-100"] in bare)):
        return "cifar-100"
    return "cifar-10" if bare & {*_BATCHES} else None


def select_cifar_files(names: Sequence[str]) -> list[str]:
    """The names of CIFAR's files among these; none without its batches."""
    kind = detect_cifar(names)
    if kind is None:
        return []
    splits, meta, _ = _CIFAR_FILES[kind]
    known = {*splits, *(f"{name}.bin" for name in splits), meta, _CLASS_NAME_FILES[kind]}
    return [name for name in names if PurePath(name).name in known]


def read_cifar(files: Mapping[str, bytes], place: str) -> ImageArrays:
    """The images of CIFAR's files, given by name, with fine labels for CIFAR-100.

    Raises DataError for files that are damaged, or pickles that hold anything but data.
    """
    kind = detect_cifar(list(files))
    if kind is None:
        raise DataError(
            f"'{place}' has no batches of CIFAR: give the folder of data_batch_1, or of train and test."
        )
    splits, meta, called = _CIFAR_FILES[kind]
    at = {PurePath(name).name: data for name, data in files.items()}
    binary = not any(name in at for name in splits)
    parts, missing = [], []
    for name, split in splits.items():
        full = name + ".bin" * binary
        if full not in at:
            missing.append(full)
            continue
        images, labels = (_read_binary_batch if binary else _read_pickled_batch)(at[full], full, kind)
        parts.append(ArrayChunk(full, images, labels, split))
    notes = (f"Without {', '.join(missing)}, which '{place}' lacks.",) if missing else ()
    return concatenate_chunks(parts, place, _class_names(at, kind, meta, called, binary), notes)


def _class_names(at: Mapping[str, bytes], kind: str, meta: str, called: str, binary: bool) -> list[str] | None:
    """The class names, where there is a file of them."""
    if binary:
        text = at.get(_CLASS_NAME_FILES[kind], b"").decode("utf-8", "replace").split()
        return text or None
    if meta not in at:
        return None
    names = _require_field(load_restricted_pickle(at[meta], meta), called, meta)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise DataError(f"'{meta}' has no list of names called '{called}': copy or download it again.")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]


def _read_binary_batch(data: bytes, name: str, kind: str) -> tuple[ndarray, ndarray]:
    """Binary version: each record is one label (two for CIFAR-100: coarse, fine) and its pixels."""
    first = 1 if kind == "cifar-10" else 2
    if not data or len(data) % (first + _PIXELS):
        raise DataError(f"'{name}' has {len(data):,} bytes, no whole number of images: copy or download it again.")
    table = np.frombuffer(data, np.uint8).reshape(-1, first + _PIXELS)
    return _to_channels_last(table[:, first:]), table[:, first - 1].astype(np.int64)


def _read_pickled_batch(data: bytes, name: str, kind: str) -> tuple[ndarray, ndarray]:
    batch = load_restricted_pickle(data, name)
    pixels = _require_field(batch, "data", name)
    labels = _require_field(batch, "labels" if kind == "cifar-10" else "fine_labels", name)
    pixels = pixels.array() if isinstance(pixels, _PlainArray) else None
    whole = isinstance(labels, list) and all(type(label) is int for label in labels)
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != _PIXELS or not whole:
        raise DataError(f"'{name}' is no batch of 32x32 RGB images with a label each: copy or download it again.")
    try:
        return _to_channels_last(pixels), np.array(labels, np.int64)
    except OverflowError as error:
        raise DataError(f"'{name}' has labels that are no class numbers: copy or download it again.") from error


def _to_channels_last(rows: ndarray) -> ndarray:
    """(n, 3072) channel by channel -> (n, 32, 32, 3)."""
    return np.ascontiguousarray(rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))


def _require_field(batch: Any, key: str, name: str) -> Any:
    value = batch.get(key, batch.get(key.encode())) if isinstance(batch, dict) else None
    if value is None:
        raise DataError(f"'{name}' has no '{key}', which a CIFAR file has: copy or download it again.")
    return value


# the unpickler


class _UInt8DType:
    """Stands in for numpy's dtype: unsigned bytes only."""

    def __init__(self, text: Any, *_: Any):
        if text not in ("u1", b"u1", "|u1", "uint8"):
            raise pickle.UnpicklingError(f"an array of {text!r}")

    def __setstate__(self, _: Any) -> None:
        """Byte order and alignment, which bytes do not have."""


class _PlainArray:
    """Stands in for numpy's array: a shape and the bytes."""

    shape: tuple[int, ...] = ()
    data: bytes = b""
    fortran_order = False

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, columns_first, data = state
        if not isinstance(kind, _UInt8DType) or not isinstance(data, bytes | bytearray):
            raise pickle.UnpicklingError("an array of something else than bytes")
        self.shape, self.data, self.fortran_order = shape, bytes(data), bool(columns_first)

    def array(self) -> ndarray | None:
        """The numbers; None where shape and bytes do not agree."""
        try:
            return np.frombuffer(self.data, np.uint8).reshape(self.shape, order="F" if self.fortran_order else "C")
        except (ValueError, TypeError):
            return None


def _reconstruct(*_: Any) -> _PlainArray:
    return _PlainArray()


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _PlainArray:
    array = _PlainArray()
    array.__setstate__((1, shape, kind, order == "F", data))
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


_ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _UInt8DType,
    ("numpy", "ndarray"): _PlainArray,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",  # how old protocols write b""
}


class _Unpickler(pickle._Unpickler):  # in Python, for that in C can be made to fill the memory
    def find_class(self, module: str, name: str) -> Any:
        """Our stand-in for one of numpy's few names; anything else is refused."""
        if (module, name) not in _ALLOWED_GLOBALS:
            raise _RefusedError(f"{module}.{name}")
        return _ALLOWED_GLOBALS[module, name]


class _RefusedError(Exception):
    """A global that no file of data needs."""


def load_restricted_pickle(data: bytes, name: str) -> Any:
    """The content of a pickle of plain data and byte arrays. Raises DataError, naming what is refused."""
    try:
        return _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except _RefusedError as error:
        raise DataError(
            f"'{name}' is a pickle that asks for '{error}', which could run a program, so it was not read: "
            "a CIFAR file holds only arrays, lists and text; download it from its authors."
        ) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"'{name}' is not one of CIFAR's pickles ({error}): copy or download it again.") from error
