"""``serve``: everything is checked, the address is taken, and one process or several answer at it."""

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
from pathlib import Path
from typing import Any

from .. import runtime
from ..classifier import find_bundle
from ..errors import ServiceError, SightlineError
from . import releases
from .api_keys import Keyring
from .limits import RequestLimits
from .log import log_event
from .monitor import METRICS_FOLDER_VARIABLE
from .service import Service, ServiceSettings

JOURNAL_URL_VARIABLE = "SIGHTLINE_JOURNAL"
"""The environment variable with the journal's URL, so that its password is in no list of processes."""

MAX_SERVER_WORKERS = 64

MAX_EARLY_EXITS = 3
"""Times that a worker may end soon after its start before the service gives up."""

EARLY_EXIT_SECONDS = 10.0
"""Seconds."""


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
    tell: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> None:
    """Answer requests at an address until a signal comes: a site's current release, or a run, bundle or ONNX file.

    ``tell`` is called once, when requests are answered, with ``url``, ``release`` and more. Raises ServiceError
    for an address that cannot be had or would let strangers in, and what opening the release or journal raises.
    """
    path, watched = Path(path), None if watch is None else Path(watch)
    local = is_loopback(host)
    settings = ServiceSettings(
        path=path,
        limits=limits or RequestLimits(),
        journal=journal or os.environ.get(JOURNAL_URL_VARIABLE) or None,
        keep_images=keep_images,
        quota_mb=quota_mb,
        threads=_check_threads(threads, workers),
        open=open,
        local=local,
        hosts=("localhost", "127.0.0.1", "[::1]", host.lower()),
        origins=tuple(origin.lower().rstrip("/") for origin in origins),
    )
    _check_settings(settings, host, workers, watched, http=http)
    listening = bind_socket(host, port) if http else None
    told = {"url": _service_url(host, listening), "path": str(path), "workers": workers}
    try:
        if workers > 1:
            WorkerPool(settings, listening, watched).run(workers, lambda: tell(told))
        else:
            from .worker import run_worker

            run_worker(settings, listening, watched, lambda service: tell(told | describe_service(service)))
    finally:
        if listening is not None:
            listening.close()


def describe_service(service: Service) -> dict[str, Any]:
    """What a service answers with, to be told when it starts."""
    engine = service.engine
    return {
        "release": engine.release,
        "classes": len(engine.classes),
        "runtime": engine.facts["runtime"],
        "keys": service.requires_key,
        "journal": service.journal is not None,
        "largest_batch": engine.pace.max_batch,
    }


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check_threads(threads: int | None, workers: int) -> int:
    if threads is not None and not 1 <= threads <= 1024:
        raise ServiceError(f"--threads is {threads}: it must be from 1 to 1024.")
    if not 1 <= workers <= MAX_SERVER_WORKERS:
        raise ServiceError(f"--workers is {workers}: it must be from 1 to {MAX_SERVER_WORKERS}.")
    return threads or max(1, runtime.cpu_count() // workers)


def _check_settings(
    settings: ServiceSettings, host: str, workers: int, watched: Path | None, *, http: bool
) -> None:
    """Raise a SightlineError for what would fail or be unsafe later."""
    path = settings.path
    if settings.site:
        releases.current_release(path)
    elif not path.is_file():
        find_bundle(path)  # says what is missing
    keyless = not settings.site or Keyring(path).empty
    if http and keyless and not settings.local and not settings.open:
        make = f"make one with: sightline keys {path} make NAME" if settings.site else "serve a site with keys"
        raise ServiceError(f"--host {host} lets other machines in, and there is no key: {make}, or add --open.")
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


def bind_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; raises ServiceError, saying what to do, where it cannot."""
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
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise ServiceError(
            _BIND_ERRORS.get(error.errno or 0, _OTHER_BIND_ERROR).format(host=host, port=port, error=error)
        ) from error
    listening.setblocking(False)
    listening.set_inheritable(True)
    return listening


_BIND_ERRORS = {
    errno.EADDRINUSE: "Port {port} of {host} is in use already: choose another --port or stop what listens there.",
    errno.EACCES: "Port {port} may not be used without more rights: choose a --port above 1023.",
    errno.EADDRNOTAVAIL: "The address {host} is not one of this machine: use --host 127.0.0.1 or 0.0.0.0.",
}
_OTHER_BIND_ERROR = "Port {port} of {host} cannot be used: {error}."


def _service_url(host: str, listening: socket.socket | None) -> str | None:
    if listening is None:
        return None
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"


@dataclass(eq=False)
class WorkerPool:
    """Several processes that answer at one address. One that dies is replaced."""

    settings: ServiceSettings
    listening: Any
    watched: Path | None

    def run(self, count: int, started: Callable[[], None]) -> None:
        """Start them, and see to them until a signal comes."""
        from .worker import handle_stop_signals

        if self.settings.site:
            releases.verify(releases.current_release(self.settings.path))  # said once, not by every worker
        context = multiprocessing.get_context("spawn")
        self._ready = context.Event()
        self._early = 0
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sightline-metrics-"))
            os.environ[METRICS_FOLDER_VARIABLE] = folder  # which every worker inherits
            stack.callback(os.environ.pop, METRICS_FOLDER_VARIABLE)
            signals: list[int] = []  # a handler may interrupt whoever holds an Event's lock, and would wait for it
            stack.enter_context(handle_stop_signals(lambda number, _: signals.append(number)))
            processes = [self._start(context, number) for number in range(count)]
            try:
                told = False
                while not signals:
                    time.sleep(0.1)
                    if not told and self._ready.is_set():
                        told = True
                        started()
                    processes = [self._replace_if_dead(context, *one) for one in processes]
            finally:
                _stop_workers([process for process, _, _ in processes])

    def _start(self, context: Any, number: int) -> tuple[Any, int, float]:
        watched = self.watched if number == 0 else None
        arguments = (self.settings, self.listening, watched, self._ready)
        process = context.Process(target=_worker_main, args=arguments, name=f"worker-{number}")
        process.start()
        return process, number, time.monotonic()

    def _replace_if_dead(self, context: Any, process: Any, number: int, since: float) -> tuple[Any, int, float]:
        """The process, or another in its place."""
        if process.is_alive():
            return process, number, since
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(process.pid)
        self._early = self._early + 1 if time.monotonic() - since < EARLY_EXIT_SECONDS else 0
        log_event("worker lost", worker=number, code=process.exitcode)
        if self._early >= MAX_EARLY_EXITS:
            raise ServiceError("The workers end as soon as they start; the log says why.")
        time.sleep(0.2 * self._early)
        return self._start(context, number)


def _stop_workers(processes: Sequence[Any]) -> None:
    """Ask them to finish, and wait; whoever does not is killed."""
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


def _stop_with_parent() -> None:
    """Stop when the parent is gone, killed perhaps: nobody else would, and the port would stay taken."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _worker_main(settings: ServiceSettings, listening: socket.socket, watched: Path | None, ready: Any) -> None:
    """What a worker does, for as long as the process that started it lives."""
    from .worker import run_worker

    threading.Thread(target=_stop_with_parent, name="parent", daemon=True).start()
    try:
        run_worker(settings, listening, watched, lambda _: ready.set())
    except SightlineError as error:
        log_event("worker failed", error=str(error))
        raise SystemExit(error.exit_code) from error
