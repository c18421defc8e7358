"""The ASGI application: authorization, bounded bodies, security headers, and the short path of ``POST /predict``.

Every other route is FastAPI's, in ``api``; it gets a body that was already read within bounds.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from typing import Any

from .api_keys import Unauthorized
from .heatmaps import PendingHeatmaps
from .monitor import log_event
from .openapi import KEYLESS_ROUTES
from .requests import RequestError, dump_json, parse_request
from .service import Service

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

SECURITY_HEADERS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
"""Sent with every response; a page may set its own content security policy."""

MAX_OTHER_BODY_BYTES = 64_000
"""Bytes of a body of any route but ``/predict`` and those of ``ServiceSettings.body_bytes``."""

THREADED_PARSE_BYTES = 200_000
"""Bytes above which a body is parsed in a thread, so that it does not block the event loop."""

BODY_TIMEOUT_SECONDS = 30.0
"""Seconds within which a body must arrive."""

INTERNAL_ERROR_DETAIL = "The service failed; its log has the details."

_JSON_CONTENT_TYPE = (b"content-type", b"application/json")


class ClientDisconnect(Exception):
    """The client disconnected before its request was complete."""


class PredictASGI:
    """Answers ``POST /predict`` itself and passes every other request on to ``app``."""

    def __init__(self, service: Service, app: Any):
        self.service = service
        self.app = app
        self.buffered_bytes = 0
        """Bytes of bodies of requests that are not answered yet."""
        self._last_client: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or start and stop the service with the server."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        path = scope["path"].rstrip("/") or "/"  # a slash at the end is forgiven
        if path == "/predict" and scope["method"] == "POST":
            await self._predict(scope, receive, send)
        else:
            if path != scope["path"]:
                scope = {**scope, "path": path, "raw_path": path.encode()}
            await self._forward(scope, receive, send)

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, more = 200, []
        try:
            body = await self.predict(scope, receive)
        except (RequestError, Unauthorized) as error:
            status, more, body = error_response(error)
        except ClientDisconnect:
            return
        except Exception as error:
            status, more, body = internal_error_response(error, "/predict")
        self.service.monitor.record_response("/predict", status)
        await _send_json(send, status, [*SECURITY_HEADERS, *more], body)

    async def predict(self, scope: Scope, receive: Receive) -> bytes:
        """Return the JSON of the response; raise RequestError, Unauthorized or ClientDisconnect.

        A quick request is answered here, in the event loop, if the connection that asked last asks again and nothing
        else is being answered. With two connections in turn one core would do all the work.
        """
        service, started = self.service, time.perf_counter()
        headers, query = dict(scope["headers"]), scope["query_string"]
        client = scope.get("client")
        is_alone, self._last_client = client == self._last_client, client
        service.authorize(headers, "predict")
        if service.batcher.full:
            raise RequestError(503, "Too many requests are waiting: try again in a second.")
        engine = service.engine
        with self._count_bytes() as count:
            body = await read_body(headers, receive, service.limits.max_body_bytes, count)
            if len(body) < THREADED_PARSE_BYTES:
                request = parse_request(headers, query, body, service.limits)
            else:
                request = await asyncio.to_thread(parse_request, headers, query, body, service.limits)
            with service.heatmaps.reserve(engine) if request.heat else nullcontext():
                result = None
                if is_alone and engine.is_quick(request):
                    result = service.batcher.answer_now(request, started)
                if result is None:
                    result = await service.batcher.submit_async(request, started)
                return await service.heatmaps.render(result) if isinstance(result, PendingHeatmaps) else result

    @contextmanager
    def _count_bytes(self) -> Iterator[Callable[[int], None]]:
        """A function that counts bytes of a body until the block ends; it raises RequestError (503) for too many."""
        own_bytes = 0

        def count(size: int) -> None:
            nonlocal own_bytes
            own_bytes += size
            self.buffered_bytes += size
            if self.buffered_bytes > self.service.limits.max_buffered_bytes:
                raise RequestError(503, "Too many bytes are being read already: try again in a second.")

        try:
            yield count
        finally:
            self.buffered_bytes -= own_bytes

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with its body read; add security headers to the response and count it.

        HEAD is answered as GET is, without the body.
        """
        status = 0
        unread: Iterator[MutableMapping[str, Any]] = iter(())  # a body that was read already

        async def receive_again() -> MutableMapping[str, Any]:
            return next(unread, None) or await receive()

        async def send_secured(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = add_security_headers(message.get("headers", ()))
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        if is_head := scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}

        try:
            if scope["path"] not in KEYLESS_ROUTES:
                self.service.check_origin(dict(scope["headers"]))
            with self._count_bytes() as count:
                if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                    larger = self.service.settings.body_bytes.items()
                    sizes = [size for prefix, size in larger if scope["path"].startswith(prefix)]
                    limit = max(sizes, default=MAX_OTHER_BODY_BYTES)
                    body = await read_body(dict(scope["headers"]), receive, limit, count)
                    unread = iter([{"type": "http.request", "body": body, "more_body": False}])
                await self.app(scope, receive_again, send_secured)
        except ClientDisconnect:
            return
        except RequestError as error:
            await _send_json(send_secured, *error_response(error))
        except Exception as error:
            answer = internal_error_response(error, scope["path"][:100])
            if not status:
                await _send_json(send_secured, *answer)
        # The route's pattern, not its path: requests from outside must not create metrics.
        self.service.monitor.record_response(getattr(scope.get("route"), "path", "other"), status)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Start and stop the service with the server."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.service.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.service.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return


async def read_body(
    headers: Mapping[bytes, bytes],
    receive: Receive,
    max_bytes: int,
    count: Callable[[int], None] = lambda _: None,
) -> bytes:
    """Return the whole body; ``count`` is called with the size of each piece.

    Raise RequestError if it is too large (413) or too slow (408), and ClientDisconnect.
    """

    def too_large() -> RequestError:
        return RequestError(413, f"The body is larger than {max_bytes / 1e6:g} MB, which is refused unread.")

    length = content_length(headers)
    if length is not None and length > max_bytes:
        raise too_large()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            pieces, size = [], 0
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece = message.get("body", b"")
                size += len(piece)
                if size > max_bytes:
                    raise too_large()
                count(len(piece))
                if not message.get("more_body"):
                    return b"".join([*pieces, piece]) if pieces else piece
                pieces.append(piece)
    except TimeoutError as error:
        raise RequestError(408, "The body did not arrive in time.") from error


def content_length(headers: Mapping[bytes, bytes]) -> int | None:
    """Return the announced length of the body; raise RequestError (400) if it is not a number."""
    text = headers.get(b"content-length")
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise RequestError(400, "The content length is not a number.")
    return int(text)


def error_response(error: RequestError | Unauthorized) -> tuple[int, Headers, bytes]:
    """Return status, extra headers and body for an error."""
    headers: Headers = []
    if error.status == 401:
        headers = [(b"www-authenticate", b"Bearer")]
    elif error.status == 503:
        headers = [(b"retry-after", b"1")]
    elif error.status in (408, 413):
        headers = [(b"connection", b"close")]
    return error.status, headers, dump_json({"detail": str(error)})


def internal_error_response(error: Exception, where: str) -> tuple[int, Headers, bytes]:
    """Log an unexpected error with its place, and return a response (500) that does not show it."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last else ""
    log_event("error", where=where, kind=type(error).__name__, error=str(error)[:500], at=place)
    return 500, [], dump_json({"detail": INTERNAL_ERROR_DETAIL})


def add_security_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers, with those of ``SECURITY_HEADERS`` that are not among them."""
    given = list(headers)
    names = {name.lower() for name, _ in given}
    return given + [pair for pair in SECURITY_HEADERS if pair[0] not in names]


async def _send_json(send: Send, status: int, headers: Headers, body: bytes) -> None:
    headers = [_JSON_CONTENT_TYPE, (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
