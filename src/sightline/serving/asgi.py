"""The door of the service, as plain ASGI: who may ask, how much is read, and ``POST /predict`` without detours.

Everything else goes on to the routes of ``api``, with its body already read within bounds.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from .api_keys import Unauthorized
from .limits import RequestError
from .log import log_event
from .requests import dump_json, parse_request
from .service import PendingHeatmaps, Service

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
"""On every answer; a page may bring a content security policy of its own."""

MAX_OTHER_BODY_BYTES = 64_000
"""Bytes of the body of any other request than ``/predict``."""

THREADED_PARSE_BYTES = 200_000
"""Bytes from which a body is taken apart by a thread, so that it holds up nobody else."""

BODY_TIMEOUT_SECONDS = 30.0
"""Seconds in which a body must have come."""

_JSON_CONTENT_TYPE = (b"content-type", b"application/json")
INTERNAL_ERROR_DETAIL = "The service failed; its log says more."


class ClientDisconnect(Exception):
    """The client went away before its request was complete."""


class PredictASGI:
    """The ASGI application: ``inner`` answers what is not ``POST /predict``."""

    def __init__(self, service: Service, inner: Any):
        self.service = service
        self.inner = inner
        self.held = 0
        """Bytes of bodies of requests that are not yet answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or start and stop with the server."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["path"] == "/predict" and scope["method"] == "POST":
            await self._predict(scope, receive, send)
        else:
            await self._forward(scope, receive, send)

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            status, more, body = (
                200,
                None,
                await self.predict(dict(scope["headers"]), scope["query_string"], receive),
            )
        except (RequestError, Unauthorized) as error:
            status, more, body = error_response(error)
        except ClientDisconnect:
            return
        except Exception as error:
            status, more, body = internal_error_response(error, "/predict")
        self.service.monitor.record_response("/predict", status)
        headers = [_JSON_CONTENT_TYPE, (b"content-length", b"%d" % len(body)), *SECURITY_HEADERS]
        await send({"type": "http.response.start", "status": status, "headers": headers + (more or [])})
        await send({"type": "http.response.body", "body": body})

    async def predict(self, headers: Mapping[bytes, bytes], query: bytes, receive: Receive) -> bytes:
        """The JSON of the answer; raises Refusal or Denied."""
        service, started = self.service, time.perf_counter()
        service.authorize(headers, "predict")
        if service.batcher.full:
            raise RequestError(503, "Too many requests are waiting: try again in a second.")
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            held += count
            self.held += count
            if self.held > service.limits.max_buffered_bytes:
                raise RequestError(503, "Too many bytes are being read already: try again in a second.")

        try:
            body = await read_body(headers, receive, service.limits.max_body_bytes, hold)
            if len(body) < THREADED_PARSE_BYTES:
                request = parse_request(headers, query, body, service.limits)
            else:
                request = await asyncio.to_thread(parse_request, headers, query, body, service.limits)
            if not request.heat:
                return _bytes_or_raise(await service.batcher.submit_async(request, started))
            with service.reserve_heatmaps():
                result = await service.batcher.submit_async(request, started)
                return (
                    await service.render_heatmaps(result)
                    if isinstance(result, PendingHeatmaps)
                    else _bytes_or_raise(result)
                )
        finally:
            self.held -= held

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any other route: body within bounds, headers added, counted."""
        headers, seen = dict(scope["headers"]), 0

        async def dressed(message: MutableMapping[str, Any]) -> None:
            nonlocal seen
            if message["type"] == "http.response.start":
                seen = message["status"]
                message["headers"] = add_security_headers(message.get("headers", ()))
            await send(message)

        try:
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self.inner(scope, receive, dressed)
            else:
                body = await read_body(headers, receive, MAX_OTHER_BODY_BYTES)
                await self.inner(scope, _replay_body(body, receive), dressed)
        except ClientDisconnect:
            return
        except RequestError as error:
            await _send_json(dressed, *error_response(error))
        except Exception as error:
            answer = internal_error_response(error, scope["path"][:100])
            if not seen:
                await _send_json(dressed, *answer)
        self.service.monitor.record_response(_route_pattern(scope), seen)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Start and stop with the server."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.service.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.service.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return


def _route_pattern(scope: Scope) -> str:
    """The pattern of the route, so that what strangers ask for makes no new metrics."""
    return getattr(scope.get("route"), "path", "other")


def _bytes_or_raise(result: Any) -> bytes:
    """What a thread came to: an answer, or why there is none."""
    if isinstance(result, RequestError):
        raise result
    assert isinstance(result, bytes)
    return result


def _ignore_bytes(_: int) -> None:
    """Nobody counts."""


async def read_body(
    headers: Mapping[bytes, bytes], receive: Receive, most: int, hold: Callable[[int], None] = _ignore_bytes
) -> bytes:
    """The whole body; raises Refusal for one that is too large (413) or too slow (408).

    ``hold`` is told of the bytes as they come.
    """
    length = content_length(headers)
    if length is not None and length > most:
        raise body_too_large(most)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                body = message.get("body", b"")
                if len(body) > most:
                    raise body_too_large(most)
                hold(len(body))
                return body
            parts, count = [], 0
            while True:
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                parts.append(message.get("body", b""))
                count += len(parts[-1])
                if count > most:
                    raise body_too_large(most)
                hold(len(parts[-1]))
                if not message.get("more_body"):
                    return b"".join(parts)
                message = await receive()
    except TimeoutError as error:
        raise RequestError(408, "The body did not come in time.") from error


def content_length(headers: Mapping[bytes, bytes]) -> int | None:
    """The length that the headers announce."""
    text = headers.get(b"content-length")
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise RequestError(400, "The content length is not a number.")
    return int(text)


def body_too_large(most: int) -> RequestError:
    """More bytes than a body may have."""
    return RequestError(413, f"The body is larger than {most / 1e6:g} MB, which is refused unread.")


def error_response(error: RequestError | Unauthorized) -> tuple[int, Headers, bytes]:
    """Status, headers and body that say no."""
    status = error.status
    more: Headers = []
    if status == 401:
        more = [(b"www-authenticate", b"Bearer")]
    elif status == 503:
        more = [(b"retry-after", b"1")]
    elif status in (408, 413):
        more = [(b"connection", b"close")]
    return status, more, dump_json({"detail": str(error)})


def internal_error_response(error: Exception, where: str) -> tuple[int, Headers, bytes]:
    """A fault of ours: told in the log, not to the client."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last else ""
    log_event("error", where=where, kind=type(error).__name__, error=str(error)[:500], at=place)
    return 500, [], dump_json({"detail": INTERNAL_ERROR_DETAIL})


def add_security_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers with those of ``SECURITY`` that they lack."""
    given = list(headers)
    names = {name.lower() for name, _ in given}
    return given + [pair for pair in SECURITY_HEADERS if pair[0] not in names]


async def _send_json(send: Send, status: int, more: Headers, body: bytes) -> None:
    headers = [_JSON_CONTENT_TYPE, (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _replay_body(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, to be received again."""
    sent = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
