"""What ``report.json`` holds: all that the page and the card need, so that rendering runs no network."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from ..pictures import contact_sheet, data_url, thumbnail
from ..types import Dataset
from .confusions import ConfusablePair, confusable_pairs, most_confident, top_confusions, worst_mistakes
from .model_evaluation import Evaluation

if TYPE_CHECKING:
    from PIL.Image import Image

REPORT_FORMAT = 2
"""Version of the layout of ``report.json``."""

MAX_ROC_CURVES = 30
"""ROC curves saved at most: those of the classes ranked worst."""

PAIR_THUMBNAIL_PIXELS = 96
"""Pixels of the longer side of the examples of a pair."""

CELL_THUMBNAIL_PIXELS, MAX_CELL_EXAMPLES, MAX_CELL_BYTES = 64, 4, 700_000
"""Pixels of the examples of a cell of the confusion matrix, how many of them, and bytes of all together."""

USAGE_RIGHTS_COLUMNS = ("consent", "licence", "license")
"""Columns of a table that say what the images may be used for."""


def report_json(
    evaluation: Evaluation,
    dataset: Dataset,
    training: Mapping[str, Any] | None = None,
    *,
    run: str = "",
    mistakes: int = 24,
) -> dict[str, Any]:
    """The measured facts of a run, JSON-ready, with thumbnails of its most confident mistakes.

    ``dataset`` is the one evaluated: only the pixels of the mistakes are read. ``training`` is what
    ``training.json`` says (``seconds``, ``epochs``, ``best_epoch``, ``peak_memory_mb``).
    """
    worst = worst_mistakes(evaluation, top=mistakes)
    shown = _thumbnails(dataset, worst)
    return {
        "format": REPORT_FORMAT,
        "run": run,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "evaluation": evaluation.as_json(),
        "training": dict(training or {}),
        "reliability": evaluation.reliability.as_json(),
        "roc": _roc_json(evaluation),
        "top_confusions": [asdict(pair) for pair in top_confusions(evaluation.confusion, evaluation.classes)],
        "confusion_examples": _confusion_examples(evaluation, dataset),
        "usage_rights": {
            name: _count_values(dataset.columns[name]) for name in USAGE_RIGHTS_COLUMNS if name in dataset.columns
        },
        "confusable_pairs": [_pair_json(pair, evaluation, dataset) for pair in confusable_pairs(evaluation)],
        "mistakes": [_answer_json(evaluation, i) | image for i, image in zip(worst, shown, strict=True)],
    }


def mistake_gallery(evaluation: Evaluation, dataset: Dataset, *, top: int = 40) -> "Image | None":
    """The most confident mistakes as one picture: the true class, and under it the answer with its confidence.

    None where there are none.
    """
    worst = worst_mistakes(evaluation, top=top)
    if not len(worst):
        return None
    answers = [_answer_json(evaluation, i) for i in worst]
    return contact_sheet(
        list(dataset[worst]),
        [one["label"] for one in answers],
        notes=[f"{one['confidence']:.0%} {one['predicted']}" for one in answers],
    )


def _roc_json(evaluation: Evaluation) -> dict[str, Any] | None:
    """The mean ROC curve and the classes' own, worst first; None where a single class was tested."""
    ranks = evaluation.one_vs_rest
    if ranks.macro_curve is None or ranks.macro_auc is None:
        return None
    own = [
        {"class": name, "auc": area.value, **curve.as_json()}
        for name, area, curve in zip(evaluation.classes, ranks.aucs, ranks.curves, strict=True)
        if area and curve
    ]
    own.sort(key=lambda row: row["auc"])
    return {
        "macro": {"auc": ranks.macro_auc.value, **ranks.macro_curve.as_json()},
        "classes": own[:MAX_ROC_CURVES],
    }


def _pair_json(pair: ConfusablePair, evaluation: Evaluation, dataset: Dataset) -> dict[str, Any]:
    ways = [
        asdict(one)
        | {
            "examples": [
                {"file": str(evaluation.files[i]), "confidence": float(evaluation.confidence[i]), **shown}
                for i, shown in zip(chosen, _thumbnails(dataset, chosen, most=PAIR_THUMBNAIL_PIXELS), strict=True)
            ]
        }
        for one, chosen in zip(pair.directions, pair.examples, strict=True)
    ]
    return {"count": pair.count, "directions": ways}


def _confusion_examples(evaluation: Evaluation, dataset: Dataset) -> list[dict[str, Any]]:
    """Examples of each kind of mistake, the most frequent kinds first, as many as a page can hold."""
    found, spent = [], 0
    for one in top_confusions(evaluation.confusion, evaluation.classes, top=len(evaluation.classes) ** 2):
        row, column = evaluation.classes.index(one.label), evaluation.classes.index(one.predicted)
        chosen = most_confident(evaluation, row, column, MAX_CELL_EXAMPLES)
        shown = _thumbnails(dataset, chosen, most=CELL_THUMBNAIL_PIXELS)
        spent += sum(len(each["image"]) for each in shown)
        if spent > MAX_CELL_BYTES:
            break
        examples = [_answer_json(evaluation, i) | image for i, image in zip(chosen, shown, strict=True)]
        found.append({"row": row, "column": column, "count": one.count, "examples": examples})
    return found


def _count_values(column: ndarray) -> dict[str, int]:
    """How many images have each value."""
    values, counts = np.unique(column.astype(str), return_counts=True)
    return {str(value) or "(not given)": int(n) for value, n in zip(values, counts, strict=True)}


def _answer_json(evaluation: Evaluation, i: np.integer | int) -> dict[str, Any]:
    return {
        "file": str(evaluation.files[i]),
        "label": evaluation.classes[evaluation.labels[i]],
        "predicted": evaluation.classes[evaluation.predicted[i]],
        "confidence": float(evaluation.confidence[i]),
    }


def _thumbnails(dataset: Dataset, chosen: Int[ndarray, " M"], *, most: int = 128) -> list[dict[str, str]]:
    """The images as thumbnails that a page can hold."""
    return [{"image": data_url(thumbnail(pixels, most=most))} for pixels in dataset[chosen]] if len(chosen) else []
