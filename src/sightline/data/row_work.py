"""The rows of a source decoded in one thread, in several, or in several processes, whichever is fastest.

Large images are decoded without Python's lock and gain from threads. Small ones are read and checked mostly in Python:
they need processes, which pay where the work is long enough. These are helpers: each writes the pixels of its rows
itself and sends back their facts, while this process goes on decoding. What a helper that cannot start, or dies,
leaves undone is done here.
"""

import json
import os
import pickle
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from selectors import DefaultSelector
from threading import Thread
from typing import Any

import numpy as np

from .. import progress, runtime
from ..sources import Source
from ..types import Geometry
from .rows import RowDecoder

_CHUNK, _CHUNK_BYTES = 64, 1_000_000
"""Images that a thread takes at a time, and bytes of pixels: fewer large images."""
_MAX_HELPER_CHUNKS = 8
"""Chunks that a helper is given at a time, at most: the system writes 1,024 images at once."""
_TRIAL_SECONDS = 0.1
_QUICK_IMAGE_SECONDS = 0.0001
"""An image that takes less is read and checked mostly in Python: threads are not tried."""
_SLOW_IMAGE_SECONDS = 0.01
"""An image that takes longer is timed in one thread only: a few in each thread would take seconds."""
_HELPER_COST, _HELPER_COST_WITH_TORCH = (0.4, 100_000_000), (2.0, 400_000_000)
"""Seconds of a core that the start of a helper takes, and bytes of memory besides the source. It imports torch where
images are resampled.
"""
_MEMORY_SHARE, _USUAL_MEMORY = 0.25, 4_000_000_000
"""Share of the available memory that helpers may take, and bytes available where the system does not report them."""


def process_rows(decoder: RowDecoder, what: str, kept_in: Path | None = None) -> None:
    """Decode all rows in the way that a short trial shows to be fastest, with a progress bar called ``what``.

    ``kept_in`` is the folder of the pixels; the progress names it if they take much disk.
    """
    total, each = len(decoder.keys), int(np.prod(decoder.geometry.shape))
    size = max(1, min(_CHUNK, _CHUNK_BYTES // each))
    chunks = (range(start, min(start + size, total)) for start in range(0, total, size))
    threads, work, left = runtime.cpu_count(), decoder.process, total
    disk = 0 if kept_in is None else each * total
    with progress.image_progress(what, total, disk_bytes=disk, place=kept_in) as advance_images:

        def advance(count: int) -> None:
            nonlocal left
            left -= count
            advance_images(count)

        _run_serially(work, islice(chunks, 1), advance)  # imports and caches
        if threads == 1:
            _run_serially(work, chunks, advance)
            return
        alone = _run_serially(work, chunks, advance, _TRIAL_SECONDS)
        together = 0.0
        if alone < 1 / _QUICK_IMAGE_SECONDS:
            together = _run_threaded(work, chunks, advance, threads, _TRIAL_SECONDS)
        helpers = _estimate(decoder, left, alone, together)[1]
        letter = _pack(decoder) if helpers else []
        if letter and (helpers := min(helpers, _affordable_helpers(decoder, sum(map(len, letter))))):
            _run_helped(decoder, chunks, advance, helpers, letter)
        elif together > alone:
            _run_threaded(work, chunks, advance, threads)
        else:
            _run_serially(work, chunks, advance)


def time_decoding(source: Source, geometry: Geometry) -> float:
    """Seconds per image in which all are read and decoded on this machine's cores, by a sample; takes 0.2 s or so."""
    decoder, total, threads = RowDecoder(source.reader, source.keys, geometry), len(source), runtime.cpu_count()
    singles = (range(row, row + 1) for row in range(0, total, max(1, total // 512)))
    _run_serially(decoder.process, islice(singles, 1), lambda *_: None)  # imports and caches
    alone = _run_serially(decoder.process, singles, lambda *_: None, _TRIAL_SECONDS)
    if alone < 1 / _SLOW_IMAGE_SECONDS:  # of a large image, decoded without Python's lock
        return 1 / max(threads * alone, 1e-9)
    chunks = (range(first, min(first + 8, total)) for first in range(0, total, max(8, total // 256)))
    together = _run_threaded(decoder.process, chunks, lambda *_: None, threads, _TRIAL_SECONDS)
    return _estimate(decoder, total, alone, together)[0] / total


def _estimate(decoder: RowDecoder, rows: int, alone: float, together: float) -> tuple[float, int]:
    """Seconds for this many ``rows``, from the images/s of one thread and of several, and how many helpers pay."""
    threaded, seconds = rows / max(alone, together, 1e-9), rows / max(alone, 1e-9)
    start = _helper_cost(decoder)[0]
    helpers = min(runtime.cpu_count(), int(seconds / start)) - 1  # each decodes for longer than it takes to start
    if helpers < 1:
        return threaded, 0
    helped = (seconds + helpers * start) / (helpers + 1)
    return (helped, helpers) if helped < threaded else (threaded, 0)


def _affordable_helpers(decoder: RowDecoder, letter_bytes: int) -> int:
    """The helpers that memory has room for: each holds what the letter brings."""
    memory = runtime.available_memory() or _USUAL_MEMORY
    return int(_MEMORY_SHARE * memory / (_helper_cost(decoder)[1] + letter_bytes))


def _helper_cost(decoder: RowDecoder) -> tuple[float, int]:
    seen = decoder.facts[decoder.facts["ok"]]
    height, width = decoder.geometry.size
    resampled = ((seen["height"] != height) | (seen["width"] != width)).any()
    return _HELPER_COST_WITH_TORCH if resampled else _HELPER_COST


def _run_serially(
    work: Callable[[range], Any], chunks: Iterator[range], advance: progress.Advance, seconds: float = np.inf
) -> float:
    """Images per second in this thread, in about ``seconds`` at most."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds and (chunk := next(chunks, None)) is not None:
        work(chunk)
        done += len(chunk)
        advance(len(chunk))
    return done / (time.perf_counter() - start)


def _run_threaded(
    work: Callable[[range], Any],
    chunks: Iterator[range],
    advance: progress.Advance,
    threads: int,
    seconds: float = np.inf,
) -> float:
    """Images per second in several threads, in about ``seconds`` at most."""
    start, done = time.perf_counter(), 0
    with ThreadPoolExecutor(threads) as pool:
        running: dict[Future[Any], int] = {}
        room = 2 * threads
        while True:
            if time.perf_counter() - start < seconds or not done:
                running |= {pool.submit(work, chunk): len(chunk) for chunk in islice(chunks, room)}
            if not running:
                break
            finished = wait(running, return_when=FIRST_COMPLETED).done
            room = len(finished)
            for future in finished:
                future.result()  # raises what the work raised
                count = running.pop(future)
                done += count
                advance(count)
    return done / (time.perf_counter() - start)


# Helpers


class _Helper:
    """A new process that decodes rows, and those that it has been given."""

    def __init__(self) -> None:
        """Raises OSError where it cannot be started."""
        self.connection, there = Pipe()
        self.given: deque[range] = deque()
        paths = [path for path in sys.path if isinstance(path, str)]
        with there:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _HELPER_CODE, str(there.fileno()), json.dumps(paths)],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # this process repeats what failed there, and reports it
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )

    def exchange(self, decoder: RowDecoder, chunks: Iterator[range], share: int) -> int:
        """Take the facts of the oldest rows from it and return how many these were; give it ``share`` chunks, twice.

        Raises EOFError or OSError where it is dead.
        """
        answer = self.connection.recv_bytes()
        rows = self.given.popleft() if answer else range(0)  # its first answer is empty: it has started
        if answer:
            facts, reasons, unopened = pickle.loads(answer)
            decoder.facts[rows.start : rows.stop] = facts
            decoder.reasons |= reasons
            decoder.unopened += unopened
        while len(self.given) < 2 and (block := [*islice(chunks, share)]):
            self.given.append(range(block[0].start, block[-1].stop))
            self.connection.send_bytes(struct.pack("<2q", block[0].start, block[-1].stop))
        return len(rows)


_HELPER_CODE = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "  # a Ctrl-C is for the process that started it
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from sightline.data.row_work import serve_rows; serve_rows(int(sys.argv[1]))"
)


def _pack(decoder: RowDecoder) -> list[bytes | memoryview]:
    """The decoder as a message in several parts; empty where it or this Python cannot be had in another process."""
    if getattr(sys, "frozen", False) or "python" not in Path(sys.executable or "").name:
        return []
    buffers: list[pickle.PickleBuffer] = []
    try:
        text = pickle.dumps(decoder, protocol=5, buffer_callback=buffers.append)
    except Exception:  # a reader of the caller's own may raise anything
        return []
    return [text, *(buffer.raw() for buffer in buffers)]


def _run_helped(
    decoder: RowDecoder,
    chunks: Iterator[range],
    advance: progress.Advance,
    count: int,
    letter: list[bytes | memoryview],
) -> None:
    """Decode the rows in this thread and in as many as ``count`` helpers."""
    helpers: list[_Helper] = []
    share = min(max(2, count // 4), _MAX_HELPER_CHUNKS)

    def send_letter() -> None:  # a helper reads its letter when it has imported what it needs
        for helper in helpers:
            with suppress(OSError):
                helper.connection.send_bytes(struct.pack("<q", len(letter)))
                for part in letter:
                    helper.connection.send_bytes(part)

    sender = Thread(target=send_letter, daemon=True)
    with DefaultSelector() as selector:
        try:
            with suppress(OSError):
                for _ in range(count):
                    helpers.append(helper := _Helper())
                    selector.register(helper.connection, 1, helper)
            sender.start()
            lost: deque[range] = deque()
            while True:
                chunk = lost.popleft() if lost else next(chunks, None)
                if chunk is not None:
                    decoder.process(chunk)
                    advance(len(chunk))
                elif not any(helper.given for helper in helpers):
                    break
                for key, _ in selector.select(None if chunk is None else 0):
                    helper: _Helper = key.data
                    try:
                        advance(helper.exchange(decoder, chunks, share))
                    except (EOFError, OSError):
                        selector.unregister(helper.connection)
                        lost += helper.given
                        helper.given.clear()
        finally:
            for helper in helpers:
                helper.process.kill()
                helper.process.wait()
            if sender.ident:
                sender.join()
            for helper in helpers:
                helper.connection.close()


def serve_rows(handle: int) -> None:
    """What a helper does until the process that started it ends: ``handle`` is its end of their connection."""
    with Connection(handle) as connection, suppress(EOFError, BrokenPipeError):
        (parts,) = struct.unpack("<q", connection.recv_bytes())
        text, *buffers = [connection.recv_bytes() for _ in range(parts)]
        decoder: RowDecoder = pickle.loads(text, buffers=buffers)  # from the process that started this one
        connection.send_bytes(b"")
        while True:
            start, stop = struct.unpack("<2q", connection.recv_bytes())
            decoder.process(range(start, stop))
            answer = decoder.facts[start:stop], dict(decoder.reasons), [*decoder.unopened]
            decoder.reasons.clear()
            decoder.unopened.clear()
            connection.send_bytes(pickle.dumps(answer))
