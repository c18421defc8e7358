"""The description of the service: FastAPI's, with ``/predict`` written by hand, since no model reads its body."""

from typing import TYPE_CHECKING, Any

from .requests import MAX_SUBJECT_LENGTH, MAX_TOP_CLASSES

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .service import Service

_TOP = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_CLASSES, "default": 5}
_HEAT = {"type": "boolean", "default": False}
_SUBJECT = {"type": "string", "maxLength": MAX_SUBJECT_LENGTH}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_FILE = {"type": "string", "format": "binary"}
_RAW = {"schema": _FILE}

_ASKED = {
    "type": "object",
    "properties": {
        "image": _BASE64,
        "images": {"type": "array", "items": _BASE64, "minItems": 1},
        "subject": _SUBJECT,
        "top": _TOP,
        "heat": _HEAT,
    },
    "additionalProperties": False,
    "oneOf": [{"required": ["image"]}, {"required": ["images"]}],
}
_FORM = {
    "type": "object",
    "properties": {
        "image": {"type": "array", "items": _FILE, "minItems": 1},
        "subject": _SUBJECT,
        "top": _TOP,
        "heat": _HEAT,
    },
    "required": ["image"],
}
_PREDICTION = {
    "type": "object",
    "properties": {
        "id": {"type": ["string", "null"]},
        "label": {"type": ["string", "null"]},
        "confidence": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "abstained": {"type": "boolean"},
        "top": {
            "type": "array",
            "items": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}]},
        },
        "error": {"type": ["string", "null"]},
        "heat": {"type": "string"},
    },
    "required": ["id", "label", "confidence", "abstained", "top", "error"],
}
_ANSWERED = {
    "type": "object",
    "properties": {
        "release": {"type": "integer"},
        "ms": {"type": "number"},
        "predictions": {"type": "array", "items": _PREDICTION},
    },
    "required": ["release", "ms", "predictions"],
}

PREDICT_OPENAPI: dict[str, Any] = {
    "parameters": [
        {"name": "top", "in": "query", "schema": _TOP, "description": "Classes to list."},
        {"name": "heat", "in": "query", "schema": _HEAT, "description": "With a picture of the evidence."},
        {
            "name": "Sightline-Subject",
            "in": "header",
            "schema": _SUBJECT,
            "description": "Whom the image shows: what an erasure names.",
        },
    ],
    "requestBody": {
        "required": True,
        "content": {
            "image/jpeg": _RAW,
            "image/png": _RAW,
            "application/octet-stream": _RAW,
            "multipart/form-data": {"schema": _FORM},
            "application/json": {"schema": _ASKED},
        },
    },
    "responses": {
        "200": {
            "description": "A row for each image, in order; one that could not be read has an error and no id",
            "content": {"application/json": {"schema": _ANSWERED}},
        }
    },
}
"""What FastAPI cannot know of ``POST /predict``."""

KEY_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

KEYLESS_ROUTES = ("/healthz", "/readyz")
"""Routes that never need a key."""


class OpenAPISchema:
    """``() -> the OpenAPI document``: it asks for keys where the service does."""

    def __init__(self, app: "FastAPI", service: "Service"):
        self.app = app
        self.service = service

    def __call__(self) -> dict[str, Any]:
        """The document as it is now."""
        from fastapi.openapi.utils import get_openapi

        document = get_openapi(
            title="Sightline",
            version=self.app.version,
            summary="An image classifier as a service.",
            routes=self.app.routes,
        )
        if self.service.requires_key:
            document.setdefault("components", {})["securitySchemes"] = KEY_SCHEMES
            for path, methods in document["paths"].items():
                if path not in KEYLESS_ROUTES:
                    for one in methods.values():
                        one["security"] = [{name: []} for name in KEY_SCHEMES]
        return document
