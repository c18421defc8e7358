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
from . import releases
from .answers import Answer, Asked, dumps, row, unread, worst
from .batcher import Batcher, Job
from .engine import Engine, open_engine
from .entries import Entry, new_id
from .heat import Heat
from .keys import Keyring
from .limits import Limits, Refusal
from .log import say
from .monitor import SUMMARY, Batch, Monitor

if TYPE_CHECKING:
    from .journal import Journal

LOOK = 0.25
"""Seconds between looks for another release."""

KEYS = 0.02
"""Seconds after which the keys are looked at again: so long may one live that was revoked."""

DRAWING = 8
"""Requests for heat maps that may wait."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a service is made of; the same for every worker."""

    path: Path
    """A site; or a run, a bundle or an exported file, served without releases."""
    limits: Limits = field(default_factory=Limits)
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
class Drawing:
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

    def __init__(self, settings: Settings):
        self.settings = settings
        self.limits = settings.limits
        self.keyring = Keyring(settings.path, every=KEYS) if settings.site else None
        self.ready = False
        self._heat = Heat()
        self._drawing = 0
        self._closed = False
        self._turn = threading.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._stamp: tuple[int, ...] = ()

    def open(self) -> "Service":
        """Open the release, the journal and the queue; raises a SightlineError where one cannot be."""
        settings, cores = self.settings, self.settings.threads or runtime.cpu_count()
        self._stamp = releases.stamp(settings.path) if settings.site else ()
        self.engine = self._engine()
        self.journal = self._journal()
        self._pool = ThreadPoolExecutor(cores, thread_name_prefix="decode")
        self._artist = ThreadPoolExecutor(1, thread_name_prefix="heat")
        self.monitor = Monitor(self._gauges)
        self.batcher = Batcher(
            self._work, runners=cores, depth=self.limits.queue, largest=lambda: self.engine.pace.largest
        )
        self.ready = True
        return self

    def _engine(self) -> Engine:
        settings = self.settings
        if settings.site:
            return self._of_release(releases.current(settings.path))
        path = settings.path
        return open_engine(path, threads=settings.threads)

    def _of_release(self, release: releases.Release) -> Engine:
        releases.verify(release)
        path = release.onnx or release.bundle
        return open_engine(
            path, release=release.number, bundle=release.bundle, threads=self.settings.threads, facts=release.facts
        )

    def _journal(self) -> "Journal | None":
        settings, path = self.settings, self.settings.path
        if not settings.site and settings.journal is None:
            return None
        from .journal import Journal

        folder = path if settings.site else path.with_name(f"{path.name}.journal")
        where = settings.journal or path
        return Journal.open(where, site=folder, keep_images=settings.keep_images, quota_mb=settings.quota_mb)

    def _gauges(self) -> dict[str, float]:
        return {
            "queue": self.batcher.waiting,
            "release": self.engine.release,
            "journal": self.journal.waiting if self.journal else 0,
            "healthy": float(self.journal is None or self.journal.healthy),
            "unkept": self.journal.unkept if self.journal else 0,
            "ready": float(self.ready and not self.batcher.full),
        }

    # answering

    def _work(self, jobs: Sequence[Job], alone: bool) -> list[Any]:
        """The JSON of each request, or its Refusal. Every answer is in the journal before it is given."""
        engine = self.engine
        asked = [job.asked for job in jobs]
        read = self._read(engine, asked)
        pixels = [one for many in read for one in many if isinstance(one, ndarray)]
        tops = [ask.top for ask, many in zip(asked, read, strict=True) for one in many if isinstance(one, ndarray)]
        answers = engine.ranked(pixels, tops, alone=alone)
        results, entries = self._results(engine, jobs, read, iter(answers))
        if self.journal is not None and entries:
            try:
                self.journal.record(entries)
            except JournalError as error:
                say("journal", error=str(error))
                return [one if isinstance(one, Refusal) else Refusal(503, str(error)) for one in results]
        self.monitor.batch(
            Batch(
                engine.release,
                [time.perf_counter() - job.started for job in jobs],
                sum(len(ask.images) for ask in asked),
                [answer.label for answer in answers],
                [answer.confidence for answer in answers],
                sum(answer.abstained for answer in answers),
            )
        )
        return results

    def _read(self, engine: Engine, asked: Sequence[Asked]) -> list[list[ndarray | Refusal]]:
        if len(asked) == 1:
            return [engine.read_all(asked[0].images, asked[0].types, self.limits, self._pool)]
        images = [image for ask in asked for image in ask.images]
        types = [kind for ask in asked for kind in ask.types]
        read = iter(engine.read_all(images, types, self.limits, self._pool))
        return [[next(read) for _ in ask.images] for ask in asked]

    def _results(
        self, engine: Engine, jobs: Sequence[Job], read: Sequence[Sequence[ndarray | Refusal]], answers: Any
    ) -> tuple[list[Any], list[Entry]]:
        results, entries, now = [], [], time.time()
        for job, many in zip(jobs, read, strict=True):
            rows, given, ask = [], [], job.asked
            for data, one in zip(ask.images, many, strict=True):
                if isinstance(one, Refusal):
                    rows.append(unread(one.detail))
                    continue
                answer, id = next(answers), new_id()
                rows.append(row(id, answer))
                given.append(answer)
                if self.journal is not None:
                    entries.append(self._entry(engine, ask, data, answer, id, now))
            if not given:
                results.append(worst([one for one in many if isinstance(one, Refusal)]))
                continue
            ms = round(1000 * (time.perf_counter() - job.started), 3)
            value = {"release": engine.release, "ms": ms, "predictions": rows}
            if ask.heat:
                good = [one for one in many if isinstance(one, ndarray)]
                results.append(Drawing(engine, value, good, [answer.label for answer in given]))
            else:
                results.append(dumps(value))
        return results, entries

    def _entry(self, engine: Engine, ask: Asked, data: bytes, answer: Answer, id: str, now: float) -> Entry:
        return Entry(
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
    def drawing(self) -> Iterator[None]:
        """Room for a request's heat maps; raises Refusal (422, 503) before anything is answered."""
        if self.engine.bundle is None:
            raise Refusal(422, "This service answers from an exported file, which has no heat maps: serve a site.")
        if self._drawing >= DRAWING:
            raise Refusal(503, "Too many heat maps are being drawn: try again in a second.")
        self._drawing += 1
        try:
            yield
        finally:
            self._drawing -= 1

    async def drawn(self, drawing: Drawing) -> bytes:
        """The JSON of an answer with its heat maps; raises Refusal."""
        loop = asyncio.get_running_loop()
        arguments = (drawing.engine, drawing.pixels, drawing.labels)
        maps = iter(await loop.run_in_executor(self._artist, self._heat.drawn, *arguments))
        for one in drawing.value["predictions"]:
            if one["error"] is None:
                one["heat"] = next(maps)
        return dumps(drawing.value)

    # who may ask

    @property
    def keyed(self) -> bool:
        """Whether keys are asked for."""
        if self.keyring is None or self.keyring.empty:
            return not (self.settings.open or self.settings.local)
        return True

    def allow(self, headers: Mapping[bytes, bytes], scope: str) -> str | None:
        """The name of the key that allows this, None where none is needed; raises KeyRefused or Refusal (403)."""
        keyring, settings = self.keyring, self.settings
        if keyring is None or keyring.empty:
            if settings.open:
                return None
            if settings.local:
                return self._near(headers)
            if keyring is None:
                raise Refusal(401, "A valid key is needed.")
        assert keyring is not None
        given = headers.get(b"authorization", b"")
        bearer = given[:7].lower() == b"bearer "
        secret = given[7:].strip() if bearer else headers.get(b"x-api-key", b"")
        return keyring.allow(secret.decode("latin-1") or None, scope)

    def _near(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse (403) what a browser sends for a page from elsewhere: without keys, only this machine may ask."""
        host = headers.get(b"host", b"localhost").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name not in self.settings.hosts:
            raise Refusal(403, "Without keys this service answers only under the name localhost.")
        origin = headers.get(b"origin")
        if origin is None:
            return
        page = origin.decode("latin-1").lower()
        if page not in self.settings.origins and page.partition("://")[2] != host:
            raise Refusal(403, "Without keys this service answers no page of another origin.")

    # another release

    def look(self) -> None:
        """Answer from another release where one was promoted; one that cannot be trusted is refused, and said."""
        stamp = releases.stamp(self.settings.path)
        if stamp == self._stamp:
            return
        with self._turn:
            self._stamp = stamp
            try:
                found = releases.current(self.settings.path)
                if found.number != self.engine.release:
                    self._swap(self._of_release(found))
            except (SightlineError, OSError) as error:
                say("release refused", error=str(error), release=self.engine.release)

    def promote(self, number: int, by: str | None) -> int:
        """Promote a release and answer from it; the number of the one before. Raises Refusal (404, 409)."""
        path, before = self.settings.path, self.engine.release
        if not self.settings.site:
            raise Refusal(404, "This service has no releases: it was started with a run or a file.")
        if number not in releases.numbers(path):
            raise Refusal(404, f"There is no release {number}.")
        with self._turn:
            try:
                engine = self._of_release(releases.release(path, number))
                releases.promote(path, number, by=by)
            except SightlineError as error:
                say("release refused", error=str(error), release=before)
                why = "it is damaged or newer than this service reads, and the log says more"
                raise Refusal(409, f"Release {number} was not promoted: {why}.") from error
            self._swap(engine)
        return before

    def _swap(self, engine: Engine) -> None:
        before, self.engine = self.engine.release, engine
        say("release", release=engine.release, before=before, largest_batch=engine.pace.largest)

    # its life

    async def start(self) -> None:
        """Begin to look for releases and to count; called in the event loop."""
        self._tasks = [asyncio.create_task(self._every(1.0, self.monitor.flush))]
        self._tasks.append(asyncio.create_task(self._every(SUMMARY, self.monitor.summary)))
        if self.settings.site:
            self._tasks.append(asyncio.create_task(self._every(LOOK, self.look)))

    @staticmethod
    async def _every(seconds: float, act: Any) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await asyncio.to_thread(act)
            except Exception as error:  # the next time may be better
                say("failed", what=getattr(act, "__name__", ""), error=f"{type(error).__name__}: {error}")

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
        self.monitor.summary()
        self._pool.shutdown()
        self._artist.shutdown()
        if self.journal is not None:
            self.journal.close()
