"""One process of the service: uvicorn, with limits of our own, around an opened service."""

import asyncio
import gc
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .api import create_app
from .folder_watcher import FolderWatcher
from .monitor import log_event
from .service import RELEASE_POLL_SECONDS, Service, ServiceSettings

MAX_HEADER_BYTES = 32_000
"""Bytes of a request's address and headers."""

HEADER_TIMEOUT_SECONDS = 10.0
"""Seconds within which headers must be complete once they have begun."""

KEEP_ALIVE_SECONDS = 30
"""Seconds for which an idle connection is kept."""

SHUTDOWN_SECONDS = 20
"""Seconds that requests may take to finish when the service stops."""


# uvicorn's internals: everything that depends on more than its documented settings is in the next two classes.
# uvicorn has no limits for the headers that httptools parses (h11_max_incomplete_event_size is h11's alone), so
# its protocol is extended. That relies on names that are public but not documented: HttpToolsProtocol's methods
# connection_made, data_received, connection_lost, on_message_begin, on_headers_complete,
# timeout_keep_alive_handler and send_400_response, its attributes loop, transport, timeout_keep_alive and
# timeout_keep_alive_task; and Server.capture_signals and handle_exit. tests/serving/test_worker.py fails if a
# version of uvicorn lacks one.


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with limits for the size and time of headers and for connections that never ask."""

    header_timeout = HEADER_TIMEOUT_SECONDS

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._reading_headers, self._header_bytes = True, 0
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Give a new connection as long for its first byte as between two requests."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        """Count the bytes of incomplete headers: uvicorn keeps them in memory."""
        super().data_received(data)
        if self._reading_headers and not self.transport.is_closing():
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self.send_400_response("The headers are too large.")
            elif self._header_timer is None:
                self._header_timer = self.loop.call_later(
                    self.header_timeout, self.send_400_response, "The headers did not arrive in time."
                )

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting for headers."""
        self._stop_header_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin to count the headers of a new request."""
        super().on_message_begin()
        self._reading_headers, self._header_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Stop waiting for headers."""
        self._reading_headers = False
        self._stop_header_timer()
        super().on_headers_complete()

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


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
    log_event("started", release=service.engine.release, largest_batch=service.engine.tuning.max_batch)
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
            started(service)
            server.run(sockets=[listening])
    finally:
        if watcher is not None:
            watcher.stop()
        service.close()
        log_event("stopped", release=service.engine.release)
