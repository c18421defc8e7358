"""Corrections of labelled images in a file of their own, so that the images are never moved, changed or lost.

A file that ends in ``.edits`` names a place of images in its first line and has one edit in each further line, as
JSON. It is data like any other: reading it reads the place and applies the edits in order.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from jaxtyping import Int64
from numpy import ndarray

from ..checks import check_choice
from ..errors import DataError
from ..files import explain_write_errors, write_text
from .layout import LabelRule, check_has_classes, check_train_covers_classes, sort_classes
from .source import Source

EDITS_SUFFIX = ".edits"
"""Ending of a file of corrections."""
EDIT_KINDS = {
    "label": "images get another class",
    "split": "images move to train, val or test",
    "merge": "classes become one",
    "remove": "images are left out",
    "undo": "an earlier edit does not count any more",
}
"""What an edit may do."""
EDITS_FORMAT = 1
MAX_CLASS_NAME_LENGTH = 200
"""Characters of a class name that a person types."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One correction of a dataset."""

    kind: str
    """A key of ``EDIT_KINDS``."""
    names: tuple[str, ...] = ()
    """Files as the source names them; the classes of a merge; the number of the edit that is undone."""
    value: str = ""
    """The new class (label, merge) or the split."""
    by: str = ""
    at: float = 0.0
    """Seconds since 1970."""
    number: int = 0
    """1 for the first edit of a file; given when it is appended."""


@dataclass(frozen=True)
class EditFile:
    """What a file of corrections says."""

    place: str
    """Where the images lie: a path, absolute or from the file's folder, or the name of a dataset."""
    rule: LabelRule
    edits: tuple[Edit, ...]

    @property
    def active(self) -> tuple[Edit, ...]:
        """The edits that count: those that are not undone, without the undoing."""
        undone = {int(edit.names[0]) for edit in self.edits if edit.kind == "undo"}
        return tuple(edit for edit in self.edits if edit.kind != "undo" and edit.number not in undone)


def write_edit_file(path: Path, place: str | Path, rule: LabelRule | None = None) -> Path:
    """Write a file of corrections of the images at ``place``, without an edit yet."""
    first = {"format": EDITS_FORMAT, "place": str(place), "rule": asdict(rule or LabelRule())}
    write_text(path, json.dumps(first, ensure_ascii=False) + "\n")
    return path


def read_edit_file(path: Path) -> EditFile:
    """The place and the edits in a file; a line that was being written when a process was killed does not count.

    Raises DataError, with the line, where the file is damaged.
    """
    number = 1
    try:
        text = path.read_bytes().decode("utf-8", "surrogatepass")
        first, *rows = text[: text.rindex("\n")].split("\n")
        head: Any = json.loads(first)
        if head["format"] > EDITS_FORMAT:
            raise DataError(f"'{path}' was written by a newer Sightline: update this one.")
        place, rule, edits = str(head["place"]), LabelRule(**head["rule"]), []
        for number, row in enumerate(rows, 2):
            one: Any = json.loads(row)
            names = tuple(map(str, one.pop("names")))
            edit = Edit(names=names, **(one | {"number": number - 1}))
            check_choice("kind", edit.kind, EDIT_KINDS)
            if edit.kind == "undo" and not 0 < int(names[0]) < number - 1:
                raise ValueError(f"it undoes edit {names[0]}")
            edits.append(edit)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error.strerror}): name a file of corrections.") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise DataError(
            f"Line {number} of '{path}' is not what corrections look like ({error}): bring back a copy of the file, or "
            "delete that line."
        ) from error
    return EditFile(place, rule, tuple(edits))


def append_edit(
    path: Path, edit: Edit, check: Callable[[EditFile], None] = lambda _: None, *, wait_seconds: float = 10.0
) -> Edit:
    """Add an edit at the end of a file, and return it with its number and time.

    ``check`` gets the current file under the lock, and raises an error to refuse the edit. The
    edit is on the disk when this returns, or the file is as it was. Raises OutputError.
    """
    with explain_write_errors(path), FileLock(path.with_name(f".{path.name}.lock"), timeout=wait_seconds):
        found = read_edit_file(path)
        check(found)
        edit = replace(edit, number=len(found.edits) + 1, at=edit.at or time.time())
        row = json.dumps({name: value for name, value in asdict(edit).items() if name != "number"})
        with path.open("r+b") as stream:
            content = stream.read()
            end = content.rindex(b"\n") + 1
            try:
                stream.seek(end)
                stream.truncate()
                stream.write(row.encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(end)
                raise
    return edit


def apply_edits(source: Source, edits: Sequence[Edit]) -> Source:
    """The source with these edits, which are those that count, in order.

    A class without an image is gone, a new one takes its place in the order of the names. The fingerprint stays
    while the images do, so that nothing is decoded again for another label. Edits of files that are not there any
    more are left out with a note.
    """
    wanted = {name for edit in edits if edit.kind != "merge" for name in edit.names}
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(source.files):
        if name in wanted:
            rows.setdefault(name, []).append(row)
    names, labels = list(source.classes), source.labels.copy()
    split = source.columns.get("split")
    split = None if split is None else split.astype(object)
    kept = np.ones(len(source), bool)

    def class_number(name: str) -> int:
        if name not in names:
            names.append(name)
        return names.index(name)

    for edit in edits:
        if edit.kind == "merge":
            gone = [names.index(name) for name in edit.names if name in names]
            labels[np.isin(labels, gone)] = class_number(edit.value)
            continue
        chosen: Int64[ndarray, " n"] = np.array([r for name in edit.names for r in rows.get(name, ())], np.int64)
        if edit.kind == "label":
            labels[chosen] = class_number(edit.value)
        elif edit.kind == "remove":
            kept[chosen] = False
        elif edit.kind == "split":
            split = np.full(len(source), "train", object) if split is None else split
            split[chosen] = edit.value
    notes = [f"Corrected by {len(edits):,} edit{'s'[: len(edits) != 1]}."] if edits else []
    if missing := len(wanted - rows.keys()):
        notes.append(f"Left out corrections of {missing:,} images that are not there any more.")
    counts = np.bincount(labels[kept & (labels >= 0)], minlength=len(names))
    used = [name for name, count in zip(names, counts, strict=True) if count]
    if list(source.classes) == list(sort_classes(source.classes)):
        used = list(sort_classes(used))
    place = np.array([used.index(name) if name in used else -1 for name in names] + [-1], np.int64)
    columns: Mapping[str, ndarray] = source.columns if split is None else {**source.columns, "split": split}
    edited = replace(
        source, labels=place[labels], classes=tuple(used), columns=columns, notes=(*source.notes, *notes)
    )
    return edited if kept.all() else edited.subset(np.flatnonzero(kept))


def resolve_edited_place(path: Path, place: str) -> str:
    """Where the images lie that the file ``path`` corrects: seen from the file's folder where they lie there."""
    near = path.parent / place
    return str(near) if near.exists() else place


def read_edited(path: Path, find: Callable[[str, LabelRule], Source]) -> Source:
    """The corrected images of a file of edits; ``find`` opens the place that it names.

    Raises DataError where the file is damaged, and where after the edits no class is left or val or test has a class
    that train lacks.
    """
    found = read_edit_file(path)
    if found.place.endswith(EDITS_SUFFIX):
        raise DataError(f"'{path}' corrects another file of corrections: name the images themselves.")
    source = apply_edits(find(resolve_edited_place(path, found.place), found.rule), found.active)
    check_has_classes(source.classes, str(path))
    if (split := source.columns.get("split")) is not None:
        own = source.labels >= 0
        pairs = {(str(s), int(k)) for s, k in zip(split[own], source.labels[own], strict=True)}
        check_train_covers_classes(((s, source.classes[k]) for s, k in pairs), source.classes, str(path))
    return replace(source, name=str(path))
