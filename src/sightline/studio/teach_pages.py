"""The page that teaches: pictures of several classes from a webcam or from files, and a classifier in seconds."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, Response

from ..errors import DataError
from ..evidence import load_evidence
from ..files import read_json_object, write_json
from ..serving import Engine, PredictRequest, RankedPrediction, RequestError, open_engine
from .collected import TABLE_FILE, add_images, count_classes, rename_class
from .datasets import Datasets, find_datasets
from .jobs import Job
from .run_pages import find_training, read_learning, read_predictions, run_folder
from .train_pages import free_run, start_run
from .visit import Page, PageRoute, Visit

LESSON_FILE = "lesson.json"
"""In the folder of a taught dataset: the run that its images are taught to, if any, and the one that they made."""

TAUGHT_BUDGET = "30s"
"""Time for a first model; with some dozens of pictures it needs less."""

MIN_TAUGHT_IMAGES = 4
"""Pictures of each class from which a lesson is worth its name: one trains, one tests."""

MAX_RECENT_SHOTS = 8
"""Pictures of each class that the page shows."""


def read_images(visit: Visit, name: str = "image") -> list[bytes]:
    """The files of a form's field."""
    found = []
    for given in visit.form.getlist(name):
        if isinstance(given, UploadFile):
            found.append(given.file.read())
    return found


def lesson_folder(datasets: Datasets, id: str) -> Path:
    """The folder of a taught dataset; raise RequestError (404) where the address names none."""
    try:
        folder = datasets.path(id).parent
    except DataError as error:
        raise RequestError(404, str(error)) from error
    if not (folder / TABLE_FILE).is_file():
        raise RequestError(404, "This dataset was not made by teaching: look at it on the page Data.")
    return folder


def parent_run(visit: Visit, name: str) -> Path | None:
    """The run that is taught more; None for an empty name. Raise RequestError (404, 409) where it cannot be."""
    if not name:
        return None
    run = run_folder(visit.studio, name)
    if read_predictions(run) is None:
        raise RequestError(409, f"'{name[:60]}' cannot learn yet: wait until its training has ended.")
    return run


def known_names(run: Path | None) -> Sequence[str]:
    """The classes of a run."""
    return () if run is None else tuple(load_evidence(run).config.get("classes") or ())


def show_teach(visit: Visit) -> Response:
    """The classes side by side, with what was collected of them, and the classifier that they made."""
    datasets, id = find_datasets(visit.studio.folder), visit.text("data")
    facts = read_json_object(lesson_folder(datasets, id) / LESSON_FILE) if id else {"parent": visit.text("run")}
    run = parent_run(visit, facts.get("parent") or "")
    counts, shots = {}, {}
    if id:
        counts, dataset = count_classes(datasets, id), datasets.open(id)
        for name in counts:
            rows = [row for row, k in zip(dataset.rows.tolist(), dataset.now.labels, strict=True)
                    if k >= 0 and dataset.now.classes[k] == name]  # fmt: skip
            shots[name] = [f"/studio/data/{id}/image/{dataset.stamp}/{row}" for row in rows[-MAX_RECENT_SHOTS:]]
    wanted = 2 if run is None else 1
    known = set(known_names(run))
    spare = [name for k in range(1, 20) if (name := f"Class {k + len(known)}") not in {*counts, *known}]
    names = [*counts, *spare[: max(0, wanted - len(counts))]]
    return visit.render(
        "teach.html.jinja", id=id, parent=run.name if run else "", known=known_names(run), names=names, counts=counts,
        shots=shots, **describe_lesson(visit, id),
    )  # fmt: skip


def receive_images(visit: Visit) -> Response:
    """Keep pictures of a class: the dataset's id, and the pictures of each class so far."""
    datasets, id, parent = find_datasets(visit.studio.folder), visit.text("data"), visit.text("run")
    if id:
        lesson_folder(datasets, id)
    parent_run(visit, parent)
    given = add_images(datasets, id, visit.text("label"), read_images(visit))
    if not id:
        write_json(datasets.path(given.id).parent / LESSON_FILE, {"parent": parent, "made": ""})
    return JSONResponse({"data": given.id, "known": given.known, "counts": count_classes(datasets, given.id)})


def rename_taught(visit: Visit) -> Response:
    """Give a class another name: the pictures of each class."""
    datasets, id = find_datasets(visit.studio.folder), visit.text("data")
    lesson_folder(datasets, id)
    rename_class(datasets, id, visit.text("old"), visit.text("label"), by=visit.session.name)
    return JSONResponse({"data": id, "counts": count_classes(datasets, id)})


def teach_words(path: Path, run: Path | None, classes: Sequence[str], out: Path) -> list[str]:
    """The command that teaches: a training from the pretrained backbone, or a run that learns more.

    A name was typed on purpose, so one that resembles a known class is new.
    """
    if run is None:
        return ["train", str(path), "--quality=standard", f"--budget={TAUGHT_BUDGET}", f"--out={out}"]
    fresh = [f"--new-class={name}" for name in classes if name not in known_names(run)]
    return ["learn", str(run), str(path), "--by=lda", "--no-naive", *fresh, f"--out={out}"]


def start_lesson(visit: Visit) -> Response:
    """Teach what was collected, as a job; the part of the page that shows how it goes."""
    datasets, id = find_datasets(visit.studio.folder), visit.text("data")
    if not id:
        raise RequestError(422, "There are no pictures yet: hold a button, or drop some on a class.")
    folder = lesson_folder(datasets, id)
    facts, counts = read_json_object(folder / LESSON_FILE), count_classes(datasets, id)
    run = parent_run(visit, facts.get("parent") or "")
    few = [name for name, count in counts.items() if count < MIN_TAUGHT_IMAGES]
    if few:
        raise RequestError(
            422, f"'{few[0]}' has {counts[few[0]]} pictures: {MIN_TAUGHT_IMAGES} are the fewest, 20 are better."
        )
    if run is None and len(counts) < 2:
        raise RequestError(422, "There is one class only: give pictures of a second one to tell it from.")
    job = facts.get("made") and find_training(visit.studio, run_folder(visit.studio, facts["made"]))
    if job and job.active:
        raise RequestError(409, "It learns these pictures already: wait until it is done.")
    made = free_run(visit.studio, "taught" if run is None else run.name)
    start_run(visit.studio, made, teach_words(datasets.path(id), run, [*counts], made), by=visit.session.name)
    write_json(folder / LESSON_FILE, {**facts, "made": made.name})
    if "hx-request" not in visit.request.headers:
        return visit.redirect(f"/teach?data={id}")
    return visit.render("_lesson.html.jinja", id=id, parent=run.name if run else "", **describe_lesson(visit, id))


def describe_lesson(visit: Visit, id: str) -> dict[str, Any]:
    """What the latest lesson of a dataset came to: its job, and the run that it made."""
    nothing: dict[str, Any] = {"job": None, "made": "", "accuracy": None, "n": 0, "learning": {}}
    if not id:
        return nothing
    folder = find_datasets(visit.studio.folder).path(id).parent
    if not (name := read_json_object(folder / LESSON_FILE).get("made") or ""):
        return nothing
    run = run_folder(visit.studio, name)
    job: Job | None = find_training(visit.studio, run)
    if (job is not None and job.active) or not (run / "classifier" / "config.json").is_file():
        return {**nothing, "job": job}
    evaluation = read_json_object(run / "report.json").get("evaluation", {})
    accuracy = evaluation.get("intervals", {}).get("accuracy")
    return {
        **nothing, "job": job, "made": name, "accuracy": accuracy, "n": evaluation.get("n", 0),
        "learning": read_learning(run),
    }  # fmt: skip


def show_lesson(visit: Visit) -> Response:
    """How a lesson goes: the part of the page that is asked for until it has ended."""
    id = visit.request.path_params["id"]
    facts = read_json_object(lesson_folder(find_datasets(visit.studio.folder), id) / LESSON_FILE)
    return visit.render(
        "_lesson.html.jinja", id=id, parent=facts.get("parent") or "", **describe_lesson(visit, id)
    )


@lru_cache(maxsize=1)
def open_taught(bundle: Path, _: int) -> Engine:
    """What answers for a run, as its bundle was at a time: the second argument."""
    return open_engine(bundle, threads=1)


def answer_taught(visit: Visit) -> Response:
    """What a taught run says of a picture, which is not kept: bars, a part of the page."""
    run = run_folder(visit.studio, visit.request.path_params["name"])
    config = run / "classifier" / "config.json"
    if not config.is_file():
        raise RequestError(404, "There is no such run, or it has not learned yet.")
    images = read_images(visit)
    if not images or not images[0]:
        raise RequestError(422, "The field 'image' has no file: choose a picture.")
    engine = open_taught(config.parent, config.stat().st_mtime_ns)
    top = len(engine.classes)
    found = engine.predict([PredictRequest(images[:1], top=top)], visit.studio.service.limits, exclusive=False)[0][
        0
    ]
    if not isinstance(found, RankedPrediction):
        raise found
    order = {name: place for place, name in enumerate(engine.classes)}
    bars = sorted(found.top, key=lambda one: order[one[0]])
    return visit.render("_bars.html.jinja", answer=found, bars=bars)


TEACH_PAGE = Page(
    "Teach",
    (
        PageRoute("GET", "/teach", show_teach, "admin"),
        PageRoute("POST", "/teach/images", receive_images, "admin"),
        PageRoute("POST", "/teach/rename", rename_taught, "admin"),
        PageRoute("POST", "/teach/start", start_lesson, "admin"),
        PageRoute("GET", "/teach/lesson/{id}", show_lesson, "admin"),
        PageRoute("POST", "/teach/answer/{name}", answer_taught, "admin"),
    ),
)
