"""Flat val and test folders with a table of their labels, next to class folders to train on (Tiny ImageNet)."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from ..errors import DataError
from .layout import parse_split
from .manifest import join_tables, read_manifest
from .parquet import TABLE_READERS
from .source import Listing
from .tables import read_csv


def label_flat_parts(
    listing: Listing, path: Path, open_tables: Callable[[Sequence[str]], Any]
) -> tuple[dict[int, tuple[str, str]], tuple[str, ...]]:
    """(split, class) of the images in a flat val or test folder that a table in it labels, by position; and notes.

    ``open_tables`` gives files of these names while its context lasts. A table counts where its images lie in one
    folder, and its labels are names of other folders.
    """
    found: dict[int, tuple[str, str]] = {}
    notes: list[str] = []
    for name in listing.names:
        place = PurePath(name)
        parent = name.rpartition("/")[0]
        words = (place.parent.name, place.parent.parent.name, place.stem)
        split = next(filter(None, map(parse_split, words)), None)
        if split not in ("val", "test") or place.suffix.lower() not in (*TABLE_READERS, ".txt"):
            continue
        with suppress(DataError, OSError), open_tables([name]) as (file,):
            table = TABLE_READERS.get(file.suffix.lower(), read_csv)(file)
            joined = join_tables(path, [(replace(table, path=Path(name)), None, parent)])
            layout = read_manifest(joined, listing)[1]
            files = [listing.names[key] for key in layout.keys.tolist()]
            holders = {PurePath(each).parent for each in files}
            folders = {part for each in listing.names for part in each.split("/")[:-1]}
            if len(holders) == 1 and holders.pop().is_relative_to(parent) and folders.issuperset(layout.classes):
                labels = [layout.classes[label] for label in layout.labels.tolist()]
                found |= {key: (split, label) for key, label in zip(layout.keys.tolist(), labels, strict=True)}
                notes.append(f"The labels of {len(files):,} {split} images are in '{name}'.")
    return found, tuple(notes)
