"""Calibration, abstention and conformal sets of a run: fitted on validation, measured on test images."""

from typing import Any

from jaxtyping import Float, Int
from numpy import ndarray

from .. import metrics
from ..classifier import amend_bundle
from ..errors import DataError, RecipeError
from ..files import atomic_replace, write_json
from ..inference import match_labels, predict_logits, predict_probabilities, to_probabilities
from ..pictures import plot_reliability, plot_risk_coverage
from ..training import Run
from .abstention import threshold_for_coverage, threshold_for_risk
from .conformal import NONCONFORMITY_SCORES, conformalize, measure_sets, quantiles_json

RISK_COVERAGE_POINTS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Coverages at which the risk is tabulated."""

CALIBRATION_FILE = "calibration.json"


def evaluate_uncertainty_run(
    run: Run, *, risk: float | None = None, coverage: float | None = None, alpha: float = 0.1, save: bool = False
) -> dict[str, Any]:
    """Measure a run's calibration, a threshold for "unknown", and conformal sets; JSON-ready.

    Writes ``calibration.json``, ``risk_coverage.png`` and ``reliability.png`` into the run.

    Args:
        risk: choose the threshold with at most this share of wrong predictions, or
        coverage: the threshold above which this share of the images is predicted.
        alpha: error rate of the conformal sets that are measured.
        save: put the threshold and the conformal quantiles into the bundle.

    Raises RecipeError for impossible values, DataError where no threshold has that risk.
    """
    if risk is not None and coverage is not None:
        raise RecipeError("A risk and a coverage were both asked for: one threshold can meet one of them.")
    classifier, splits = run.classifier, run.splits
    if not len(splits.val):
        raise DataError(
            f"'{run.folder}' has no validation images to choose a threshold or conformal sets on: train with "
            "--val-fraction 0.2, or with more images."
        )
    held, held_labels = predict_probabilities(classifier, splits.val)
    confidence, correct = held.max(1), held.argmax(1) == held_labels
    threshold = None
    if risk is not None:
        threshold = threshold_for_risk(confidence, correct, risk)
    elif coverage is not None:
        threshold = threshold_for_coverage(confidence, correct, coverage)
    labels, logits = match_labels(classifier, splits.test), predict_logits(classifier, splits.test)[0]
    probabilities = to_probabilities(logits, classifier.temperature)
    found: dict[str, Any] = {"run": run.folder.name, "split": "test", "n": len(labels), "n_validation": len(held)}
    found |= measure_calibration(labels, probabilities) | {"temperature": classifier.temperature}
    found["uncalibrated"] = _calibration_errors(labels, to_probabilities(logits))
    point = None
    found["abstention"] = None
    if threshold is not None:
        on_test = measure_threshold(labels, probabilities, threshold.value)
        found["abstention"] = threshold.as_json() | {"test": on_test}
        point = on_test["coverage"]["value"], on_test["risk"]["value"]
    found["conformal"] = _conformal_json(
        (held, held_labels), (probabilities, labels), alpha, tuple(classifier.classes)
    )
    found["kept"] = save
    if save:
        answers = quantiles_json(held, held_labels)
        amend_bundle(run.folder, threshold=threshold and threshold.value, answers=answers)
    write_json(run.folder / CALIBRATION_FILE, found)
    curve, error = found["risk_coverage"], 1 - found["accuracy"]
    pictures = {
        "risk_coverage.png": plot_risk_coverage(curve, error=error, threshold=point),
        "reliability.png": plot_reliability(**found["reliability_equal_mass"]),
    }
    for name, picture in pictures.items():
        with atomic_replace(run.folder / name) as temporary:
            picture.save(temporary)
    return found


def measure_calibration(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> dict[str, Any]:
    """Calibration errors, reliability in both kinds of bins, and risk over coverage; JSON-ready."""
    metrics.check_probabilities(labels, probabilities)
    correct = probabilities.argmax(1) == labels
    curve = metrics.risk_coverage(probabilities.max(1), correct)
    return {
        "accuracy": float(correct.mean()),
        **_calibration_errors(labels, probabilities),
        "intervals": {"ece": metrics.overall_metrics(labels, probabilities)["ece"].as_json()},
        "log_loss": float(metrics.log_losses(labels, probabilities).mean()),
        "brier": float(metrics.brier_scores(labels, probabilities).mean()),
        "aurc": curve.aurc,
        "excess_aurc": curve.excess_aurc,
        "risk_at": {f"{share:g}": curve.risk_at(share) for share in RISK_COVERAGE_POINTS},
        "risk_coverage": curve.as_json(),
        "reliability": metrics.reliability(labels, probabilities).as_json(),
        "reliability_equal_mass": metrics.equal_mass_reliability(labels, probabilities).as_json(),
    }


def _calibration_errors(labels: ndarray, probabilities: ndarray) -> dict[str, float]:
    width, mass = (f(labels, probabilities) for f in (metrics.reliability, metrics.equal_mass_reliability))
    return {"ece": width.ece, "ece_equal_mass": mass.ece, "mce": width.mce}


def measure_threshold(
    labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"], threshold: float
) -> dict[str, Any]:
    """Coverage and risk of a threshold on the confidence, with Wilson's intervals; JSON-ready."""
    predicted = probabilities.max(1) >= threshold
    wrong = float((predicted & (probabilities.argmax(1) != labels)).sum())
    return {
        "coverage": metrics.wilson(float(predicted.sum()), len(labels)).as_json(),
        "risk": metrics.wilson(wrong, float(predicted.sum())).as_json(),
    }


def _conformal_json(
    calibration: tuple[ndarray, ndarray], test: tuple[ndarray, ndarray], alpha: float, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Quality of every kind of set on the test images; both arguments are (probabilities, labels)."""
    kinds, remarks = {}, []
    for by in NONCONFORMITY_SCORES:
        for per_class in (False, True):
            sets = conformalize(*calibration, alpha, by=by, per_class=per_class)
            kinds[f"{by}-per-class" if per_class else by] = measure_sets(sets, *test).as_json()
            remarks += [remark] if (remark := sets.remark(classes)) else []
    remarks = list(dict.fromkeys(remarks))
    probabilities, labels = calibration
    if kinds["lac"]["empty"] > 0.01 and float((probabilities.argmax(1) == labels).mean()) > 1 - alpha:
        remarks.append(
            f"More than {1 - alpha:g} of the predictions are correct already, so some sets are empty to meet the "
            "error rate exactly: read an empty set as unknown, or ask for a lower rate."
        )
    return {"alpha": alpha, "images": len(labels), "kinds": kinds, "remarks": remarks}
