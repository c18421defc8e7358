"""(labels, probabilities) become numbers, each with its interval: numpy only, no network runs here.

Values equal scikit-learn's default calls. Intervals (docs/evaluation.md gives the reasons):

    accuracy, top-k, per-class precision and recall    Wilson's score interval
    per-class F1                                       Wilson's on Jaccard J, through F1 = 2 J / (1 + J)
    averages over classes, AUC                         Wilson's at the effective sample size v (1 - v) / Var(v)
    log loss, Brier score, ECE                         bootstrap over images, seeded
"""

from .calibration import (
    CALIBRATION_BINS,
    ReliabilityDiagram,
    brier_scores,
    equal_mass_reliability,
    log_losses,
    reliability,
)
from .classification import class_averages, confusion_matrix, safe_divide
from .intervals import paired_difference, score_bounds, seeds_interval, wilson
from .ood import OODMetrics, ood_metrics
from .paired import bootstrap_difference, holm, mcnemar, nadeau_bengio_interval
from .ranking import TOP_K, OneVsRest, RocCurve, one_vs_rest, roc_curve
from .selective import RiskCoverage, risk_coverage
from .summary import ClassMetrics, check_probabilities, overall_metrics, per_class_metrics

__all__ = [
    "CALIBRATION_BINS",
    "TOP_K",
    "ClassMetrics",
    "OODMetrics",
    "OneVsRest",
    "ReliabilityDiagram",
    "RiskCoverage",
    "RocCurve",
    "bootstrap_difference",
    "brier_scores",
    "check_probabilities",
    "class_averages",
    "confusion_matrix",
    "equal_mass_reliability",
    "holm",
    "log_losses",
    "mcnemar",
    "nadeau_bengio_interval",
    "one_vs_rest",
    "ood_metrics",
    "overall_metrics",
    "paired_difference",
    "per_class_metrics",
    "reliability",
    "risk_coverage",
    "roc_curve",
    "safe_divide",
    "score_bounds",
    "seeds_interval",
    "wilson",
]
