"""Metrics of (labels, probabilities), each with its interval. numpy only; no network runs here.

Values equal scikit-learn's default calls. Intervals (docs/evaluation.md gives the reasons):

    accuracy, top-k, per-class precision and recall    Wilson's score interval
    per-class F1                                       Wilson's on Jaccard J, through F1 = 2 J / (1 + J)
    averages over classes, AUC                         Wilson's at the effective sample size v (1 - v) / Var(v)
    log loss, Brier score, ECE                         bootstrap over images, seeded
"""

from .classification import (
    ClassMetrics,
    check_probabilities,
    class_averages,
    cohen_kappa,
    confusion_as_json,
    confusion_matrix,
    overall_metrics,
    per_class_metrics,
)
from .confidence import (
    CALIBRATION_BINS,
    ReliabilityDiagram,
    RiskCoverage,
    bootstrap_intervals,
    brier_scores,
    equal_mass_reliability,
    log_losses,
    reliability,
    risk_coverage,
)
from .intervals import (
    bootstrap_difference,
    holm,
    mcnemar,
    nadeau_bengio_interval,
    paired_difference,
    safe_divide,
    score_bounds,
    seeds_interval,
    wilson,
)
from .martingale import Bets, ScoreRanks
from .ranking import TOP_K, OneVsRest, OODMetrics, RocCurve, one_vs_rest, ood_metrics, roc_curve
from .retrieval import RECALL_AT, RetrievalScores, score_retrieval
from .sequential import anytime_interval, disagreement_e_value
from .unlabelled_accuracy import (
    UnlabelledAccuracy,
    energy_distance,
    estimate_accuracy,
    estimate_class_shares,
    joint_confusion,
    population_stability_index,
)
