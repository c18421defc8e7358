"""The routes of the service, by FastAPI, behind ``PredictASGI``."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from .. import runtime
from ..errors import JournalError
from ..journal import DatabaseUnavailable, UnknownPrediction
from . import releases
from .api_keys import Unauthorized
from .asgi import INTERNAL_ERROR_DETAIL, PredictASGI, error_response
from .monitor import log_event
from .openapi import PREDICT_OPENAPI, OpenAPISchema, render_docs_page
from .requests import RequestError
from .service import JOURNAL_UNAVAILABLE_DETAIL, Service

if TYPE_CHECKING:
    from ..journal import Journal

MAX_LISTED_PREDICTIONS = 1000
"""Predictions that one request may list."""

MODEL_FACTS = ("runtime", "model", "sightline", "time", "note", "metrics", "onnx")
"""Facts of a release that ``GET /model`` shows."""

RELEASE_FACTS = ("time", "by", "note", "sightline", "metrics", "classes")
"""Facts of a release that ``GET /releases`` shows."""

_STATUS_DESCRIPTIONS = {
    400: "Malformed",
    401: "No key, or a wrong or expired one",
    403: "The key does not allow this",
    404: "Not found",
    408: "The body did not arrive in time",
    409: "Not promoted: damaged, or of a newer format",
    413: "Too large: bytes, pixels or images",
    415: "Not an image",
    422: "Not understood",
    503: "Not available at the moment: try again",
}


class Problem(BaseModel):
    """Why there is no answer, in one sentence."""

    detail: str


class FeedbackRequest(BaseModel):
    """The right label of a prediction."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=64, description="The prediction's id, as /predict returned it.")
    label: str = Field(min_length=1, max_length=500, description="The right class: one of /classes, or a new one.")
    new_class: bool = Field(False, description="Whether the label is a class that does not exist yet.")


class FeedbackResponse(BaseModel):
    """A correction that is in the journal."""

    id: str
    label: str
    already: bool = Field(description="Whether this label was the latest correction already: nothing was added.")


class PredictionQuery(BaseModel):
    """Which predictions to list; conditions are joined by AND."""

    limit: int = Field(100, ge=1, le=MAX_LISTED_PREDICTIONS)
    before: str | None = Field(None, max_length=64, description="Only ids before this one: the next page.")
    label: str | None = Field(None, max_length=500)
    release: int | None = Field(None, ge=0, le=2**31 - 1)
    abstained: bool | None = None
    corrected: bool | None = None
    since: float | None = Field(None, ge=0, le=1e11, description="Seconds since 1970")
    until: float | None = Field(None, ge=0, le=1e11, description="Seconds since 1970")


class JournalledPrediction(BaseModel):
    """A prediction as the journal stores it."""

    model_config = ConfigDict(extra="allow")

    id: str
    at: float
    release: int
    label: str
    correction: str | None


class PredictionPage(BaseModel):
    """Predictions, the newest first; ``before`` asks for the next page."""

    predictions: list[JournalledPrediction]
    before: str | None


def create_app(service: Service) -> Any:
    """Return the ASGI application of an opened service."""
    app = FastAPI(
        title="Sightline", version=runtime.version(), docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.openapi = OpenAPISchema(app, service)  # type: ignore[method-assign]  FastAPI's documented way
    application = PredictASGI(service, app)
    _add_error_handlers(app)
    _add_model_routes(app, service)
    _add_prediction_routes(app, service, application)
    _add_site_routes(app, service)
    for add in service.settings.routers if service.settings.has_releases else ():
        add(app, service)
    if not service.settings.origins:
        return application
    return CORSMiddleware(
        application,
        allow_origins=service.settings.origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "X-API-Key", "Content-Type", "Sightline-Subject"),
    )


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of a route's errors."""
    return {status: {"model": Problem, "description": _STATUS_DESCRIPTIONS[status]} for status in statuses}


def require_scope(service: Service, scope: str) -> Any:
    """Return a dependency that requires a key with ``scope``; its value is the key's name."""

    async def key_name(request: Request) -> str | None:
        return service.authorize(dict(request.scope["headers"]), scope)

    return Depends(key_name)


def require_journal(service: Service) -> "Journal":
    """Return the journal; raise RequestError (404) if the service keeps none."""
    if service.journal is None:
        raise RequestError(404, "This service keeps no journal: serve a site, or start it with --journal.")
    return service.journal


def _add_error_handlers(app: FastAPI) -> None:
    """Make every error ``{"detail": one sentence}``."""

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError | Unauthorized)
        status, headers, body = error_response(error)
        named = {name.decode(): value.decode() for name, value in headers}
        return Response(body, status, headers=named, media_type="application/json")

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return JSONResponse({"detail": "The body is not JSON."}, 400)
        where = ".".join(str(part) for part in first["loc"][1:])[:100] or "body"
        return JSONResponse({"detail": f"The field {where} is wrong: {first['msg']}."}, 422)

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        details = {404: "There is no such page.", 405: "That method is not allowed here."}
        detail = details.get(error.status_code) or str(error.detail)
        return JSONResponse({"detail": detail}, error.status_code, headers=error.headers)

    async def internal_error(_: Request, error: Exception) -> Response:
        del error  # PredictASGI logs it
        return JSONResponse({"detail": INTERNAL_ERROR_DETAIL}, 500)

    app.add_exception_handler(RequestError, refused)
    app.add_exception_handler(Unauthorized, refused)
    app.add_exception_handler(Exception, internal_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)


def _add_model_routes(app: FastAPI, service: Service) -> None:
    read = [require_scope(service, "read")]

    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        text, policy = render_docs_page(app.openapi(), service.engine, str(request.base_url).rstrip("/"))
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/healthz", tags=["state"], summary="Whether the process is alive")
    async def healthz() -> dict[str, bool]:
        return {"alive": True}

    @app.get("/readyz", tags=["state"], summary="Whether it answers now", responses=error_responses(503))
    async def readyz() -> dict[str, Any]:
        if not service.ready:
            raise RequestError(503, "The service is stopping.")
        if service.batcher.full:
            raise RequestError(503, "Too many requests are waiting.")
        return {"ready": True, "release": service.engine.release}

    @app.get(
        "/metrics", tags=["state"], dependencies=read, responses=error_responses(401, 403), response_class=Response
    )
    def metrics() -> Response:
        """Metrics for Prometheus, of all workers."""
        text = service.monitor.prometheus_text()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/classes", tags=["model"], dependencies=read, responses=error_responses(401, 403))
    async def classes() -> dict[str, Any]:
        """The names of the classes, in order."""
        return {"release": service.engine.release, "classes": list(service.engine.classes)}

    @app.get("/model", tags=["model"], dependencies=read, responses=error_responses(401, 403))
    async def model() -> dict[str, Any]:
        """What answers: its geometry, its threshold, its measured metrics."""
        engine, limits = service.engine, service.limits
        return {
            "release": engine.release,
            "classes": len(engine.classes),
            "geometry": engine.geometry.as_json(),
            "threshold": engine.threshold,
            **{name: engine.facts[name] for name in MODEL_FACTS if name in engine.facts},
            "largest_batch": engine.tuning.max_batch,
            "limits": {"body_mb": limits.body_mb, "pixels": limits.pixels, "images": limits.images},
        }


def _add_prediction_routes(app: FastAPI, service: Service, application: PredictASGI) -> None:
    errors = error_responses(400, 401, 403, 408, 413, 415, 422, 503)

    @app.post(
        "/predict", tags=["answers"], responses=errors, openapi_extra=PREDICT_OPENAPI, response_class=Response
    )
    async def predict(request: Request) -> Response:
        """Classify one or many images: raw bytes, a form with files, or base64 in JSON."""
        # PredictASGI answers this route itself; this one where FastAPI's app is mounted alone
        body = await application.predict(request.scope, request.receive)
        return Response(body, media_type="application/json")

    key_name = require_scope(service, "feedback")

    @app.post("/feedback", tags=["answers"], responses=error_responses(400, 401, 403, 404, 408, 413, 422, 503))
    def feedback(given: FeedbackRequest, name: Annotated[str | None, key_name]) -> FeedbackResponse:
        """Report the right label of a prediction; reporting it again adds nothing."""
        if given.label not in service.engine.classes and not given.new_class:
            raise RequestError(
                422,
                f"There is no class {given.label[:60]!r}: GET /classes lists them; new_class names another one.",
            )
        try:
            found = require_journal(service).correct(given.id, given.label, by=name)
        except UnknownPrediction as error:
            raise RequestError(404, "There is no prediction with this id.") from error
        except JournalError as error:
            log_event("journal", error=str(error))
            raise RequestError(503, JOURNAL_UNAVAILABLE_DETAIL) from error
        return FeedbackResponse(id=found.id, label=found.label, already=found.already)


def _add_site_routes(app: FastAPI, service: Service) -> None:
    read, admin = require_scope(service, "read"), require_scope(service, "admin")

    @app.get(
        "/predictions", tags=["journal"], dependencies=[read], responses=error_responses(401, 403, 404, 422, 503)
    )
    def predictions(query: Annotated[PredictionQuery, Query()]) -> PredictionPage:
        """What was answered, and the corrections."""
        try:
            rows = require_journal(service).predictions(**query.model_dump())
        except DatabaseUnavailable as error:
            log_event("journal", error=str(error))
            raise RequestError(503, JOURNAL_UNAVAILABLE_DETAIL) from error
        except JournalError as error:
            raise RequestError(422, str(error)) from error
        found = [  # the name of an image's file stays here
            JournalledPrediction.model_validate(asdict(row) | {"image": row.image is not None}) for row in rows
        ]
        return PredictionPage(predictions=found, before=found[-1].id if len(found) == query.limit else None)

    @app.get("/drift", tags=["journal"], dependencies=[read], responses=error_responses(401, 403, 404))
    def drift() -> dict[str, Any]:
        """Whether the images are still those the release was tested on; at most 30 s old."""
        if service.settings.observer is None or service.journal is None:
            raise RequestError(404, "This service does not watch for drift: serve a site.")
        if not service.observed:
            service.observe()
        return {name: value for name, value in service.observed.items() if name != "images"}  # paths stay here

    @app.get("/releases", tags=["releases"], dependencies=[read], responses=error_responses(401, 403))
    def list_releases() -> dict[str, Any]:
        """Every release, and the current one."""
        found = releases.list_releases(service.settings.path) if service.settings.has_releases else []
        shown = [
            {"release": one.number, **{name: one.facts[name] for name in RELEASE_FACTS if name in one.facts}}
            for one in found
        ]
        return {"current": service.release, "releases": shown}

    @app.post(
        "/releases/{number}/promote",
        tags=["releases"],
        responses=error_responses(401, 403, 404, 408, 409, 413, 422),
    )
    def promote(
        number: Annotated[int, Path(ge=1, le=2**31 - 1)], name: Annotated[str | None, admin]
    ) -> dict[str, int | None]:
        """Answer from this release from now on; no request is lost."""
        started = time.perf_counter()
        before = service.promote(number, name)
        return {"release": number, "before": before, "ms": round(1000 * (time.perf_counter() - started))}
