"""``Source``: labelled images that were found, whatever they were found in."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Int, Int64
from numpy import ndarray

from .arrays import ArrayReader, ImageArrays
from .layout import Layout
from .listing import Listing, Reader
from .names import make_printable


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """Labelled image files, found but not yet decoded."""

    name: str
    """As the user gave it."""
    reader: Reader
    keys: Int64[ndarray, " N"]
    """Number of each file in the reader."""
    files: ndarray
    """Where each image lies, as the user would name it: always printable, so never opened by this name."""
    labels: Int64[ndarray, " N"]
    classes: tuple[str, ...]
    fingerprint: str
    """Hash of names, sizes and stamps, or of pixels: equal fingerprints mean equal images."""
    columns: Mapping[str, ndarray] = field(default_factory=dict)
    """``split`` where it is given, and whatever else a table tells."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> bytes:
        """The bytes of image ``index``; raises ImageError when they cannot be had."""
        return self.reader.read(int(self.keys[index]))

    def subset(self, indices: Int64[ndarray, " n"]) -> "Source":
        """The images at these indices, with a fingerprint of their own."""
        digest = hashlib.blake2b(self.fingerprint.encode() + indices.astype("<i8").tobytes(), digest_size=16)
        return replace(
            self,
            keys=self.keys[indices],
            files=self.files[indices],
            labels=self.labels[indices],
            columns={name: column[indices] for name, column in self.columns.items()},
            fingerprint=digest.hexdigest(),
        )


def stratified_subset(
    labels: Int[ndarray, " N"],
    order: Int[ndarray, " N"],
    *,
    share: float | None = None,
    limit: int | None = None,
) -> Int[ndarray, " n"]:
    """Sorted positions of a sample that has every label in its share, at least one image each.

    ``order`` is a permutation of the positions: the first images of each label in it are taken. Give ``share``
    (0 to 1, of each label) or ``limit`` (about how many images in all).
    """
    _, code, counts = np.unique(labels, return_inverse=True, return_counts=True)
    wanted = counts * limit / len(labels) if limit is not None else counts * (1.0 if share is None else share)
    order = order[np.argsort(code[order], kind="stable")]  # label by label
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < np.repeat(np.maximum(1, np.rint(wanted)), counts)])


def source_from_files(name: str, listing: Listing, layout: Layout) -> Source:
    """The labelled files of a listing."""
    files, notes = make_printable([listing.names[i] for i in layout.keys])
    given = {} if layout.splits is None else {"split": layout.splits}
    return Source(
        name=name,
        reader=listing.reader,
        keys=layout.keys,
        files=files,
        labels=layout.labels,
        classes=layout.classes,
        fingerprint=listing.fingerprint(layout.keys),
        columns={**given, **layout.columns},
        notes=(*layout.notes, *notes),
    )


def source_from_arrays(name: str, arrays: ImageArrays) -> Source:
    """Labelled images in memory."""
    return Source(
        name=name,
        reader=ArrayReader(arrays.images),
        keys=np.arange(len(arrays.labels), dtype=np.int64),
        files=arrays.files,
        labels=arrays.labels,
        classes=arrays.classes,
        fingerprint=arrays.fingerprint(),
        columns={} if arrays.splits is None else {"split": arrays.splits},
        notes=arrays.notes,
    )
