"""The studio as routes of a service: sign-in first, then the pages; errors are pages too."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..errors import JournalError, SightlineError
from ..serving import RequestError, Service, log_event
from .jobs import Jobs
from .neighbours import NeighbourFinder
from .pages import PAGES
from .sessions import Sessions, SignInNeeded, check_same_origin
from .visit import STATIC_FILES, STUDIO_FOLDER, PageRoute, Studio, Visit, read_static, render_html

UPLOAD_PREFIX = "/studio/uploads/"
"""Prefix of the addresses whose bodies are pieces of files."""

MAX_PIECE_BYTES = 4_200_000
"""Bytes of a piece of an upload: 4 MiB and a little more."""

MAX_TRIED_BYTES = 20_000_000
"""Bytes of an image that is tried, and of pictures that are taught at once."""

BODY_BYTES = {UPLOAD_PREFIX: MAX_PIECE_BYTES, "/studio/try": MAX_TRIED_BYTES, "/studio/teach/": MAX_TRIED_BYTES}

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class StudioRoutes:
    """``(application, service)``: adds the studio; ``token_sha256`` is the hash of the one-time token of a terminal."""

    token_sha256: str | None = None

    @property
    def body_bytes(self) -> dict[str, int]:
        """Prefixes of addresses whose bodies may be larger than those of other routes, and their bytes."""
        return BODY_BYTES

    def __call__(self, app: Any, service: Service) -> None:
        """Add all routes below ``/studio`` to the application of a service."""
        folder = service.settings.path / STUDIO_FOLDER
        sessions = Sessions(folder / "sessions", service, self.token_sha256)
        neighbours = NeighbourFinder(service, folder / "neighbours")
        studio = Studio(service, PAGES, Jobs(folder / "jobs"), neighbours, sessions)
        routes = [
            Route("/studio/static/{name}", answer_static, methods=["GET"]),
            Route("/studio/sign-in", answer_sign_in(studio), methods=["GET", "POST"]),
            Route("/studio/sign-out", answer_sign_out(sessions), methods=["POST"]),
        ]
        for page in PAGES.values():
            for one in page.routes:
                path = f"/studio{one.path}".rstrip("/")
                routes.append(Route(path, _answer(studio, one), methods=[one.method]))
        routes.append(Route("/studio/{rest:path}", answer_nowhere(studio), methods=["GET", "POST", "PUT"]))
        app.router.routes.extend(routes)


async def answer_static(request: Request) -> Response:
    """A file that every page may load; it is kept for ever under its version."""
    name = request.path_params["name"]
    if name not in STATIC_FILES:
        return Response("There is no such file.", 404, media_type="text/plain")
    content, compressed, _ = read_static(name)
    headers = {"cache-control": "private, max-age=31536000, immutable", "vary": "accept-encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        content, headers["content-encoding"] = compressed, "gzip"
    return Response(content, headers=headers, media_type=STATIC_FILES[name])


def _answer(studio: Studio, route: PageRoute) -> Endpoint:
    """The endpoint of a page's route: who asks, may they, and from our own page?"""

    async def answer(request: Request) -> Response:
        session, form, body = None, FormData(), b""
        try:
            session = await run_in_threadpool(studio.sessions.find, request)
            if route.scope and not session.allows(route.scope):
                allowed = ", ".join(session.scopes)
                raise RequestError(
                    403, f"This needs a key with the scope {route.scope}; '{session.name}' allows {allowed}."
                )
            if request.method != "GET":
                check_same_origin(request)
                body = await request.body()
                if request.headers.get("content-type", "").startswith(("application/x-www-form", "multipart/")):
                    form = await request.form()
            return await run_in_threadpool(route.answer, Visit(studio, request, session, form, body))
        except SignInNeeded as error:
            if "hx-request" in request.headers or request.method != "GET":
                return _problem(request, studio, None, 401, str(error) or "Sign in first.")
            here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return _sign_in_page(request, studio, 401, str(error), here)
        except Exception as error:
            status, detail = describe_error(error, request)
            return _problem(request, studio, session, status, detail)
        finally:
            await form.close()  # files that a page did not read

    return answer


def describe_error(error: Exception, request: Request) -> tuple[int, str]:
    """The status of an error and its sentence; the log has what a page does not show."""
    if isinstance(error, RequestError):
        return error.status, error.detail
    if isinstance(error, SightlineError):
        return (503 if isinstance(error, JournalError) else 422), str(error)
    log_event("error", where=request.url.path[:100], kind=type(error).__name__, error=str(error)[:500])
    return 500, "The studio failed; the log in its terminal has the details."


def answer_nowhere(studio: Studio) -> Endpoint:
    """Say that there is no such page, to whoever is signed in."""

    def refuse(_: Visit) -> Response:
        raise RequestError(404, "There is no such page.")

    return _answer(studio, PageRoute("GET", "/{rest:path}", refuse, ""))


def _problem(request: Request, studio: Studio, session: Any, status: int, detail: str) -> Response:
    """An error as a page; for htmx, as a part of one."""
    part = "hx-request" in request.headers
    template = "_problem.html.jinja" if part else "problem.html.jinja"
    return render_html(
        request, template, status=status, studio=studio, session=session, code=status, detail=detail
    )


def _sign_in_page(request: Request, studio: Studio, status: int, why: str, onward: str) -> Response:
    """The page that asks for a key, and then shows ``onward``."""
    needs_key = studio.service.requires_key
    return render_html(
        request, "sign_in.html.jinja", status=status, studio=studio, why=why, needs_key=needs_key, onward=onward
    )


def answer_sign_in(studio: Studio) -> Endpoint:
    """Sign in by a key from the form, or by a token in the address."""

    async def sign_in(request: Request) -> Response:
        onward, secret = "/studio", request.query_params.get("token", "")
        try:
            if request.method == "POST":
                check_same_origin(request)
                form = await request.form()
                secret, onward = (str(form.get(name) or "") for name in ("key", "next"))
                if not onward.startswith("/studio") or onward.startswith("/studio/sign"):
                    onward = "/studio"
            if not secret:
                return _sign_in_page(request, studio, 200, "", onward)
            # Not a redirect: a browser that was sent here by another program would not send a strict cookie.
            response = render_html(request, "signed_in.html.jinja", studio=studio, onward=onward)
            await run_in_threadpool(studio.sessions.sign_in, secret, request, response)
            return response
        except RequestError as error:
            return _sign_in_page(request, studio, error.status, error.detail, onward)
        except SightlineError as error:
            return _sign_in_page(request, studio, 503, str(error), onward)

    return sign_in


def answer_sign_out(sessions: Sessions) -> Endpoint:
    """End the session, and ask for a key again."""

    async def sign_out(request: Request) -> Response:
        response = RedirectResponse("/studio/sign-in", 303)
        try:
            check_same_origin(request)
        except RequestError as error:
            return Response(error.detail, error.status, media_type="text/plain")
        await run_in_threadpool(sessions.sign_out, request, response)
        return response

    return sign_out
