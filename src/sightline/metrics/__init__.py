"""(labels, probabilities) become numbers, each with its interval: numpy only, no network runs here.

Values equal scikit-learn's default calls. Intervals (docs/evaluation.md gives the reasons):

    accuracy, top-k, per-class precision and recall    Wilson's score interval
    per-class F1                                       Wilson's on Jaccard J, through F1 = 2 J / (1 + J)
    averages over classes, AUC                         Wilson's at the effective sample size v (1 - v) / Var(v)
    log loss, Brier score, ECE                         bootstrap over images, seeded
"""

from .classes import confusion_matrix as confusion_matrix
from .confidence import BINS as BINS
from .confidence import Reliability as Reliability
from .confidence import brier_scores as brier_scores
from .confidence import equal_mass_reliability as equal_mass_reliability
from .confidence import log_losses as log_losses
from .confidence import reliability as reliability
from .intervals import paired_difference as paired_difference
from .intervals import seeds_interval as seeds_interval
from .intervals import wilson as wilson
from .overall import ClassMetrics as ClassMetrics
from .overall import check as check
from .overall import measure as measure
from .overall import per_class as per_class
from .paired import bootstrap_difference as bootstrap_difference
from .paired import corrected_interval as corrected_interval
from .paired import holm as holm
from .paired import mcnemar as mcnemar
from .ranking import TOP as TOP
from .ranking import OneVsRest as OneVsRest
from .ranking import RocCurve as RocCurve
from .ranking import one_vs_rest as one_vs_rest
from .ranking import roc_curve as roc_curve
from .selective import RiskCoverage as RiskCoverage
from .selective import risk_coverage as risk_coverage
from .separation import Separation as Separation
from .separation import separation as separation
