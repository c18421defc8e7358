"""A dataset as pages of images: filtered by class and split, in the order that is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from ..errors import DataError
from .datasets import OpenDataset

IMAGES_PER_PAGE = 200
GRID_ORDERS = {
    "name": "by name",
    "newest": "newest first",
    "suspects": "suspects first",
    "duplicates": "duplicates first",
}
"""Orders of a grid, and their names on the page."""


@dataclass(frozen=True, kw_only=True)
class GridView:
    """Which images a page shows, in which order."""

    label: str = ""
    """A class; all where empty."""
    split: str = ""
    order: str = "name"
    """A key of ``GRID_ORDERS``."""
    page: int = 1
    date: str = ""
    """Jump to the page of this day, as 2026-12-31: of the newest image not after it. Orders by date."""
    run: str = ""
    """A run whose images of a cell of the confusion matrix are shown, the most confident first."""
    truth: str = ""
    """Class in the run's labels, and ``answer`` in its predictions; all mistakes where both are empty."""
    answer: str = ""


@dataclass(frozen=True)
class GridCell:
    """One image of a page."""

    row: int
    """Its position in the images without corrections: the number by which it is shown and corrected."""
    file: str
    label: str
    split: str
    note: str
    """Why it comes first: what it looks like, or which image it repeats."""


@dataclass(frozen=True)
class GridPage:
    """A page of images."""

    cells: tuple[GridCell, ...]
    page: int
    pages: int
    total: int
    """Images of all pages."""


def show_page(dataset: OpenDataset, view: GridView, cell: Mapping[str, str] | None = None) -> GridPage:
    """One page of a dataset; a page beyond the last one is the last.

    ``cell`` are the files that alone are shown, in order, each with a note.
    Raises DataError for a class, an order or a day that does not exist.
    """
    now = dataset.now
    if view.label and view.label not in now.classes:
        raise DataError(f"There is no class '{view.label[:60]}' in this dataset any more.")
    if view.order not in GRID_ORDERS:
        raise DataError(f"There is no order '{view.order[:20]}'.")
    chosen = np.ones(len(now), bool) if not view.label else now.labels == now.classes.index(view.label)
    if view.split:
        chosen &= dataset.splits == view.split
    rows, page = np.flatnonzero(chosen), view.page
    notes: dict[int, str] = {}
    if cell is not None:
        places = {name: i for i, name in enumerate(dataset.now.files) if name in cell}
        notes = {places[name]: note for name, note in cell.items() if name in places}
        rows = np.array([i for i in notes if chosen[i]], np.int64)
    elif view.date or view.order == "newest":
        if dataset.images.times is None:
            raise DataError("These images have no dates: order them by name.")
        times = np.nan_to_num(dataset.images.times[dataset.rows[rows]], nan=-1.0)
        order = np.argsort(-times, kind="stable")
        rows = rows[order]
        if view.date:
            try:
                day = datetime.strptime(view.date, "%Y-%m-%d").replace(tzinfo=UTC).timestamp() + 86400
            except ValueError as error:
                raise DataError(f"'{view.date[:20]}' is no day: write it as 2026-12-31.") from error
            page = 1 + int(np.searchsorted(-times[order], -day, side="left")) // IMAGES_PER_PAGE
    elif view.order in ("suspects", "duplicates"):
        notes = find_noted(dataset, view.order)
        first = np.array([*notes], np.int64)
        first = first[np.isin(first, rows)]
        rows = np.concatenate([first, np.setdiff1d(rows, first)])
    pages = max(1, -(-len(rows) // IMAGES_PER_PAGE))
    page = min(max(1, page), pages)
    shown = rows[(page - 1) * IMAGES_PER_PAGE : page * IMAGES_PER_PAGE]
    names = (*now.classes, "")
    cells = tuple(
        GridCell(row, str(now.files[i]), names[now.labels[i]], str(dataset.splits[i]), notes.get(i, ""))
        for i, row in zip(shown.tolist(), dataset.rows[shown].tolist(), strict=True)
    )
    return GridPage(cells, page, pages, len(rows))


def find_noted(dataset: OpenDataset, order: str) -> dict[int, str]:
    """The images (positions in ``now``) that ``check`` found, worst first, each with what it found.

    ``order`` is ``suspects`` or ``duplicates``. A suspect whose label somebody has set since is none any more.
    """
    table = dataset.read_found(order)
    places = {row["file"]: i for i, row in enumerate(table)}
    judged = {name for edit in dataset.file.active if edit.kind == "label" for name in edit.names}
    first: dict[str, str] = {}
    for row in table if order == "duplicates" else ():
        first.setdefault(row["group"], row["file"])
    kinds = {"exact": "the same file as", "near": "nearly the same as"}
    found: dict[int, str] = {}
    for place, i in sorted((places[name], i) for i, name in enumerate(dataset.now.files) if name in places):
        row = table[place]
        if order == "duplicates":
            found[i] = f"{kinds[row['kind']]} {first[row['group']]}" if row["kind"] in kinds else "has copies"
        elif row["file"] not in judged:
            found[i] = f"looks like {row['suggested']} ({float(row['p_suggested']):.0%})"
    return found
