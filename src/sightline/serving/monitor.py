"""What a service reports of itself: metrics for Prometheus, and a log of JSON lines on stderr.

Threads that answer only append to a deque; once a second, and for ``GET /metrics``, the deque becomes metrics.
With several workers, prometheus-client keeps the numbers of each in a shared folder and adds them up.
"""

import json
import os
import sys
import threading
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BATCH_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

METRICS_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable by which prometheus-client finds the workers' shared folder."""

SUMMARY_SECONDS = 10.0
"""Seconds between two lines of the log that summarise the answers."""

OBSERVED_GAUGES = {
    "evidence": (
        "drift_evidence",
        "Evidence that the images changed, in answers; an alarm where its peak is reached",
    ),
    "alarm": ("drift_alarm", "Whether the images changed since the release was tested"),
    "answers": ("drift_answers", "Answers that the drift detector has counted"),
}
"""Metrics of what the observer returned, by its keys: name and description."""

_LOG_LOCK = threading.Lock()


def log_event(event: str, **facts: Any) -> None:
    """Write one JSON line to stderr: time, event and facts; never keys, subjects or images."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, "event": event, **facts}, ensure_ascii=False, default=str)
    with _LOG_LOCK:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What is counted of one batch."""

    release: int
    seconds: list[float]
    """Latency of each request, from its arrival to its answer."""
    images: int
    labels: list[str]
    """Most probable class of each image that was decoded."""
    confidences: list[float]
    abstained: int


@dataclass(slots=True)
class _Summary:
    """What happened between two summaries in the log."""

    seconds: list[float] = field(default_factory=list)
    images: int = 0
    statuses: Tally[int] = field(default_factory=Tally)


class Monitor:
    """Metrics of one process; ``prometheus_text`` returns those of all workers."""

    def __init__(self, gauges: Callable[[], dict[str, float]] = dict):
        """``gauges`` returns the present values of the gauges by name."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

        disable_created_metrics()  # a time series per counter that says when it was first used
        self._batches: deque[BatchStats] = deque()
        self._statuses: deque[tuple[str, int]] = deque()
        self._read_gauges = gauges
        self._lock = threading.Lock()
        self._registry = CollectorRegistry()
        self._summary = _Summary()

        def histogram(name: str, what: str, buckets: Sequence[float]) -> Any:
            return Histogram(f"sightline_{name}", what, buckets=buckets, registry=self._registry)

        def counter(name: str, what: str, *labels: str) -> Any:
            return Counter(f"sightline_{name}", what, labels, registry=self._registry)

        def gauge(name: str, what: str, mode: Any) -> Any:
            return Gauge(f"sightline_{name}", what, registry=self._registry, multiprocess_mode=mode)

        self._seconds = histogram("predict_seconds", "Seconds from a request to its answer", LATENCY_BUCKETS)
        self._sizes = histogram("batch_images", "Images answered together", BATCH_SIZE_BUCKETS)
        self._confidence = histogram("confidence", "Confidence of the most probable class", CONFIDENCE_BUCKETS)
        self._answers = counter("answers", "Images answered, by predicted class and release", "label", "release")
        self._abstained = counter("abstained", "Images answered with too little confidence to decide")
        self._unreadable = counter("unreadable", "Images that could not be read")
        self._responses = counter("responses", "Responses by route and status", "route", "code")
        self._errors = counter("errors", "Responses with status 400 and above", "code")
        self._gauges = {
            "queue": gauge("queue_waiting", "Requests waiting to be answered", "livesum"),
            "release": gauge("release", "Number of the release that answers", "livemax"),
            "journal": gauge("journal_waiting", "Predictions not yet in the journal's database", "livesum"),
            "healthy": gauge(
                "journal_healthy", "Whether the last write to the journal's database worked", "livemin"
            ),
            "dropped": gauge("images_unkept", "Images not kept: no room, or unreadable", "livesum"),
            "ready": gauge("ready", "Whether requests are answered", "livemin"),
            **{key: gauge(name, what, "livemax") for key, (name, what) in OBSERVED_GAUGES.items()},
        }

    def record_batch(self, batch: BatchStats) -> None:
        """Count a batch; from any thread."""
        self._batches.append(batch)

    def record_response(self, route: str, status: int) -> None:
        """Count a response; from any thread."""
        self._statuses.append((route, status))

    def flush(self) -> None:
        """Turn what was recorded into metrics."""
        with self._lock:
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
            for name, value in self._read_gauges().items():
                self._gauges[name].set(value)

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
        if unreadable := batch.images - len(batch.labels):
            self._unreadable.inc(unreadable)
        self._summary.seconds.extend(batch.seconds)
        self._summary.images += batch.images

    def log_summary(self) -> None:
        """Log what was answered since the last summary, if anything was."""
        with self._lock:
            done, self._summary = self._summary, _Summary()
        if not done.statuses:
            return
        latencies, ordered = {}, sorted(done.seconds)
        if ordered:
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
                latencies[name] = round(1000 * ordered[int(share * (len(ordered) - 1))], 2)
        log_event(
            "answered",
            requests=done.statuses.total(),
            images=done.images,
            statuses={str(status): count for status, count in sorted(done.statuses.items())},
            **latencies,
        )

    def prometheus_text(self) -> bytes:
        """Return the metrics of all workers in Prometheus's text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        self.flush()
        if METRICS_FOLDER_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        from prometheus_client.multiprocess import MultiProcessCollector

        merged = CollectorRegistry()
        MultiProcessCollector(merged)
        return generate_latest(merged)
