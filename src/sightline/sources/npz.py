"""``.npz`` files of images and labels: Keras' ``mnist.npz``, MedMNIST, or ``images`` and ``labels``."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy import ndarray

from ..errors import DataError
from .arrays import ArrayChunk, ImageArrays, concatenate_chunks
from .layout import SPLIT_WORDS

NPZ_IMAGE_KEYS = ("images", "image", "imgs", "x", "data", "pixels")
NPZ_LABEL_KEYS = ("labels", "label", "y", "targets", "target")
NPZ_CLASS_NAME_KEYS = ("classes", "class_names", "label_names", "names")
_MAX_UNPACKED_BYTES = 64_000_000_000
_EXPECTED_ARRAYS = "save the arrays as 'images' (N, H, W) or (N, H, W, 3) and 'labels' (N)"


def read_npz(path: Path) -> ImageArrays:
    """The images of an ``.npz`` file; a split may be in the arrays' names (``x_train``, ``val_images``).

    Images are (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W), uint8 in 0 to 255 or floats in 0 to 1.
    Raises DataError for objects (they would be pickles), missing arrays and impossible values.
    """
    try:
        with path.open("rb") as stream:
            _check_unpacked_size(path, stream)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                return _read_arrays(archive, str(path))
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise DataError(f"'{path}' is not a complete npz file: copy or download it again.") from error


def _read_arrays(archive: Mapping[str, Any], place: str) -> ImageArrays:
    images, labels = _find_arrays(archive, NPZ_IMAGE_KEYS), _find_arrays(archive, NPZ_LABEL_KEYS)
    if not images or set(images) != set(labels):
        has = ", ".join(archive) or "nothing"
        raise DataError(f"'{place}' has no images with their labels (it has: {has}): {_EXPECTED_ARRAYS}.")
    said: list[str] = []
    parts = []
    for split, name in images.items():
        known = _parse_labels(_load_array(archive, labels[split], place), labels[split], place)
        parts.append(
            ArrayChunk(
                name, _parse_images(_load_array(archive, name, place), name, place, said), known, split or None
            )
        )
    names = next(
        (_load_array(archive, name, place) for name in archive if name.lower() in NPZ_CLASS_NAME_KEYS), None
    )
    numbered = all(part.labels.dtype.kind in "iu" for part in parts)
    classes = names.astype(str).tolist() if names is not None and names.ndim == 1 and numbered else None
    return concatenate_chunks(parts, place, classes, tuple(dict.fromkeys(said)))


def _find_arrays(archive: Mapping[str, Any], accepted: tuple[str, ...]) -> dict[str, str]:
    """Arrays of one kind by the split their names tell: ``""`` where they tell none."""
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


def _check_unpacked_size(path: Path, stream: BinaryIO) -> None:
    with zipfile.ZipFile(stream) as archive:
        size = sum(info.file_size for info in archive.infolist())
    if size > _MAX_UNPACKED_BYTES or size > 1_000_000_000 + 200 * path.stat().st_size:
        raise DataError(f"'{path}' unpacks to {size / 1e9:.0f} GB, more than is plausible: save it again.")


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


def _parse_images(images: ndarray, name: str, place: str, said: list[str]) -> ndarray:
    """uint8, (n, H, W) or (n, H, W, 3)."""
    if images.ndim == 2 and (side := round(images.shape[1] ** 0.5)) ** 2 == images.shape[1]:
        images = images.reshape(-1, side, side)
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
        said.append("The images have their channels first: turned.")
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3) or not images.size:
        raise DataError(
            f"'{name}' of '{place}' is {_describe_array(images)}, which are no grey or RGB images: {_EXPECTED_ARRAYS}."
        )
    return np.ascontiguousarray(_to_uint8(images, name, place, said))


def _to_uint8(images: ndarray, name: str, place: str, said: list[str]) -> ndarray:
    """The same images in 0 to 255."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "biuf":
        raise DataError(
            f"'{name}' of '{place}' is {_describe_array(images)}, which are no pixels: {_EXPECTED_ARRAYS}."
        )
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 255):  # false for NaN too
        raise DataError(
            f"'{name}' of '{place}' has values from {low} to {high}, but pixels are 0 to 255 or 0 to 1: "
            "save the images before any standardisation."
        )
    unit = images.dtype.kind in "bf" and high <= 1
    said.append(f"The pixels are {images.dtype} from 0 to {'1: multiplied by 255' if unit else '255: rounded'}.")
    out = np.empty(images.shape, np.uint8)
    for i in range(0, len(images), 1024):  # a copy as float of a part at a time
        block = images[i : i + 1024].astype(np.float32)
        out[i : i + 1024] = np.rint(block * 255 if unit else block)
    return out


def _describe_array(array: ndarray) -> str:
    return f"an array {array.shape} of {array.dtype}"
