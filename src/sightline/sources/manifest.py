"""A table that names images and their labels."""

import os
import posixpath
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy import ndarray

from ..choose import suggest
from ..errors import DataError
from .layout import SPLITS, Layout, check_some, check_unseen, ordered
from .listing import FolderReader, Listing
from .names import tidied, tidy_names
from .tables import LABELS, PATHS, Table


def read_manifest(table: Table) -> tuple[Listing, Layout]:
    """The files a table names, their labels and its other columns.

    The path column is called path, image, file_name or filename (relative to the table), the label
    column label, class or target; ``split`` is train, val or test. A file named twice with one label
    counts once. Raises DataError, naming the line and the field.
    """
    where = table.column(PATHS)
    names = [_tidy(name) for name in _filled(table, where)]
    layout = labelled(table, {where})
    keep, notes = _unique(table, names, layout)
    listing = _listing(table, names)
    if keep is not None:
        layout = replace(
            layout,
            keys=layout.keys[keep],
            labels=layout.labels[keep],
            splits=None if layout.splits is None else layout.splits[keep],
            columns={name: column[keep] for name, column in layout.columns.items()},
        )
    return listing, replace(layout, notes=(*layout.notes, *notes))


def labelled(table: Table, known: set[str]) -> Layout:
    """Labels, splits and other columns of a table, ``known`` ones left out. Raises DataError."""
    what, part = table.column(LABELS), table.named(("split",))
    texts = _filled(table, what)
    plain = tidy_names(set(texts))
    classes = ordered(plain.values())
    check_some(classes, str(table.path))
    number = {name: classes.index(label) for name, label in plain.items()}
    labels = np.fromiter(map(number.__getitem__, texts), np.int64, len(texts))
    splits = _splits(table, part) if part else None
    if splits is not None:
        seen = ((name, classes[k]) for name in np.unique(splits) for k in np.unique(labels[splits == name]))
        check_unseen(seen, classes, str(table.path))
    known = {"", what, *known, *([part] if part else [])}
    extra = {name: _strings(column) for name, column in table.columns.items() if name not in known}
    return Layout(np.arange(len(texts), dtype=np.int64), labels, classes, splits, tidied(plain), extra)


def _strings(values: list[str]) -> ndarray:
    """Text by reference: a fixed width would give every row the length of the longest."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _tidy(name: str) -> str:
    name = name.replace("\\", "/") if "\\" in name else name
    return posixpath.normpath(name) if "./" in name or "//" in name else name


def _filled(table: Table, name: str) -> list[str]:
    column = table.columns[name]
    if "" in column:
        line = table.where(column.index(""))
        raise DataError(f"{line} of '{table.path}' has an empty '{name}': fill it in or remove the line.")
    return column


def _splits(table: Table, name: str) -> ndarray | None:
    """The split column as train, val or test; None where it is all empty."""
    texts = [text.lower() for text in table.columns[name]]
    kinds = set(texts)
    if kinds == {""}:
        return None
    for text in sorted(kinds - {"", *SPLITS}):
        line = table.where(texts.index(text))
        raise DataError(f"{line} of '{table.path}' has split '{text}'. {suggest(text, SPLITS)}")
    return np.array([SPLITS.get(text, "train") for text in texts])


def _unique(table: Table, names: list[str], layout: Layout) -> tuple[ndarray | None, tuple[str, ...]]:
    """Which rows name a file for the first time (None: all); DataError where two rows disagree on it."""
    hashes = np.fromiter(map(hash, names), np.int64, len(names))
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    rows = np.sort(order[np.append(same, False) | np.append(False, same)])
    first: dict[str, int] = {}
    repeated: list[int] = []
    for row in rows.tolist():
        before = first.setdefault(names[row], row)
        if before != row:
            _check_agreement(table, names[row], layout, before, row)
            repeated.append(row)
    if not repeated:
        return None, ()
    keep = np.ones(len(names), bool)
    keep[repeated] = False
    name = names[repeated[0]]
    lines = f"{table.where(first[name])} and {table.where(repeated[0]).lower()}"
    count = "1 row that names" if len(repeated) == 1 else f"{len(repeated):,} rows that name"
    return keep, (f"Ignored {count} a file again ('{name}', {lines[0].lower()}{lines[1:]}).",)


def _check_agreement(table: Table, name: str, layout: Layout, one: int, two: int) -> None:
    facts: dict[str, Callable[[int], str]] = {"label": lambda row: layout.classes[layout.labels[row]]}
    if (splits := layout.splits) is not None:
        facts["split"] = lambda row: str(splits[row])
    for what, of in facts.items():
        if of(one) != of(two):
            raise DataError(
                f"'{table.path}' names '{name}' twice with another {what}: {table.where(one).lower()} says "
                f"'{of(one)}', {table.where(two).lower()} says '{of(two)}'; remove one of the two."
            )


def _listing(table: Table, names: list[str]) -> Listing:
    """Sizes and times of the named files. Raises DataError, naming the first few that are missing."""
    root = table.path.parent
    prefix = os.path.join(root, "")  # noqa: PTH118
    facts = np.empty((len(names), 2), np.int64)
    missing: list[int] = []
    for row, name in enumerate(names):
        try:
            status = os.stat(name if name[0] == "/" or name[1:2] == ":" else prefix + name)  # noqa: PTH116 half the time of Path
        except (OSError, ValueError):
            if other := _other_form(root, name):
                names[row] = other
                status = (root / other).stat()
            else:
                missing.append(row)
                continue
        facts[row] = status.st_size, status.st_mtime_ns
    if missing:
        first = ", ".join(f"'{names[row]}' ({table.where(row).lower()})" for row in missing[:3])
        raise DataError(
            f"{len(missing):,} of the {len(names):,} files named in '{table.path}' do not exist: {first}"
            f"{', ...' if len(missing) > 3 else ''}. Paths are relative to the folder of the table."
        )
    sizes, stamps = facts.T.copy()
    return Listing(names, sizes, stamps, frozenset(), FolderReader(root, names))


def _other_form(root: Path, name: str) -> str | None:
    """The same name composed or decomposed, as another system wrote it, where a file is called so."""
    if name.isascii() or "\0" in name:
        return None
    forms = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return next((form for form in forms if form != name and (root / form).exists()), None)
