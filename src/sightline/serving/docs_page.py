"""The page at ``/docs``: what can be asked, with examples to copy; it loads nothing from anywhere."""

import base64
import hashlib
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine

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
        "Where the evidence lies",
        "curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' '{url}/predict?heat=true'",
    ),
    ("Say what it should have been", 'curl --json \'{{"id": "ID", "label": "{label}"}}\' {url}/feedback'),
)


def render_docs_page(document: Mapping[str, Any], engine: "Engine", url: str) -> tuple[str, str]:
    """The page, and the content security policy that allows its style and nothing else.

    ``url`` is where the service was asked: one that a shell might not take as it is, is not shown.
    """
    url = url if re.fullmatch(r"https?://[\w.:\[\]-]+", url, re.ASCII) else "http://127.0.0.1:8000"
    digest = base64.b64encode(hashlib.sha256(PAGE_STYLE.encode()).digest()).decode()
    keyed = "securitySchemes" in document.get("components", {})
    named = f"Release {engine.release}" if engine.release else "No releases"
    classes = ", ".join(escape(name) for name in engine.classes[:12]) + (
        " ..." if len(engine.classes) > 12 else ""
    )
    asks = (
        "<p>Every request but <code>/healthz</code> and <code>/readyz</code> needs a key: "
        "<code>Authorization: Bearer sl_...</code> or <code>X-API-Key: sl_...</code></p>"
        if keyed
        else "<form action=predict method=post enctype=multipart/form-data>"
        "<input type=file name=image accept='image/*' required> <button>Classify</button></form>"
    )
    text = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Sightline</title>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<style>{PAGE_STYLE}</style><h1>Sightline</h1>"
        f"<p class=lead>{named} &middot; {len(engine.classes)} classes: {classes}</p>{asks}"
        f"{_examples(engine, url)}<h2>Routes</h2><table>{_routes(document)}</table>"
        "<p>The whole description, for programs: <a href=openapi.json>openapi.json</a></p></html>"
    )
    return text, PAGE_CSP.format(digest=digest)


def _examples(engine: "Engine", url: str) -> str:
    made = []
    for title, command in CURL_EXAMPLES:
        filled = command.format(url=url, label=engine.classes[0])
        made.append(f"<h2>{title}</h2><pre>{escape(filled)}</pre>")
    return "".join(made)


def _routes(document: Mapping[str, Any]) -> str:
    rows = []
    for path, methods in document["paths"].items():
        for verb, one in methods.items():
            what = one.get("description") or one.get("summary", "")
            rows.append(
                f"<tr><td><span class=verb>{verb.upper()}</span> <code>{escape(path)}</code><td>{escape(what)}"
            )
    return "".join(rows)
