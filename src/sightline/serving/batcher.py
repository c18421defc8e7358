"""One bounded queue before the engine, and threads that take what waits in it: nobody waits for company.

A thread takes its share of what is waiting, up to the number of images that measured faster together.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from .limits import RequestError
from .requests import PredictRequest


class PredictJob:
    """A request on its way, and who waits for it."""

    __slots__ = ("asked", "future", "loop", "started")

    def __init__(self, asked: PredictRequest, future: Any, loop: asyncio.AbstractEventLoop | None, started: float):
        self.asked = asked
        self.future = future
        self.loop = loop
        """Where the future lives; None for a thread's."""
        self.started = started
        """When the request came, by ``time.perf_counter``."""


AnswerBatch = Callable[[Sequence[PredictJob], bool], Sequence[Any]]
"""``(jobs, alone) -> a result or an exception for each``; ``alone`` where nothing else is being answered."""


class Batcher:
    """Threads that answer what waits. ``ask`` from an event loop, ``submit`` from a thread."""

    def __init__(
        self,
        work: AnswerBatch,
        *,
        runners: int,
        depth: int,
        largest: Callable[[], int] = lambda: 1,
        wait: float = 0.0,
    ):
        self._work = work
        self._queue: queue.SimpleQueue[PredictJob | None] = queue.SimpleQueue()
        self._largest = largest
        self._depth = depth
        self._wait = wait
        """Seconds for which a thread waits for more images; 0 takes what is there."""
        self._busy = 0
        self._count = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"runner-{k}", daemon=True) for k in range(runners)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Requests that no thread has taken yet."""
        return self._queue.qsize()

    @property
    def full(self) -> bool:
        """Whether one more request would be refused."""
        return self._queue.qsize() >= self._depth

    def submit_async(self, asked: PredictRequest, started: float | None = None) -> "asyncio.Future[Any]":
        """Queue a request and get what will hold its result; raises Refusal (503) where too many wait."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._enqueue(PredictJob(asked, future, loop, time.perf_counter() if started is None else started))
        return future

    def submit(self, asked: PredictRequest) -> "Future[Any]":
        """``ask`` for a thread."""
        future: Future[Any] = Future()
        self._enqueue(PredictJob(asked, future, None, time.perf_counter()))
        return future

    def _enqueue(self, job: PredictJob) -> None:
        if self._closed:
            raise RequestError(503, "The service is stopping.")
        if self._queue.qsize() >= self._depth:
            raise RequestError(503, f"{self._depth} requests are waiting already: try again in a second.")
        self._queue.put(job)

    def close(self) -> None:
        """Answer what waits, then stop."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            jobs = self._take_batch(job)
            with self._count:
                self._busy += 1
                alone = self._busy == 1 and self._queue.empty()
            try:
                results = self._work(jobs, alone)
            except Exception as error:  # a request must never wait for ever
                results = [error] * len(jobs)
            finally:
                with self._count:
                    self._busy -= 1
            _deliver_results(jobs, results)

    def _take_batch(self, job: PredictJob) -> list[PredictJob]:
        """The job and others that wait, up to this thread's share of the images."""
        jobs, most = [job], self._largest()
        if most == 1:
            return jobs
        share = -(-(self._queue.qsize() + 1) // len(self._threads))
        until = time.perf_counter() + self._wait if self._wait else 0.0
        count = len(job.asked.images)
        while count < most and (until or len(jobs) < share):
            try:
                other = (
                    self._queue.get(timeout=max(0.0, until - time.perf_counter()))
                    if until
                    else self._queue.get_nowait()
                )
            except queue.Empty:
                break
            if other is None:
                self._queue.put(None)
                break
            jobs.append(other)
            count += len(other.asked.images)
        return jobs


def _deliver_results(jobs: Sequence[PredictJob], results: Sequence[Any]) -> None:
    """Hand out results: one call into each event loop for the whole batch."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[Any, Any]]] = {}
    for job, result in zip(jobs, results, strict=True):
        if job.loop is None:
            _set_results([(job.future, result)])
        else:
            loops.setdefault(job.loop, []).append((job.future, result))
    for loop, pairs in loops.items():
        try:
            loop.call_soon_threadsafe(_set_results, pairs)
        except RuntimeError:  # the loop is closed: nobody waits any more
            continue


def _set_results(pairs: Sequence[tuple[Any, Any]]) -> None:
    for future, result in pairs:
        if future.cancelled():  # the client went away
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
