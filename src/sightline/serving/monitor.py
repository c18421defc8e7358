"""What the service counts, for Prometheus and for its own log.

Threads that answer only append to a list; once a second, and when someone asks, the list becomes metrics. With
several workers prometheus-client keeps each one's numbers in a shared folder and adds them up.
"""

import os
import threading
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .log import log_event

LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

METRICS_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable by which prometheus-client finds the folder that workers share."""

SUMMARY_SECONDS = 10.0
"""Seconds between lines of the log that sum up what was answered."""


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What one batch was."""

    release: int
    seconds: list[float]
    """Of each request, from its coming to its answer."""
    images: int
    labels: list[str]
    """The likeliest class of each image that was read."""
    confidences: list[float]
    abstained: int


class Monitor:
    """Counts of one process; ``text`` gives those of all workers."""

    def __init__(self, gauges: Callable[[], dict[str, float]] = dict):
        from prometheus_client import CollectorRegistry, disable_created_metrics

        disable_created_metrics()  # the moment of each counter's first use, which nobody asked for
        self._batches: deque[BatchStats] = deque()
        self._statuses: deque[tuple[str, int]] = deque()
        self._gauges = gauges
        self._turn = threading.Lock()
        self._registry = CollectorRegistry()
        self._create_metrics(self._registry)
        self._summary = _Summary()

    def _create_metrics(self, registry: Any) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        def histogram(name: str, what: str, buckets: Sequence[float]) -> Any:
            return Histogram(f"sightline_{name}", what, buckets=buckets, registry=registry)

        def counter(name: str, what: str, *labels: str) -> Any:
            return Counter(f"sightline_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str, mode: Any) -> Any:
            return Gauge(f"sightline_{name}", what, registry=registry, multiprocess_mode=mode)

        self._seconds = histogram("predict_seconds", "Seconds from a request to its answer", LATENCY_BUCKETS)
        self._sizes = histogram("batch_images", "Images answered together", BATCH_SIZE_BUCKETS)
        self._confidence = histogram("confidence", "Confidence of the likeliest class", CONFIDENCE_BUCKETS)
        self._answers = counter("answers", "Images answered, by likeliest class and release", "label", "release")
        self._abstained = counter("abstained", "Images answered with too little confidence to decide")
        self._unread = counter("unreadable", "Images that could not be read")
        self._responses = counter("responses", "Responses by route and status", "route", "code")
        self._errors = counter("errors", "Responses with status 400 and above", "code")
        self._gauge = {
            "queue": gauge("queue_waiting", "Requests waiting to be answered", "livesum"),
            "release": gauge("release", "Number of the release that answers", "livemax"),
            "journal": gauge("journal_waiting", "Predictions not yet in the journal's database", "livesum"),
            "healthy": gauge(
                "journal_healthy", "Whether the journal's database takes what it is given", "livemin"
            ),
            "unkept": gauge(
                "images_unkept", "Images that were to be kept and were not: no room, or unreadable", "livesum"
            ),
            "ready": gauge("ready", "Whether requests are answered", "livemin"),
        }

    def record_batch(self, batch: BatchStats) -> None:
        """Remember a batch; from any thread."""
        self._batches.append(batch)

    def record_response(self, route: str, status: int) -> None:
        """Remember a response; from any thread."""
        self._statuses.append((route, status))

    def flush(self) -> None:
        """Turn what was remembered into metrics."""
        with self._turn:
            statuses: Tally[tuple[str, int]] = Tally()
            while self._statuses:
                statuses[self._statuses.popleft()] += 1
            for (route, status), count in statuses.items():
                self._responses.labels(route, status).inc(count)
                if status >= 400:
                    self._errors.labels(status).inc(count)
                self._summary.statuses[status] += count
            labels: Tally[tuple[str, int]] = Tally()
            while self._batches:
                self._count_batch(self._batches.popleft(), labels)
            for (label, release), count in labels.items():
                self._answers.labels(label, release).inc(count)
            for name, value in self._gauges().items():
                self._gauge[name].set(value)

    def _count_batch(self, batch: BatchStats, labels: "Tally[tuple[str, int]]") -> None:
        for seconds in batch.seconds:
            self._seconds.observe(seconds)
        for confidence in batch.confidences:
            self._confidence.observe(confidence)
        for label in batch.labels:
            labels[label, batch.release] += 1
        if batch.labels:
            self._sizes.observe(len(batch.labels))
        if batch.abstained:
            self._abstained.inc(batch.abstained)
        if unread := batch.images - len(batch.labels):
            self._unread.inc(unread)
        self._summary.seconds.extend(batch.seconds)
        self._summary.images += batch.images

    def log_summary(self) -> None:
        """Write a line of what was answered since the last one; nothing where nothing was asked."""
        with self._turn:
            done, self._summary = self._summary, _Summary()
        if done.statuses:
            log_event("answered", **done.as_json())

    def prometheus_text(self) -> bytes:
        """All metrics in the form that Prometheus reads."""
        from prometheus_client import CollectorRegistry, generate_latest

        self.flush()
        if METRICS_FOLDER_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        from prometheus_client.multiprocess import MultiProcessCollector

        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)


class _Summary:
    """What happened between two lines of the log."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.images = 0
        self.statuses: Tally[int] = Tally()

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "requests": self.statuses.total(),
            "images": self.images,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
        }
        if self.seconds:
            ordered = sorted(self.seconds)
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
                found[name] = round(1000 * ordered[int(share * (len(ordered) - 1))], 2)
        return found
