"""Several places as one: a small file that names them, and what their classes are called now."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from ..errors import DataError
from ..files import write_json
from .layout import LabelRule
from .source import Reader, Source

JOINED_SUFFIX = ".sources"
"""Ending of a file that names several places."""


@dataclass(frozen=True, eq=False)
class JoinedReader:
    """Reads the files of several places."""

    readers: tuple[Reader, ...]
    place: Int64[ndarray, " N"]
    """The reader of each file."""
    keys: Int64[ndarray, " N"]
    """Its number there."""

    def read(self, key: int) -> bytes:
        """The bytes of file number ``key``; raises ImageError where it cannot be read."""
        return self.readers[int(self.place[key])].read(int(self.keys[key]))


def write_joined(
    path: Path,
    sources: Sequence[tuple[str, LabelRule]],
    *,
    names: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
) -> Path:
    """Write a file that names these places, each with the rule of its labels.

    ``names`` maps old class names to new ones, and classes ``without`` are left out, by their new names.
    """
    places = [{"place": place, **asdict(rule)} for place, rule in sources]
    write_json(path, {"sources": places, "names": dict(names or {}), "without": list(without)})
    return path


def read_places(path: Path) -> tuple[list[tuple[str, LabelRule]], dict[str, str], list[str]]:
    """The places, names and left-out classes that ``write_joined`` wrote; DataError where the file is damaged."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        rows = [dict(one) for one in value["sources"]]
        places = [(one.pop("place"), LabelRule(**one)) for one in rows]
        names, without = dict(value["names"]), list(value["without"])
        words = (*(place for place, _ in places), *names, *names.values(), *without)
        if not places or not all(isinstance(word, str) for word in words):
            raise ValueError("it names no places")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"'{path}' does not say where images lie ({error}): name the images themselves."
        ) from error
    return places, names, without


def read_joined(path: Path, find: Callable[[str, LabelRule], Source]) -> Source:
    """The images of all places that the file names; ``find`` opens one. Raises DataError where the file is damaged."""
    places, names, without = read_places(path)
    if any(place.endswith(JOINED_SUFFIX) for place, _ in places):
        raise DataError(f"'{path}' names another file of its kind: name the images themselves.")
    parts = [find(place, rule) for place, rule in places]
    classes = tuple(dict.fromkeys(names.get(name, name) for part in parts for name in part.classes))
    classes = tuple(name for name in classes if name not in without)
    index = {name: k for k, name in enumerate(classes)}
    labels = [
        np.array([index.get(names.get(n, n), -2) for n in part.classes] + [-1])[part.labels] for part in parts
    ]
    kept = [np.flatnonzero(one != -2) for one in labels]
    parts, labels = [p.subset(rows) for p, rows in zip(parts, kept, strict=True)], [
        one[rows] for one, rows in zip(labels, kept, strict=True)
    ]  # fmt: skip
    digest = hashlib.blake2b(repr((classes, [part.fingerprint for part in parts])).encode(), digest_size=16)
    columns = {}
    for name in dict.fromkeys(name for part in parts for name in part.columns):
        known = [part.columns[name] for part in parts if name in part.columns]
        if name == "split" or len(known) == len(parts) or all(column.dtype.kind in "OUS" for column in known):
            empty = "train" if name == "split" else ""
            columns[name] = np.concatenate(
                [part.columns.get(name, np.full(len(part), empty, object)) for part in parts]
            )
    place = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Source(
        name=str(path),
        reader=JoinedReader(tuple(p.reader for p in parts), place, np.concatenate([p.keys for p in parts])),
        keys=np.arange(len(place)),
        files=np.concatenate([part.files for part in parts]),
        labels=np.concatenate(labels),
        classes=classes,
        fingerprint=digest.hexdigest(),
        columns=columns,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )
