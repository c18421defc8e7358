"""``serve``: check the settings, bind the address, and answer there with one process or several."""

import errno
import ipaddress
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from .. import runtime
from ..classifier import find_bundle
from ..errors import ServiceError, SightlineError
from . import releases
from .api_keys import Keyring
from .monitor import METRICS_FOLDER_VARIABLE, log_event
from .requests import RequestLimits
from .service import Observer, Router, ServiceSettings, describe_service

JOURNAL_URL_VARIABLE = "SIGHTLINE_JOURNAL"
"""Environment variable with the journal's URL: a flag's password would be visible in the list of processes."""

MAX_SERVER_WORKERS = 64

MAX_EARLY_EXITS = 3
"""Exits of workers soon after their start, in a row, after which the service gives up."""

EARLY_EXIT_SECONDS = 10.0
"""Seconds after its start within which a worker's exit is early."""

_BIND_ERRORS = {
    errno.EADDRINUSE: "Port {port} of {host} is in use already: choose another --port or stop what listens there.",
    errno.EACCES: "Port {port} needs more rights than this user has: choose a --port above 1023.",
    errno.EADDRNOTAVAIL: "The address {host} is not one of this machine: use --host 127.0.0.1 or 0.0.0.0.",
}


def serve(
    path: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    threads: int | None = None,
    limits: RequestLimits | None = None,
    journal: str | None = None,
    keep_images: bool = False,
    quota_mb: float = 1000.0,
    origins: Sequence[str] = (),
    watch: Path | str | None = None,
    open: bool = False,
    http: bool = True,
    observer: Observer | None = None,
    routers: Sequence[Router] = (),
    body_bytes: Mapping[str, int] | None = None,
    wait_for_release: bool = False,
    report: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> None:
    """Answer HTTP requests until a signal arrives, from a site's current release, or a run, bundle or ONNX file.

    ``report`` is called once, when requests are answered, with ``url``, ``release`` and more; ``observer`` looks at
    the journal of a site every 30 s, such as ``feedback.watch_drift``; ``routers``, ``body_bytes`` and
    ``wait_for_release`` are those of ``ServiceSettings``; the other arguments are the flags of ``sightline serve``.
    Raise ServiceError if the address cannot be bound or would be open to other machines without a key, and the
    errors of opening the release and the journal.
    """
    runtime.check_main_guard()
    path, watched = Path(path), None if watch is None else Path(watch)
    if threads is not None and not 1 <= threads <= 1024:
        raise ServiceError(f"--threads is {threads}: it must be from 1 to 1024.")
    if not 1 <= workers <= MAX_SERVER_WORKERS:
        raise ServiceError(f"--workers is {workers}: it must be from 1 to {MAX_SERVER_WORKERS}.")
    settings = ServiceSettings(
        path=path,
        limits=limits or RequestLimits(),
        journal=journal or os.environ.get(JOURNAL_URL_VARIABLE) or None,
        keep_images=keep_images,
        quota_mb=quota_mb,
        threads=threads or max(1, runtime.cpu_count() // workers),
        open=open,
        loopback_only=is_loopback(host),
        hosts=("localhost", "127.0.0.1", "[::1]", host.lower()),
        origins=tuple(origin.lower().rstrip("/") for origin in origins),
        observer=observer,
        routers=tuple(routers),
        body_bytes=body_bytes or {},
        wait_for_release=wait_for_release,
    )
    _check_settings(settings, host, workers, watched, http=http)
    listening = bind_socket(host, port, listen=False) if http else None  # the workers listen when they can answer
    facts: dict[str, Any] = {"url": None, "path": str(path), "workers": workers}
    if listening is not None:
        facts["url"] = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    try:
        if workers > 1:
            WorkerPool(settings, listening, watched).run(workers, lambda: report(facts))
        else:
            from .worker import run_worker

            run_worker(settings, listening, watched, lambda service: report(facts | describe_service(service)))
    finally:
        if listening is not None:
            listening.close()


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check_settings(
    settings: ServiceSettings, host: str, workers: int, watched: Path | None, *, http: bool
) -> None:
    """Raise a SightlineError for what would fail or be unsafe later."""
    path = settings.path
    if settings.has_releases:
        if not settings.wait_for_release or releases.current_number(path) is not None:
            releases.current_release(path)
    elif not path.is_file():
        find_bundle(path)  # its error names what is missing
    keyless = not settings.has_releases or Keyring(path).empty
    if http and keyless and not settings.loopback_only and not settings.open:
        remedy = f"make one with: sightline keys {path} make NAME"
        if not settings.has_releases:
            remedy = "serve a site with keys"
        raise ServiceError(f"--host {host} lets other machines in, and there is no key: {remedy}, or add --open.")
    if not http and watched is None:
        raise ServiceError("Nothing would be answered: --no-http needs a folder to --watch.")
    if not http and workers > 1:
        raise ServiceError("--no-http watches a folder with one process: leave --workers out.")
    if watched is not None and not watched.is_dir():
        raise ServiceError(
            f"There is no folder '{watched}' to watch. Make it first, or name another with --watch."
        )
    for origin in settings.origins:
        if origin != "*" and not origin.startswith(("http://", "https://")):
            raise ServiceError(f"--origin '{origin}' is not like https://example.org.")


def bind_socket(host: str, port: int, *, listen: bool = True) -> socket.socket:
    """Return a bound socket, which listens unless told not to yet; raise ServiceError if it cannot be bound."""
    if not 0 <= port <= 65535:
        raise ServiceError(f"--port is {port}: it must be from 0 (any free one) to 65535.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ServiceError(
            f"There is no address '{host}' on this machine: use --host 127.0.0.1 or 0.0.0.0."
        ) from error
    listening = socket.socket(family, kind)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        if listen:
            listening.listen(1024)
    except OSError as error:
        listening.close()
        template = _BIND_ERRORS.get(error.errno or 0, "Port {port} of {host} cannot be used: {error}.")
        raise ServiceError(template.format(host=host, port=port, error=error)) from error
    listening.setblocking(False)
    listening.set_inheritable(True)
    return listening


@dataclass(eq=False)
class WorkerPool:
    """Several processes that answer at one address; one that dies is replaced.

    It is not uvicorn's ``Multiprocess``: only the first worker watches a folder, a service whose workers die early
    must end with an error, and a dead worker's metrics must be marked.
    """

    settings: ServiceSettings
    listening: socket.socket | None
    watched: Path | None

    def run(self, count: int, started: Callable[[], None]) -> None:
        """Start ``count`` workers and replace dead ones until a signal arrives; ``started`` is called once."""
        from .worker import handle_stop_signals

        if self.settings.has_releases and releases.current_number(self.settings.path) is not None:
            releases.verify(releases.current_release(self.settings.path))  # fail once, not in every worker
        self._context = multiprocessing.get_context("spawn")
        self._ready = self._context.Event()
        self._early_exits = 0
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sightline-metrics-"))
            os.environ[METRICS_FOLDER_VARIABLE] = folder  # inherited by the workers
            stack.callback(os.environ.pop, METRICS_FOLDER_VARIABLE)
            signals: list[int] = []  # an Event could deadlock: the handler may interrupt whoever holds its lock
            stack.enter_context(handle_stop_signals(lambda number, _: signals.append(number)))
            workers = [self._start(number) for number in range(count)]
            try:
                reported = False
                while not signals:
                    time.sleep(0.1)
                    if not reported and self._ready.is_set():
                        reported = True
                        started()
                    for number, (process, since) in enumerate(workers):
                        if not process.is_alive():
                            workers[number] = self._replace(number, process, since)
            finally:
                self._stop([process for process, _ in workers])

    def _start(self, number: int) -> tuple[SpawnProcess, float]:
        """Start a worker; return its process and the time."""
        watched = self.watched if number == 0 else None
        arguments = (self.settings, self.listening, watched, self._ready)
        process = self._context.Process(target=_worker_main, args=arguments, name=f"worker-{number}")
        process.start()
        return process, time.monotonic()

    def _replace(self, number: int, process: SpawnProcess, since: float) -> tuple[SpawnProcess, float]:
        """Start a worker in place of a dead one; raise ServiceError after several early exits."""
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(process.pid or 0)
        self._early_exits = self._early_exits + 1 if time.monotonic() - since < EARLY_EXIT_SECONDS else 0
        log_event("worker lost", worker=number, code=process.exitcode)
        if self._early_exits >= MAX_EARLY_EXITS:
            raise ServiceError("The workers exit as soon as they start; the log has the reason.")
        time.sleep(0.2 * self._early_exits)
        return self._start(number)

    @staticmethod
    def _stop(processes: Sequence[SpawnProcess]) -> None:
        """Ask the workers to stop and wait for them; kill those that do not."""
        from .worker import SHUTDOWN_SECONDS

        for process in processes:
            if process.is_alive():
                process.terminate()
        until = time.monotonic() + SHUTDOWN_SECONDS + 10
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                log_event("worker killed", worker=process.name)
                process.kill()


def _worker_main(
    settings: ServiceSettings, listening: socket.socket | None, watched: Path | None, ready: Any
) -> None:
    """Run a worker for as long as the process that started it lives."""
    from .worker import run_worker

    def stop_with_parent() -> None:  # a parent that was killed can stop nobody, and the port would stay taken
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_with_parent, name="parent", daemon=True).start()
    try:
        run_worker(settings, listening, watched, lambda _: ready.set())
    except SightlineError as error:
        log_event("worker failed", error=str(error))
        raise SystemExit(error.exit_code) from error
