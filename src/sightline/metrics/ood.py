"""How well a score tells images a classifier was made for from others: in-distribution is the positive side."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ..types import Interval
from .intervals import wilson
from .ranking import one_vs_rest


@dataclass(frozen=True)
class OODMetrics:
    """A score's worth. In-distribution images are positive: they should score high, outliers low."""

    auroc: Interval
    """Chance that an in-distribution image scores above an outlier, ties counting half; DeLong's interval."""
    fpr95: Interval
    """Share of outliers let through by the highest threshold that keeps 95 % of the others; Wilson's interval."""
    threshold: float
    """That threshold: scores of at least this pass."""

    def as_json(self) -> dict[str, Any]:
        """The numbers, and which side is positive."""
        named = {"auroc": self.auroc, "fpr95": self.fpr95}
        return {
            "positive": "in-distribution",
            **{name: one.value for name, one in named.items()},
            "intervals": {name: one.as_json() for name, one in named.items()},
            "threshold": self.threshold,
        }


def ood_metrics(inside: Float[ndarray, " N"], outside: Float[ndarray, " M"]) -> OODMetrics:
    """AUROC and FPR at 95 % TPR of scores that should be high for N images inside, low for M outliers.

    Raises ValueError where one side has no images or a score is not a number.
    """
    scores = np.concatenate([inside, outside]).astype(np.float64)
    if not (len(inside) and len(outside)) or np.isnan(scores).any():
        raise ValueError("a separation needs scores of both sides, all of them numbers")
    labels = np.repeat([1, 0], [len(inside), len(outside)])
    area = one_vs_rest(labels, np.stack([-scores, scores], 1)).aucs[1]
    assert area is not None  # both sides have images
    lost = int(np.floor(0.05 * len(inside) + 1e-9))
    threshold = float(np.sort(inside.astype(np.float64))[lost])
    passed = float((outside.astype(np.float64) >= threshold).sum())
    return OODMetrics(area, wilson(passed, len(outside)), threshold)
