"""The description of the service: its OpenAPI document, and the page at ``/docs``, which loads no other resource.

FastAPI describes every route but ``POST /predict``: no model reads its body, so its description is written here.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from .requests import MAX_SUBJECT_LENGTH, MAX_TOP_CLASSES

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .engine import Engine
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
        {"name": "top", "in": "query", "schema": _TOP, "description": "Number of classes to list."},
        {"name": "heat", "in": "query", "schema": _HEAT, "description": "Add a heat map of the evidence."},
        {
            "name": "Sightline-Subject",
            "in": "header",
            "schema": _SUBJECT,
            "description": "Whom or what the image shows: the key of an erasure.",
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
"""Description of ``POST /predict``."""

KEY_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

KEYLESS_ROUTES = ("/healthz", "/readyz")
"""Routes that need no key, ever, and answer under any host name."""


class OpenAPISchema:
    """``() -> the OpenAPI document``; it asks for keys while the service does."""

    def __init__(self, app: "FastAPI", service: "Service"):
        self.app = app
        self.service = service

    def __call__(self) -> dict[str, Any]:
        """Return the present document."""
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


PAGE_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
p { margin: .4rem 0; } .lead { opacity: .75; margin-bottom: 1.5rem; }
code, pre { font: .8rem/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; }
pre { background: var(--soft); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid var(--line); padding: .45rem .8rem .45rem 0; vertical-align: top; }
td:first-child { white-space: nowrap; }
.verb { display: inline-block; min-width: 3.2rem; font-weight: 600; }
form { border: 1px solid var(--line); border-radius: .5rem; padding: .9rem 1rem; }
button { font: inherit; padding: .25rem .9rem; }
"""

PAGE_CSP = (
    "default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

CURL_EXAMPLES = (
    ("One image", "curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' {url}/predict"),
    ("Several files", "curl -F image=@cat.jpg -F image=@dog.png -F subject=anna {url}/predict"),
    ("Base64 in JSON", 'curl --json \'{{"image": "\'$(base64 -w0 cat.jpg)\'", "top": 3}}\' {url}/predict'),
    (
        "With a heat map of the evidence",
        "curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' '{url}/predict?heat=true'",
    ),
    ("Report the right label", 'curl --json \'{{"id": "ID", "label": "{label}"}}\' {url}/feedback'),
)


def render_docs_page(document: Mapping[str, Any], engine: "Engine", url: str) -> tuple[str, str]:
    """Return the page as HTML, and a content security policy that allows its style and nothing else.

    ``document`` is the OpenAPI document; ``url`` is the service's address, replaced in the examples by a local one
    if it contains characters that a shell might interpret.
    """
    secured = "securitySchemes" in document.get("components", {})  # then classes and releases are not public
    label = "LABEL" if secured else engine.classes[0]
    url = url if re.fullmatch(r"https?://[\w.:\[\]-]+", url, re.ASCII) else "http://127.0.0.1:8000"
    digest = base64.b64encode(hashlib.sha256(PAGE_STYLE.encode()).digest()).decode()
    release = f"Release {engine.release}" if engine.release else "No releases"
    classes = ", ".join(map(escape, engine.classes[:12])) + (" ..." if len(engine.classes) > 12 else "")
    access = (
        "<form action=predict method=post enctype=multipart/form-data>"
        "<input type=file name=image accept='image/*' required> <button>Classify</button></form>"
    )
    facts = f"{release} &middot; {len(engine.classes)} classes: {classes}"
    if secured:
        facts = "An image classifier as a service"
        access = (
            "<p>Every request but <code>/healthz</code> and <code>/readyz</code> needs a key: "
            "<code>Authorization: Bearer sl_...</code> or <code>X-API-Key: sl_...</code></p>"
        )
    examples = "".join(
        f"<h2>{title}</h2><pre>{escape(command.format(url=url, label=label))}</pre>"
        for title, command in CURL_EXAMPLES
    )
    routes = "".join(
        f"<tr><td><span class=verb>{verb.upper()}</span> <code>{escape(path)}</code>"
        f"<td>{escape(one.get('description') or one.get('summary', ''))}"
        for path, methods in document["paths"].items()
        for verb, one in methods.items()
    )
    text = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Sightline</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<style>{PAGE_STYLE}</style><h1>Sightline</h1>"
        f"<p class=lead>{facts}</p>{access}"
        f"{examples}<h2>Routes</h2><table>{routes}</table>"
        "<p>The whole description, for programs: <a href=openapi.json>openapi.json</a></p></html>"
    )
    return text, PAGE_CSP.format(digest=digest)
