"""The pages of data: bring images, look through them, correct their labels, and what ``check`` finds."""

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from starlette.responses import JSONResponse, Response

from ..data import read_header
from ..errors import DataError, ImageError, SightlineError
from ..files import read_json_object, write_json
from ..serving import RequestError
from ..sources import BUILTIN_DATASETS, Edit
from .datasets import SPLIT_CHOICES, EditConflict, OpenDataset, describe_edit, find_datasets
from .grid import GRID_ORDERS, GridView, show_page
from .run_pages import read_predictions, run_folder
from .thumbnails import THUMBNAIL_PIXELS, ThumbnailCache
from .uploads import UPLOAD_PIECE_BYTES, UploadConflict, Uploads
from .visit import Page, PageRoute, Visit

LOOK_PIXELS = 720
"""Longer side of an image that is looked at alone, in pixels."""
MAX_SHOWN_EDITS = 200
MAX_QUICK_CLASSES = 10
"""Classes up to which each has a button and a key of its own."""
_IMMUTABLE = {"cache-control": "private, max-age=31536000, immutable"}
_UNREADABLE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 112 112"><rect width="112" height="112" fill="#888"/>'
    '<path d="M30 30 82 82M82 30 30 82" stroke="#fff" stroke-width="6"/></svg>'
)


@cache
def find_thumbnails(folder: Path) -> ThumbnailCache:
    """The thumbnails of the studio in ``folder``: one object for each process."""
    return ThumbnailCache(folder / "thumbnails")


def _uploads(visit: Visit) -> Uploads:
    return Uploads(visit.studio.folder / "uploads")


def open_dataset(visit: Visit, *, again: bool = False) -> OpenDataset:
    """The dataset that the address names; raise RequestError (404) if there is none."""
    datasets, id = find_datasets(visit.studio.folder), visit.request.path_params["id"]
    try:
        datasets.path(id)
    except DataError as error:
        raise RequestError(404, str(error)) from error
    return datasets.open(id, again=again)


# bringing images


def list_datasets(visit: Visit) -> Response:
    """The datasets, the uploads that are unfinished, and where to drop images."""
    datasets = find_datasets(visit.studio.folder)
    rows = [(id, name, datasets.path(id).stat().st_mtime) for id, name in datasets.list()]
    return visit.render("data.html.jinja", datasets=rows, uploads=_uploads(visit).list())


def add_folder(visit: Visit) -> Response:
    """Make a dataset of a folder, archive or table on this machine; nothing is copied."""
    word = visit.text("place").strip()
    place = Path(word).expanduser()
    if not word or not (place.exists() or word in BUILTIN_DATASETS):
        raise RequestError(422, f"There is nothing at '{word}' on this machine: give the path of a folder.")
    found = place if place.exists() else word
    id = find_datasets(visit.studio.folder).add(found, place.name.partition(".")[0] or "images")
    return visit.redirect(f"/data/{id}")


def declare_upload(visit: Visit) -> Response:
    """Begin an upload, or go on with one: its id, the byte where the next piece begins, and the size of a piece."""
    size = visit.number("size", 0, high=10**15 - 1)
    upload = _uploads(visit).declare(visit.text("name"), size, by=visit.session.name)
    return JSONResponse({"id": upload.id, "received": upload.received, "piece": UPLOAD_PIECE_BYTES})


def receive_piece(visit: Visit) -> Response:
    """Take a piece of an upload; where the next one begins, also if this one did not fit (409)."""
    offset = visit.number("offset", 0, high=10**15 - 1)
    try:
        upload = _uploads(visit).write(visit.request.path_params["id"], offset, visit.body)
    except UploadConflict as error:
        return JSONResponse({"detail": str(error), "received": error.received}, 409)
    return JSONResponse({"received": upload.received})


def finish_upload(visit: Visit) -> Response:
    """Make a dataset of a whole upload: the address of its page."""
    datasets, uploads, id = find_datasets(visit.studio.folder), _uploads(visit), visit.request.path_params["id"]
    name, folder = uploads.get(id).name, datasets.reserve()
    try:
        path = uploads.finish(id, folder / "images", sha256=visit.text("sha256"))
        datasets.add(path, name.partition(".")[0], folder)
    except UploadConflict as error:
        return JSONResponse({"detail": str(error), "received": error.received}, 409)
    except SightlineError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(str(error).replace(str(folder / "images") + Path(name).suffix, name)) from error
    return JSONResponse({"page": f"/studio/data/{folder.name}"})


def discard_upload(visit: Visit) -> Response:
    """Give an upload up."""
    _uploads(visit).discard(visit.request.path_params["id"])
    return visit.redirect("/data")


# looking


def _read_view(visit: Visit) -> GridView:
    return GridView(
        label=visit.text("class"),
        split=visit.text("split"),
        order=visit.text("order", "name"),
        page=visit.number("page", 1, low=1),
        date=visit.text("date"),
        run=visit.text("run"),
        truth=visit.text("true"),
        answer=visit.text("answer"),
    )


def find_cell(visit: Visit, view: GridView) -> dict[str, str] | None:
    """The images of a cell of a run's confusion matrix, with what was answered; None where no run is asked for."""
    if not view.run:
        return None
    if (table := read_predictions(run_folder(visit.studio, view.run))) is None:
        raise RequestError(404, f"The run '{view.run[:100]}' has no predictions: it was not evaluated.")
    return table.cell(view.truth, view.answer)


def _render_grid(visit: Visit, dataset: OpenDataset, view: GridView, **values: Any) -> Response:
    """The grid, whole or as the part that htmx replaces."""
    part = "hx-request" in visit.request.headers
    shown = show_page(dataset, view, find_cell(visit, view))
    return visit.render(
        "_grid.html.jinja" if part else "dataset.html.jinja",
        dataset=dataset,
        view=replace(view, page=shown.page, order="newest" if view.date else view.order, date=""),
        shown=shown,
        orders={name: words for name, words in GRID_ORDERS.items() if has_order(dataset, name)},
        splits=[word for word in SPLIT_CHOICES if word in set(dataset.splits)],
        keys=class_keys(dataset.now.classes),
        **{
            "message": "",
            "problem": "",
            "undo": 0,
            "selected": frozenset(),
            "can_repeat": False,
            "to": "",
            **values,
        },
    )


def class_keys(classes: Sequence[str]) -> list[tuple[str, str]]:
    """The key and the name of each class: digits are their own keys; none where there are more than ten classes.

    >>> class_keys(["cat", "dog"]), class_keys(["0", "7"])
    ([('1', 'cat'), ('2', 'dog')], [('0', '0'), ('7', '7')])
    """
    if len(classes) > MAX_QUICK_CLASSES:
        return []
    digits = all(len(name) == 1 and name in "0123456789" for name in classes)
    return [(name if digits else str((i + 1) % 10), name) for i, name in enumerate(classes)]


def has_order(dataset: OpenDataset, name: str) -> bool:
    """Whether the images can be ordered so: by dates that are known, by what ``check`` found."""
    if name == "newest":
        return hasattr(dataset.base.reader, "modified_times")
    return name == "name" or (dataset.check_folder / f"{name}.csv").exists()


def show_dataset(visit: Visit) -> Response:
    """A page of a dataset's images."""
    dataset, view = open_dataset(visit, again=visit.text("again") == "1"), _read_view(visit)
    if view.label and view.label not in dataset.now.classes:
        problem = f"There is no class '{view.label[:60]}' in this dataset any more: all images are shown."
        return _render_grid(visit, dataset, replace(view, label=""), problem=problem)
    return _render_grid(visit, dataset, view)


def _read_image(visit: Visit, dataset: OpenDataset) -> tuple[int, bytes]:
    """The position in the images without corrections, and the bytes, of the image that the address names."""
    row = visit.request.path_params["row"]
    if not row.isdigit() or int(row[:9]) >= len(dataset.base):
        raise RequestError(404, "There is no such image.")
    return int(row), dataset.base.read(int(row))


def show_thumbnail(visit: Visit) -> Response:
    """A small picture of an image; it never changes at its address."""
    dataset = open_dataset(visit)
    if visit.request.path_params["stamp"] != dataset.stamp:
        raise RequestError(404, "The images changed: load the page again.")
    most = LOOK_PIXELS if visit.text("size") == "large" else THUMBNAIL_PIXELS
    try:
        _, data = _read_image(visit, dataset)
        content, kind = find_thumbnails(visit.studio.folder).get(data, most)
    except ImageError:
        return Response(_UNREADABLE, media_type="image/svg+xml")
    return Response(content, media_type=kind, headers=_IMMUTABLE)


def look_at_image(visit: Visit) -> Response:
    """One image, large."""
    dataset, reason = open_dataset(visit), ""
    try:
        row, data = _read_image(visit, dataset)
        read_header(data)
    except ImageError as error:
        row, reason = int(visit.request.path_params["row"]), str(error)
    place = np.flatnonzero(dataset.rows == row)
    label = dataset.now.classes[dataset.now.labels[place[0]]] if len(place) else ""
    names = dataset.base.files[row], dataset.base.classes[dataset.base.labels[row]]
    return visit.render(
        "look.html.jinja", dataset=dataset, row=row, file=names[0], label=label, first=names[1], reason=reason
    )


# correcting


def edit_images(visit: Visit) -> Response:
    """Relabel the chosen images, move them to another split, or leave them out."""
    dataset, view = open_dataset(visit), _read_view(visit)
    what, _, value = visit.text("do").partition(":")
    if what not in ("label", "new", "split", "remove"):
        raise RequestError(422, "The field 'do' says what to do: label, new, split or remove.")
    if what in ("split", "remove") and not visit.session.allows("admin"):
        raise RequestError(403, "Your key allows relabelling only: moving and leaving out need the scope admin.")
    rows = [int(row) for row in visit.form.getlist("row") if isinstance(row, str) and row.isdigit()]
    if visit.text("stamp") != dataset.stamp:
        problem = "The images of this dataset changed while you were looking, so nothing was done: choose again."
        return _render_grid(visit, dataset, view, problem=problem)
    files = tuple(str(dataset.base.files[row]) for row in rows if row < len(dataset.base))
    value = value or {"label": visit.text("to"), "new": visit.text("new")}.get(what, "")
    edit = Edit(kind="label" if what == "new" else what, names=files, value=value, by=visit.session.name)
    try:
        made = find_datasets(visit.studio.folder).edit(
            dataset.id,
            edit,
            seen=visit.number("seen", 0),
            new_class=what == "new",
            anyway=visit.text("anyway") == "1",
        )
    except DataError as error:
        repeat = isinstance(error, EditConflict) and error.can_repeat
        chosen = frozenset(rows)
        now = _drop_gone_class(open_dataset(visit), view)
        return _render_grid(
            visit, *now, problem=str(error), selected=chosen, can_repeat=repeat, to=visit.text("do")
        )
    now = _drop_gone_class(open_dataset(visit), view)
    message = f"{describe_edit(made)[0].upper()}{describe_edit(made)[1:]}."
    if (meanwhile := made.number - 1 - visit.number("seen", 0)) > 0:
        message += f" Others made {meanwhile} change{'s'[: meanwhile != 1]} meanwhile; they are shown too."
    return _render_grid(visit, *now, message=message, undo=made.number)


def split_dataset(visit: Visit) -> Response:
    """Draw images to validate and to test on."""
    dataset, view = open_dataset(visit), _read_view(visit)
    try:
        made = find_datasets(visit.studio.folder).draw_split(dataset.id, by=visit.session.name)
    except DataError as error:
        return _render_grid(visit, dataset, view, problem=str(error))
    counts = " and ".join(f"{len(one.names):,} to {one.value}" for one in made)
    return _render_grid(visit, open_dataset(visit), view, message=f"Drawn: {counts}; the page History undoes it.")


def _drop_gone_class(dataset: OpenDataset, view: GridView) -> tuple[OpenDataset, GridView]:
    return dataset, replace(view, label=view.label if view.label in dataset.now.classes else "")


def undo_edit(visit: Visit) -> Response:
    """Take a change back."""
    dataset, view = open_dataset(visit), _read_view(visit)
    find_datasets(visit.studio.folder).undo(dataset.id, visit.number("number", 0), by=visit.session.name)
    if visit.text("back") == "history":
        return visit.redirect(f"/data/{dataset.id}/history")
    return _render_grid(visit, *_drop_gone_class(open_dataset(visit), view), message="Taken back.")


def show_classes(visit: Visit, **values: Any) -> Response:
    """The classes with their numbers of images, and a form that makes two of them one."""
    dataset = open_dataset(visit)
    splits = [word for word in SPLIT_CHOICES if word in set(dataset.splits)]
    counts = {"": np.bincount(dataset.now.labels[dataset.now.labels >= 0], minlength=len(dataset.now.classes))}
    for word in splits:
        labels = dataset.now.labels[(dataset.splits == word) & (dataset.now.labels >= 0)]
        counts[word] = np.bincount(labels, minlength=len(dataset.now.classes))
    return visit.render(
        "classes.html.jinja",
        dataset=dataset,
        counts=counts,
        splits=splits,
        **{"problem": "", "message": "", **values},
    )


def merge_classes(visit: Visit) -> Response:
    """Make a class part of another one."""
    dataset, old, new = open_dataset(visit), visit.text("old"), visit.text("into")
    edit = Edit(kind="merge", names=(old,), value=new, by=visit.session.name)
    if old == new:
        return show_classes(visit, problem="A class cannot be merged with itself: choose two.")
    try:
        made = find_datasets(visit.studio.folder).edit(dataset.id, edit, seen=visit.number("seen", 0))
    except DataError as error:
        return show_classes(visit, problem=str(error))
    return show_classes(visit, message=f"{describe_edit(made)}.")


def show_history(visit: Visit) -> Response:
    """Who changed what, the latest first."""
    dataset = open_dataset(visit)
    active = {edit.number for edit in dataset.file.active}
    rows = [
        (edit, describe_edit(edit), edit.number in active) for edit in dataset.file.edits if edit.kind != "undo"
    ]
    return visit.render("history.html.jinja", dataset=dataset, rows=rows[::-1][:MAX_SHOWN_EDITS], total=len(rows))


# what check finds


def check_words(dataset: OpenDataset) -> list[str]:
    """The command that checks a dataset."""
    return ["check", str(dataset.path), "--deep", f"--out-dir={dataset.check_folder}"]


def show_check(visit: Visit) -> Response:
    """What the latest check of a dataset found."""
    dataset = open_dataset(visit)
    facts, job = read_json_object(dataset.path.parent / "check.json"), None
    with suppress(DataError, KeyError, TypeError):
        job = visit.studio.jobs.find(facts["job"])
    found = job.result if job and job.state == "done" else {}
    later = dataset.version - int(facts.get("version", 0))
    return visit.render(
        "check.html.jinja", dataset=dataset, job=job, found=found, later=later, words=check_words(dataset)
    )


def start_check(visit: Visit) -> Response:
    """Check a dataset, as a job."""
    dataset = open_dataset(visit)
    job = visit.studio.jobs.start(
        check_words(dataset),
        title=f"Check {dataset.name}",
        back=f"/data/{dataset.id}/check",
        by=visit.session.name,
        resume_words=check_words(dataset),
    )
    write_json(
        dataset.path.parent / "check.json", {"job": job.id, "version": dataset.version, "at": round(time.time())}
    )
    return visit.redirect(f"/jobs/{job.id}")


DATA_PAGE = Page(
    "Data",
    (
        PageRoute("GET", "/data", list_datasets, "review"),
        PageRoute("POST", "/data", add_folder, "admin"),
        PageRoute("POST", "/uploads/new", declare_upload, "admin"),
        PageRoute("PUT", "/uploads/{id}", receive_piece, "admin"),
        PageRoute("POST", "/uploads/{id}/finish", finish_upload, "admin"),
        PageRoute("POST", "/uploads/{id}/discard", discard_upload, "admin"),
        PageRoute("GET", "/data/{id}", show_dataset, "review"),
        PageRoute("GET", "/data/{id}/image/{stamp}/{row}", show_thumbnail, "review"),
        PageRoute("GET", "/data/{id}/look/{row}", look_at_image, "review"),
        PageRoute("POST", "/data/{id}/edit", edit_images, "review"),
        PageRoute("POST", "/data/{id}/split", split_dataset, "admin"),
        PageRoute("POST", "/data/{id}/undo", undo_edit, "review"),
        PageRoute("GET", "/data/{id}/classes", show_classes, "review"),
        PageRoute("POST", "/data/{id}/merge", merge_classes, "admin"),
        PageRoute("GET", "/data/{id}/history", show_history, "review"),
        PageRoute("GET", "/data/{id}/check", show_check, "review"),
        PageRoute("POST", "/data/{id}/check", start_check, "admin"),
    ),
)
