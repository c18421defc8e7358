"""A bounded queue before the engine, and threads that answer what is in it; a request never waits for a batch to fill.

A thread takes its share of the waiting requests, up to the number of images that measured fastest together. A request
that nothing competes with may be answered by the thread that received it, which saves two changes of thread.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from .requests import PredictRequest, RequestError

Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class PredictJob(Generic[Result]):
    """A queued request and the future of its result."""

    request: PredictRequest
    future: "asyncio.Future[Result] | Future[Result]"
    loop: asyncio.AbstractEventLoop | None
    """Event loop of an asyncio future; None for a thread's."""
    started: float
    """When the request arrived, by ``time.perf_counter``."""


AnswerBatch = Callable[[Sequence[PredictJob[Result]], bool], Sequence[Result | Exception]]
"""``(jobs, exclusive) -> a result or an exception for each``; ``exclusive`` if nothing else is being answered."""


class Batcher(Generic[Result]):
    """Threads that answer queued requests. Call ``submit_async`` in an event loop, ``submit`` in a thread."""

    def __init__(
        self,
        answer: AnswerBatch[Result],
        *,
        runners: int,
        depth: int,
        max_batch: Callable[[], int] = lambda: 1,
        wait: float = 0.0,
    ):
        """``runners`` threads; ``depth`` requests may wait; ``wait`` seconds for a batch to fill, 0 for none."""
        self._answer = answer
        self._queue: queue.SimpleQueue[PredictJob[Result] | None] = queue.SimpleQueue()
        self._max_batch = max_batch
        self._depth = depth
        self._wait = wait
        self._busy = 0
        self._busy_lock = threading.Lock()
        self._caller_lock = threading.Lock()  # held while ``answer_now`` answers: ``close`` waits for it
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"runner-{k}", daemon=True) for k in range(runners)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Number of requests that no thread has taken yet."""
        return self._queue.qsize()

    @property
    def full(self) -> bool:
        """Whether the next request would be refused."""
        return self._queue.qsize() >= self._depth

    def submit_async(self, request: PredictRequest, started: float | None = None) -> "asyncio.Future[Result]":
        """Queue a request from an event loop; raise RequestError (503) if the queue is full."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._enqueue(PredictJob(request, future, loop, time.perf_counter() if started is None else started))
        return future

    def submit(self, request: PredictRequest) -> "Future[Result]":
        """Queue a request from a thread; raise RequestError (503) if the queue is full."""
        future: Future[Result] = Future()
        self._enqueue(PredictJob(request, future, None, time.perf_counter()))
        return future

    def answer_now(self, request: PredictRequest, started: float) -> Result | None:
        """Answer in the calling thread, or return None where other requests wait or are being answered.

        ``started`` is when the request arrived, by ``time.perf_counter``. Raise the error of the request.
        """
        with self._caller_lock:
            with self._busy_lock:
                if self._closed or self._busy or not self._queue.empty():
                    return None
                self._busy += 1
            try:
                (result,) = self._answer([PredictJob(request, Future(), None, started)], True)
            finally:
                with self._busy_lock:
                    self._busy -= 1
        if isinstance(result, Exception):
            raise result
        return result

    def _enqueue(self, job: PredictJob[Result]) -> None:
        if self._closed:
            raise RequestError(503, "The service is stopping.")
        if self._queue.qsize() >= self._depth:
            raise RequestError(503, f"{self._depth} requests are waiting already: try again in a second.")
        self._queue.put(job)

    def close(self) -> None:
        """Answer what waits, then stop the threads."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        with self._caller_lock:
            pass

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            jobs = self._take_batch(job)
            with self._busy_lock:
                self._busy += 1
                exclusive = self._busy == 1 and self._queue.empty()
            results: Sequence[Result | Exception]
            try:
                results = self._answer(jobs, exclusive)
            except Exception as error:  # or its requests would wait for ever
                results = [error] * len(jobs)
            finally:
                with self._busy_lock:
                    self._busy -= 1
            self._deliver(jobs, results)

    def _take_batch(self, job: PredictJob[Result]) -> list[PredictJob[Result]]:
        """Return the job and others that wait, up to this thread's share and to the largest batch."""
        jobs, max_batch = [job], self._max_batch()
        if max_batch == 1:
            return jobs
        share = -(-(self._queue.qsize() + 1) // len(self._threads))
        until = time.perf_counter() + self._wait if self._wait else 0.0
        count = len(job.request.images)
        while count < max_batch and (until or len(jobs) < share):
            try:
                if until:
                    other = self._queue.get(timeout=max(0.0, until - time.perf_counter()))
                else:
                    other = self._queue.get_nowait()
            except queue.Empty:
                break
            if other is None:
                self._queue.put(None)
                break
            jobs.append(other)
            count += len(other.request.images)
        return jobs

    @staticmethod
    def _deliver(jobs: Sequence[PredictJob[Result]], results: Sequence[Result | Exception]) -> None:
        """Set the futures, with one call into each event loop for the whole batch."""
        pairs: dict[asyncio.AbstractEventLoop | None, list[tuple[PredictJob[Result], Result | Exception]]] = {}
        for job, result in zip(jobs, results, strict=True):
            pairs.setdefault(job.loop, []).append((job, result))
        for loop, some in pairs.items():
            if loop is None:
                _set_results(some)
                continue
            with suppress(RuntimeError):  # the loop is closed: its requests have ended
                loop.call_soon_threadsafe(_set_results, some)


def _set_results(pairs: Sequence[tuple[PredictJob[Result], Result | Exception]]) -> None:
    for job, result in pairs:
        if job.future.cancelled():  # the client disconnected
            continue
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
