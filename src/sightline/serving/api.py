"""The routes of the service and their description: FastAPI, behind the door of ``front``."""

import time
from collections.abc import Mapping
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
from .docs_page import render_docs_page
from .limits import RequestError
from .openapi import PREDICT_OPENAPI, OpenAPISchema
from .service import Service

if TYPE_CHECKING:
    from ..journal import Journal

MAX_LISTED_PREDICTIONS = 1000
"""Predictions that one request may list."""


class Problem(BaseModel):
    """Why there is no answer, in one sentence."""

    detail: str


class FeedbackRequest(BaseModel):
    """The right label of a prediction."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=64, description="The prediction's id, as /predict gave it.")
    label: str = Field(min_length=1, max_length=500, description="The right class: one of /classes.")


class FeedbackResponse(BaseModel):
    """A correction that is in the journal."""

    id: str
    label: str
    already: bool = Field(description="Whether the same had been said before: nothing was added.")


def create_app(service: Service) -> Any:
    """The ASGI application of an opened service."""
    app = FastAPI(
        title="Sightline", version=runtime.version(), docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.openapi = OpenAPISchema(app, service)  # type: ignore[method-assign]  FastAPI says to replace it so
    _add_error_handlers(app)
    front = PredictASGI(service, app)
    _add_model_routes(app, service)
    _add_prediction_routes(app, service, front)
    _add_site_routes(app, service)
    if not service.settings.origins:
        return front
    return CORSMiddleware(
        front,
        allow_origins=service.settings.origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "X-API-Key", "Content-Type", "Sightline-Subject"),
    )


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its description."""
    return {status: {"model": Problem, "description": _STATUS_DESCRIPTIONS[status]} for status in statuses}


_STATUS_DESCRIPTIONS = {
    400: "Malformed",
    401: "No key, or a wrong or expired one",
    403: "The key does not allow this",
    404: "Not there",
    408: "The body did not come in time",
    409: "Not promoted: damaged, or of a newer format",
    413: "Too large: bytes, pixels or images",
    415: "Not an image",
    422: "Not understood",
    503: "Not now: try again",
}


def require_scope(service: Service, scope: str) -> Any:
    """A dependency that lets through who may do this, and is the name of their key."""

    async def key(request: Request) -> str | None:
        return service.authorize(dict(request.scope["headers"]), scope)

    return Depends(key)


def _add_error_handlers(app: FastAPI) -> None:
    """Every error is ``{"detail": one sentence}``."""

    async def refusal(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError | Unauthorized)
        status, more, body = error_response(error)
        headers = {name.decode(): value.decode() for name, value in more}
        return Response(body, status, headers=headers, media_type="application/json")

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return JSONResponse({"detail": "The body is not JSON."}, 400)
        where = ".".join(str(part) for part in first["loc"][1:])[:100] or "body"
        return JSONResponse({"detail": f"The field {where} is wrong: {first['msg']}."}, 422)

    async def other(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = {404: "There is no such page.", 405: "That method is not allowed here."}.get(error.status_code)
        return JSONResponse({"detail": detail or str(error.detail)}, error.status_code, headers=error.headers)

    async def fault(_: Request, error: Exception) -> Response:
        del error  # which the door logs
        return JSONResponse({"detail": INTERNAL_ERROR_DETAIL}, 500)

    app.add_exception_handler(RequestError, refusal)
    app.add_exception_handler(Unauthorized, refusal)
    app.add_exception_handler(Exception, fault)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)


def _add_model_routes(app: FastAPI, service: Service) -> None:
    read = [require_scope(service, "read")]

    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        text, policy = render_docs_page(app.openapi(), service.engine, str(request.base_url).rstrip("/"))
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/healthz", tags=["state"], summary="Whether the process lives")
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
        """Counts for Prometheus, of all workers."""
        return Response(service.monitor.prometheus_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/classes", tags=["model"], dependencies=read, responses=error_responses(401, 403))
    async def classes() -> dict[str, Any]:
        """The names of the classes, in order."""
        return {"release": service.engine.release, "classes": list(service.engine.classes)}

    @app.get("/model", tags=["model"], dependencies=read, responses=error_responses(401, 403))
    async def model() -> dict[str, Any]:
        """What answers: its geometry, its threshold, how it was measured."""
        return _describe_model(service)


def _describe_model(service: Service) -> dict[str, Any]:
    engine, limits = service.engine, service.limits
    shown = ("runtime", "model", "sightline", "time", "note", "metrics", "onnx")
    return {
        "release": engine.release,
        "classes": len(engine.classes),
        "geometry": engine.geometry.as_json(),
        "threshold": engine.threshold,
        **{name: engine.facts[name] for name in shown if name in engine.facts},
        "largest_batch": engine.pace.max_batch,
        "limits": {"body_mb": limits.body_mb, "pixels": limits.pixels, "images": limits.images},
    }


def _add_prediction_routes(app: FastAPI, service: Service, front: PredictASGI) -> None:
    said = error_responses(400, 401, 403, 408, 413, 415, 422, 503)

    @app.post("/predict", tags=["answers"], responses=said, openapi_extra=PREDICT_OPENAPI, response_class=Response)
    async def predict(request: Request) -> Response:
        """Classify one or many images: raw bytes, a form with files, or base64 in JSON."""
        scope = request.scope  # the door answers this route itself; so does this, where it is mounted elsewhere
        body = await front.predict(dict(scope["headers"]), scope["query_string"], request.receive)
        return Response(body, media_type="application/json")

    by = require_scope(service, "feedback")

    @app.post("/feedback", tags=["answers"], responses=error_responses(400, 401, 403, 404, 408, 413, 422, 503))
    def feedback(said: FeedbackRequest, name: Annotated[str | None, by]) -> FeedbackResponse:
        """Say what a prediction should have been; the same twice is once."""
        if said.label not in service.engine.classes:
            raise RequestError(422, f"There is no class {said.label[:60]!r}: GET /classes lists them.")
        try:
            found = _require_journal(service).correct(said.id, said.label, by=name)
        except UnknownPrediction as error:
            raise RequestError(404, "There is no prediction with this id.") from error
        except JournalError as error:
            raise RequestError(503, str(error)) from error
        return FeedbackResponse(id=found.id, label=found.label, already=found.already)


def _require_journal(service: Service) -> "Journal":
    if service.journal is None:
        raise RequestError(404, "This service keeps no journal: serve a site, or start it with --journal.")
    return service.journal


class JournalledPrediction(BaseModel):
    """A prediction as the journal remembers it."""

    model_config = ConfigDict(extra="allow")

    id: str
    at: float
    release: int
    label: str
    correction: str | None


class PredictionPage(BaseModel):
    """Predictions, the latest first; ``before`` asks for the next page."""

    predictions: list[JournalledPrediction]
    before: str | None


def _add_site_routes(app: FastAPI, service: Service) -> None:
    read, admin = require_scope(service, "read"), require_scope(service, "admin")

    @app.get(
        "/predictions", tags=["journal"], dependencies=[read], responses=error_responses(401, 403, 404, 422, 503)
    )
    def predictions(
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED_PREDICTIONS)] = 100,
        before: Annotated[str | None, Query(max_length=64)] = None,
        label: Annotated[str | None, Query(max_length=500)] = None,
        release: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
        abstained: bool | None = None,
        corrected: bool | None = None,
        since: Annotated[float | None, Query(ge=0, le=1e11, description="Seconds since 1970")] = None,
        until: Annotated[float | None, Query(ge=0, le=1e11, description="Seconds since 1970")] = None,
    ) -> PredictionPage:
        """What was answered, and what it should have been."""
        try:
            rows = _require_journal(service).predictions(
                limit=limit,
                before=before,
                label=label,
                release=release,
                abstained=abstained,
                corrected=corrected,
                since=since,
                until=until,
            )
        except DatabaseUnavailable as error:
            raise RequestError(503, str(error)) from error
        except JournalError as error:
            raise RequestError(422, str(error)) from error
        found = [JournalledPrediction.model_validate(_row(asdict(one))) for one in rows]
        return PredictionPage(predictions=found, before=found[-1].id if len(found) == limit else None)

    @app.get("/releases", tags=["releases"], dependencies=[read], responses=error_responses(401, 403))
    def listed() -> dict[str, Any]:
        """Every release, and which one answers."""
        return {"current": service.engine.release, "releases": _describe_releases(service)}

    @app.post(
        "/releases/{number}/promote",
        tags=["releases"],
        responses=error_responses(401, 403, 404, 408, 409, 413, 422),
    )
    def promote(
        number: Annotated[int, Path(ge=1, le=2**31 - 1)], name: Annotated[str | None, admin]
    ) -> dict[str, int]:
        """Let a release answer from now on; no request is lost."""
        started = time.perf_counter()
        before = service.promote(number, name)
        return {"release": number, "before": before, "ms": round(1000 * (time.perf_counter() - started))}


def _row(kept: dict[str, Any]) -> dict[str, Any]:
    """Without the name of the file that an image is kept in."""
    return kept | {"image": kept["image"] is not None}


def _describe_releases(service: Service) -> list[Mapping[str, Any]]:
    if not service.settings.site:
        return []
    shown = ("time", "by", "note", "sightline", "metrics", "classes")
    return [
        {"release": one.number, **{name: one.facts[name] for name in shown if name in one.facts}}
        for one in releases.list_releases(service.settings.path)
    ]
