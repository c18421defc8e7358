"""A run examined for how sure it is: calibration, a threshold for "unknown", conformal sets, and outliers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from numpy import ndarray

from .. import metrics as measures
from ..choose import choose
from ..classifier import Classifier, amend_bundle
from ..data import load_dataset
from ..errors import BundleError, DataError, RecipeError
from ..files import atomic_replace, write_json
from ..inference import match_labels, predict_logits, predict_probabilities, to_probabilities
from ..pictures import plot_reliability as reliability_picture
from ..sources import find
from ..training import Run
from ..types import Dataset
from .abstention import AbstentionThreshold, threshold_for_coverage, threshold_for_risk
from .conformal import NONCONFORMITY_SCORES, conformalize, measure_sets, quantiles_json
from .ood import OOD_SCORES, OODScore, fit_score, score_dataset
from .plots import plot_risk_coverage

RISK_COVERAGE_POINTS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Shares of the images answered at which the risk is shown."""


def evaluate_uncertainty_run(
    run: Run, *, risk: float | None = None, coverage: float | None = None, alpha: float = 0.1, keep: bool = False
) -> dict[str, Any]:
    """How sure a run's classifier is: chosen on its validation images, shown on its test images.

    ``risk`` or ``coverage`` choose a threshold for "unknown"; ``alpha`` is the error rate of the conformal sets
    shown. ``keep`` puts the threshold and the conformal quantiles into the bundle. Writes ``calibration.json`` and
    two pictures into the run. Raises RecipeError for impossible wishes, DataError for a risk nobody can meet.
    """
    if risk is not None and coverage is not None:
        raise RecipeError("A risk and a coverage were both asked for: one threshold can meet one of them.")
    classifier, splits = run.classifier, run.splits
    held, held_labels = predict_probabilities(classifier, splits.val)
    chosen = _choose_threshold(held, held_labels, risk, coverage)
    labels, logits = match_labels(classifier, splits.test), predict_logits(classifier, splits.test)[0]
    probabilities = to_probabilities(logits, classifier.temperature)
    found: dict[str, Any] = {"run": run.folder.name, "split": "test", "n": len(labels), "n_validation": len(held)}
    found |= measure_calibration(labels, probabilities) | {"temperature": classifier.temperature}
    found["uncalibrated"] = _calibration_errors(labels, to_probabilities(logits))
    found["abstention"] = chosen and chosen.as_json() | {
        "test": measure_threshold(labels, probabilities, chosen.value)
    }
    found["conformal"] = _conformal_quality(held, held_labels, probabilities, labels, alpha, classifier.classes)
    found["kept"] = keep
    if keep:
        amend_bundle(run.folder, threshold=chosen and chosen.value, answers=quantiles_json(held, held_labels))
    write_json(run.folder / "calibration.json", found)
    _write_plots(found, run.folder)
    return found


def _choose_threshold(
    probabilities: ndarray, labels: ndarray, risk: float | None, coverage: float | None
) -> AbstentionThreshold | None:
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    if risk is not None:
        return threshold_for_risk(confidence, right, risk)
    return None if coverage is None else threshold_for_coverage(confidence, right, coverage)


def measure_calibration(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> dict[str, Any]:
    """Calibration errors, reliability in both kinds of bins, and risk over coverage; JSON-ready."""
    measures.check_probabilities(labels, probabilities)
    curve = measures.risk_coverage(probabilities.max(1), probabilities.argmax(1) == labels)
    ece = measures.overall_metrics(labels, probabilities)["ece"]
    return {
        "accuracy": float((probabilities.argmax(1) == labels).mean()),
        **_calibration_errors(labels, probabilities),
        "intervals": {"ece": ece.as_json()},
        "log_loss": float(measures.log_losses(labels, probabilities).mean()),
        "brier": float(measures.brier_scores(labels, probabilities).mean()),
        "aurc": curve.aurc,
        "excess_aurc": curve.excess_aurc,
        "risk_at": {f"{share:g}": curve.risk_at(share) for share in RISK_COVERAGE_POINTS},
        "risk_coverage": curve.as_json(),
        "reliability": measures.reliability(labels, probabilities).as_json(),
        "reliability_equal_mass": measures.equal_mass_reliability(labels, probabilities).as_json(),
    }


def _calibration_errors(labels: ndarray, probabilities: ndarray) -> dict[str, float]:
    """The calibration errors alone."""
    width, mass = (f(labels, probabilities) for f in (measures.reliability, measures.equal_mass_reliability))
    return {"ece": width.ece, "ece_equal_mass": mass.ece, "mce": width.mce}


def measure_threshold(
    labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"], threshold: float
) -> dict[str, Any]:
    """Coverage and risk of a threshold on labelled images, with Wilson's intervals."""
    chosen = probabilities.max(1) >= threshold
    wrong = float((chosen & (probabilities.argmax(1) != labels)).sum())
    named = {
        "coverage": measures.wilson(float(chosen.sum()), len(labels)),
        "risk": measures.wilson(wrong, float(chosen.sum())),
    }
    return {name: interval.as_json() for name, interval in named.items()}


def _conformal_quality(
    held: ndarray,
    held_labels: ndarray,
    probabilities: ndarray,
    labels: ndarray,
    alpha: float,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """Quality of each kind of set on test images, calibrated on validation images."""
    found: dict[str, Any] = {"alpha": alpha, "images": len(held_labels), "kinds": {}, "remarks": []}
    for by in NONCONFORMITY_SCORES:
        for per_class in (False, True):
            sets = conformalize(held, held_labels, alpha, by=by, per_class=per_class)
            found["kinds"][f"{by}-per-class" if per_class else by] = measure_sets(
                sets, probabilities, labels
            ).as_json()
            found["remarks"] += [remark] if (remark := sets.remark(classes)) else []
    found["remarks"] = list(dict.fromkeys(found["remarks"]))
    if found["kinds"]["lac"]["empty"] > 0.01 and float((held.argmax(1) == held_labels).mean()) > 1 - alpha:
        found["remarks"].append(
            f"More than {1 - alpha:g} of the likeliest classes are right already, so some sets are left empty to "
            "meet the rate: read an empty one as unknown, or ask for a lower rate."
        )
    return found


def _write_plots(found: Mapping[str, Any], folder: Path) -> None:
    chosen = found["abstention"]
    spot = chosen and (chosen["test"]["coverage"]["value"], chosen["test"]["risk"]["value"])
    pictures = {
        "risk_coverage.png": plot_risk_coverage(found["risk_coverage"], error=1 - found["accuracy"], chosen=spot),
        "reliability.png": reliability_picture(**found["reliability_equal_mass"]),
    }
    for name, picture in pictures.items():
        with atomic_replace(folder / name) as temporary:
            picture.save(temporary)


def evaluate_ood_run(run: Run, data: str | Path, *, by: tuple[str, ...] = tuple(OOD_SCORES)) -> dict[str, Any]:
    """How well each score tells a run's test images (the positive side) from those of ``data``, which do not
    belong.

    Scores that compare are fitted to the run's training images. Writes ``outliers.json`` into the run. What cannot
    be scored says why, under ``failed``.
    """
    classifier, splits = run.classifier, run.splits
    wanted = {word: choose(OOD_SCORES, word, "score") for word in by}
    outside = load_dataset(find(data, several=False), classifier.geometry)
    shared = sorted(set(outside.classes) & set(classifier.classes))
    remarks = []
    if shared:
        remarks.append(
            f"'{data}' has classes the classifier knows ({', '.join(shared[:5])}): images of them are no outliers."
        )
    rows, failed = [], []
    for word, score in wanted.items():
        try:
            rows.append({"score": word, **_separate(score, classifier, splits.train, splits.test, outside)})
        except (DataError, BundleError) as error:
            failed.append({"score": word, "error": str(error)})
    rows.sort(key=lambda row: -row["auroc"])
    found = {
        "run": run.folder.name,
        "data": str(data),
        "positive": "in-distribution",
        "n": len(splits.test),
        "n_outliers": len(outside),
        "scores": rows,
        "failed": failed,
        "remarks": remarks,
    }
    write_json(run.folder / "outliers.json", found)
    return found


def _separate(
    score: OODScore, classifier: Classifier, train: Dataset, inside: Dataset, outside: Dataset
) -> dict[str, Any]:
    ready = fit_score(score, classifier, train)
    one, other = (score_dataset(ready, classifier, part) for part in (inside, outside))
    return measures.ood_metrics(one, other).as_json()
