"""How a network answers fastest on this machine: measured when it is opened, in less than half a second."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

SECONDS = 0.4
"""The measurement takes about this long, unless two single answers already take longer."""

SIZES = (2, 4, 8, 16, 32)

GAIN = 1.03
"""A larger batch must give this many times the images per second to be worth waiting in."""


@dataclass(frozen=True)
class Pace:
    """What the batcher needs to know."""

    largest: int = 1
    """Images that are answered together, at most; 1 where batches are no faster."""
    alone: bool = False
    """Whether one image is answered faster by all threads than by one."""
    rates: tuple[tuple[int, float], ...] = ()
    """Images per second of one thread at each size of batch."""


def measured(crowd: Any, alone: Any, shape: tuple[int, int, int], threads: int) -> Pace:
    """Time batches of one thread and single images of all threads; the best of several tries counts."""
    until = time.perf_counter() + SECONDS
    chance = np.random.default_rng(0)
    images = chance.integers(0, 256, (max(SIZES), *shape), dtype=np.uint8)
    one = _best(crowd, images[:1], until)
    together = threads > 1 and alone is not crowd and _best(alone, images[:1], until) * GAIN < one
    rates, largest = [(1, 1 / one)], 1
    for size in SIZES:
        if time.perf_counter() + 3 * size * one > until:
            break
        rates.append((size, size / _best(crowd, images[:size], until)))
        if rates[-1][1] > GAIN * dict(rates)[largest]:
            largest = size
    return Pace(largest, bool(together), tuple(rates))


def _best(runner: Any, images: Any, until: float) -> float:
    """Seconds of the fastest of 2 to 10 tries after an untimed one."""
    runner.probabilities(images)
    best = float("inf")
    for tries in range(10):
        start = time.perf_counter()
        runner.probabilities(images)
        best = min(best, time.perf_counter() - start)
        if tries >= 1 and time.perf_counter() > until - SECONDS / 2:
            break
    return best
