"""One process's service: the current release's engine behind its queue, the journal, the keys, heat maps."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import runtime
from ..errors import JournalError, SightlineError
from ..journal import PredictionRecord, new_prediction_id
from . import releases
from .api_keys import Keyring
from .batcher import Batcher, PredictJob
from .engine import Engine, open_engine
from .heatmaps import HeatmapRenderer, PendingHeatmaps
from .monitor import OBSERVED_GAUGES, SUMMARY_SECONDS, BatchStats, Monitor, log_event
from .requests import (
    RankedPrediction,
    RequestError,
    RequestLimits,
    combined_error,
    dump_json,
    image_error_json,
    prediction_json,
)

if TYPE_CHECKING:
    from ..journal import Journal

RELEASE_POLL_SECONDS = 0.25
"""Seconds between two checks for another current release."""

KEY_RELOAD_SECONDS = 0.02
"""The key file is re-read at most every 20 ms, so a revoked key may work for up to 20 ms."""

JOURNAL_UNAVAILABLE_DETAIL = "The journal is not available at the moment: try again in a second."
"""The log has the reason, which may name folders and hosts."""

OBSERVE_SECONDS = 30.0
"""Seconds between two calls of the observer."""

Observer = Callable[[Path, "Journal", int], Mapping[str, Any]]
"""``(site, journal, release) -> what is known of its answers``; the numbers in it become metrics."""

Router = Callable[[Any, "Service"], None]
"""``(FastAPI application, service)``: adds routes that stages below this one know how to answer."""


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """The configuration of a service; the same for every worker."""

    path: Path
    """A site; or a run, a bundle or an exported file, served without releases."""
    limits: RequestLimits = field(default_factory=RequestLimits)
    journal: str | None = None
    """URL of the journal's database. None is the site's own file, or no journal without a site."""
    keep_images: bool = False
    quota_mb: float = 1000.0
    """MB of kept images."""
    threads: int | None = None
    """Cores of one worker; None is all of them, shared among the workers."""
    open: bool = False
    """Allow unauthenticated requests from any host while no API key exists; False allows loopback only."""
    loopback_only: bool = True
    """Whether the service listens on a loopback address."""
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    """Host names that browsers on this machine may use while no key exists."""
    origins: tuple[str, ...] = ()
    """Web origins that may ask, such as ``https://example.org`` (CORS)."""

    observer: Observer | None = None
    """Called every 30 s by each worker of a site; ``GET /drift`` answers with what it returned last."""
    routers: tuple[Router, ...] = ()
    """Called by each worker of a site when it builds its application."""
    body_bytes: Mapping[str, int] = field(default_factory=dict)
    """Prefixes of paths whose bodies may be larger than those of other routes, and their bytes."""
    wait_for_release: bool = False
    """Start on a site without a release: what needs one is refused (503) until one is promoted."""

    @property
    def has_releases(self) -> bool:
        """Whether ``path`` is a site."""
        return releases.is_site(self.path)


PredictResult = bytes | PendingHeatmaps
"""What the queue returns for a request: the JSON of the response, or a response that needs heat maps."""


class Service:
    """The engine, queue, journal and keys of one process. Call ``open`` first; ``close`` answers what waits."""

    batcher: Batcher[PredictResult]
    monitor: Monitor
    journal: "Journal | None"

    def __init__(self, settings: ServiceSettings):
        self.settings = settings
        self.limits = settings.limits
        self.keyring = Keyring(settings.path, every=KEY_RELOAD_SECONDS) if settings.has_releases else None
        self.ready = False
        self.observed: Mapping[str, Any] = {}
        """What the observer returned last."""
        self.heatmaps = HeatmapRenderer()
        self._engine: Engine | None = None
        self._closed = False
        self._switch_lock = threading.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._stamp: tuple[int, ...] = ()

    def open(self) -> "Service":
        """Open the release, the journal and the queue; raise a SightlineError if one cannot be opened."""
        settings, cores = self.settings, self.settings.threads or runtime.cpu_count()
        if settings.has_releases:
            self._stamp = releases.pointer_stamp(settings.path)
            if not settings.wait_for_release or releases.current_number(settings.path) is not None:
                self._engine = self._open_release(releases.current_release(settings.path))
        else:
            self._engine = open_engine(settings.path, threads=settings.threads)
        self.journal = None
        if settings.has_releases or settings.journal is not None:
            from ..journal import Journal

            path = settings.path
            folder = path if settings.has_releases else path.with_name(f"{path.name}.journal")
            keep, quota = settings.keep_images, settings.quota_mb
            self.journal = Journal.open(settings.journal or path, site=folder, keep_images=keep, quota_mb=quota)
        self._pool = ThreadPoolExecutor(cores, thread_name_prefix="decode")
        self.monitor = Monitor(self._gauges)
        self.batcher = Batcher(
            self._answer_batch,
            runners=cores,
            depth=self.limits.queue,
            max_batch=lambda: self.engine.tuning.max_batch,
        )
        self.ready = True
        return self

    @property
    def engine(self) -> Engine:
        """What answers; raise RequestError (503) while a site has no release."""
        if self._engine is None:
            raise RequestError(503, "No release answers yet: publish a run.")
        return self._engine

    @property
    def release(self) -> int | None:
        """The number of the release that answers, 0 without releases; None while a site has none yet."""
        return None if self._engine is None else self._engine.release

    def _open_release(self, release: releases.Release) -> Engine:
        releases.verify(release)
        return open_engine(
            release.onnx or release.bundle,
            release=release.number,
            bundle=release.bundle,
            threads=self.settings.threads,
            facts=release.facts,
            reference=release.reference(),
        )

    def _gauges(self) -> dict[str, float]:
        return {
            "queue": self.batcher.waiting,
            "release": self.release or 0,
            "journal": self.journal.waiting if self.journal else 0,
            "healthy": float(self.journal is None or self.journal.healthy),
            "dropped": self.journal.dropped_images if self.journal else 0,
            "ready": float(self.ready and not self.batcher.full),
            **{name: float(self.observed.get(name) or 0) for name in OBSERVED_GAUGES},
        }

    # Answering

    def _answer_batch(
        self, jobs: Sequence[PredictJob[PredictResult]], exclusive: bool
    ) -> Sequence[PredictResult | RequestError]:
        """Return the response to each request, or its error; every prediction is journalled first."""
        engine = self.engine
        answered = engine.predict([job.request for job in jobs], self.limits, self._pool, exclusive=exclusive)
        now = time.time()
        results: list[PredictResult | RequestError] = []
        records: list[PredictionRecord] = []
        for job, images in zip(jobs, answered, strict=True):
            predictions = [one for one in images if isinstance(one, RankedPrediction)]
            if not predictions:
                results.append(combined_error([one for one in images if isinstance(one, RequestError)]))
                continue
            rows = []
            for data, one in zip(job.request.images, images, strict=True):
                if isinstance(one, RequestError):
                    rows.append(image_error_json(one.detail))
                    continue
                id = new_prediction_id()
                rows.append(prediction_json(id, one))
                if self.journal is not None:
                    records.append(
                        PredictionRecord(
                            id,
                            now,
                            engine.release,
                            one.label,
                            one.confidence,
                            one.abstained,
                            hashlib.sha256(data).hexdigest(),
                            job.request.subject,
                            job.request.source,
                            data if self.settings.keep_images else None,
                            sketch_inputs=one.sketch_inputs,
                        )
                    )
            ms = round(1000 * (time.perf_counter() - job.started), 3)
            value = {"release": engine.release, "ms": ms, "predictions": rows}
            heat = job.request.heat
            results.append(PendingHeatmaps(engine, value, predictions) if heat else dump_json(value))
        if self.journal is not None and records:
            try:
                self.journal.record(records)
            except JournalError as error:
                log_event("journal", error=str(error))
                unavailable = RequestError(503, JOURNAL_UNAVAILABLE_DETAIL)
                return [one if isinstance(one, RequestError) else unavailable for one in results]
        predictions = [one for images in answered for one in images if isinstance(one, RankedPrediction)]
        self.monitor.record_batch(
            BatchStats(
                engine.release,
                [time.perf_counter() - job.started for job in jobs],
                sum(map(len, answered)),
                [one.label for one in predictions],
                [one.confidence for one in predictions],
                sum(one.abstained for one in predictions),
            )
        )
        return results

    # Authorization

    @property
    def requires_key(self) -> bool:
        """Whether requests need an API key."""
        if self.keyring is None or self.keyring.empty:
            return not (self.settings.open or self.settings.loopback_only)
        return True

    def authorize(self, headers: Mapping[bytes, bytes], scope: str) -> str | None:
        """Return the name of the key that allows ``scope``, None if no key is needed.

        Raise Unauthorized or RequestError (401, 403).
        """
        keyring, settings = self.keyring, self.settings
        if keyring is None or keyring.empty:
            if settings.open:
                return None
            if settings.loopback_only:
                return self.check_origin(headers)
            if keyring is None:
                raise RequestError(401, "A valid key is needed.")
        assert keyring is not None
        given = headers.get(b"authorization", b"")
        bearer = given[:7].lower() == b"bearer "
        secret = given[7:].strip() if bearer else headers.get(b"x-api-key", b"")
        return keyring.authorize(secret.decode("latin-1") or None, scope)

    def check_origin(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse (403) what a browser sends for another site's page, where no key protects this machine's service."""
        if self.requires_key or self.settings.open:
            return
        host = headers.get(b"host", b"localhost").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name not in self.settings.hosts:
            raise RequestError(
                403,
                "Without keys this service answers only under the name localhost: for other names, as behind a "
                "proxy, make a key (sightline keys SITE make NAME) or start it with --open.",
            )
        origin = headers.get(b"origin")
        if origin is None:
            return
        page = origin.decode("latin-1").lower()
        if page not in self.settings.origins and page.partition("://")[2] != host:
            raise RequestError(
                403, "Without keys this service answers no page of another origin: allow one with --origin."
            )

    # Switching releases

    def poll_release(self) -> None:
        """Answer from another release if one was promoted; a damaged one is refused and logged."""
        with self._switch_lock:  # a caller that finds nothing new may rely on what another thread switches to
            stamp = releases.pointer_stamp(self.settings.path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                found = releases.current_release(self.settings.path)
                if found.number != self.release:
                    self._switch_engine(self._open_release(found))
            except (SightlineError, OSError) as error:
                log_event("release refused", error=str(error), release=self.release)

    def promote(self, number: int, by: str | None) -> int | None:
        """Promote a release and answer from it; return the previous number. Raise RequestError (404, 409)."""
        path, before = self.settings.path, self.release
        if not self.settings.has_releases:
            raise RequestError(404, "This service has no releases: it was started with a run or a file.")
        if number not in releases.release_numbers(path):
            raise RequestError(404, f"There is no release {number}.")
        with self._switch_lock:
            try:
                engine = self._open_release(releases.load_release(path, number))
                releases.promote(path, number, by=by)
            except SightlineError as error:
                log_event("release refused", error=str(error), release=before)
                reason = "it is damaged or newer than this service reads; the service's log has the details"
                raise RequestError(409, f"Release {number} was not promoted: {reason}.") from error
            self._switch_engine(engine)
        return before

    def _switch_engine(self, engine: Engine) -> None:
        before, self._engine = self.release, engine
        log_event("release", release=engine.release, before=before, largest_batch=engine.tuning.max_batch)

    # Start and stop

    async def start(self) -> None:
        """Start the periodic tasks; called in the event loop."""
        tasks = [(1.0, self.monitor.flush), (SUMMARY_SECONDS, self.monitor.log_summary)]
        if self.settings.has_releases:
            tasks.append((RELEASE_POLL_SECONDS, self.poll_release))
        if self.settings.observer is not None and self.settings.has_releases:
            tasks.append((OBSERVE_SECONDS, self.observe))
        self._tasks = [asyncio.create_task(self._repeat(seconds, act)) for seconds, act in tasks]

    def observe(self) -> None:
        """Let the observer look at the journal."""
        if self.settings.observer is not None and self.journal is not None and self.release is not None:
            self.observed = self.settings.observer(self.settings.path, self.journal, self.release)

    @staticmethod
    async def _repeat(seconds: float, act: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await asyncio.to_thread(act)
            except Exception as error:  # the next call may succeed
                log_event("failed", what=getattr(act, "__name__", ""), error=f"{type(error).__name__}: {error}")

    async def stop(self) -> None:
        """Answer what waits, then close everything."""
        self.ready = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Answer what waits, write the metrics, and drain the journal."""
        self.ready = False
        if self._closed:
            return
        self._closed = True
        self.batcher.close()
        self.monitor.flush()
        self.monitor.log_summary()
        self._pool.shutdown()
        self.heatmaps.close()
        if self.journal is not None:
            self.journal.close()


def describe_service(service: Service) -> dict[str, Any]:
    """Return what a service reports when it starts; ``release`` is None while a site has none."""
    facts: dict[str, Any] = {"release": service.release, "keys": service.requires_key}
    facts["journal"] = service.journal is not None
    if service.release is None:
        return facts
    engine = service.engine
    return {
        **facts,
        "classes": len(engine.classes),
        "runtime": engine.facts["runtime"],
        "largest_batch": engine.tuning.max_batch,
    }
