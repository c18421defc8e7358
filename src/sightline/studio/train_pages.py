"""The pages that train and ship: a few plain choices, what they will cost, and what is made of a finished run."""

from pathlib import Path

from starlette.responses import FileResponse, Response

from ..files import explain_write_errors, write_json
from ..serving import RequestError
from .datasets import find_datasets
from .jobs import Job
from .run_pages import RUNS_FOLDER, find_training, read_predictions, run_folder
from .visit import Page, PageRoute, Studio, Visit

BUDGETS = {
    "30s": "half a minute",
    "2m": "two minutes",
    "10m": "ten minutes",
    "30m": "half an hour",
    "2h": "two hours",
}
"""Time budgets to choose from, and their names."""
STARTS = {
    "": "chosen by the images",
    "photos": "a network that knows photos (EfficientNet-Lite0)",
    "scratch": "an empty network",
}
"""Where training starts from."""
COMPRESSIONS = {
    "int8": "8-bit numbers: a quarter of the size, seldom less accurate",
    "channels:0.5": "half of the work: channels that matter least are left out, then it learns on",
    "lowrank": "layers as products of thinner ones, then it learns on",
}
"""Compressors to choose from."""
EXPORTS = {"onnx": ".onnx", "torch": ".pt2"}
"""Formats to download, and their suffixes."""


def train_words(visit: Visit) -> list[str]:
    """The command that the form of the page means; raise RequestError (422) for what it does not offer."""
    datasets, id = find_datasets(visit.studio.folder), visit.text("data")
    if not id:
        raise RequestError(422, "Choose images to train on: bring some on the page Data first.")
    budget, start = visit.text("budget", "2m"), visit.text("start")
    if budget not in BUDGETS or start not in STARTS:
        raise RequestError(422, "Choose a time budget and a start from those on the page.")
    words = ["train", str(datasets.path(id)), f"--budget={budget}"]
    if start == "photos":
        words.append("--quality=standard")
    elif start == "scratch":
        words.append("--from-scratch")
    return words


def free_run(studio: Studio, stem: str) -> Path:
    """The folder of a new run: the first free name of a dataset's, the name with 2, with 3, ..."""
    folder, number = studio.folder / RUNS_FOLDER, 1
    while True:
        run = folder / (stem if number == 1 else f"{stem}-{number}")
        if not run.exists() and not run.with_name(f"{run.name}.job").exists():
            return run
        number += 1


def show_train(visit: Visit) -> Response:
    """The choices, the command that they mean, and what it would cost."""
    datasets = find_datasets(visit.studio.folder)
    known = datasets.list()
    chosen = visit.text("data") or (known[0][0] if known else "")
    plan = None
    if visit.text("plan"):
        plan = visit.studio.jobs.find(visit.text("plan"))
    words = []
    if known and chosen in dict(known):
        words = ["train", str(datasets.path(chosen)), f"--budget={visit.text('budget', '2m')}"]
    return visit.render(
        "train.html.jinja", datasets=known, chosen=chosen, budgets=BUDGETS, budget=visit.text("budget", "2m"),
        starts=STARTS, start=visit.text("start"), words=words, plan=plan, running=has_training(visit.studio),
    )  # fmt: skip


def has_training(studio: Studio) -> bool:
    """Whether another training runs, so that a new one waits."""
    return any(job.queued for job in studio.jobs.latest(active=True))


def show_train_command(visit: Visit) -> Response:
    """The command for the current values of the form: a part of the page."""
    return visit.render("_command.html.jinja", words=train_words(visit))


def show_plan(visit: Visit) -> Response:
    """What a training would cost: the part of the page that waits for it."""
    return visit.render("_plan.html.jinja", plan=visit.studio.jobs.find(visit.request.path_params["id"]))


def start_plan(visit: Visit) -> Response:
    """Estimate what a training would cost, as a job."""
    words = [*train_words(visit), "--dry-run"]
    job = visit.studio.jobs.start(words, title="What training will cost", back="/train", by=visit.session.name)
    asked = "&".join(f"{name}={visit.text(name)}" for name in ("data", "budget", "start") if visit.text(name))
    return visit.redirect(f"/train?{asked}&plan={job.id}")


def start_run(studio: Studio, run: Path, words: list[str], *, by: str) -> Job:
    """Start a job that makes a run, or goes on with one, and remember which run it is."""
    job = studio.jobs.start(
        words, title=f"Train {run.name}", back=f"/runs/{run.name}", by=by, queued=True,
        resume_words=["train", f"--resume={run}"],
    )  # fmt: skip
    with explain_write_errors(run):
        run.parent.mkdir(parents=True, exist_ok=True)
    write_json(run.with_name(f"{run.name}.job"), {"job": job.id})
    return job


def begin_training(visit: Visit) -> Response:
    """Train, and show how it goes."""
    words = train_words(visit)
    run = free_run(visit.studio, Path(words[1]).stem)
    start_run(visit.studio, run, [*words, f"--out={run}"], by=visit.session.name)
    return visit.redirect(f"/runs/{run.name}")


def go_on_training(visit: Visit) -> Response:
    """Go on with a training that was stopped."""
    run = run_folder(visit.studio, visit.request.path_params["name"])
    job = find_training(visit.studio, run)
    if job is not None and job.active:
        raise RequestError(409, "This training runs already: its page shows how it goes.")
    words = ["train", f"--resume={run}"] if (run / "last.ckpt").exists() or job is None else [*job.words]
    start_run(visit.studio, run, words, by=visit.session.name)
    return visit.redirect(f"/runs/{run.name}")


def take_best(visit: Visit) -> Response:
    """Make the best epoch so far the classifier of a run; one that still trains is stopped first."""
    run = run_folder(visit.studio, visit.request.path_params["name"])
    job = find_training(visit.studio, run)
    if job is None or not (run / "last.ckpt").exists():
        raise RequestError(409, "There is nothing to take yet: training has not begun.")
    if job.active:
        visit.studio.jobs.stop(job.id)
    words = ["train", f"--resume={run}", "--take-best"]  # queued: it waits until the training has ended
    start_run(visit.studio, run, words, by=visit.session.name)
    return visit.redirect(f"/runs/{run.name}")


# shipping


def find_finished(visit: Visit) -> Path:
    """The run that the address names; raise RequestError (404, 409) where it is none that was tested."""
    run = run_folder(visit.studio, visit.request.path_params["name"])
    if not run.is_dir():
        raise RequestError(404, "There is no such run.")
    if read_predictions(run) is None:
        raise RequestError(409, f"'{run.name}' was not tested yet: wait until its training has ended.")
    return run


def exported_path(run: Path, to: str) -> Path:
    """Where a run is exported to; raise RequestError (422) for an unknown format."""
    if to not in EXPORTS:
        raise RequestError(422, f"There is no format '{to[:20]}': choose {' or '.join(EXPORTS)}.")
    return run.parent.with_name("exports") / f"{run.name}{EXPORTS[to]}"


def compress_words(run: Path, small: Path, by: str) -> list[str]:
    """The command that makes a smaller classifier; raise RequestError (422) for an unknown way."""
    if by not in COMPRESSIONS:
        raise RequestError(422, "Choose one of the ways to compress on the page.")
    return ["compress", str(run), f"--by={by}", f"--out={small}"]


def show_ship(visit: Visit) -> Response:
    """What a run can become: a release, a file, a smaller classifier; and how to call it."""
    run = find_finished(visit)
    small = free_run(visit.studio, f"{run.name}-small")
    key = visit.studio.service.requires_key
    return visit.render(
        "ship.html.jinja", name=run.name, compressions=COMPRESSIONS, formats=EXPORTS,
        exported=[to for to in EXPORTS if exported_path(run, to).is_file()],
        publish=["releases", str(visit.site), "publish", str(run)],
        compress=compress_words(run, small, "int8"),
        export=["export", str(run), "--to=onnx", f"--out={exported_path(run, 'onnx')}"],
        snippet=client_snippet(str(visit.request.base_url).rstrip("/"), key=key),
        curl=curl_snippet(str(visit.request.base_url).rstrip("/"), key=key),
        release=visit.studio.service.release,
    )  # fmt: skip


def client_snippet(url: str, *, key: bool) -> str:
    """Python that asks the service for predictions."""
    given = ', key="sl_..."' if key else ""
    return (
        "from sightline.serving import Client\n\n"
        f'client = Client("{url}"{given})\n'
        'for answer in client.predict(["photo.jpg"]):\n'
        "    print(answer.label, answer.confidence)\n"
    )


def curl_snippet(url: str, *, key: bool) -> str:
    """A command that asks the service for a prediction."""
    given = "-H 'Authorization: Bearer sl_...' " if key else ""
    return f"curl {given}--data-binary @photo.jpg -H 'Content-Type: image/jpeg' {url}/predict"


def start_publishing(visit: Visit) -> Response:
    """Publish a run as the next release, which answers from then on."""
    run = find_finished(visit)
    words = ["releases", str(visit.site), "publish", str(run)]
    job = visit.studio.jobs.start(
        words, title=f"Publish {run.name}", back="/live", by=visit.session.name, queued=True
    )
    return visit.redirect(f"/jobs/{job.id}")


def start_export(visit: Visit) -> Response:
    """Export a run to one file, as a job."""
    run, to = find_finished(visit), visit.text("to", "onnx")
    path = exported_path(run, to)
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    words = ["export", str(run), f"--to={to}", f"--out={path}", "--overwrite"]
    job = visit.studio.jobs.start(
        words, title=f"Export {run.name}", back=f"/runs/{run.name}/ship", by=visit.session.name, resume_words=words
    )
    return visit.redirect(f"/jobs/{job.id}")


def download_export(visit: Visit) -> Response:
    """An exported file."""
    path = exported_path(
        run_folder(visit.studio, visit.request.path_params["name"]), visit.request.path_params["to"]
    )
    if not path.is_file():
        raise RequestError(404, "This run was not exported to that format yet.")
    return FileResponse(path, filename=path.name, media_type="application/octet-stream")


def start_compression(visit: Visit) -> Response:
    """Make a smaller classifier, as a job: a run of its own."""
    run = find_finished(visit)
    small = free_run(visit.studio, f"{run.name}-small")
    words = compress_words(run, small, visit.text("by", "int8"))
    job = visit.studio.jobs.start(
        words, title=f"Compress {run.name}", back=f"/runs/{small.name}", by=visit.session.name, queued=True,
        resume_words=words,
    )  # fmt: skip
    write_json(small.with_name(f"{small.name}.job"), {"job": job.id})
    return visit.redirect(f"/runs/{small.name}")


TRAIN_PAGE = Page(
    "Train",
    (
        PageRoute("GET", "/train", show_train, "admin"),
        PageRoute("POST", "/train", begin_training, "admin"),
        PageRoute("POST", "/train/command", show_train_command, "admin"),
        PageRoute("POST", "/train/plan", start_plan, "admin"),
        PageRoute("GET", "/train/plan/{id}", show_plan, "admin"),
        PageRoute("POST", "/runs/{name}/go-on", go_on_training, "admin"),
        PageRoute("POST", "/runs/{name}/take", take_best, "admin"),
        PageRoute("GET", "/runs/{name}/ship", show_ship, "admin"),
        PageRoute("POST", "/runs/{name}/publish", start_publishing, "admin"),
        PageRoute("POST", "/runs/{name}/export", start_export, "admin"),
        PageRoute("GET", "/runs/{name}/exported/{to}", download_export, "admin"),
        PageRoute("POST", "/runs/{name}/compress", start_compression, "admin"),
    ),
)
