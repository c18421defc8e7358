"""The page that tries an image: what the current release answers, how sure it is, why, and what it resembles."""

from typing import Any

from starlette.datastructures import UploadFile
from starlette.responses import Response

from ..errors import SightlineError
from ..pictures import data_url, thumbnail
from ..serving import PredictRequest, RankedPrediction, RequestError
from .visit import Page, PageRoute, Visit

MAX_SHOWN_ANSWERS = 5
"""Classes that are shown with their probabilities."""


def show_try(visit: Visit) -> Response:
    """Where to drop an image."""
    return visit.render("try.html.jinja", release=visit.studio.service.release, answer=None)


def try_image(visit: Visit) -> Response:
    """The answer to one image, which is not kept: a part of the page for htmx, else the page with it."""
    service = visit.studio.service
    if service.release is None:
        raise RequestError(404, "Nothing answers yet: publish a run first.")
    given = visit.form.get("image")
    data = b""
    if isinstance(given, UploadFile):
        with given.file as stream:
            data = stream.read()
    if not data:
        raise RequestError(422, "The field 'image' has no file: choose a picture.")
    engine = service.engine
    found = engine.predict([PredictRequest([data], top=MAX_SHOWN_ANSWERS)], service.limits, exclusive=False)[0][0]
    if not isinstance(found, RankedPrediction):
        raise found
    facts: dict[str, Any] = {"heat": "", "neighbours": None, "why": ""}
    try:
        facts["heat"] = service.heatmaps.draw(engine, [found])[0]
    except RequestError as error:
        facts["why"] = error.detail
    try:
        facts["neighbours"] = visit.studio.neighbours.nearest(found.pixels)
    except SightlineError as error:
        facts["why"] = str(error)
    part = "hx-request" in visit.request.headers
    return visit.render(
        "_answer.html.jinja" if part else "try.html.jinja", release=service.release, answer=found,
        picture=data_url(thumbnail(found.pixels, most=224)), threshold=engine.threshold, **facts,
    )  # fmt: skip


TRY_PAGE = Page(
    "Try", (PageRoute("GET", "/try", show_try, "review"), PageRoute("POST", "/try", try_image, "review"))
)
