"""How a network answers fastest on this machine: measured when it is opened, in a moment.

Whether all threads answer a lone image faster than one is measured on and on: a release may be opened while others
keep the cores busy.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

TUNING_SECONDS = 0.2
"""The measurement takes about this long, unless two single answers already take longer."""

CANDIDATE_BATCH_SIZES = (2, 4, 8, 16, 32)

MAX_TIMED_CALLS = 10
"""Times that anything is tried, at most; the fastest counts."""

MIN_BATCH_GAIN = 1.03
"""A larger batch must give this many times the images per second to be worth waiting in."""

WARMUP_CALLS, LATENCY_WINDOW, PROBE_INTERVAL = 3, 9, 256
"""Answers by which two runners are first compared, those of each that are remembered, and how often the slower is
asked again: less than once in 100, so that the 99th percentile is that of the faster."""

BATCH_OVERHEAD_SECONDS = 0.0003
"""Seconds reckoned for what any batch costs beside the network: threads that wake, the journal, the way back."""


@dataclass(frozen=True)
class BatchTuning:
    """What the batcher needs to know."""

    max_batch: int = 1
    """Images that are answered together, at most; 1 where batches are no faster."""
    images_per_second: tuple[tuple[int, float], ...] = ()
    """Images per second of one thread at each size of batch, ``COST`` included."""


class FasterRunner:
    """Whichever of two runners answers one image faster, as found by asking them in turn, each ``FIRST`` times.

    Thereafter every ``AGAIN``-th image goes to the other, so that the choice follows what the cores have to do.
    """

    def __init__(self, first: Any, second: Any):
        self._runners = (first, second)
        self._seconds: list[tuple[float, ...]] = [(), ()]
        self._asked = 0

    @property
    def fastest(self) -> int:
        """0 or 1: by the median of the last answers of each."""
        first, second = (sorted(last)[len(last) // 2] if last else 0.0 for last in self._seconds)
        return int(second < first)

    def probabilities(self, images: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N K"]:
        """The answers of the faster, or of the other where that may have changed."""
        if len(images) != 1:
            return self._runners[self.fastest].probabilities(images)
        self._asked = asked = self._asked + 1
        k = self.fastest if asked % PROBE_INTERVAL else 1 - self.fastest
        if asked <= 2 * WARMUP_CALLS:
            k = asked % 2
        start = time.perf_counter()
        answers = self._runners[k].probabilities(images)
        self._seconds[k] = (time.perf_counter() - start, *self._seconds[k][: LATENCY_WINDOW - 1])
        return answers


def tune_batch_size(crowd: Any, shape: tuple[int, int, int]) -> BatchTuning:
    """Time batches of one thread; the fastest of several tries counts."""
    until = time.perf_counter() + TUNING_SECONDS
    chance = np.random.default_rng(0)
    images = chance.integers(0, 256, (max(CANDIDATE_BATCH_SIZES), *shape), dtype=np.uint8)
    one = _best_call_seconds(crowd, images[:1], until)
    rates, largest = [(1, 1 / (one + BATCH_OVERHEAD_SECONDS))], 1
    for size in CANDIDATE_BATCH_SIZES:
        if time.perf_counter() + 3 * size * one > until:
            break
        rates.append((size, size / (_best_call_seconds(crowd, images[:size], until) + BATCH_OVERHEAD_SECONDS)))
        if rates[-1][1] > MIN_BATCH_GAIN * dict(rates)[largest]:
            largest = size
    return BatchTuning(largest, tuple(rates))


def _best_call_seconds(runner: Any, images: Any, until: float) -> float:
    """Seconds of the fastest of 2 to ``TRIES`` tries after an untimed one."""
    runner.probabilities(images)
    best = float("inf")
    for tries in range(MAX_TIMED_CALLS):
        start = time.perf_counter()
        runner.probabilities(images)
        best = min(best, time.perf_counter() - start)
        if tries >= 1 and time.perf_counter() > until - TUNING_SECONDS / 2:
            break
    return best
