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
from .layout import SPLIT_WORDS, Layout, check_has_classes, check_train_covers_classes, sort_classes
from .listing import FolderReader, Listing
from .names import normalise_names, normalised_names_note
from .tables import LABEL_COLUMNS, PATH_COLUMNS, TextTable


def read_manifest(table: TextTable) -> tuple[Listing, Layout]:
    """The files a table names, their labels and its other columns.

    The path column is called path, image, file_name or filename (relative to the table), the label
    column label, class or target; ``split`` is train, val or test. A file named twice with one label
    counts once. Raises DataError, naming the line and the field.
    """
    where = table.require_column(PATH_COLUMNS)
    names = [_normalise_path(name) for name in _require_filled(table, where)]
    layout = layout_from_table(table, {where})
    keep, notes = _drop_repeated_rows(table, names, layout)
    listing = _list_files(table, names)
    if keep is not None:
        layout = replace(
            layout,
            keys=layout.keys[keep],
            labels=layout.labels[keep],
            splits=None if layout.splits is None else layout.splits[keep],
            columns={name: column[keep] for name, column in layout.columns.items()},
        )
    return listing, replace(layout, notes=(*layout.notes, *notes))


def layout_from_table(table: TextTable, known: set[str]) -> Layout:
    """Labels, splits and other columns of a table, ``known`` ones left out. Raises DataError."""
    what, part = table.require_column(LABEL_COLUMNS), table.find_column(("split",))
    texts = _require_filled(table, what)
    plain = normalise_names(set(texts))
    classes = sort_classes(plain.values())
    check_has_classes(classes, str(table.path))
    number = {name: classes.index(label) for name, label in plain.items()}
    labels = np.fromiter(map(number.__getitem__, texts), np.int64, len(texts))
    splits = _read_splits(table, part) if part else None
    if splits is not None:
        seen = ((name, classes[k]) for name in np.unique(splits) for k in np.unique(labels[splits == name]))
        check_train_covers_classes(seen, classes, str(table.path))
    known = {"", what, *known, *([part] if part else [])}
    extra = {name: _object_array(column) for name, column in table.columns.items() if name not in known}
    return Layout(
        np.arange(len(texts), dtype=np.int64), labels, classes, splits, normalised_names_note(plain), extra
    )


def _object_array(values: list[str]) -> ndarray:
    """Text by reference: a fixed width would give every row the length of the longest."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _normalise_path(name: str) -> str:
    name = name.replace("\\", "/") if "\\" in name else name
    return posixpath.normpath(name) if "./" in name or "//" in name else name


def _require_filled(table: TextTable, name: str) -> list[str]:
    column = table.columns[name]
    if "" in column:
        line = table.describe_row(column.index(""))
        raise DataError(f"{line} of '{table.path}' has an empty '{name}': fill it in or remove the line.")
    return column


def _read_splits(table: TextTable, name: str) -> ndarray | None:
    """The split column as train, val or test; None where it is all empty."""
    texts = [text.lower() for text in table.columns[name]]
    kinds = set(texts)
    if kinds == {""}:
        return None
    for text in sorted(kinds - {"", *SPLIT_WORDS}):
        line = table.describe_row(texts.index(text))
        raise DataError(f"{line} of '{table.path}' has split '{text}'. {suggest(text, SPLIT_WORDS)}")
    return np.array([SPLIT_WORDS.get(text, "train") for text in texts])


def _drop_repeated_rows(
    table: TextTable, names: list[str], layout: Layout
) -> tuple[ndarray | None, tuple[str, ...]]:
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
    lines = f"{table.describe_row(first[name])} and {table.describe_row(repeated[0]).lower()}"
    count = "1 row that names" if len(repeated) == 1 else f"{len(repeated):,} rows that name"
    return keep, (f"Ignored {count} a file again ('{name}', {lines[0].lower()}{lines[1:]}).",)


def _check_agreement(table: TextTable, name: str, layout: Layout, one: int, two: int) -> None:
    facts: dict[str, Callable[[int], str]] = {"label": lambda row: layout.classes[layout.labels[row]]}
    if (splits := layout.splits) is not None:
        facts["split"] = lambda row: str(splits[row])
    for what, of in facts.items():
        if of(one) != of(two):
            raise DataError(
                f"'{table.path}' names '{name}' twice with another {what}: {table.describe_row(one).lower()} says "
                f"'{of(one)}', {table.describe_row(two).lower()} says '{of(two)}'; remove one of the two."
            )


def _list_files(table: TextTable, names: list[str]) -> Listing:
    """Sizes and times of the named files. Raises DataError, naming the first few that are missing."""
    root = table.path.parent
    prefix = os.path.join(root, "")  # noqa: PTH118
    facts = np.empty((len(names), 2), np.int64)
    missing: list[int] = []
    for row, name in enumerate(names):
        try:
            status = os.stat(name if name[0] == "/" or name[1:2] == ":" else prefix + name)  # noqa: PTH116 half the time of Path
        except (OSError, ValueError):
            if other := _find_other_unicode_form(root, name):
                names[row] = other
                status = (root / other).stat()
            else:
                missing.append(row)
                continue
        facts[row] = status.st_size, status.st_mtime_ns
    if missing:
        first = ", ".join(f"'{names[row]}' ({table.describe_row(row).lower()})" for row in missing[:3])
        raise DataError(
            f"{len(missing):,} of the {len(names):,} files named in '{table.path}' do not exist: {first}"
            f"{', ...' if len(missing) > 3 else ''}. Paths are relative to the folder of the table."
        )
    sizes, stamps = facts.T.copy()
    return Listing(names, sizes, stamps, frozenset(), FolderReader(root, names))


def _find_other_unicode_form(root: Path, name: str) -> str | None:
    """The same name composed or decomposed, as another system wrote it, where a file is called so."""
    if name.isascii() or "\0" in name:
        return None
    forms = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return next((form for form in forms if form != name and (root / form).exists()), None)
