"""What ``report.json`` holds: all that the page and the card need, so that rendering runs no network."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ..pictures import data_url, thumbnail
from ..types import Dataset
from .measure import Evaluation
from .mistakes import confused_pairs, worst_mistakes

FORMAT = 1
"""Version of the layout of ``report.json``."""


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
    return {
        "format": FORMAT,
        "run": run,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        evaluation.split: evaluation.as_json(),
        "training": dict(training or {}),
        "reliability": evaluation.reliability.as_json(),
        "confused": [asdict(pair) for pair in confused_pairs(evaluation.confusion, evaluation.classes)],
        "mistakes": _mistakes(evaluation, dataset, mistakes),
    }


def _mistakes(evaluation: Evaluation, dataset: Dataset, top: int) -> list[dict[str, Any]]:
    chosen = worst_mistakes(evaluation, top=top)
    if not len(chosen):
        return []
    names, predicted, confidence = evaluation.classes, evaluation.predicted, evaluation.confidence
    return [
        {
            "file": str(evaluation.files[i]),
            "label": names[evaluation.labels[i]],
            "predicted": names[predicted[i]],
            "confidence": float(confidence[i]),
            "image": data_url(thumbnail(pixels)),
        }
        for i, pixels in zip(chosen, dataset[chosen], strict=True)
    ]
