"""One process of the service: uvicorn with bounds of its own around an opened service."""

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
from .log import log_event
from .service import RELEASE_POLL_SECONDS, Service, ServiceSettings

MAX_HEADER_BYTES = 32_000
"""Bytes of a request's address and headers, at most."""

SHUTDOWN_SECONDS = 20
"""Seconds that requests may take to finish when the service stops."""

KEEP_ALIVE_SECONDS = 30
"""Seconds for which an idle connection is kept."""

HEADER_TIMEOUT_SECONDS = 10.0
"""Seconds in which headers must be complete once they have begun."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's, with bounds for headers and no patience for connections that never ask."""

    heading, pending = True, 0
    """Whether headers are still coming, and how many bytes of them came."""
    patience = HEADER_TIMEOUT_SECONDS
    late: asyncio.TimerHandle | None = None
    """What ends the connection where they take too long."""

    def connection_made(self, transport: Any) -> None:
        """A connection has as long for its first byte as between two requests."""
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        """Bytes: those of headers that are not complete yet are counted, for they are kept."""
        super().data_received(data)
        if self.heading and not self.transport.is_closing():
            self.pending += len(data)
            if self.pending > MAX_HEADER_BYTES:
                self.send_400_response("The headers are too large.")
            elif self.late is None:
                self.late = self.loop.call_later(
                    self.patience, self.send_400_response, "The headers did not come in time."
                )

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is waited for any more."""
        self._in_time()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A new request."""
        super().on_message_begin()
        self.heading, self.pending = True, 0

    def on_headers_complete(self) -> None:
        """Its headers are complete."""
        self.heading = False
        self._in_time()
        super().on_headers_complete()

    def _in_time(self) -> None:
        if self.late is not None:
            self.late.cancel()
            self.late = None


class QuietServer(uvicorn.Server):
    """uvicorn's, which ends quietly after a signal: the caller has journals to close."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Within it a signal asks the server to finish."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with handle_stop_signals(self.handle_exit):
            yield


@contextmanager
def handle_stop_signals(handle: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Within it ``handle`` is told of SIGINT and SIGTERM."""
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
    """Open the service and answer until a signal comes; without a socket only the folder is watched."""
    service = Service(settings).open()
    watch = FolderWatcher(service, watched) if watched is not None else None
    gc.freeze()  # what was imported is never garbage, and looking through it takes long
    thread = threading.Thread(target=watch.run, name="watch", daemon=True) if watch else None
    if thread is not None:
        thread.start()
    pace = service.engine.pace
    log_event("started", release=service.engine.release, largest_batch=pace.max_batch)
    try:
        if listening is None:
            started(service)
            _watch_only(service)
        else:
            server = QuietServer(_uvicorn_config(service))
            started(service)
            server.run(sockets=[listening])
    finally:
        if watch is not None and thread is not None:
            watch.stop()
            thread.join()
        service.close()
        log_event("stopped", release=service.engine.release)


def _uvicorn_config(service: Service) -> uvicorn.Config:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the service logs for itself
    return uvicorn.Config(
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


def _watch_only(service: Service) -> None:
    """Wait for a signal; look for releases meanwhile."""
    told: list[int] = []  # a handler may interrupt whoever holds an Event's lock, and would wait for it for ever
    with handle_stop_signals(lambda number, _: told.append(number)):
        while not told:
            time.sleep(RELEASE_POLL_SECONDS)
            if service.settings.site:
                service.poll_release()
            service.monitor.flush()
