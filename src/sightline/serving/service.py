"""What answers: the current release's engine behind its queue, the journal, the keys, the watch for another."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy import ndarray

from .. import runtime
from ..errors import JournalError, SightlineError
from ..journal import PredictionRecord, new_prediction_id
from . import releases
from .api_keys import Keyring
from .batcher import Batcher, PredictJob
from .engine import Engine, open_engine
from .heatmaps import HeatmapRenderer
from .limits import RequestError, RequestLimits
from .log import log_event
from .monitor import SUMMARY_SECONDS, BatchStats, Monitor
from .requests import (
    PredictRequest,
    RankedPrediction,
    combined_error,
    dump_json,
    image_error_json,
    prediction_json,
)

if TYPE_CHECKING:
    from ..journal import Journal

RELEASE_POLL_SECONDS = 0.25
"""Seconds between looks for another release."""

KEY_RELOAD_SECONDS = 0.02
"""Seconds after which the keys are looked at again: so long may one live that was revoked."""

MAX_PENDING_HEATMAPS = 8
"""Requests for heat maps that may wait."""


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What a service is made of; the same for every worker."""

    path: Path
    """A site; or a run, a bundle or an exported file, served without releases."""
    limits: RequestLimits = field(default_factory=RequestLimits)
    journal: str | None = None
    """A database's URL; None for the site's own file, and for none without a site."""
    keep_images: bool = False
    quota_mb: float = 1000.0
    threads: int | None = None
    """Cores that one worker uses; None for all of them shared among the workers."""
    open: bool = False
    """Whether everyone may ask where no key was made; else only this machine, where it listens to no other."""
    local: bool = True
    """Whether it listens to this machine alone."""
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    """Names under which pages of this machine may ask it while no key was made."""
    origins: tuple[str, ...] = ()
    """Web pages that may ask, as ``https://example.org``."""

    @property
    def site(self) -> bool:
        """Whether there are releases."""
        return releases.is_site(self.path)


@dataclass(frozen=True, eq=False)
class PendingHeatmaps:
    """An answer that still lacks its heat maps."""

    engine: Engine
    value: dict[str, Any]
    pixels: list[ndarray]
    labels: list[str]


class Service:
    """One process's engine, queue, journal and keys. ``open`` it, then ask; ``close`` answers what waits first."""

    engine: Engine
    batcher: Batcher
    monitor: Monitor
    journal: "Journal | None"

    def __init__(self, settings: ServiceSettings):
        self.settings = settings
        self.limits = settings.limits
        self.keyring = Keyring(settings.path, every=KEY_RELOAD_SECONDS) if settings.site else None
        self.ready = False
        self._heat = HeatmapRenderer()
        self._drawing = 0
        self._closed = False
        self._turn = threading.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._stamp: tuple[int, ...] = ()

    def open(self) -> "Service":
        """Open the release, the journal and the queue; raises a SightlineError where one cannot be."""
        settings, cores = self.settings, self.settings.threads or runtime.cpu_count()
        self._stamp = releases.pointer_stamp(settings.path) if settings.site else ()
        self.engine = self._open_engine()
        self.journal = self._open_journal()
        self._pool = ThreadPoolExecutor(cores, thread_name_prefix="decode")
        self._artist = ThreadPoolExecutor(1, thread_name_prefix="heat")
        self.monitor = Monitor(self._gauges)
        self.batcher = Batcher(
            self._answer_batch, runners=cores, depth=self.limits.queue, largest=lambda: self.engine.pace.max_batch
        )
        self.ready = True
        return self

    def _open_engine(self) -> Engine:
        settings = self.settings
        if settings.site:
            return self._open_release(releases.current_release(settings.path))
        path = settings.path
        return open_engine(path, threads=settings.threads)

    def _open_release(self, release: releases.Release) -> Engine:
        releases.verify(release)
        path = release.onnx or release.bundle
        return open_engine(
            path, release=release.number, bundle=release.bundle, threads=self.settings.threads, facts=release.facts
        )

    def _open_journal(self) -> "Journal | None":
        settings, path = self.settings, self.settings.path
        if not settings.site and settings.journal is None:
            return None
        from ..journal import Journal

        folder = path if settings.site else path.with_name(f"{path.name}.journal")
        where = settings.journal or path
        return Journal.open(where, site=folder, keep_images=settings.keep_images, quota_mb=settings.quota_mb)

    def _gauges(self) -> dict[str, float]:
        return {
            "queue": self.batcher.waiting,
            "release": self.engine.release,
            "journal": self.journal.waiting if self.journal else 0,
            "healthy": float(self.journal is None or self.journal.healthy),
            "unkept": self.journal.dropped_images if self.journal else 0,
            "ready": float(self.ready and not self.batcher.full),
        }

    # answering

    def _answer_batch(self, jobs: Sequence[PredictJob], alone: bool) -> list[Any]:
        """The JSON of each request, or its Refusal. Every answer is in the journal before it is given."""
        engine = self.engine
        asked = [job.asked for job in jobs]
        read = self._read(engine, asked)
        pixels = [one for many in read for one in many if isinstance(one, ndarray)]
        tops = [ask.top for ask, many in zip(asked, read, strict=True) for one in many if isinstance(one, ndarray)]
        answers = engine.rank(pixels, tops, alone=alone)
        results, entries = self._results(engine, jobs, read, iter(answers))
        if self.journal is not None and entries:
            try:
                self.journal.record(entries)
            except JournalError as error:
                log_event("journal", error=str(error))
                return [one if isinstance(one, RequestError) else RequestError(503, str(error)) for one in results]
        self.monitor.record_batch(
            BatchStats(
                engine.release,
                [time.perf_counter() - job.started for job in jobs],
                sum(len(ask.images) for ask in asked),
                [answer.label for answer in answers],
                [answer.confidence for answer in answers],
                sum(answer.abstained for answer in answers),
            )
        )
        return results

    def _read(self, engine: Engine, asked: Sequence[PredictRequest]) -> list[list[ndarray | RequestError]]:
        if len(asked) == 1:
            return [engine.decode_images(asked[0].images, asked[0].types, self.limits, self._pool)]
        images = [image for ask in asked for image in ask.images]
        types = [kind for ask in asked for kind in ask.types]
        read = iter(engine.decode_images(images, types, self.limits, self._pool))
        return [[next(read) for _ in ask.images] for ask in asked]

    def _results(
        self,
        engine: Engine,
        jobs: Sequence[PredictJob],
        read: Sequence[Sequence[ndarray | RequestError]],
        answers: Any,
    ) -> tuple[list[Any], list[PredictionRecord]]:
        results, entries, now = [], [], time.time()
        for job, many in zip(jobs, read, strict=True):
            rows, given, ask = [], [], job.asked
            for data, one in zip(ask.images, many, strict=True):
                if isinstance(one, RequestError):
                    rows.append(image_error_json(one.detail))
                    continue
                answer, id = next(answers), new_prediction_id()
                rows.append(prediction_json(id, answer))
                given.append(answer)
                if self.journal is not None:
                    entries.append(self._prediction_record(engine, ask, data, answer, id, now))
            if not given:
                results.append(combined_error([one for one in many if isinstance(one, RequestError)]))
                continue
            ms = round(1000 * (time.perf_counter() - job.started), 3)
            value = {"release": engine.release, "ms": ms, "predictions": rows}
            if ask.heat:
                good = [one for one in many if isinstance(one, ndarray)]
                results.append(PendingHeatmaps(engine, value, good, [answer.label for answer in given]))
            else:
                results.append(dump_json(value))
        return results, entries

    def _prediction_record(
        self, engine: Engine, ask: PredictRequest, data: bytes, answer: RankedPrediction, id: str, now: float
    ) -> PredictionRecord:
        return PredictionRecord(
            id,
            now,
            engine.release,
            answer.label,
            answer.confidence,
            answer.abstained,
            hashlib.sha256(data).hexdigest(),
            ask.subject,
            ask.source,
            data if self.settings.keep_images else None,
        )

    @contextmanager
    def reserve_heatmaps(self) -> Iterator[None]:
        """Room for a request's heat maps; raises Refusal (422, 503) before anything is answered."""
        if self.engine.bundle is None:
            raise RequestError(
                422, "This service answers from an exported file, which has no heat maps: serve a site."
            )
        if self._drawing >= MAX_PENDING_HEATMAPS:
            raise RequestError(503, "Too many heat maps are being drawn: try again in a second.")
        self._drawing += 1
        try:
            yield
        finally:
            self._drawing -= 1

    async def render_heatmaps(self, drawing: PendingHeatmaps) -> bytes:
        """The JSON of an answer with its heat maps; raises Refusal."""
        loop = asyncio.get_running_loop()
        arguments = (drawing.engine, drawing.pixels, drawing.labels)
        maps = iter(await loop.run_in_executor(self._artist, self._heat.render, *arguments))
        for one in drawing.value["predictions"]:
            if one["error"] is None:
                one["heat"] = next(maps)
        return dump_json(drawing.value)

    # who may ask

    @property
    def requires_key(self) -> bool:
        """Whether keys are asked for."""
        if self.keyring is None or self.keyring.empty:
            return not (self.settings.open or self.settings.local)
        return True

    def authorize(self, headers: Mapping[bytes, bytes], scope: str) -> str | None:
        """The name of the key that allows this, None where none is needed; raises KeyRefused or Refusal (403)."""
        keyring, settings = self.keyring, self.settings
        if keyring is None or keyring.empty:
            if settings.open:
                return None
            if settings.local:
                return self._check_local_origin(headers)
            if keyring is None:
                raise RequestError(401, "A valid key is needed.")
        assert keyring is not None
        given = headers.get(b"authorization", b"")
        bearer = given[:7].lower() == b"bearer "
        secret = given[7:].strip() if bearer else headers.get(b"x-api-key", b"")
        return keyring.authorize(secret.decode("latin-1") or None, scope)

    def _check_local_origin(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse (403) what a browser sends for a page from elsewhere: without keys, only this machine may ask."""
        host = headers.get(b"host", b"localhost").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name not in self.settings.hosts:
            raise RequestError(403, "Without keys this service answers only under the name localhost.")
        origin = headers.get(b"origin")
        if origin is None:
            return
        page = origin.decode("latin-1").lower()
        if page not in self.settings.origins and page.partition("://")[2] != host:
            raise RequestError(403, "Without keys this service answers no page of another origin.")

    # another release

    def poll_release(self) -> None:
        """Answer from another release where one was promoted; one that cannot be trusted is refused, and said."""
        stamp = releases.pointer_stamp(self.settings.path)
        if stamp == self._stamp:
            return
        with self._turn:
            self._stamp = stamp
            try:
                found = releases.current_release(self.settings.path)
                if found.number != self.engine.release:
                    self._switch_engine(self._open_release(found))
            except (SightlineError, OSError) as error:
                log_event("release refused", error=str(error), release=self.engine.release)

    def promote(self, number: int, by: str | None) -> int:
        """Promote a release and answer from it; the number of the one before. Raises Refusal (404, 409)."""
        path, before = self.settings.path, self.engine.release
        if not self.settings.site:
            raise RequestError(404, "This service has no releases: it was started with a run or a file.")
        if number not in releases.release_numbers(path):
            raise RequestError(404, f"There is no release {number}.")
        with self._turn:
            try:
                engine = self._open_release(releases.load_release(path, number))
                releases.promote(path, number, by=by)
            except SightlineError as error:
                log_event("release refused", error=str(error), release=before)
                why = "it is damaged or newer than this service reads, and the log says more"
                raise RequestError(409, f"Release {number} was not promoted: {why}.") from error
            self._switch_engine(engine)
        return before

    def _switch_engine(self, engine: Engine) -> None:
        before, self.engine = self.engine.release, engine
        log_event("release", release=engine.release, before=before, largest_batch=engine.pace.max_batch)

    # its life

    async def start(self) -> None:
        """Begin to look for releases and to count; called in the event loop."""
        self._tasks = [asyncio.create_task(self._repeat(1.0, self.monitor.flush))]
        self._tasks.append(asyncio.create_task(self._repeat(SUMMARY_SECONDS, self.monitor.log_summary)))
        if self.settings.site:
            self._tasks.append(asyncio.create_task(self._repeat(RELEASE_POLL_SECONDS, self.poll_release)))

    @staticmethod
    async def _repeat(seconds: float, act: Any) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await asyncio.to_thread(act)
            except Exception as error:  # the next time may be better
                log_event("failed", what=getattr(act, "__name__", ""), error=f"{type(error).__name__}: {error}")

    async def stop(self) -> None:
        """Answer what was taken, then close everything."""
        self.ready = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Answer what waits, write what was counted, and drain the journal."""
        self.ready = False
        if self._closed:
            return
        self._closed = True
        self.batcher.close()
        self.monitor.flush()
        self.monitor.log_summary()
        self._pool.shutdown()
        self._artist.shutdown()
        if self.journal is not None:
            self.journal.close()
