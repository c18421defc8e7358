"""How good is it, and how sure are we? One pass of the classifier feeds every number."""

from .conformal import add_sets, conformalize, load_sets
from .confusions import ConfusablePair, Confusion, confusable_pairs, top_confusions, worst_mistakes
from .efficiency import (
    LATENCY_BATCH_SIZES,
    LATENCY_SECONDS,
    MAX_LATENCY_REPEATS,
    MIN_LATENCY_REPEATS,
    Efficiency,
    Latency,
    predict_timed,
    time_batch,
)
from .fairness import evaluate_groups_on, evaluate_groups_run
from .model_evaluation import Evaluation, evaluate
from .ood import OOD_SCORES
from .report_file import mistake_gallery, report_json
from .run_evaluation import evaluate_on, evaluate_run
from .uncertainty import evaluate_ood_run, evaluate_uncertainty_run

__all__ = [
    "LATENCY_BATCH_SIZES",
    "LATENCY_SECONDS",
    "MAX_LATENCY_REPEATS",
    "MIN_LATENCY_REPEATS",
    "OOD_SCORES",
    "ConfusablePair",
    "Confusion",
    "Efficiency",
    "Evaluation",
    "Latency",
    "add_sets",
    "conformalize",
    "confusable_pairs",
    "evaluate",
    "evaluate_groups_on",
    "evaluate_groups_run",
    "evaluate_on",
    "evaluate_ood_run",
    "evaluate_run",
    "evaluate_uncertainty_run",
    "load_sets",
    "mistake_gallery",
    "predict_timed",
    "report_json",
    "time_batch",
    "top_confusions",
    "worst_mistakes",
]
