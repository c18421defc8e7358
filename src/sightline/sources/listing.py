"""What lies in a place: names, sizes and stamps of its files, and how to read each of them."""

import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from ..errors import DataError, ImageError

JUNK_NAMES = frozenset({"__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "$RECYCLE.BIN"})
"""What systems leave behind; whatever begins with a dot is ignored too."""


MAX_FILE_BYTES = 256_000_000
"""Image files larger than this are refused unread."""


@runtime_checkable
class Reader(Protocol):
    """Reads any file of a place; usable from several threads, and from other processes after pickling."""

    def read(self, key: int) -> bytes:
        """The bytes of file number ``key``; raises ImageError when they cannot be had."""
        ...


@dataclass(frozen=True, eq=False)
class Listing:
    """The files of a folder or an archive, in no particular order."""

    names: list[str]
    """Path of each file inside the place, with forward slashes."""
    sizes: Int64[np.ndarray, " N"]
    """Bytes."""
    stamps: Int64[np.ndarray, " N"]
    """Changes when the file changes: modification time (folder, tar) or CRC (zip)."""
    folders: frozenset[str]
    """Every folder that was seen, empty ones too."""
    reader: Reader

    def fingerprint(self, order: Int64[np.ndarray, " n"]) -> str:
        """Hash of name, size and stamp of these files, in this order."""
        digest = hashlib.blake2b(digest_size=16)
        names = self.names
        digest.update("\n".join([names[i] for i in order]).encode("utf-8", "surrogatepass"))
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
        try:
            path = os.path.join(self.root, self.names[key])  # noqa: PTH118 half the time of Path
            with open(path, "rb") as stream:  # noqa: PTH123
                return stream.read()
        except OSError as error:
            raise ImageError(f"the file cannot be opened ({error.strerror})") from error


def file_stamp(*paths: Path) -> str:
    """Size, time and identity of some files: it changes when one of them does."""
    facts = [(s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev) for s in (p.stat() for p in paths)]
    return repr(facts)


def list_folder(root: Path) -> Listing:
    """Every file below ``root``, links followed once; junk is left out."""
    names: list[str] = []
    facts = array("q")
    folders: set[str] = set()
    seen: set[tuple[int, int]] = set()
    waiting = [(str(root), "")]
    while waiting:
        place, prefix = waiting.pop()
        for entry in _scan_folder(place):
            if is_junk(entry.name):
                continue
            name = prefix + entry.name
            if entry.is_dir():
                folders.add(name)
                if not entry.is_symlink() or _is_first_visit(entry, seen):
                    waiting.append((entry.path, name + "/"))
            elif entry.is_file():
                status = entry.stat()
                names.append(name)
                facts.extend((status.st_size, status.st_mtime_ns))
    sizes, stamps = np.frombuffer(facts, np.int64).reshape(-1, 2).T
    return Listing(names, sizes, stamps, frozenset(folders), FolderReader(root, names))


def _scan_folder(place: str) -> Iterator[os.DirEntry[str]]:
    """One by one: a folder may hold a million files."""
    try:
        with os.scandir(place) as entries:
            yield from entries
    except OSError as error:
        raise DataError(f"The folder '{place}' cannot be opened ({error.strerror}).") from error


def _is_first_visit(entry: os.DirEntry[str], seen: set[tuple[int, int]]) -> bool:
    """Whether a linked folder is new: links may form circles."""
    status = entry.stat()
    identity = (status.st_dev, status.st_ino)
    new = identity not in seen
    seen.add(identity)
    return new


def is_junk(part: str) -> bool:
    """Whether a file or folder of this name was left by a system, not by a person."""
    return part[0] == "." or part in JUNK_NAMES
