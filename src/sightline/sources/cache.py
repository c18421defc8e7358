"""What was found in an archive or an array file, kept in the cache: a second start need not look again.

An entry is a folder named after the path: ``facts.json``, ``files.txt``, a ``.npy`` for each array and,
for images that are arrays, ``images.npy``, which is mapped into memory. It is trusted only while the
stamp (sizes, times, identity of the files) is the one it was made under, and nothing in it is a pickle.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from .. import runtime
from ..errors import OutputError
from ..files import atomic_replace
from .archives import ArchiveReader
from .arrays import ArrayReader, open_npy_reader
from .source import Source

_CACHE_VERSION = 1
_ARCHIVE_ARRAYS = ("offsets", "packed", "sizes", "deflated", "crcs")


def load_or_build(path: Path, stamp: str, make: Callable[[], Source]) -> Source:
    """What ``make`` gives, taken from the cache where it was made of the same ``path`` and ``stamp`` before.

    A cache that cannot be written or read costs time, never the answer.
    """
    place = hashlib.blake2b(os.fsencode(path.absolute()), digest_size=12).hexdigest()
    folder = runtime.cache_dir() / "found" / place
    stamp = f"{_CACHE_VERSION} {runtime.version()} {stamp}"
    if source := _read_entry(folder, stamp, str(path)):
        return source
    source = make()
    with suppress(OutputError):
        with atomic_replace(folder) as temporary:
            _write_entry(source, stamp, temporary)
        return _read_entry(folder, stamp, str(path)) or source  # the arrays in memory make room for mapped ones
    return source


def _write_entry(source: Source, stamp: str, folder: Path) -> None:
    folder.mkdir()
    reader = source.reader
    facts: dict[str, Any] = {
        "stamp": stamp,
        "classes": source.classes,
        "fingerprint": source.fingerprint,
        "notes": source.notes,
        "count": len(source),
    }
    arrays = {"keys": source.keys, "labels": source.labels, "split": source.columns.get("split")}
    if isinstance(reader, ArchiveReader):
        facts["archive"] = str(reader.path.absolute())
        arrays |= {name: vars(reader)[name] for name in _ARCHIVE_ARRAYS}
    elif isinstance(reader, ArrayReader):
        arrays["images"] = reader.images
    for name, array in arrays.items():
        if array is not None:
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
    (folder / "files.txt").write_bytes("\0".join(source.files).encode())
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")


def _read_entry(folder: Path, stamp: str, name: str) -> Source | None:
    """The source kept in this folder; None where it is absent, damaged or of another stamp."""
    try:
        facts = json.loads((folder / "facts.json").read_text("utf-8"))
        if facts["stamp"] != stamp:
            return None
        files = np.array((folder / "files.txt").read_bytes().decode().split("\0"), object)
        keys, labels, split = (_load_array(folder, each) for each in ("keys", "labels", "split"))
        reader = _restore_reader(folder, facts)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    if reader is None or keys is None or labels is None or not len(files) == len(keys) == facts["count"]:
        return None
    return Source(
        name=name,
        reader=reader,
        keys=keys,
        files=files,
        labels=labels,
        classes=tuple(facts["classes"]),
        fingerprint=facts["fingerprint"],
        columns={} if split is None else {"split": split},
        notes=tuple(facts["notes"]),
    )


def _restore_reader(folder: Path, facts: dict[str, Any]) -> ArchiveReader | ArrayReader | None:
    if "archive" not in facts:
        return open_npy_reader(folder / "images.npy")
    path = Path(facts["archive"])
    offsets, packed, sizes, deflated, crcs = (_load_array(folder, name) for name in _ARCHIVE_ARRAYS)
    if offsets is None or packed is None or sizes is None or not path.exists():
        return None
    return ArchiveReader(path, offsets, packed, sizes, deflated, crcs)


def _load_array(folder: Path, name: str) -> ndarray | None:
    path = folder / f"{name}.npy"
    return np.load(path, allow_pickle=False) if path.exists() else None
