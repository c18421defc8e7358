"""The page that tries an image: what the current release answers, how sure it is, why, and what it resembles."""

import hashlib
import time
from typing import Any

from starlette.datastructures import UploadFile
from starlette.responses import Response

from ..continual import looks_alike
from ..errors import ChoiceError, SightlineError
from ..feedback import known_classes, review_answer
from ..journal import PredictionRecord, new_prediction_id
from ..pictures import data_url, thumbnail
from ..serving import PredictRequest, RankedPrediction, RequestError
from .visit import Page, PageRoute, Visit

MAX_SHOWN_ANSWERS = 5
"""Classes that are shown with their probabilities."""


def show_try(visit: Visit) -> Response:
    """Where to drop an image."""
    return visit.render("try.html.jinja", release=visit.studio.service.release, answer=None)


def try_image(visit: Visit) -> Response:
    """The answer to one image: a part of the page for htmx, else the page with it.

    The image is not kept, unless the field ``add`` says so: then the field ``word`` is its class, from which
    ``improve`` learns.
    """
    service = visit.studio.service
    if service.release is None:
        raise RequestError(404, "Nothing answers yet: publish a run first.")
    given = visit.form.get("image")
    data = given.file.read() if isinstance(given, UploadFile) else b""
    if not data:
        raise RequestError(422, "The field 'image' has no file: choose a picture.")
    engine = service.engine
    found = engine.predict([PredictRequest([data], top=MAX_SHOWN_ANSWERS)], service.limits, exclusive=False)[0][0]
    if not isinstance(found, RankedPrediction):
        raise found
    facts: dict[str, Any] = {"heat": "", "neighbours": None, "why": "", "added": "", "problem": "", "word": ""}
    try:
        facts["heat"] = service.heatmaps.draw(engine, [found])[0]
    except RequestError as error:
        facts["why"] = error.detail
    try:
        facts["neighbours"] = visit.studio.neighbours.nearest(found.pixels)
    except SightlineError as error:
        facts["why"] = str(error)
    can_add = service.journal is not None and service.settings.keep_images
    classes = known_classes(visit.site, visit.journal.reviews()) if can_add else ()
    if visit.text("add") and can_add:
        facts["word"] = visit.text("word").strip()
        try:
            facts["added"] = add_to_data(visit, found, data, classes)
        except ChoiceError as error:
            facts["problem"] = str(error)
    part = "hx-request" in visit.request.headers
    return visit.render(
        "_answer.html.jinja" if part else "try.html.jinja", release=service.release, answer=found, classes=classes,
        picture=data_url(thumbnail(found.pixels, most=224)), threshold=engine.threshold, **facts,
    )  # fmt: skip


def add_to_data(visit: Visit, found: RankedPrediction, data: bytes, classes: tuple[str, ...]) -> str:
    """Keep a tried image with the class that a person gives it, as a reviewed answer; return the class.

    It has no sketch: what is tried is no traffic, and no sign of a drift. Raises ChoiceError for a probable slip.
    """
    journal, id = visit.journal, new_prediction_id()
    word = visit.text("word").strip()
    if not word:
        raise ChoiceError("Say what it is: choose a class, or type the name of a new one.")
    meant = next((one for one in classes if looks_alike(word, one)), None)
    if word not in classes and meant is not None and visit.text("add") != "new":
        raise ChoiceError(f"There is no class '{word}', but a class '{meant}': write that, or say that it is new.")
    digest = hashlib.sha256(data).hexdigest()
    journal.record(
        [PredictionRecord(id, time.time(), visit.studio.service.engine.release, found.label, found.confidence,
                          found.abstained, digest, image=data)]
    )  # fmt: skip
    journal.flush()
    said = review_answer(journal, id, word, classes=classes, by=visit.session.name, new_class=True)
    return said[0].label or word


TRY_PAGE = Page(
    "Try", (PageRoute("GET", "/try", show_try, "review"), PageRoute("POST", "/try", try_image, "review"))
)
