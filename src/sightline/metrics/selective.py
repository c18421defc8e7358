"""What confidence is worth for declining to answer: error among the answers kept, by the share that is kept."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Images in falling order of confidence: what keeping the first k of them gives, for k = 1 ... N."""

    confidence: Float[ndarray, " N"]
    """Of the last image kept."""
    risk: Float[ndarray, " N"]
    """Share of wrong answers among those kept; among equal confidences its mean over their orders."""

    @property
    def coverage(self) -> Float[ndarray, " N"]:
        """Share of the images kept: k / N."""
        return np.arange(1, len(self.risk) + 1) / len(self.risk)

    @property
    def aurc(self) -> float:
        """Area under the curve: the mean risk over all coverages (Geifman, Uziel and El-Yaniv 2019)."""
        return float(self.risk.mean())

    @property
    def best_aurc(self) -> float:
        """The area if every wrong answer came last; r + (1 - r) ln(1 - r) for many images of error r."""
        kept = np.arange(1, len(self.risk) + 1)
        right = round(len(kept) * (1 - float(self.risk[-1])))
        return float((np.maximum(0, kept - right) / kept).mean())

    @property
    def excess_aurc(self) -> float:
        """What the order of the confidences costs, whatever the error: 0 where every wrong answer comes last."""
        return self.aurc - self.best_aurc

    def risk_at(self, coverage: float) -> float:
        """The risk when at least this share of the images is kept."""
        return float(self.risk[max(1, int(np.ceil(coverage * len(self.risk) - 1e-9))) - 1])

    def as_json(self, points: int = 200) -> dict[str, list[float]]:
        """At most so many points of the curve, evenly spaced in coverage, the last one with all images."""
        n = len(self.risk)
        chosen = np.unique(np.linspace(0, n - 1, min(points, n)).round().astype(np.int64))
        columns = {"coverage": self.coverage, "risk": self.risk, "confidence": self.confidence}
        return {name: column[chosen].round(6).tolist() for name, column in columns.items()}


def risk_coverage(confidence: Float[ndarray, " N"], right: Bool[ndarray, " N"]) -> RiskCoverage:
    """The curve of N answers; raises ValueError where there are none.

    Within a tie errors count evenly, so the curve does not depend on the order of the images.
    """
    if not len(right):
        raise ValueError("a risk-coverage curve needs at least one image")
    order = np.argsort(-confidence, kind="stable")
    sure = confidence[order].astype(np.float64)
    wrong = np.concatenate([[0], np.cumsum(~right[order])])
    ends = np.concatenate([[0], np.flatnonzero(np.diff(sure)) + 1, [len(sure)]])
    kept = np.arange(1, len(sure) + 1)
    return RiskCoverage(sure, np.interp(kept, ends, wrong[ends]) / kept)
