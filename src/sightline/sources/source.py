"""Where labelled images come from: a name or a path becomes a ``Source``."""

import difflib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from ..choose import choose
from ..errors import DataError
from .archives import list_tar, list_zip
from .builtin import BUILTIN, ArrayReader, Drawn
from .layout import Layout, understand
from .listing import Listing, Reader, list_folder
from .manifest import read_manifest


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """Labelled image files, found but not yet decoded."""

    name: str
    """As the user gave it."""
    reader: Reader
    keys: Int64[ndarray, " N"]
    """Number of each file in the reader."""
    files: ndarray
    """Where each image lies, as the user would name it."""
    labels: Int64[ndarray, " N"]
    classes: tuple[str, ...]
    fingerprint: str
    """Hash of names, sizes and stamps: equal fingerprints mean equal images."""
    columns: Mapping[str, ndarray] = field(default_factory=dict)
    """``split`` where it is given, and whatever else a manifest tells."""
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


def find(path: str | Path, *, limit: int | None = None, seed: int = 0) -> Source:
    """Labelled images at ``path``: class folders, split folders, a zip or tar of either, a CSV, or a name.

    ``limit`` keeps about that many, drawn by ``seed`` in equal shares of every split and class,
    at least one of each. Raises DataError, saying what to do, when the data cannot be used.
    """
    source = _named(str(path)) or _found(Path(path))
    return source if limit is None else _limited(source, limit, seed)


def _named(name: str) -> Source | None:
    """A built-in set, unless something of that name lies in the current folder."""
    if name.partition(":")[0] not in BUILTIN or Path(name).exists():
        return None
    drawn: Drawn = choose(BUILTIN, name, "built-in data set")
    reader = ArrayReader(drawn.images)
    digest = hashlib.blake2b(drawn.images.tobytes() + drawn.labels.tobytes(), digest_size=16)
    files = np.array([f"{drawn.name}/{i:04d}.png" for i in range(len(drawn.labels))], object)
    keys = np.arange(len(files), dtype=np.int64)
    return Source(
        name=name,
        reader=reader,
        keys=keys,
        files=files,
        labels=drawn.labels,
        classes=drawn.classes,
        fingerprint=digest.hexdigest(),
    )


def _found(path: Path) -> Source:
    if not path.exists():
        raise DataError(f"There is nothing at '{path}'.{_near(path)} Built-in sets: {', '.join(BUILTIN)}.")
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        return _from_manifest(path)
    listing = (list_folder if path.is_dir() else _archive_lister(path))(path)
    layout = understand(listing, str(path))
    return _from_layout(str(path), listing, layout)


def _near(path: Path) -> str:
    """A hint at a name much like the missing one, in the same folder."""
    parent = path.parent
    try:
        known = [entry.name for entry in parent.iterdir()]
    except OSError:
        return f" Not even the folder '{parent}' is there."
    near = difflib.get_close_matches(path.name, known, n=1)
    return f" Did you mean '{parent / near[0]}'?" if near else ""


def _archive_lister(path: Path) -> Callable[[Path], Listing]:
    """How to list a file, by its content; by its name where the content is damaged."""
    with path.open("rb") as stream:
        head = stream.read(262)
    name = path.name.lower()
    if head[:2] == b"PK" or name.endswith(".zip"):
        return list_zip
    packed = head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\0"
    called_tar = name.endswith((".tar", ".tgz", ".tbz2", ".txz")) or ".tar." in name
    if packed or head[257:262] == b"ustar" or called_tar:
        return list_tar
    raise DataError(
        f"'{path}' is not a kind of data that can be read: give a folder with one sub-folder per class, "
        "a zip or tar of one, or a CSV with the columns 'path' and 'label'."
    )


def _from_layout(name: str, listing: Listing, layout: Layout) -> Source:
    files = np.empty(len(layout.keys), object)
    files[:] = [listing.names[i] for i in layout.keys]
    return Source(
        name=name,
        reader=listing.reader,
        keys=layout.keys,
        files=files,
        labels=layout.labels,
        classes=layout.classes,
        fingerprint=listing.fingerprint(layout.keys),
        columns={} if layout.splits is None else {"split": layout.splits},
        notes=layout.notes,
    )


def _from_manifest(path: Path) -> Source:
    listing, layout, columns, digest = read_manifest(path)
    source = _from_layout(str(path), listing, layout)
    fingerprint = hashlib.blake2b(f"{digest} {source.fingerprint}".encode(), digest_size=16).hexdigest()
    return replace(source, fingerprint=fingerprint, columns={**source.columns, **columns})


def _limited(source: Source, limit: int, seed: int) -> Source:
    """About ``limit`` images, in equal shares of each (split, class)."""
    if limit < 1:
        raise DataError(f"The limit is {limit}: it must be at least 1 image.")
    if limit >= len(source):
        return source
    splits = source.columns.get("split")
    parts = np.zeros(len(source), np.int64) if splits is None else np.unique(splits, return_inverse=True)[1]
    _, cell, sizes = np.unique(
        parts * len(source.classes) + source.labels, return_inverse=True, return_counts=True
    )
    shares = np.maximum(1, np.rint(sizes * limit / len(source))).astype(np.int64)
    order = np.random.default_rng([seed, 1]).permutation(len(source))
    order = order[np.argsort(cell[order], kind="stable")]  # cell by cell, shuffled within
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.sort(order[rank < np.repeat(shares, sizes)])
    note = f"Limited to {len(chosen):,} of {len(source):,} images, in equal shares of every class (seed {seed})."
    return replace(source.subset(chosen), notes=(*source.notes, note))
