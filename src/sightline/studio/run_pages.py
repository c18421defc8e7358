"""The pages of runs: how good a classifier is, the images of each cell of its confusion matrix, and its threshold."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray
from starlette.responses import Response

from ..continual import FLIPS_FILE, LEARNING_FILE
from ..errors import DataError
from ..evidence import load_evidence
from ..files import read_csv_rows, read_json_object
from ..metrics import wilson
from ..serving import RequestError
from ..sources import read_edit_file, sort_classes
from .datasets import Datasets, find_datasets
from .jobs import Job
from .visit import Page, PageRoute, Studio, Visit

RUNS_FOLDER = "runs"
"""Folder of the studio with the runs that it started."""
MAX_MATRIX_CLASSES = 40
"""Classes up to which the confusion matrix is drawn; beyond, its largest cells are listed."""
MAX_LISTED_CELLS = 30
THRESHOLD_STEPS = 100
_RUN_NAME = re.compile(r"[\w-][\w.-]{0,99}")
_REPORT_CSP = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
)


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """The predictions of a run for its test images."""

    files: ndarray
    labels: ndarray
    """Names of the true classes; ``predicted`` has those of the most likely ones."""
    predicted: ndarray
    confidence: Float64[ndarray, " N"]

    @property
    def correct(self) -> Bool[ndarray, " N"]:
        """Whether each prediction is right."""
        return self.labels == self.predicted

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Every class that is true or predicted somewhere."""
        return sort_classes({*self.labels, *self.predicted})

    @cached_property
    def confusion(self) -> Int64[ndarray, "K K"]:
        """Images of class i (row) predicted as class j (column)."""
        places = {name: i for i, name in enumerate(self.classes)}
        rows, columns = ([places[name] for name in names] for names in (self.labels, self.predicted))
        matrix = np.zeros((len(self.classes), len(self.classes)), np.int64)
        np.add.at(matrix, (rows, columns), 1)
        return matrix

    def cell(self, label: str, predicted: str) -> dict[str, str]:
        """The images of a cell, the most confident first: file -> what was predicted. Empty text is any class."""
        inside = np.ones(len(self.files), bool) if label or predicted else ~self.correct
        for wanted, names in ((label, self.labels), (predicted, self.predicted)):
            inside &= (names == wanted) if wanted else True
        order = np.flatnonzero(inside)
        order = order[np.argsort(-self.confidence[order], kind="stable")]
        return {str(self.files[i]): f"answered {self.predicted[i]} ({self.confidence[i]:.0%})" for i in order}

    def at_threshold(self, threshold: float) -> dict[str, Any]:
        """How many images are answered with at least this confidence, and how many of those wrongly."""
        answered = self.confidence >= threshold
        wrong = int((answered & ~self.correct).sum())
        return {
            "threshold": threshold,
            "answered": int(answered.sum()),
            "n": len(self.files),
            "coverage": float(answered.mean()),
            "wrong": wrong,
            "error": wilson(wrong, int(answered.sum())),
        }


def read_predictions(run: Path) -> PredictionTable | None:
    """The predictions in a run; None before it was evaluated."""
    path = run / "predictions.csv"
    try:
        return parse_predictions(path, path.stat().st_mtime_ns)
    except (OSError, KeyError, ValueError):
        return None


@lru_cache(maxsize=2)
def parse_predictions(path: Path, _: int) -> PredictionTable:
    """The predictions in a file as it was at a time: the second argument."""
    rows = read_csv_rows(path)
    files, labels, predicted = (
        np.array([r[name] for r in rows], object) for name in ("file", "label", "predicted")
    )
    return PredictionTable(files, labels, predicted, np.array([float(row["confidence"]) for row in rows]))


def run_folder(studio: Studio, name: str) -> Path:
    """The folder of a run of the studio; raise RequestError (404) for what is no name of one."""
    if not _RUN_NAME.fullmatch(name):
        raise RequestError(404, "There is no such run.")
    return studio.folder / RUNS_FOLDER / name


def find_training(studio: Studio, run: Path) -> Job | None:
    """The job that made a run, or makes it now; None where that is not known."""
    try:
        return studio.jobs.find(read_json_object(run.with_name(f"{run.name}.job"))["job"])
    except (DataError, KeyError, TypeError):
        return None


def read_learning(run: Path) -> dict[str, Any]:
    """What a run that learned more gained and lost: the outcome of the way that was kept; empty for other runs.

    ``sheet`` says whether there is a picture of the old answers that became wrong.
    """
    facts = read_json_object(run / LEARNING_FILE)
    outcomes = facts.get("outcomes") or ()
    kept = next((one for one in outcomes if one["strategy"] == facts.get("chosen")), None)
    return {} if kept is None else {**kept, "sheet": (run / FLIPS_FILE).is_file()}


def show_flips(visit: Visit) -> Response:
    """The images whose answers became wrong when a run learned more."""
    path = run_folder(visit.studio, visit.request.path_params["name"]) / FLIPS_FILE
    if not path.is_file():
        raise RequestError(404, "This run has no picture of answers that became wrong.")
    return Response(path.read_bytes(), media_type="image/png", headers={"cache-control": "private, no-cache"})


def find_dataset_id(datasets: Datasets, data: str) -> str:
    """The dataset of the studio that a run was trained on, or that has the same images; empty text for none."""
    for id, _ in datasets.list():
        path = datasets.path(id)
        if Path(data).resolve() == path.resolve():
            return id
    for id, _ in datasets.list():
        path = datasets.path(id)
        place = read_edit_file(path).place
        if data == place or (Path(data).exists() and (path.parent / place).resolve() == Path(data).resolve()):
            return id
    return ""


@dataclass(frozen=True)
class RunRow:
    """A run in the list."""

    name: str
    job: Job | None
    accuracy: dict[str, Any] | None
    """``value``, ``low`` and ``high``, of the test images."""
    at: float


def list_runs(visit: Visit) -> Response:
    """The runs, the newest first."""
    folder = visit.studio.folder / RUNS_FOLDER
    names = {path.stem for path in folder.glob("*.job")} | {
        path.parent.name for path in folder.glob("*/recipe.toml")
    }
    rows = []
    for name in names:
        run = folder / name
        report = read_json_object(run / "report.json")
        accuracy = report.get("evaluation", {}).get("intervals", {}).get("accuracy")
        place = run if run.exists() else run.with_name(f"{name}.job")
        rows.append(RunRow(name, find_training(visit.studio, run), accuracy, place.stat().st_mtime))
    return visit.render("runs.html.jinja", runs=sorted(rows, key=lambda row: -row.at))


def show_run(visit: Visit) -> Response:
    """A run: how it goes while it trains, how good it is after that."""
    run = run_folder(visit.studio, visit.request.path_params["name"])
    job, table = find_training(visit.studio, run), read_predictions(run)
    if not run.is_dir():
        if job is None:
            raise RequestError(404, "There is no such run.")
        return visit.render("training.html.jinja", name=run.name, job=job, chart=None)
    if job is not None and (job.active or table is None):
        return visit.render("training.html.jinja", name=run.name, job=job, chart=draw_history(run))
    evidence = load_evidence(run)
    evaluation = evidence.report.get("evaluation") or {}
    data = str(evidence.recipe.get("data") or "")
    dataset = find_dataset_id(find_datasets(visit.studio.folder), data)
    return visit.render(
        "run.html.jinja",
        name=run.name,
        run=run,
        job=job,
        data=data,
        dataset=dataset,
        evaluation=evaluation,
        table=table,
        cells=None if table is None else largest_cells(table),
        point=None if table is None else table.at_threshold(read_threshold(visit)),
        curve=None if table is None else draw_thresholds(table),
        has_report=(run / "report.html").is_file(),
        small=MAX_MATRIX_CLASSES,
        notes=evidence.notes,
        chart=draw_history(run),
        learning=read_learning(run),
    )


def largest_cells(table: PredictionTable) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: true class, predicted class, number."""
    wrong = table.confusion - np.diag(np.diag(table.confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_LISTED_CELLS]
    pairs = [divmod(int(cell), len(wrong)) for cell in order]
    return [(table.classes[i], table.classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def read_threshold(visit: Visit) -> float:
    """The threshold in the address, in [0, 1]."""
    return visit.number("threshold", 0, high=THRESHOLD_STEPS) / THRESHOLD_STEPS


def show_threshold(visit: Visit) -> Response:
    """What a threshold does: the part of a run's page that follows the slider."""
    run = run_folder(visit.studio, visit.request.path_params["name"])
    if (table := read_predictions(run)) is None:
        raise RequestError(404, "This run has no predictions: it was not evaluated.")
    point = table.at_threshold(read_threshold(visit))
    if "hx-request" not in visit.request.headers:
        return visit.redirect(f"/runs/{run.name}?threshold={visit.number('threshold', 0)}")
    return visit.render("_threshold.html.jinja", point=point, curve=draw_thresholds(table))


def show_report(visit: Visit) -> Response:
    """The report of a run, as it was written."""
    path = run_folder(visit.studio, visit.request.path_params["name"]) / "report.html"
    if not path.is_file():
        raise RequestError(404, "This run has no report yet.")
    return Response(
        path.read_bytes(), media_type="text/html; charset=utf-8", headers={"content-security-policy": _REPORT_CSP}
    )


def show_progress(visit: Visit) -> Response:
    """The curves of a run that trains: the part of its page that is asked for again and again."""
    run = run_folder(visit.studio, visit.request.path_params["name"])
    job = find_training(visit.studio, run)
    if job is None:
        raise RequestError(404, "There is no such run.")
    response = visit.render("_training.html.jinja", name=run.name, job=job, chart=draw_history(run))
    if not job.active:
        response.headers["hx-refresh"] = "true"
    return response


# charts: points of SVG lines in a box of 600 x 200


@dataclass(frozen=True)
class Chart:
    """Lines in a box of 600 x 200 units."""

    lines: tuple[tuple[str, str], ...]
    """Name and points of each line, for ``<polyline>``."""
    high: str
    """What the top of the box is; the bottom is 0."""
    ends: tuple[str, str]
    """What the left and the right end are."""
    words: str
    """What the lines show, for those who do not see them."""


def draw_line(x: Sequence[float], y: Sequence[float]) -> str:
    """The points of a line; x and y in [0, 1]."""
    return " ".join(f"{600 * a:.1f},{200 - 200 * b:.1f}" for a, b in zip(x, y, strict=True))


def draw_history(run: Path) -> Chart | None:
    """Accuracy on validation images and losses by epoch; None before the first one."""
    rows = [] if not (run / "history.csv").is_file() else read_csv_rows(run / "history.csv")
    accuracy = [float(row.get("val_accuracy") or "nan") for row in rows]
    if not rows or np.isnan(accuracy).all():
        return None
    x = [i / max(1, len(rows) - 1) for i in range(len(rows))]
    lines, losses = [("accuracy", draw_line(x, np.nan_to_num(accuracy).tolist()))], []
    for name in ("train_loss", "val_loss"):
        values = np.array([float(row.get(name) or "nan") for row in rows])
        if np.isfinite(values).all():
            losses.append((name.replace("_", "-"), values))
    highest = max((float(values.max()) for _, values in losses), default=1.0) or 1.0
    lines += [(name, draw_line(x, (values / highest).clip(0, 1).tolist())) for name, values in losses]
    words = (
        f"After {len(rows)} epoch{'s'[: len(rows) != 1]}: {accuracy[-1]:.1%} of the validation images are right; "
        f"the best was {np.nanmax(accuracy):.1%}."
    )
    high = f"100 %, or a loss of {highest:.2g}"
    return Chart(tuple(lines), high, ("epoch 1", f"epoch {len(rows)}" if len(rows) > 1 else ""), words)


def draw_thresholds(table: PredictionTable) -> Chart:
    """Share answered, and share right among the answered, by threshold."""
    steps = np.arange(THRESHOLD_STEPS + 1) / THRESHOLD_STEPS
    points = [table.at_threshold(step) for step in steps.tolist()]
    right = [1 - point["wrong"] / point["answered"] if point["answered"] else 1.0 for point in points]
    lines = (
        ("coverage", draw_line(steps.tolist(), [point["coverage"] for point in points])),
        ("right", draw_line(steps.tolist(), right)),
    )
    words = "Share of images answered, and share of answers that are right, by threshold."
    return Chart(lines, "100 %", ("threshold 0 %", "100 %"), words)


RUNS_PAGE = Page(
    "Trust",
    (
        PageRoute("GET", "/runs", list_runs, "review"),
        PageRoute("GET", "/runs/{name}", show_run, "review"),
        PageRoute("GET", "/runs/{name}/threshold", show_threshold, "review"),
        PageRoute("GET", "/runs/{name}/report", show_report, "review"),
        PageRoute("GET", "/runs/{name}/progress", show_progress, "review"),
        PageRoute("GET", "/runs/{name}/flips", show_flips, "review"),
    ),
)
