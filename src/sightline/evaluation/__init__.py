"""How good is a classifier, how sure, and for whom? Metrics, calibration, abstention, conformal sets, OOD,
fairness.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..choose import choose
from ..training import Run
from .abstention import threshold_for_coverage, threshold_for_risk
from .conformal import NONCONFORMITY_SCORES, ConformalSets, add_sets, conformalize, load_sets, quantiles_json
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
from .fairness import evaluate_groups_on, evaluate_groups_run, group_values
from .model_evaluation import Evaluation, evaluate
from .ood import KNN, Energy, Mahalanobis, MaxLogit, MaxSoftmax, MCDropout, OODScore, evaluate_scores_run
from .report_file import evaluate_on, evaluate_run, mistake_gallery, report_json
from .uncertainty import evaluate_uncertainty_run

OOD_SCORES: Mapping[str, Callable[..., OODScore]] = {
    "max-softmax": MaxSoftmax,
    "max-logit": MaxLogit,
    "energy": Energy,
    "mahalanobis": Mahalanobis,
    "knn": KNN,
    "dropout": MCDropout,
}
"""Name -> the score; its arguments follow after colons: ``knn:k=50``."""


def evaluate_ood_run(
    run: Run, data: str | Path, *, by: Sequence[str | OODScore] = tuple(OOD_SCORES)
) -> dict[str, Any]:
    """How well scores separate a run's test images (the positive side) from images of ``data``; JSON-ready.

    Scores that compare with training images are fitted to the run's. Writes ``outliers.json`` into the run; scores
    that cannot be computed are listed under ``failed`` with the reason. Raises ChoiceError for an unknown score.
    """
    scores = {str(word): choose(OOD_SCORES, word, "score") for word in by}
    return evaluate_scores_run(run, data, scores)
