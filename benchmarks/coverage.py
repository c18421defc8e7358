"""How often a 95 % interval holds the truth: of the macro F1 against the bootstrap, of the AUC against DeLong's.

    python benchmarks/coverage.py

Samples from populations with known confusion, or with normal scores; the truth is that of the population itself.
Three hundred samples of each, so that a share is good to about three points.
"""

from math import sqrt
from statistics import NormalDist

import numpy as np
from record import record

from sightline.metrics import one_vs_rest, overall_metrics
from sightline.metrics.intervals import score_bounds

POPULATIONS = ((10, 0.999, 180), (10, 0.34, 300), (50, 0.76, 500))
"""Classes (equally many of each), accuracy (mistakes spread evenly), test images."""

RANKINGS = ((3, 300, 0.9), (10, 1000, 0.97), (30, 300, 0.995), (100, 1000, 0.97), (1000, 9000, 0.97))
"""Images of a class, others, true area under the curve."""

SAMPLES, RESAMPLES = 300, 400


def main() -> None:
    """Draw, measure, count."""
    rng = np.random.default_rng(0)
    found = {}
    for classes, accuracy, n in POPULATIONS:
        truth = accuracy  # equal classes and mistakes spread evenly: every class has this precision and recall
        held = {"ours": 0, "percentile_bootstrap": 0}
        for _ in range(SAMPLES):
            labels, predicted = draw(classes, accuracy, n, rng)
            sure = np.full((n, classes), 0.1 / (classes - 1))
            sure[np.arange(n), predicted] = 0.9
            ours = overall_metrics(labels, sure)["f1_macro"]
            held["ours"] += ours.low <= truth <= ours.high
            low, high = bootstrap(labels, predicted, classes, rng)
            held["percentile_bootstrap"] += low <= truth <= high
        shares = {name: round(count / SAMPLES, 3) for name, count in held.items()}
        found[f"{classes} classes, accuracy {accuracy}, n={n}"] = shares
    for few, many, area in RANKINGS:
        held = {"ours": 0, "delong": 0}
        for _ in range(SAMPLES):
            for name, (low, high) in areas(few, many, area, rng).items():
                held[name] += low <= area <= high
        shares = {name: round(count / SAMPLES, 3) for name, count in held.items()}
        found[f"AUC {area}, {few} images against {many}"] = shares
    record("coverage", found)


def areas(few: int, many: int, area: float, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """Our interval of one sample's area, and Wilson's at DeLong's plain effective sample size."""
    labels = np.repeat([1, 0], [few, many])
    scores = rng.normal(size=few + many) + labels * NormalDist().inv_cdf(area) * sqrt(2)
    ours = one_vs_rest(labels, np.stack([-scores, scores], 1)).aucs[1]
    assert ours is not None
    own, others = np.sort(scores[:few]), np.sort(scores[few:])
    beaten, beating = np.searchsorted(others, own) / many, 1 - np.searchsorted(own, others) / few
    value, variance = beaten.mean(), beaten.var() / few + beating.var() / many
    size = value * (1 - value) / variance if variance > 0 else few + many
    return {"ours": (ours.low, ours.high), "delong": score_bounds(float(value), float(size), 0.95)}


def draw(classes: int, accuracy: float, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels and answers of one test set."""
    labels = rng.integers(0, classes, n)
    wrong = (labels + rng.integers(1, classes, n)) % classes
    return labels, np.where(rng.random(n) < accuracy, labels, wrong)


def bootstrap(
    labels: np.ndarray, predicted: np.ndarray, classes: int, rng: np.random.Generator
) -> tuple[float, float]:
    """The 2.5 and 97.5 % quantiles of the macro F1 over resamples."""
    rows = rng.integers(0, len(labels), (RESAMPLES, len(labels)))
    true = np.stack([np.bincount(labels[r], minlength=classes) for r in rows])
    given = np.stack([np.bincount(predicted[r], minlength=classes) for r in rows])
    both = np.stack([np.bincount(labels[r][labels[r] == predicted[r]], minlength=classes) for r in rows])
    present = (true + given) > 0
    f1 = np.divide(2 * both, true + given, out=np.zeros(both.shape), where=present)
    low, high = np.quantile(f1.sum(1) / present.sum(1), (0.025, 0.975))
    return float(low), float(high)


if __name__ == "__main__":
    main()
