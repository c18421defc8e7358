"""One process of the service: uvicorn, with limits of our own, around an opened service, and a watched folder."""

import asyncio
import gc
import json
import logging
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..errors import DataError, ImageError, ServiceError
from ..sources import read_image_file
from .api import create_app
from .asgi import INTERNAL_ERROR_DETAIL
from .monitor import log_event
from .requests import PredictRequest, RequestError
from .service import RELEASE_POLL_SECONDS, PredictResult, Service, ServiceSettings, describe_service

MAX_HEADER_BYTES = 32_000
"""Bytes of a request's address, headers and trailers."""

HEADER_TIMEOUT_SECONDS = 10.0
"""Seconds within which headers must be complete once they have begun."""

REFUSED_BODY_SECONDS = 5.0
"""Seconds that the rest of a body may take after its request was answered: long enough to read the answer."""

UNREAD_ANSWER_SECONDS = 30.0
"""Seconds for which an answer that the client does not read is kept in memory."""

KEEP_ALIVE_SECONDS = 30
"""Seconds for which an idle connection is kept."""

SHUTDOWN_SECONDS = 20
"""Seconds that requests may take to finish when the service stops."""

FOLDER_POLL_SECONDS = 0.3
"""Seconds between two polls; a file is complete if two of them find the same size."""

MAX_FILES_PER_POLL = 32

UNFINISHED_SUFFIXES = (".part", ".partial", ".tmp", ".crdownload")
"""Suffixes of files that are still being written."""

FileState = tuple[int, int]
"""Size in bytes, and time of the last change in nanoseconds."""


# uvicorn's internals: everything that depends on more than its documented settings is in the next two classes.
# uvicorn has no limits for the headers that httptools parses (h11_max_incomplete_event_size is h11's alone), so
# its protocol is extended. That relies on names that are public but not documented: HttpToolsProtocol's methods
# connection_made, data_received, connection_lost, pause_writing, resume_writing, on_message_begin, on_url,
# on_header, on_headers_complete, on_body, on_message_complete, on_response_complete, timeout_keep_alive_handler and
# send_400_response, its attributes loop, transport, cycle, timeout_keep_alive and timeout_keep_alive_task; and
# Server.capture_signals and handle_exit. tests/serving/test_worker.py fails if a version of uvicorn lacks one.


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with limits for the size and time of headers, trailers, refused bodies and unread answers.

    At any moment either the service works on an answer or a timer runs that ends the connection.
    """

    header_timeout = HEADER_TIMEOUT_SECONDS
    refused_body_timeout = REFUSED_BODY_SECONDS
    unread_answer_timeout = UNREAD_ANSWER_SECONDS

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._reading_headers, self._header_bytes = True, 0
        self._unparsed_bytes = 0  # since the parser last found something: a field, a chunk's size, a trailer
        self._request_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Give a new connection as long for its first byte as between two requests."""
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        """Limit what the parser keeps in memory, and the time until headers are complete."""
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._unparsed_bytes > MAX_HEADER_BYTES:
            self.send_400_response("The headers are too large.")
        elif self._reading_headers and self._unparsed_bytes and self._request_timer is None:
            self._request_timer = self.loop.call_later(self.header_timeout, self._end_incomplete_headers)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._stop_request_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Give the client a while to read its answers."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(self.unread_answer_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting for the client to read."""
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        super().resume_writing()

    def on_message_begin(self) -> None:
        """Begin to count the headers of a new request."""
        super().on_message_begin()
        self._reading_headers, self._header_bytes, self._unparsed_bytes = True, 0, 1

    def on_url(self, url: bytes) -> None:
        """Count a piece of the address."""
        self._count_header_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header or trailer. Trailers are dropped: the request that they belong to was authorized already."""
        self._count_header_bytes(len(name) + len(value) + 4)
        self._unparsed_bytes = 1
        if self._reading_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop waiting for headers."""
        self._reading_headers, self._unparsed_bytes = False, 0
        self._stop_request_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, which the application counts."""
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the next request, if this one is answered already."""
        self._reading_headers, self._header_bytes, self._unparsed_bytes = True, 0, 0
        self._stop_request_timer()
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete and not self.transport.is_closing():
            self._await_request()

    def on_response_complete(self) -> None:
        """Wait a short time for the rest of a body that was not read."""
        super().on_response_complete()
        if self.transport.is_closing():  # it stays open until the client has read the answer
            self._abort_later(self.unread_answer_timeout)
        elif not self._reading_headers and self.cycle.response_complete:
            self._abort_later(self.refused_body_timeout)

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection, with whatever the client did not read."""
        if not self.transport.is_closing():
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse once, and end the connection though the client may not read."""
        if not self.transport.is_closing():
            super().send_400_response(msg)
            self._abort_later(self.refused_body_timeout)

    def _await_request(self) -> None:
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _count_header_bytes(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self.send_400_response("The headers are too large.")
            raise ValueError("headers too large")  # stops the parser

    def _end_incomplete_headers(self) -> None:
        self._request_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response("The headers did not arrive in time.")
        else:  # the answer to an earlier request goes first
            self._request_timer = self.loop.call_later(self.header_timeout, self._end_incomplete_headers)

    def _abort_later(self, seconds: float) -> None:
        self._stop_request_timer()
        self._request_timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop_request_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None


class QuietServer(uvicorn.Server):
    """uvicorn's server, which does not raise the signal again when it has stopped: there are journals to close."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ask the server to stop on SIGINT and SIGTERM."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with handle_stop_signals(self.handle_exit):
            yield


@contextmanager
def handle_stop_signals(handle: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Call ``handle`` on SIGINT and SIGTERM within this context."""
    before = {one: signal.signal(one, handle) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def print_json_line(value: dict[str, Any]) -> None:
    """Write one JSON line to stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


class FolderWatcher:
    """Classifies files that appear or change in a folder; files that are there at the start are left alone."""

    def __init__(self, service: Service, folder: Path, report: Callable[[dict[str, Any]], None] = print_json_line):
        """``report`` gets the JSON of each prediction or error. Raise DataError if there is no such folder."""
        if not folder.is_dir():
            raise DataError(
                f"There is no folder '{folder}' to watch. Make it first, or name another with --watch."
            )
        self._service = service
        self._folder = folder
        self._report = report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._new: dict[str, FileState] = {}  # of the last poll; their sizes may still change
        self._done = self._list_files()
        log_event("watching", folder=str(folder), left=len(self._done))

    def start(self) -> None:
        """Poll in a thread until ``stop``."""
        self._thread.start()

    def stop(self) -> None:
        """Stop polling, and wait for the last poll to end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(FOLDER_POLL_SECONDS):
            try:
                self.poll()
            except Exception as error:  # a network share may be away for a while
                log_event("watching failed", folder=str(self._folder), error=f"{type(error).__name__}: {error}")

    def poll(self) -> int:
        """Classify new and complete files; return their number."""
        found = self._list_files()
        self._done = {name: state for name, state in self._done.items() if name in found}
        new = {name: state for name, state in found.items() if self._done.get(name) != state}
        complete = [name for name, state in new.items() if self._new.get(name) == state and state[0]]
        complete = complete[:MAX_FILES_PER_POLL]
        self._new = new
        waiting: list[tuple[str, Future[PredictResult]]] = []
        for name in complete:
            try:
                waiting.append((name, self._submit(name, new[name][0])))
            except RequestError as error:
                if error.status == 503:
                    continue  # the queue is full: at the next poll
                self._report({"file": name, "error": error.detail})
            except (OSError, ImageError) as error:  # it went, or became a pipe, since it was listed
                self._report({"file": name, "error": getattr(error, "strerror", None) or str(error)})
            self._done[name] = new[name]
        for name, future in waiting:
            try:
                result = future.result()
                assert isinstance(result, bytes)  # no heat maps were asked for
                value = json.loads(result)
                self._report({"file": name, "release": value["release"], **value["predictions"][0]})
            except RequestError as error:
                if error.status == 503:
                    del self._done[name]  # it could not be journalled: at the next poll
                else:
                    self._report({"file": name, "error": error.detail})
            except Exception as error:  # the other files still have their answers
                log_event("error", where="watch", kind=type(error).__name__, error=str(error)[:500])
                self._report({"file": name, "error": INTERNAL_ERROR_DETAIL})
        return len(complete)

    def _list_files(self) -> dict[str, FileState]:
        """Return the files in the folder; links are not followed."""
        found = {}
        for path in self._folder.iterdir():
            if path.name.startswith(".") or path.name.lower().endswith(UNFINISHED_SUFFIXES):
                continue
            with suppress(OSError):  # it went meanwhile
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    found[path.name] = (status.st_size, status.st_mtime_ns)
        return found

    def _submit(self, name: str, size: int) -> "Future[PredictResult]":
        limits = self._service.limits
        if size > limits.max_body_bytes:
            raise RequestError(413, f"The file is larger than {limits.body_mb:g} MB, which is refused unread.")
        data = read_image_file(self._folder / name)
        return self._service.batcher.submit(PredictRequest([data], source=name))


def run_worker(
    settings: ServiceSettings,
    listening: socket.socket | None,
    watched: Path | None,
    started: Callable[[Service], None],
) -> None:
    """Open the service and answer until a signal arrives; without a socket, only watch the folder.

    ``started`` is called once, when requests are answered.
    """
    service = Service(settings).open()
    watcher = FolderWatcher(service, watched) if watched is not None else None
    gc.freeze()  # imported modules are never garbage, and each collection would look through them
    if watcher is not None:
        watcher.start()
    log_event("started", **describe_service(service))
    try:
        if listening is None:
            signals: list[int] = []  # an Event could deadlock: the handler may interrupt whoever holds its lock
            with handle_stop_signals(lambda number, _: signals.append(number)):
                started(service)
                while not signals:
                    time.sleep(RELEASE_POLL_SECONDS)
                    if service.settings.has_releases:
                        service.poll_release()
                    service.monitor.flush()
        else:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the service has its own log
            config = uvicorn.Config(
                create_app(service),
                http=BoundedHttpProtocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
                backlog=1024,
            )
            server = QuietServer(config)
            try:
                listening.listen(config.backlog)
            except OSError as error:  # another service bound the same port at the same time
                raise ServiceError(
                    f"The port cannot be used ({error.strerror}): choose another --port."
                ) from error
            started(service)
            server.run(sockets=[listening])
    finally:
        if watcher is not None:
            watcher.stop()
        service.close()
        log_event("stopped", release=service.release)
