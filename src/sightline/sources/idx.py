"""IDX files, as MNIST and its kin are published (LeCun, Cortes, Burges 1998): bytes with a small header."""

import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath

import numpy as np
from numpy import ndarray

from ..errors import DataError
from .arrays import ArrayChunk, ImageArrays, concatenate_chunks
from .layout import SPLIT_WORDS
from .listing import MAX_FILE_BYTES

_IDX_IMAGE_NAME = re.compile(r"^(.*?)images?([-._]idx3[-._]?ubyte|[-._]ubyte)?(\.idx|\.gz)*$", re.IGNORECASE)
_IDX_SPLIT_WORDS = {"t10k": "test", **SPLIT_WORDS}
_MAX_UNPACKED_BYTES = 16 * MAX_FILE_BYTES


def select_idx_images(names: Iterable[str]) -> list[str]:
    """Those names that IDX images are given: ``train-images-idx3-ubyte`` and the like, with or without ``.gz``."""
    return sorted(name for name in names if "ubyte" in name.lower() and _IDX_IMAGE_NAME.match(PurePath(name).name))


def idx_labels_name(images: str) -> str:
    """The name of the labels that belong to a file of images."""
    path = PurePath(images)
    swap = {"images": "labels", "image": "label", "idx3": "idx1"}
    return str(path.with_name(re.sub("images?|idx3", lambda m: swap.get(m[0].lower(), m[0]), path.name)))


def read_idx(files: Mapping[str, bytes], place: str, names: Sequence[str] | None = None) -> ImageArrays:
    """The labelled images of some IDX files, given by name; train and test as the names say.

    ``names`` are the class names, where they are known. Raises DataError for a wrong magic number,
    a wrong length, or images without labels.
    """
    chosen = [name for name in select_idx_images(files) if not (name.endswith(".gz") and name[:-3] in files)]
    parts = []
    for name in chosen:
        labels = idx_labels_name(name)
        if labels not in files:
            labels = labels.removesuffix(".gz") if labels.endswith(".gz") else labels + ".gz"
        if labels not in files:
            beside = PurePath(idx_labels_name(name)).name
            raise DataError(f"'{place}' has the images '{name}' without their labels: put '{beside}' beside them.")
        images, known = _parse_idx(files[name], name, 3), _parse_idx(files[labels], labels, 1)
        parts.append(ArrayChunk(PurePath(name).name, images, known, _split_from_name(name, len(chosen))))
    if len(parts) > len({part.split for part in parts}):
        names = ", ".join(f"'{part.name}'" for part in parts)
        raise DataError(f"'{place}' has several sets of images ({names}): give one of these files instead.")
    return concatenate_chunks(parts, place, names)


def _split_from_name(name: str, files: int) -> str | None:
    words = re.split(r"[-._]", PurePath(name).name.lower())
    return (
        next((_IDX_SPLIT_WORDS[word] for word in words if word in _IDX_SPLIT_WORDS), None) if files > 1 else None
    )


def _parse_idx(data: bytes, name: str, dimensions: int) -> ndarray:
    """The numbers of an IDX file of bytes."""
    data = decompress_gzip(data, name) if data[:2] == b"\x1f\x8b" else data
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


def decompress_gzip(data: bytes, name: str) -> bytes:
    """What a gzip file holds, unless that is implausibly large. Raises DataError."""
    try:
        stream = zlib.decompressobj(wbits=31)
        out = stream.decompress(data, min(_MAX_UNPACKED_BYTES, 1_000_000 + 100 * len(data)))
    except zlib.error as error:
        raise DataError(f"'{name}' is a damaged gzip file: copy or download it again.") from error
    if not stream.eof:
        what = "grows beyond what is plausible" if stream.unconsumed_tail else "is cut short"
        raise DataError(f"'{name}' is a gzip file that {what}: copy or download it again.")
    return out
