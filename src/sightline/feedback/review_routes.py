"""The HTTP routes of the review queue, for keys of scope ``review``: they show queued images and take answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from ..errors import ChoiceError, JournalError
from ..journal import DatabaseUnavailable, UnknownPrediction
from ..serving import (
    JOURNAL_UNAVAILABLE_DETAIL,
    RequestError,
    Service,
    error_responses,
    require_journal,
    require_scope,
)
from .review import describe_shown, known_classes, review_answer, summarise_reviews

_ERRORS = error_responses(400, 401, 403, 404, 408, 413, 422, 503)

_IMAGE_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".tif": "image/tiff"}


class ReviewTurn(BaseModel):
    """Who asks for the next image."""

    model_config = ConfigDict(extra="forbid")

    by: str | None = Field(None, min_length=1, max_length=64, description="A name, where no key names the person.")
    second: bool = Field(False, description="Whether to give a second opinion on what another person answered.")


class ReviewAnswer(BaseModel):
    """What a person says of an answer."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=64)
    answer: str = Field(
        min_length=1, max_length=500, description="The right class, which may be new, none of these, or unusable."
    )
    followers: list[str] = Field([], max_length=50, description="Answers that get the same review.")
    new_class: bool = Field(False, description="Whether a class that looks like a known one is another thing.")
    by: str | None = Field(None, min_length=1, max_length=64)


def add_review_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of the queue to a service of a site."""
    site, needs = service.settings.path, require_scope(service, "review")
    guarded: Any = {"tags": ["review"], "responses": _ERRORS}

    @app.get("/review", dependencies=[needs], **guarded)
    def review() -> dict[str, Any]:
        """What waits, what was said, and the accuracy now."""
        with _http_errors():
            return summarise_reviews(site, journal=require_journal(service))

    @app.post("/review/next", **guarded)
    def review_next(turn: ReviewTurn, name: Annotated[str | None, needs]) -> dict[str, Any]:
        """The next image, shown to no one else for two minutes; ``id`` is null where none waits."""
        with _http_errors():
            journal = require_journal(service)
            leased = journal.lease(1, name or turn.by, second=turn.second)
            if not leased:
                return {"id": None}
            shown = leased[0]
            classes = known_classes(site, journal.reviews())
            return {**describe_shown(shown), "classes": classes, "image": f"/review/images/{shown.row.id}"}

    @app.post("/review/answers", **guarded)
    def review_answers(given: ReviewAnswer, name: Annotated[str | None, needs]) -> dict[str, Any]:
        """Record what a person says; another person's answer stays, as a second opinion."""
        with _http_errors():
            journal = require_journal(service)
            for id in (given.id, *given.followers):
                _require_queued(service, id)
            found = review_answer(
                journal, given.id, given.answer, classes=known_classes(site, journal.reviews()),
                by=name or given.by, followers=given.followers, new_class=given.new_class,
            )  # fmt: skip
            return {"reviews": [{"id": one.row.id, "kind": one.kind, "label": one.label} for one in found]}

    @app.get("/review/images/{id}", dependencies=[needs], response_class=Response, **guarded)
    def review_image(id: str) -> Response:
        """A queued image, without metadata."""
        with _http_errors():
            row = require_journal(service).find_row(_require_queued(service, id))
            path = require_journal(service).image_path(row)
            if path is None:
                raise RequestError(404, "The image of this answer is not kept any more.")
            return Response(path.read_bytes(), media_type=_IMAGE_TYPES[path.suffix])


def _require_queued(service: Service, id: str) -> str:
    """The id, if its answer is in the queue: a reviewer sees and labels nothing else. Raises RequestError."""
    if not require_journal(service).queued(waiting=False, id=id):
        raise RequestError(404, "There is no answer with this id in the queue.")
    return id


@contextmanager
def _http_errors() -> Iterator[None]:
    """Turn errors of the journal into those of HTTP."""
    try:
        yield
    except UnknownPrediction as error:
        raise RequestError(404, str(error)) from error
    except ChoiceError as error:
        raise RequestError(422, str(error)) from error
    except (DatabaseUnavailable, OSError) as error:
        raise RequestError(503, JOURNAL_UNAVAILABLE_DETAIL) from error
    except JournalError as error:
        raise RequestError(422, str(error)) from error
