"""The door of the service, as plain ASGI: who may ask, how much is read, and ``POST /predict`` without detours.

Everything else goes on to the routes of ``api``, with its body already read within bounds.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from .answers import asked, dumps
from .keys import Denied
from .limits import Refusal
from .log import say
from .service import Drawing, Service

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

SECURITY: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
"""On every answer; a page may bring a content security policy of its own."""

SMALL = 64_000
"""Bytes of the body of any other request than ``/predict``."""

LONG = 200_000
"""Bytes from which a body is taken apart by a thread, so that it holds up nobody else."""

PATIENCE = 30.0
"""Seconds in which a body must have come."""

_JSON = (b"content-type", b"application/json")
FAILED = "The service failed; its log says more."


class Gone(Exception):
    """The client went away before its request was complete."""


class Front:
    """The ASGI application: ``inner`` answers what is not ``POST /predict``."""

    def __init__(self, service: Service, inner: Any):
        self.service = service
        self.inner = inner
        self.held = 0
        """Bytes of bodies of requests that are not yet answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or start and stop with the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["path"] == "/predict" and scope["method"] == "POST":
            await self._hot(scope, receive, send)
        else:
            await self._other(scope, receive, send)

    async def _hot(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            status, more, body = (
                200,
                None,
                await self.predict(dict(scope["headers"]), scope["query_string"], receive),
            )
        except (Refusal, Denied) as error:
            status, more, body = refused(error)
        except Gone:
            return
        except Exception as error:
            status, more, body = failed(error, "/predict")
        self.service.monitor.response("/predict", status)
        headers = [_JSON, (b"content-length", b"%d" % len(body)), *SECURITY]
        await send({"type": "http.response.start", "status": status, "headers": headers + (more or [])})
        await send({"type": "http.response.body", "body": body})

    async def predict(self, headers: Mapping[bytes, bytes], query: bytes, receive: Receive) -> bytes:
        """The JSON of the answer; raises Refusal or Denied."""
        service, started = self.service, time.perf_counter()
        service.allow(headers, "predict")
        if service.batcher.full:
            raise Refusal(503, "Too many requests are waiting: try again in a second.")
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            held += count
            self.held += count
            if self.held > service.limits.held:
                raise Refusal(503, "Too many bytes are being read already: try again in a second.")

        try:
            body = await read_body(headers, receive, service.limits.body, hold)
            if len(body) < LONG:
                request = asked(headers, query, body, service.limits)
            else:
                request = await asyncio.to_thread(asked, headers, query, body, service.limits)
            if not request.heat:
                return _told(await service.batcher.ask(request, started))
            with service.drawing():
                result = await service.batcher.ask(request, started)
                return await service.drawn(result) if isinstance(result, Drawing) else _told(result)
        finally:
            self.held -= held

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any other route: body within bounds, headers added, counted."""
        headers, seen = dict(scope["headers"]), 0

        async def dressed(message: MutableMapping[str, Any]) -> None:
            nonlocal seen
            if message["type"] == "http.response.start":
                seen = message["status"]
                message["headers"] = with_security(message.get("headers", ()))
            await send(message)

        try:
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self.inner(scope, receive, dressed)
            else:
                body = await read_body(headers, receive, SMALL)
                await self.inner(scope, _replayed(body, receive), dressed)
        except Gone:
            return
        except Refusal as error:
            await _plain(dressed, *refused(error))
        except Exception as error:
            answer = failed(error, scope["path"][:100])
            if not seen:
                await _plain(dressed, *answer)
        self.service.monitor.response(_route(scope), seen)

    async def _live(self, receive: Receive, send: Send) -> None:
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


def _route(scope: Scope) -> str:
    """The pattern of the route, so that what strangers ask for makes no new metrics."""
    return getattr(scope.get("route"), "path", "other")


def _told(result: Any) -> bytes:
    """What a thread came to: an answer, or why there is none."""
    if isinstance(result, Refusal):
        raise result
    assert isinstance(result, bytes)
    return result


def _anything(_: int) -> None:
    """Nobody counts."""


async def read_body(
    headers: Mapping[bytes, bytes], receive: Receive, most: int, hold: Callable[[int], None] = _anything
) -> bytes:
    """The whole body; raises Refusal for one that is too large (413) or too slow (408).

    ``hold`` is told of the bytes as they come.
    """
    length = said_length(headers)
    if length is not None and length > most:
        raise too_large(most)
    try:
        async with asyncio.timeout(PATIENCE):
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                body = message.get("body", b"")
                if len(body) > most:
                    raise too_large(most)
                hold(len(body))
                return body
            parts, count = [], 0
            while True:
                if message["type"] == "http.disconnect":
                    raise Gone
                parts.append(message.get("body", b""))
                count += len(parts[-1])
                if count > most:
                    raise too_large(most)
                hold(len(parts[-1]))
                if not message.get("more_body"):
                    return b"".join(parts)
                message = await receive()
    except TimeoutError as error:
        raise Refusal(408, "The body did not come in time.") from error


def said_length(headers: Mapping[bytes, bytes]) -> int | None:
    """The length that the headers announce."""
    text = headers.get(b"content-length")
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise Refusal(400, "The content length is not a number.")
    return int(text)


def too_large(most: int) -> Refusal:
    """More bytes than a body may have."""
    return Refusal(413, f"The body is larger than {most / 1e6:g} MB, which is refused unread.")


def refused(error: Refusal | Denied) -> tuple[int, Headers, bytes]:
    """Status, headers and body that say no."""
    status = error.status
    more: Headers = []
    if status == 401:
        more = [(b"www-authenticate", b"Bearer")]
    elif status == 503:
        more = [(b"retry-after", b"1")]
    elif status in (408, 413):
        more = [(b"connection", b"close")]
    return status, more, dumps({"detail": str(error)})


def failed(error: Exception, where: str) -> tuple[int, Headers, bytes]:
    """A fault of ours: told in the log, not to the client."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last else ""
    say("error", where=where, kind=type(error).__name__, error=str(error)[:500], at=place)
    return 500, [], dumps({"detail": FAILED})


def with_security(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers with those of ``SECURITY`` that they lack."""
    given = list(headers)
    names = {name.lower() for name, _ in given}
    return given + [pair for pair in SECURITY if pair[0] not in names]


async def _plain(send: Send, status: int, more: Headers, body: bytes) -> None:
    headers = [_JSON, (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, to be received again."""
    sent = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
