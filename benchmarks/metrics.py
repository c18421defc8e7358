"""How long the arithmetic of an evaluation takes, the network left out.

    python benchmarks/metrics.py

Every metric with its interval, every curve, every class; processor seconds of one thread, median of five.
"""

import time
from statistics import median

import numpy as np
from record import record

from sightline import metrics

SIZES = ((1000, 2), (10_000, 10), (50_000, 10), (10_000, 200))
"""Images, classes."""


def main() -> None:
    """Measure each size."""
    figures = {}
    for n, k in SIZES:
        labels, probabilities = answers(n, k)
        figures[f"{n} images, {k} classes"] = round(median(seconds(labels, probabilities) for _ in range(5)), 3)
    record("metrics", figures)


def answers(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and float32 probabilities of a classifier that is usually right."""
    rng = np.random.default_rng(0)
    labels = rng.integers(k, size=n)
    logits = rng.normal(size=(n, k)).astype(np.float32)
    logits[np.arange(n), labels] += 3
    weights = np.exp(logits)
    return labels, weights / weights.sum(1, keepdims=True)


def seconds(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """As ``evaluate`` calls them."""
    started = time.process_time()
    ranks = metrics.one_vs_rest(labels, probabilities)
    metrics.overall_metrics(labels, probabilities, ranks=ranks)
    metrics.per_class_metrics(labels, probabilities, ranks=ranks)
    metrics.reliability(labels, probabilities)
    return time.process_time() - started


if __name__ == "__main__":
    main()
