"""The labelled files that a table names: which column is what, and which file each row means."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from ..choose import suggest
from ..errors import DataError
from ..types import UNLABELLED
from .layout import (
    IMAGE_SUFFIXES,
    SPLIT_WORDS,
    USUAL_LABELS,
    LabelRule,
    Layout,
    check_has_classes,
    check_train_covers_classes,
    parse_split,
    sort_classes,
)
from .source import FolderReader, Listing, list_folder, normalise_names
from .tables import LABEL_COLUMNS, OTHER_LABEL_COLUMNS, OTHER_PATH_COLUMNS, PATH_COLUMNS, TextTable
from .unlabelled import ITS_USE

MAX_MISSING_SHARE = 0.05
"""Share of a table's files that may be absent: each is then one image that cannot be read."""


def read_manifest(
    table: TextTable, listing: Listing | None = None, folder: str = "", *, rule: LabelRule = USUAL_LABELS
) -> tuple[Listing, Layout]:
    """The files that a table names, their labels and its other columns.

    The path column is called path, image, file_name or filename or has another usual name, the label column label,
    class or target or another usual name, or there is a column of 0 and 1 for each class; a column whose values are
    train, val and test is the split. Names may lack their suffix and their folder where one file fits. A file named
    twice with one label counts once. Raises DataError, naming the line and the field.

    Args:
        table: paths in it are relative to its folder.
        listing: the files to look in, where the table lies in an archive; default the folder of the table.
        folder: the table's folder inside the listing.
        rule: columns or a pattern that go before usual names.
    """
    where = table.require_column(PATH_COLUMNS, OTHER_PATH_COLUMNS, named=rule.path_column)
    names = []
    for text in _require_filled(table, where):
        name = text.replace("\\", "/") if "\\" in text else text
        names.append(posixpath.normpath(name) if "./" in name or "//" in name else name)
    layout = layout_from_table(table, where, rule)
    found = None if listing is None else match_files(names, listing.names, folder, layout.splits)
    if listing is not None and found is not None:  # one name may mean a file in train and another in test
        names = [listing.names[i] if i >= 0 else name for i, name in zip(found.tolist(), names, strict=True)]
    keep, notes = _drop_repeated_rows(table, names, layout)
    if listing is None or found is None:
        listing = _list_files(table, names)
    else:
        _check_missing(table, names, np.flatnonzero(found < 0).tolist())
        if (found < 0).any():
            notes = (
                *notes,
                f"Left out {int((found < 0).sum()):,} rows of '{table.path}' whose file is not there.",
            )
        keep = (np.ones(len(names), bool) if keep is None else keep) & (found >= 0)
        layout = replace(layout, keys=found)
    if keep is not None:
        layout = replace(
            layout,
            keys=layout.keys[keep],
            labels=layout.labels[keep],
            splits=None if layout.splits is None else layout.splits[keep],
            columns={name: column[keep] for name, column in layout.columns.items()},
        )
    return listing, replace(layout, notes=(*layout.notes, *notes))


def layout_from_table(table: TextTable, where: str | None, rule: LabelRule = USUAL_LABELS) -> Layout:
    """Labels, splits and other columns of a table, without that of paths, ``where``. Raises DataError."""
    known = {where} if where else set[str]()
    if rule.label_column:
        known.add(table.require_column((), (), named=rule.label_column))
    split_column, notes = _find_split_column(table, {*known, table.find_column(LABEL_COLUMNS) or ""})
    taken = (*known, split_column)
    label_column = rule.label_column or table.find_column((*LABEL_COLUMNS, *OTHER_LABEL_COLUMNS), taken)
    one_hot = [] if label_column or rule.label_pattern else _find_one_hot_columns(table, taken)
    if rule.label_pattern and not rule.label_column:
        label_column, texts = None, _match_labels(table, where, rule)
        notes += (f"The labels are where '{rule.label_pattern}' has them in the names.",)
    elif one_hot:
        columns = [table.columns[name] for name in one_hot]
        texts = [one_hot[[float(cell) for cell in row].index(1.0)] for row in zip(*columns, strict=True)]
        notes += (f"The classes are {len(one_hot)} columns with a 1 in one of them for each image.",)
    else:
        without = () if rule.label_column else taken
        label_column = table.require_column(LABEL_COLUMNS, OTHER_LABEL_COLUMNS, without, rule.label_column)
        texts = table.columns[label_column]
        if label_column.lower() not in LABEL_COLUMNS:
            notes += (f"The labels are in the column '{label_column}'.",)
    empty = texts.count("")
    if empty == len(texts):
        raise DataError(f"No row of '{table.path}' has a '{label_column}': fill it in for images of every class.")
    if empty:
        subject = "1 image has" if empty == 1 else f"{empty:,} images have"
        notes += (f"{subject} an empty '{label_column}', and so no label: {ITS_USE}.",)
    plain, renamed = normalise_names({*texts} - {""})
    plain, merged = _merge_equal_numbers(plain)
    renamed += merged
    classes = sort_classes(plain.values())
    check_has_classes(classes, str(table.path))
    number = {name: classes.index(label) for name, label in plain.items()}
    number[""] = UNLABELLED
    labels = np.fromiter(map(number.__getitem__, texts), np.int64, len(texts))
    splits = None
    words = table.columns[split_column] if split_column else []
    if any(words):
        meant = {
            word: "train" if not word else SPLIT_WORDS.get(word.lower()) or parse_split(word)
            for word in set(words)
        }
        for word in sorted(word for word, split in meant.items() if not split):
            line = table.describe_row(words.index(word))
            raise DataError(f"{line} of '{table.path}' has split '{word}'. {suggest(word, SPLIT_WORDS)}")
        splits = np.array([meant[word] for word in words])
        known_labels = labels != UNLABELLED
        cells = {*zip(splits[known_labels].tolist(), labels[known_labels].tolist(), strict=True)}
        pairs = [(name, classes[k]) for name, k in sorted(cells)]
        check_train_covers_classes(pairs, classes, str(table.path))
    known = {"", *known, *filter(None, (label_column, split_column)), *one_hot}
    extra = {name: np.array(column, object) for name, column in table.columns.items() if name not in known}
    return Layout(np.arange(len(texts), dtype=np.int64), labels, classes, splits, (*notes, *renamed), extra)


def _merge_equal_numbers(plain: dict[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The labels with 1 and 1.0 as one class, and a note: a program that adds empty cells writes 1 as 1.0."""
    whole = {label: label.rpartition(".")[0] for label in plain.values() if re.fullmatch(r"-?\d+\.0+", label)}
    both = sorted(label for label, number in whole.items() if number in plain.values())
    if not both:
        return plain, ()
    pairs = ", ".join(f"'{whole[label]}' and '{label}'" for label in both[:5])
    merged = {text: whole[label] if label in both else label for text, label in plain.items()}
    return merged, (f"Labels that are equal as numbers are one class: {pairs}.",)


def _match_labels(table: TextTable, where: str | None, rule: LabelRule) -> list[str]:
    """The label in the path of each row; raises DataError, naming the line, where the pattern does not fit."""
    if where is None:
        raise DataError(f"'{table.path}' holds images without file names: name a column, --label-column.")
    matches = [rule.match(path.replace("\\", "/")) for path in table.columns[where]]
    if None in matches:
        row = matches.index(None)
        raise DataError(
            f"{table.describe_row(row)} of '{table.path}' has the path '{table.columns[where][row]}', which does not "
            f"fit the label pattern '{rule.label_pattern}'."
        )
    return [match[1] for match in matches if match]


def _find_split_column(table: TextTable, known: set[str]) -> tuple[str | None, tuple[str, ...]]:
    """The column of splits: ``split``, or one whose values all mean train, val or test; and a note of the latter."""
    if name := table.find_column(("split",)):
        return name, ()
    for name, column in table.columns.items():
        if not name or name in known or not (parse_split(column[0]) or not column[0]):
            continue
        splits = {parse_split(word) for word in {*column} - {""}}
        if "train" in splits and len(splits) > 1 and None not in splits:
            return name, (f"The splits are in the column '{name}'.",)
    return None, ()


def _find_one_hot_columns(table: TextTable, taken: Sequence[str | None]) -> list[str]:
    """Two or more columns of 0 and 1 of which each row has one 1; none where there are no such columns."""
    bits = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
    names = [name for name, column in table.columns.items() if name not in taken and bits.keys() >= {*column}]
    if len(names) < 2:
        return []
    ones = sum(np.array([bits[cell] for cell in table.columns[name]]) for name in names)
    return names if (np.asarray(ones) == 1).all() else []


def _require_filled(table: TextTable, name: str) -> list[str]:
    column = table.columns[name]
    if "" in column:
        line = table.describe_row(column.index(""))
        raise DataError(f"{line} of '{table.path}' has an empty '{name}': fill it in or remove the line.")
    return column


def _drop_repeated_rows(
    table: TextTable, names: list[str], layout: Layout
) -> tuple[ndarray | None, tuple[str, ...]]:
    """Which rows name a file for the first time (None: all); DataError where two rows disagree on it."""
    hashes = np.fromiter(map(hash, names), np.int64, len(names))
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    rows = np.sort(order[np.append(same, False) | np.append(False, same)])
    labels = np.array([*layout.classes, ""], object)[layout.labels]  # -1, no label, is the last
    first: dict[str, int] = {}
    repeated: list[int] = []
    for row in rows.tolist():
        before = first.setdefault(names[row], row)
        if before != row:
            for what, values in (("label", labels), ("split", layout.splits)):
                if values is not None and values[before] != values[row]:
                    raise DataError(
                        f"'{table.path}' names '{names[row]}' twice with another {what}: "
                        f"{table.describe_row(before).lower()} says '{values[before]}', "
                        f"{table.describe_row(row).lower()} says '{values[row]}'; remove one of the two."
                    )
            repeated.append(row)
    if not repeated:
        return None, ()
    keep = np.ones(len(names), bool)
    keep[repeated] = False
    name = names[repeated[0]]
    lines = f"{table.describe_row(first[name])} and {table.describe_row(repeated[0]).lower()}"
    count = "1 row that names" if len(repeated) == 1 else f"{len(repeated):,} rows that name"
    return keep, (f"Ignored {count} a file again ('{name}', {lines[0].lower()}{lines[1:]}).",)


def _list_files(table: TextTable, names: list[str]) -> Listing:
    """Sizes and times of the named files; ``names`` are completed where the folders below have the file.

    Raises DataError, naming the first few that are missing, where they are too many.
    """
    root = table.path.parent
    prefix = os.path.join(root, "")  # noqa: PTH118
    facts = np.zeros((len(names), 2), np.int64)

    def stat_file(row: int, name: str) -> bool:
        try:
            status = os.stat(name if name[0] == "/" or name[1:2] == ":" else prefix + name)  # noqa: PTH116 half the time of Path
        except (OSError, ValueError):
            return False
        names[row] = name
        facts[row] = status.st_size, status.st_mtime_ns
        return True

    missing = []
    for row, name in enumerate(names):
        if not stat_file(row, name):
            forms = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")} - {name}
            if not any(
                stat_file(row, form) for form in forms
            ):  # composed or decomposed, as another system wrote it
                missing.append(row)
    if missing:
        with suppress(DataError):
            below = list_folder(root).names
            found = match_files([names[row] for row in missing], below)
            missing = [
                row
                for row, place in zip(missing, found.tolist(), strict=True)
                if place < 0 or not stat_file(row, below[place])
            ]
    _check_missing(table, names, missing)
    sizes, stamps = facts.T.copy()
    return Listing(names, sizes, stamps, frozenset(), FolderReader(root, names))


def _check_missing(table: TextTable, names: Sequence[str], missing: Sequence[int]) -> None:
    """Raise DataError where too many of the named files are missing."""
    if len(missing) > MAX_MISSING_SHARE * len(names):
        first = ", ".join(f"'{names[row]}' ({table.describe_row(row).lower()})" for row in missing[:3])
        bare = " A name without its folder must fit one file." if "/" not in names[missing[0]] else ""
        raise DataError(
            f"{len(missing):,} of the {len(names):,} files named in '{table.path}' do not exist: {first}"
            f"{', ...' if len(missing) > 3 else ''}. Paths are relative to the folder of the table.{bare}"
        )


def match_files(
    wanted: Sequence[str], files: Sequence[str], folder: str = "", splits: ndarray | None = None
) -> Int64[ndarray, " N"]:
    """The position in ``files`` of each wanted name; -1 where no file or several fit.

    A name fits a file of the same path (from ``folder``), or else of the same last part, whatever its case, with or
    without the suffix of an image; of several, the one that shares most folders, and then the split, is meant.
    """
    exact = {name: i for i, name in enumerate(files)}
    prefix = folder + "/" if folder else ""
    loose: dict[str, list[int]] = {}
    known: set[str] = set()

    def simplify(name: str) -> str:
        return unicodedata.normalize("NFC", name.rpartition("/")[2]).lower()

    def look_up(name: str, split: str | None) -> int:
        if (place := exact.get(prefix + name)) is not None:
            return place
        if not loose:
            for i, file in enumerate(files):
                base = simplify(file)
                stem, _, suffix = base.rpartition(".")
                if suffix in IMAGE_SUFFIXES and stem:
                    known.update(file.lower().split("/")[:-1])
                    loose.setdefault(base, []).append(i)
                    loose.setdefault("/" + stem, []).append(i)
        base = simplify(name)
        uploaded = re.sub(r"^[0-9a-f]{8}-", "", base)  # Label Studio puts a number before each name
        keys = (base, "/" + base, uploaded)
        places: list[int] = next((loose[key] for key in keys if key in loose), [])
        folders = name.lower().split("/")[-2::-1]
        if folders and folders[0] in known:  # a folder that is there and does not have it: no other will do
            places = [i for i in places if folders[0] in files[i].lower().split("/")[:-1]]
        if len(places) > 1:
            pairs = [zip(folders, files[i].lower().split("/")[-2::-1], strict=False) for i in places]
            shared = [len([*takewhile(lambda pair: pair[0] == pair[1], each)]) for each in pairs]
            places = [i for i, count in zip(places, shared, strict=True) if count == max(shared)]
        if len(places) > 1 and split:
            places = [i for i in places if parse_split(files[i].rpartition("/")[0]) == split]
        return places[0] if len(places) == 1 else -1

    meant = [None] * len(wanted) if splits is None else splits.tolist()
    return np.array([look_up(name, split) for name, split in zip(wanted, meant, strict=True)], np.int64)


def join_tables(
    place: Path, tables: Sequence[tuple[TextTable, str | None, str]], rule: LabelRule = USUAL_LABELS
) -> TextTable:
    """One table of several: each with the split of its rows (or None) and the folder of its paths in the place.

    Its column of paths is called path. Tables without a path or a label column, such as lists of test images to be
    answered, are left out, unless all are.
    """
    paths = (rule.path_column,) if rule.path_column else (*PATH_COLUMNS, *OTHER_PATH_COLUMNS)
    labels = (rule.label_column,) if rule.label_column else (*LABEL_COLUMNS, *OTHER_LABEL_COLUMNS)
    columns: dict[str, list[str]] = {}
    starts: list[tuple[int, Callable[[int], str], str]] = []
    done = 0
    for table, split, folder in tables:
        where = table.find_column(paths)
        if where is None or not (table.find_column(labels, (where,)) or _find_one_hot_columns(table, (where,))):
            continue
        read = {name: list(column) for name, column in table.columns.items() if name != where}
        read["path"] = [f"{folder}/{cell}" if folder and cell else cell for cell in table.columns[where]]
        if split and "split" not in read:
            read["split"] = [split] * len(table)
        for name in {**columns, **read}:
            column = columns.setdefault(name, [""] * done)
            column.extend(read.get(name) or [""] * len(table))
        starts.append((done, table.describe_row, table.path.name))
        done += len(table)

    def describe_row(row: int) -> str:
        first, describe, name = next(each for each in reversed(starts) if each[0] <= row)
        return f"{describe(row - first)} of {name}"

    return TextTable(place, columns, describe_row)
