"""What a prediction costs on this machine: latency, throughput, memory, multiply-adds, parameters."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from .. import runtime
from ..classifier import Classifier
from ..inference import INFERENCE_BATCH_SIZE, map_batches
from ..models import count_multiply_adds, learnt_tensors
from ..types import Dataset

LATENCY_BATCH_SIZES = (1, 32)
"""Batch sizes whose latency is measured."""

LATENCY_SECONDS, MIN_LATENCY_REPEATS, MAX_LATENCY_REPEATS = 1.0, 10, 200
"""Seconds of measurement for each batch size, and the bounds of the number of its repetitions."""

BRIEF_SECONDS = 0.1
"""Seconds of the only measurement where there is no time for more."""

MIN_OWN_SHARE = 0.8
"""Share of the time in which this thread computes on a quiet machine, at least."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds from pixels in memory to probabilities in memory, for one batch."""

    batch_size: int
    p50_ms: float
    """Median."""
    p95_ms: float
    """95th percentile."""
    repetitions: int
    busy: bool = False
    """Whether other programs had the processor for a good part of the time: alone it would take less."""


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """What predictions cost on this machine, without reading and decoding files."""

    device: str
    batch_size: int
    """Batch size of the pass over all images."""
    seconds_per_image: float
    """Seconds of that pass for each image, after one warm-up batch."""
    latency: tuple[Latency, ...]
    """At each of ``LATENCY_BATCH_SIZES``."""
    parameters: int
    multiply_adds: int
    """For one image."""
    memory_mb: float | None
    """Growth of memory in MB (10^6 bytes) during one batch; None where the system does not report it."""
    memory_kind: str
    """``process``: resident memory, without the network; ``device``: all that torch allocated there."""

    @property
    def images_per_second(self) -> float:
        """1 / seconds_per_image."""
        return 1 / self.seconds_per_image

    def as_json(self) -> dict[str, Any]:
        """``efficiency`` of ``report.json``; ``latency_ms`` is the median for one image."""
        return {
            "device": self.device,
            "batch_size": self.batch_size,
            "seconds_per_image": self.seconds_per_image,
            "images_per_second": self.images_per_second,
            "latency_ms": self.latency[0].p50_ms,
            "latency": [vars(one) for one in self.latency],
            "parameters": self.parameters,
            "multiply_adds": self.multiply_adds,
            "inference_memory_mb": self.memory_mb,
            "inference_memory_kind": self.memory_kind,
        }


@dataclass(frozen=True)
class WarmupCost:
    """Latency and memory of the warm-up batch, measured before the timed pass."""

    latency: tuple[Latency, ...]
    memory_mb: float | None
    memory_kind: str


def time_batch(classifier: Classifier, pixels: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B K"], float]:
    """Probabilities on the CPU, so that the device has finished, and the seconds they took."""
    start = time.perf_counter()
    answer = classifier.probabilities(pixels).cpu()
    return answer, time.perf_counter() - start


def predict_timed(
    classifier: Classifier,
    dataset: Dataset,
    *,
    batch_size: int = INFERENCE_BATCH_SIZE,
    warm_up: Callable[[Float[Tensor, "B C H W"]], object] | None = None,
) -> tuple[Float[ndarray, "N K"], float]:
    """Probabilities of every image in order, and the seconds per image, decoding left out.

    Batch norms are folded into the convolutions, as ``predict`` folds them (``Classifier.fold``). ``warm_up(pixels)``
    is given the first batch, which is also answered once, before the clock starts.
    """
    seconds, answering = list[float](), classifier.eval().fold()

    def predict(pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        if not seconds:
            if warm_up is not None:
                warm_up(pixels)
            if warm_up is None or answering is not classifier:
                time_batch(answering, pixels)
        answer, took = time_batch(answering, pixels)
        seconds.append(took)
        return answer

    with torch.inference_mode():
        probabilities = map_batches(answering, dataset, predict, batch_size=batch_size)
    return probabilities.numpy(), max(sum(seconds), 1e-9) / len(dataset)


@torch.inference_mode()
def measure_warmup(classifier: Classifier, pixels: Float[Tensor, "B C H W"], *, brief: bool = False) -> WarmupCost:
    """Memory and latency of a classifier in eval mode, from one batch on its device, which also warms it up.

    ``brief`` measures the latency of one image alone, a few times.
    """
    if brief:
        return WarmupCost((_repeat_batch(classifier, pixels[:1], BRIEF_SECONDS),), None, "process")
    with _track_memory(pixels.device) as memory:
        time_batch(classifier, pixels)
    found = []
    for size in LATENCY_BATCH_SIZES:
        some = pixels[torch.arange(size, device=pixels.device) % len(pixels)]
        found.append(_measure_latency(classifier, some.contiguous(memory_format=torch.channels_last)))
    return WarmupCost(tuple(found), *memory)


def summarise_efficiency(
    classifier: Classifier, cost: WarmupCost, batch_size: int, seconds_per_image: float
) -> Efficiency:
    """The record of a pass over all images."""
    geometry = classifier.geometry
    return Efficiency(
        device=str(classifier.device),
        batch_size=batch_size,
        seconds_per_image=seconds_per_image,
        latency=cost.latency,
        parameters=sum(one.numel() for one in learnt_tensors(classifier)),
        multiply_adds=count_multiply_adds(classifier.network, geometry.channels, geometry.size),
        memory_mb=cost.memory_mb,
        memory_kind=cost.memory_kind,
    )


def _measure_latency(classifier: Classifier, pixels: Float[Tensor, "B C H W"]) -> Latency:
    """The latency of a batch; measured again where other programs used the processor, and marked where still."""
    for _ in range(2):
        time_batch(classifier, pixels)  # for a new batch size, memory is planned and kernels are chosen
    found = _repeat_batch(classifier, pixels, LATENCY_SECONDS)
    if not found.busy:
        return found
    return min(found, _repeat_batch(classifier, pixels, LATENCY_SECONDS), key=lambda one: one.p50_ms)


def _repeat_batch(classifier: Classifier, pixels: Float[Tensor, "B C H W"], seconds: float) -> Latency:
    tries: list[float] = []
    began, worked = time.perf_counter(), time.thread_time()
    while len(tries) < MIN_LATENCY_REPEATS or (sum(tries) < seconds and len(tries) < MAX_LATENCY_REPEATS):
        tries.append(time_batch(classifier, pixels)[1])
        if sum(tries) > 3 * seconds:  # a large network on a slow machine
            break
    p50, p95 = np.quantile(tries, (0.5, 0.95)) * 1000
    share = (time.thread_time() - worked) / (time.perf_counter() - began)
    busy = pixels.device.type == "cpu" and share < MIN_OWN_SHARE
    return Latency(len(pixels), float(p50), float(p95), len(tries), busy)


@contextmanager
def _track_memory(device: torch.device) -> Iterator[list[Any]]:
    """A list that holds, after the block, the growth of memory in MB over it (or None) and its kind."""
    found: list[Any] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found += [torch.cuda.max_memory_allocated(device) / 1e6, "device"]
        return
    before = _resident_mb(reset=True)
    yield found
    after = _resident_mb(reset=False)
    found += [None if before is None or after is None else max(0.0, after - before), "process"]


def _resident_mb(*, reset: bool) -> float | None:
    """Peak resident memory of this process in MB, counted from now where ``reset`` and the system allows it."""
    if sys.platform == "linux":
        with suppress(OSError, ValueError, KeyError):
            if reset:
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            facts = dict(line.split(":", 1) for line in lines if ":" in line)
            return int(facts["VmHWM"].split()[0]) * 1024 / 1e6
    return runtime.peak_memory_mb() or None
