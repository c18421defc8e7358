"""WebDataset's samples: files of one name that differ in their suffix, ``000001.jpg`` with ``000001.cls``."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from ..errors import DataError, ImageError
from .layout import USUAL_LABELS, LabelRule, Layout, select_images
from .manifest import layout_from_table
from .source import Listing
from .tables import LABEL_COLUMNS, OTHER_LABEL_COLUMNS, TextTable, cell_text

MAX_SIDECAR_BYTES = 1_000_000
"""Bytes of one sample's ``.cls`` or ``.json``, which is read whole."""
MAX_FIELD_CHARACTERS = 200
"""A longer text of a ``.json`` is a description, which is not kept: a million of them would fill the memory."""
_FIELD_SAMPLES = 100
"""Samples whose ``.json`` names the fields that are kept."""
_SIDECAR_SHARE = 0.9
"""Share of the images that need a ``.json`` of their own to be samples."""


def sample_key(name: str) -> str:
    """The name of a file's sample: its path up to the first dot of its last part, as WebDataset has it.

    >>> sample_key("train.v2/000001.seg.png")
    'train.v2/000001'
    """
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def read_samples(listing: Listing, place: str, rule: LabelRule = USUAL_LABELS) -> Layout | None:
    """The images of a listing with the labels of the ``.cls`` or ``.json`` of the same name; None where none has one.

    A ``.cls`` holds a class's number or name. Of a ``.json`` the fields become columns; the label has a usual name, or
    the rule's. Raises DataError, naming the file, for a sample that cannot be read.
    """
    images = set(select_images(listing.names)[0])
    ends = ["" if "/." in f"/{name}" else name.rpartition(".")[2].lower() for name in listing.names]
    if rule.path_column or rule.label_pattern or not images:
        return None
    if "cls" not in ends and ends.count("json") < _SIDECAR_SHARE * len(images):
        return None

    def read(row: int) -> str:
        try:
            if listing.sizes[row] > MAX_SIDECAR_BYTES:
                raise ImageError(f"it has more than {MAX_SIDECAR_BYTES:,} bytes")
            return listing.reader.read(row).decode("utf-8-sig").strip()
        except (ImageError, UnicodeDecodeError) as error:
            raise DataError(
                f"'{listing.names[row]}' of '{place}' is no label ({error}): write it again."
            ) from error

    columns: dict[str, list[str]] = {"": [], "cls": []}
    shared: dict[str, str] = {}
    rows: list[int] = []
    left_out = 0
    for key, members in _group_samples(listing.names):
        pictures = [row for row in members if row in images]
        plain = [row for row in pictures if listing.names[row].count(".", len(key)) == 1]
        if not pictures:
            continue
        if len(chosen := plain or pictures) > 1:
            raise DataError(
                f"The sample '{key}' of '{place}' has {len(chosen)} images ({listing.names[chosen[0]]}, "
                f"{listing.names[chosen[1]]}): keep one, or give each a name of its own before the first dot."
            )
        left_out += len(pictures) - 1
        labels = [row for row in members if ends[row] == "cls"]
        facts = [row for row in members if ends[row] == "json"]
        fields = _parse_fields(read(facts[0]), listing.names[facts[0]], place) if facts else {}
        if len(rows) < _FIELD_SAMPLES:
            for name in fields:
                columns.setdefault(name, [""] * len(rows))
        fields |= {"": listing.names[chosen[0]], "cls": read(labels[0]) if labels else ""}
        for name, column in columns.items():
            text = fields.get(name, "")
            column.append(shared.setdefault(text, text) if name else text)
        rows.append(chosen[0])
    names = columns[""]
    table = TextTable(Path(place), columns, lambda row: f"The sample of '{names[row]}'")
    if "cls" not in ends:
        columns.pop("cls")
        wanted = (rule.label_column,) if rule.label_column else (*LABEL_COLUMNS, *OTHER_LABEL_COLUMNS)
        if table.find_column(wanted, ("",)) is None:
            return None
    elif not rule.label_column:
        rule = replace(rule, label_column="cls")
    layout = layout_from_table(table, "", rule)
    notes = tuple(note for note in layout.notes if "column 'cls'" not in note)
    if left_out:
        notes += (f"Left out {left_out:,} further images of samples, such as masks.",)
    order = np.array(sorted(range(len(rows)), key=names.__getitem__), np.int64)
    return Layout(
        np.array(rows, np.int64)[order],
        layout.labels[order],
        layout.classes,
        None if layout.splits is None else layout.splits[order],
        (f"The labels are in the {'.cls' if 'cls' in ends else '.json'} files of the same names.", *notes),
        {name: column[order] for name, column in layout.columns.items() if name != "cls"},
    )


def _group_samples(names: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """The positions of each sample's files, by its key."""
    order = sorted(range(len(names)), key=lambda row: (sample_key(names[row]), names[row]))
    return ((key, [*rows]) for key, rows in groupby(order, key=lambda row: sample_key(names[row])))


def _parse_fields(text: str, name: str, place: str) -> dict[str, str]:
    """The short fields of a sample's ``.json``, as text; raises DataError where it is no object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{name}' of '{place}' is not valid JSON ({error}).") from error
    if not isinstance(found, dict):
        raise DataError(f"'{name}' of '{place}' is not a JSON object with fields such as label.")
    texts = {key: cell_text(value).strip() for key, value in found.items() if key and key != "cls"}
    return {key: value for key, value in texts.items() if len(value) <= MAX_FIELD_CHARACTERS}
