"""What a page of the studio is: routes, each a function of a visit."""

import gzip
import hashlib
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ..evidence import format_duration, read_page_part
from ..journal import Journal
from ..serving import RequestError, Service
from .jobs import JOB_STATES, Job, Jobs
from .neighbours import NeighbourFinder
from .sessions import Session, Sessions

STUDIO_FOLDER = "studio"
"""Folder of a site for what the studio stores: jobs, sessions, uploads, thumbnails."""

STUDIO_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "media-src blob:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""Scripts and styles are files of the studio alone; nothing inline, nothing from elsewhere."""

STATIC_FILES = {
    "report.css": "text/css",
    "studio.css": "text/css",
    "data.css": "text/css",
    "studio.js": "text/javascript",
    "data.js": "text/javascript",
    "try.js": "text/javascript",
    "teach.js": "text/javascript",
    "htmx.min.js": "text/javascript",
}
"""Files that every page may load, and their types; ``report.css`` is the style of the report page."""

_MIN_COMPRESSED_BYTES = 1000


@dataclass(frozen=True)
class PageRoute:
    """One address of a page."""

    method: str
    path: str
    """Below ``/studio``, in Starlette's notation: ``/jobs/{id}``."""
    answer: "Callable[[Visit], Response]"
    """Called in a thread."""
    scope: str = "read"
    """What a key must allow; empty for every key."""


@dataclass(frozen=True)
class Page:
    """A page of the studio; ``title`` is its name in the navigation, empty where it has no place there."""

    title: str
    routes: tuple[PageRoute, ...]
    """The first one is where the navigation leads."""


@dataclass(frozen=True, eq=False)
class Studio:
    """What all pages of one process share."""

    service: Service
    pages: Mapping[str, Page]
    jobs: Jobs
    neighbours: NeighbourFinder
    sessions: Sessions
    moments: dict[str, float] = field(default_factory=dict)
    """When something was done last that is not to be done often, by ``time.monotonic``."""

    @property
    def site(self) -> Path:
        """The folder of the site, as it was given."""
        return self.service.settings.path

    @property
    def folder(self) -> Path:
        """The folder for what the studio stores."""
        return self.site / STUDIO_FOLDER


@dataclass(frozen=True, eq=False)
class Visit:
    """A request of a signed-in person."""

    studio: Studio
    request: Request
    session: Session
    form: FormData = field(default_factory=FormData)
    body: bytes = b""

    @property
    def site(self) -> Path:
        """The folder of the site, as it was given."""
        return self.studio.site

    @property
    def journal(self) -> Journal:
        """The journal of the site; raise RequestError (404) if the service keeps none."""
        if (found := self.studio.service.journal) is None:
            raise RequestError(404, "This service keeps no journal: serve a site.")
        return found

    def text(self, name: str, default: str = "") -> str:
        """A field of the form, or a parameter of the address; ``default`` where it is absent."""
        value = self.form.get(name, self.request.query_params.get(name, default))
        return value if isinstance(value, str) else default

    def number(self, name: str, default: int, *, low: int = 0, high: int = 2**31 - 1) -> int:
        """A field as a whole number; raise RequestError (422) if it is none from ``low`` to ``high``."""
        text = self.text(name) or str(default)
        if not text.isascii() or not text.isdigit() or not low <= int(text[:12]) <= high:
            raise RequestError(422, f"The field '{name}' is {text[:20]!r}: give a number from {low} to {high}.")
        return int(text)

    def render(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """A page (or, by htmx, a part of one) from a template."""
        return render_html(
            self.request, template, status=status, studio=self.studio, session=self.session, **values
        )

    def redirect(self, path: str) -> Response:
        """Show another page of the studio; ``path`` is below ``/studio``."""
        return RedirectResponse(f"/studio{path}", 303)


def render_html(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """An HTML response, with the policy that every page has."""
    here = request.url.path.removeprefix("/studio") or "/"
    values = {"session": None, "here": here, "request": request, **values}
    content = load_templates().get_template(template).render(**values).encode()
    headers = {"content-security-policy": STUDIO_CSP, "referrer-policy": "same-origin", "vary": "accept-encoding"}
    headers["permissions-policy"] = "camera=(self), microphone=(), geolocation=()"
    if len(content) > _MIN_COMPRESSED_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        content, headers["content-encoding"] = gzip.compress(content, 5), "gzip"
    return HTMLResponse(content, status, headers=headers)


@cache
def read_static(name: str) -> tuple[bytes, bytes, str]:
    """A file that every page may load: its content, the same compressed, and its version."""
    if name == "report.css":
        content = read_page_part(name).encode()
    else:
        content = resources("sightline.studio").joinpath("static", name).read_bytes()
    return content, gzip.compress(content, 9), hashlib.sha256(content).hexdigest()[:12]


@cache
def load_templates() -> Any:
    """The templates, with what they may call."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=FunctionLoader(
            lambda name: resources("sightline.studio").joinpath("templates", name).read_text(encoding="utf-8")
        ),
    )  # fmt: skip
    environment.filters |= {
        "percent": lambda value, digits=1: f"{100 * value:.{digits}f} %",
        "count": lambda value: f"{value:,}",
        "duration": format_duration,
        "ago": describe_age,
        "moment": lambda at: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at)),
    }
    environment.globals |= {
        "static": lambda name: f"/studio/static/{name}?v={read_static(name)[2]}",
        "shell": lambda words: shlex.join(("sightline", *words)),
        "job_state": lambda job: JOB_STATES[job.state],
    }
    return environment


def describe_age(at: float) -> str:
    """How long ago a moment is, in words.

    >>> describe_age(time.time() - 7300)
    '2 hours ago'
    """
    seconds = max(0, time.time() - at)
    for size, word in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if (n := int(seconds // size)) >= 1:
            return f"{n} {word}{'' if n == 1 else 's'} ago"
    return "just now"


def job_progress(job: Job) -> dict[str, Any]:
    """What the page of a job shows of it while it runs; JSON-ready."""
    return {
        "state": job.state, "words": JOB_STATES[job.state], "active": job.active, "reason": job.reason,
        "steps": job.steps, "time": format_duration(job.seconds),
    }  # fmt: skip
