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
from ..files import replacing
from .archives import ArchiveReader
from .arrays import ArrayReader, mapped
from .found import Source

_VERSION = 1
_PACKED = ("offsets", "packed", "sizes", "deflated", "crcs")


def remembered(path: Path, stamp: str, make: Callable[[], Source]) -> Source:
    """What ``make`` gives, taken from the cache where it was made of the same ``path`` and ``stamp`` before.

    A cache that cannot be written or read costs time, never the answer.
    """
    place = hashlib.blake2b(os.fsencode(path.absolute()), digest_size=12).hexdigest()
    folder = runtime.cache_dir() / "found" / place
    stamp = f"{_VERSION} {runtime.version()} {stamp}"
    if source := _recalled(folder, stamp, str(path)):
        return source
    source = make()
    with suppress(OutputError):
        with replacing(folder) as temporary:
            _keep(source, stamp, temporary)
        return _recalled(folder, stamp, str(path)) or source  # the arrays in memory make room for mapped ones
    return source


def _keep(source: Source, stamp: str, folder: Path) -> None:
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
        arrays |= {name: vars(reader)[name] for name in _PACKED}
    elif isinstance(reader, ArrayReader):
        arrays["images"] = reader.images
    for name, array in arrays.items():
        if array is not None:
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
    (folder / "files.txt").write_bytes("\0".join(source.files).encode())
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")


def _recalled(folder: Path, stamp: str, name: str) -> Source | None:
    """The source kept in this folder; None where it is absent, damaged or of another stamp."""
    try:
        facts = json.loads((folder / "facts.json").read_text("utf-8"))
        if facts["stamp"] != stamp:
            return None
        files = np.array((folder / "files.txt").read_bytes().decode().split("\0"), object)
        keys, labels, split = (_array(folder, each) for each in ("keys", "labels", "split"))
        reader = _reader(folder, facts)
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


def _reader(folder: Path, facts: dict[str, Any]) -> ArchiveReader | ArrayReader | None:
    if "archive" not in facts:
        return mapped(folder / "images.npy")
    path = Path(facts["archive"])
    offsets, packed, sizes, deflated, crcs = (_array(folder, name) for name in _PACKED)
    if offsets is None or packed is None or sizes is None or not path.exists():
        return None
    return ArchiveReader(path, offsets, packed, sizes, deflated, crcs)


def _array(folder: Path, name: str) -> ndarray | None:
    path = folder / f"{name}.npy"
    return np.load(path, allow_pickle=False) if path.exists() else None
