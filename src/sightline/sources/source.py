"""The files of a place, how to read each of them, and ``Source``: the labelled images among them."""

import hashlib
import os
import stat
import unicodedata
from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int, Int64
from numpy import ndarray

from ..errors import DataError, ImageError

JUNK_NAMES = frozenset(
    (
        *"__macosx thumbs.db ehthumbs.db desktop.ini $recycle.bin recycler #recycle @recycle".split(),  # noqa: SIM905
        *"@eadir #snapshot @recently-snapshot lost+found __pycache__".split(),  # noqa: SIM905
        "icon\r",
    )
) | {"system volume information"}
"""Files and folders that operating systems and network drives leave behind, in lower case; names that begin with a
dot or with ``~$`` are ignored too."""
MAX_FILE_BYTES = 256_000_000
"""Image files larger than this are refused without reading them."""


@runtime_checkable
class Reader(Protocol):
    """Reads any file of a place, from several threads, and after pickling from other processes."""

    def read(self, key: int) -> bytes:
        """The bytes of file number ``key``; raises ImageError where it cannot be read."""
        ...


@dataclass(frozen=True, eq=False)
class Listing:
    """The files of a folder or an archive, in no particular order."""

    names: list[str]
    """Path of each file inside the place, with forward slashes."""
    sizes: Int64[ndarray, " N"]
    """Bytes."""
    stamps: Int64[ndarray, " N"]
    """Changes when the file changes: modification time (folder, tar) or CRC (zip)."""
    folders: frozenset[str]
    """Every folder in the place, empty ones too."""
    reader: Reader
    notes: tuple[str, ...] = ()
    """What the user should know of how the files were found."""

    def fingerprint(self, order: Int64[ndarray, " n"]) -> str:
        """Hash of name, size and stamp of these files, in this order."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update("\n".join([self.names[i] for i in order]).encode("utf-8", "surrogatepass"))
        digest.update(self.sizes[order].tobytes())
        digest.update(self.stamps[order].tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class FolderReader:
    """Reads files below a folder."""

    root: Path
    names: list[str]

    def read(self, key: int) -> bytes:
        """The bytes of file number ``key``; raises ImageError."""
        path = os.path.join(self.root, self.names[key])  # noqa: PTH118 half the time of Path
        try:
            return read_image_file(path)
        except OSError as error:
            if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114
                target = os.readlink(path)  # noqa: PTH115
                raise ImageError(f"it is a link that leads nowhere: '{target}' does not exist") from error
            raise ImageError(f"the file cannot be opened ({error.strerror})") from error

    def modified_times(self, keys: Int64[ndarray, " n"]) -> Float64[ndarray, " n"]:
        """When each file was last written, in seconds since 1970; NaN for one that is not there."""

        def look(name: str) -> float:
            with suppress(OSError):
                return os.stat(os.path.join(self.root, name)).st_mtime  # noqa: PTH116, PTH118
            return float("nan")

        return np.array([look(self.names[key]) for key in keys.tolist()], np.float64)


def read_image_file(path: str | os.PathLike[str], *, pipes: bool = False) -> bytes:
    """The bytes of a file; one that is too large for an image is not read.

    ``pipes`` allows pipes and devices too, which a caller may name (``<(command)``) but which must not be read where
    they lie among images: a pipe may wait for ever, and a device has no end. Raises ImageError and OSError.
    """

    def open_at_once(name: str, flags: int) -> int:  # does not wait for the other end of a pipe
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=None if pipes else open_at_once) as stream:
        status = os.fstat(stream.fileno())
        if regular := stat.S_ISREG(status.st_mode):
            size = status.st_size  # no more, though the file may grow
        elif pipes:
            size = MAX_FILE_BYTES + 1
        else:
            raise ImageError("it is a pipe or a device, not a file")
        data = stream.read(size) if not regular or size <= MAX_FILE_BYTES else b""
        if max(len(data), size if regular else 0) > MAX_FILE_BYTES:
            raise ImageError(f"the file is larger than {MAX_FILE_BYTES // 1_000_000} MB, which is refused unread")
        return data


def list_folder(root: Path) -> Listing:
    """Every file below ``root``, dead links too; junk is left out, and a linked folder is entered once.

    A link to a folder that it lies in is left out with a note: the folder's files are there already.
    """
    names: list[str] = []
    facts = array("q")
    folders: set[str] = set()
    linked: set[tuple[int, int]] = set()
    circles: list[str] = []
    waiting: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(str(root), "", frozenset())]
    while waiting:
        place, prefix, around = waiting.pop()
        try:
            status = Path(place).stat()
            around |= {(status.st_dev, status.st_ino)}
            with os.scandir(place) as entries:  # one by one: a folder may hold a million files
                for entry in entries:
                    if is_junk(entry.name):
                        continue
                    name = prefix + entry.name
                    size, time = 0, 0
                    try:
                        if entry.is_dir():
                            if entry.is_symlink():  # links may form circles
                                status = entry.stat()
                                target = status.st_dev, status.st_ino
                                if target in around:
                                    circles.append(name)
                                    continue
                                if target in linked:
                                    folders.add(name)
                                    continue
                                linked.add(target)
                            folders.add(name)
                            waiting.append((entry.path, name + "/", around))
                            continue
                        if entry.is_file():
                            status = entry.stat()
                            size, time = status.st_size, status.st_mtime_ns
                        elif not entry.is_symlink():
                            continue
                    except OSError:  # a link to itself, or into a folder that may not be entered
                        pass
                    # A link that leads nowhere too is an image that cannot be read, not one less.
                    names.append(name)
                    facts.extend((size, time))
        except OSError as error:
            raise DataError(f"The folder '{place}' cannot be opened ({error.strerror}).") from error
    sizes, stamps = np.frombuffer(facts, np.int64).reshape(-1, 2).T
    notes = ()
    if circles:
        shown = ", ".join(f"'{_escape_non_utf8(name)}'" for name in sorted(circles)[:5])
        notes = (f"Left out {len(circles)} links to a folder that they lie in: {shown}.",)
    return Listing(names, sizes, stamps, frozenset(folders), FolderReader(root, names), notes)


def is_junk(part: str) -> bool:
    """Whether a file or folder of this name was left by an operating system."""
    return part[0] == "." or part[:2] == "~$" or part.lower() in JUNK_NAMES


def file_stamp(*paths: Path) -> str:
    """Size, times and identity of some files: changes when one of them does."""
    facts = [(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev) for s in (p.stat() for p in paths)]
    return repr(facts)


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """Labelled image files, found but not yet decoded."""

    name: str
    """As the user gave it."""
    reader: Reader
    keys: Int64[ndarray, " N"]
    """Number of each file in the reader."""
    files: ndarray
    """Where each image lies, for people: always printable, so never opened by this name."""
    labels: Int64[ndarray, " N"]
    classes: tuple[str, ...]
    fingerprint: str
    """Hash of names, sizes and stamps, or of pixels: equal fingerprints mean equal images."""
    columns: Mapping[str, ndarray] = field(default_factory=dict)
    """``split`` where it is given, and the other columns of a table."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def __str__(self) -> str:
        return self.name

    def read(self, index: int) -> bytes:
        """The bytes of image ``index``; raises ImageError where they cannot be read."""
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


def limit_source(source: Source, limit: int, seed: int) -> Source:
    """About ``limit`` images, drawn by ``seed`` with each (split, class) in its share and at least once."""
    if limit < 1:
        raise DataError(f"The limit is {limit}: it must be at least 1 image.")
    if limit >= len(source):
        return source
    cell = source.labels
    if (splits := source.columns.get("split")) is not None:
        cell = cell + (len(source.classes) + 1) * np.unique(splits, return_inverse=True)[1]  # -1 is no label
    order = np.random.default_rng([seed, 1]).permutation(len(source))
    chosen = stratified_subset(cell, order, limit=limit)
    note = f"Limited to {len(chosen):,} of {len(source):,} images, each class in its share (seed {seed})."
    return replace(source.subset(chosen), notes=(*source.notes, note))


def limit_training(source: Source, limit: int, seed: int, why: str = "") -> Source:
    """About ``limit`` of the images that no given split holds out, drawn by ``seed``, each class in its share.

    Given val and test splits stay whole. The note includes ``why``.
    """
    split = source.columns.get("split")
    held_out = np.zeros(len(source), bool) if split is None else np.isin(split, ("val", "test"))
    pool = np.flatnonzero(~held_out)
    if limit >= len(pool):
        return source
    order = np.random.default_rng([seed, 1]).permutation(len(pool))
    chosen = pool[stratified_subset(source.labels[pool], order, limit=limit)]
    note = (
        f"Training on {len(chosen):,} of {len(pool):,} images, {why}each class in its share (seed {seed}; "
        "--train-limit)."
    )
    rows = np.sort(np.concatenate([chosen, np.flatnonzero(held_out)]))
    return replace(source.subset(rows), notes=(*source.notes, note))


# names that can be shown and written anywhere


def normalise_names(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    r"""Each class name as it will be shown, and a note where some changed.

    Unicode is composed (NFC; macOS decomposes it), bytes that are not UTF-8 become ``\xe9``.

    >>> normalise_names(["cafe\u0301", "tea"])[0] == {"cafe\u0301": "caf\u00e9", "tea": "tea"}
    True
    """
    plain = {name: unicodedata.normalize("NFC", _escape_non_utf8(name)) for name in names}
    changed = sorted({new for old, new in plain.items() if new != old})
    if not changed:
        return plain, ()
    shown = ", ".join(f"'{name}'" for name in changed[:5])
    return plain, (
        f"Wrote {len(changed)} class name{'s'[: len(changed) != 1]} in standard Unicode (NFC): {shown}.",
    )


def make_printable(names: list[str]) -> tuple[ndarray, tuple[str, ...]]:
    """File names as an array of strings that can be printed and written, and a note where some changed."""
    files = np.empty(len(names), object)
    try:
        "\0".join(names).encode()
    except UnicodeEncodeError:
        files[:] = [_escape_non_utf8(name) for name in names]
        count = sum(new != old for new, old in zip(files, names, strict=True))
        return files, (f"The names of {count:,} files are not UTF-8: other bytes are shown as \\xe9.",)
    files[:] = names
    return files, ()


def _escape_non_utf8(name: str) -> str:
    """The name with bytes that are not UTF-8, which Python keeps as lone surrogates, written as escapes."""
    if name.isascii():
        return name
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = name.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")
