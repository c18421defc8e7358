"""The pages of jobs: all of them, and one as it goes on."""

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.responses import Response, StreamingResponse

from ..errors import DataError
from ..serving import RequestError
from .actions import ACTIONS
from .jobs import Job
from .live_pages import DECISION_WORDS
from .sessions import SignInNeeded
from .visit import Page, PageRoute, Visit, job_progress

SHEET_FILE = "sheet.png"
"""In the folder of a job: the picture that it made."""

EVENT_SECONDS = 0.5
"""Seconds between two looks at a log."""

PING_SECONDS = 15.0
"""Seconds of silence after which a comment is sent, so that a closed tab is noticed."""


def list_jobs(visit: Visit) -> Response:
    """The latest jobs."""
    return visit.render("jobs.html.jinja", jobs=visit.studio.jobs.latest())


def _find_job(visit: Visit) -> Job:
    try:
        return visit.studio.jobs.find(visit.request.path_params["id"])
    except DataError as error:
        raise RequestError(404, str(error)) from error


def show_job(visit: Visit) -> Response:
    """One job: its command, its log, what it came to."""
    job = _find_job(visit)
    lines, position = job.log()
    action = ACTIONS.get(job.action)
    result = {} if job.active else job.result
    return visit.render(
        "job.html.jinja", job=job, lines=lines, position=position, progress=job_progress(job), result=result,
        shown=action.result if action and result else "", words=DECISION_WORDS,
        sheet=visit.session.allows("review") and (job.folder / SHEET_FILE).is_file(),
    )  # fmt: skip


def show_sheet(visit: Visit) -> Response:
    """The picture that a job made."""
    path = _find_job(visit).folder / SHEET_FILE
    if not path.is_file():
        raise RequestError(404, "This job made no picture.")
    return Response(path.read_bytes(), media_type="image/png")


def stream_job(visit: Visit) -> Response:
    """The log of a job as it grows, as server-sent events: ``log`` with lines, ``state``, and ``end``."""
    job = _find_job(visit)
    known = visit.request.headers.get("last-event-id") or visit.text("from", "0")
    start = int(known) if known.isascii() and known.isdigit() and len(known) < 15 else 0
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(job_events(visit, job.id, start), media_type="text/event-stream", headers=headers)


async def job_events(visit: Visit, id: str, position: int) -> AsyncIterator[str]:
    """Server-sent events of a job from byte ``position`` of its log, until it has ended or nobody is signed in."""
    jobs, service, silence, before = visit.studio.jobs, visit.studio.service, 0.0, ""
    while service.ready and not await visit.request.is_disconnected():
        try:
            await asyncio.to_thread(visit.studio.sessions.find, visit.request)
        except SignInNeeded:  # the key was revoked meanwhile
            return
        job = await asyncio.to_thread(jobs.find, id)
        lines, position = await asyncio.to_thread(job.log, position)
        state = json.dumps(job_progress(job))
        if lines:
            yield f"id: {position}\nevent: log\ndata: {json.dumps(lines)}\n\n"
        if state != before:
            yield f"event: state\ndata: {state}\n\n"
        if not job.active:
            yield "event: end\ndata: {}\n\n"
            return
        silence = 0.0 if lines or state != before else silence + EVENT_SECONDS
        if silence >= PING_SECONDS:
            yield ": still here\n\n"
            silence = 0.0
        before = state
        await asyncio.sleep(EVENT_SECONDS)


def stop_job(visit: Visit) -> Response:
    """Ask a job to save its work and end."""
    visit.studio.jobs.stop(_find_job(visit).id)
    return visit.redirect(f"/jobs/{visit.request.path_params['id']}")


def resume_job(visit: Visit) -> Response:
    """Go on where a job ended."""
    best = bool(visit.text("take_best"))
    job = visit.studio.jobs.resume(_find_job(visit).id, by=visit.session.name, take_best=best)
    return visit.redirect(f"/jobs/{job.id}")


JOBS_PAGE = Page(
    "Jobs",
    (
        PageRoute("GET", "/jobs", list_jobs),
        PageRoute("GET", "/jobs/{id}", show_job),
        PageRoute("GET", "/jobs/{id}/events", stream_job),
        PageRoute("GET", "/jobs/{id}/sheet", show_sheet, "review"),
        PageRoute("POST", "/jobs/{id}/stop", stop_job, "admin"),
        PageRoute("POST", "/jobs/{id}/resume", resume_job, "admin"),
    ),
)
