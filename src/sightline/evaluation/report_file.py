"""A run's ``report.json``: everything that the page and the model card need, so that rendering runs no network."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from .. import runtime
from ..data import nested_subset
from ..files import atomic_replace, explain_write_errors, write_json
from ..pictures import contact_sheet, data_url, thumbnail
from ..runs import open_subject, trained_on
from ..sources import Source
from ..training import Deadline, Run
from ..types import Dataset, Remark
from .confusions import confusable_pairs, most_confident, top_confusions, worst_mistakes
from .model_evaluation import Evaluation, evaluate

if TYPE_CHECKING:
    from PIL.Image import Image

REPORT_FILE = "report.json"

REPORT_FORMAT = 2
"""Version of the layout of ``report.json``; 1 had the evaluation under the name of its split."""

MAX_ROC_CURVES = 30
"""ROC curves in the report, at most: those of the classes with the lowest AUC."""

PAIR_THUMBNAIL_PIXELS = 96
"""Longer side of the examples of a confusable pair, in pixels."""

CELL_THUMBNAIL_PIXELS, MAX_CELL_EXAMPLES, MAX_CELL_BYTES = 64, 4, 700_000
"""Examples of a cell of the confusion matrix: their longer side in pixels, their number, and the bytes of all
cells.
"""

USAGE_RIGHTS_COLUMNS = ("consent", "licence", "license")
"""Columns of a table that say how the images may be used."""


def evaluate_run(run: Run, *, deadline: Deadline | None = None) -> Evaluation:
    """Evaluate a run on its test split; write its ``predictions.csv``, ``report.json`` and ``mistakes.png``.

    Until a ``deadline``, as many test images as fit are tested, and a remark says so; costs are measured briefly.
    """
    test, brief = run.splits.test, False
    device, remarks = str(run.classifier.device), tuple(_training_remarks(run))
    if deadline is not None:
        deadline.measure_load()
        brief = not deadline.can_measure_costs()
        if brief:
            text = "One image's latency was measured for 0.1 s, and no memory, because time was short (--budget)."
            remarks += (Remark("note", text),)
        if (count := deadline.testable_images()) < len(test):
            some = test.subset(nested_subset(test.labels, count / len(test), run.recipe.data_seed))
            text = (
                f"{len(some):,} of {len(test):,} test images are tested, the same share of every class, which is what "
                f"fits the budget of {run.recipe.budget}: sightline evaluate {run.folder} tests on all."
            )
            test, remarks = some, (*remarks, Remark("warning", text))
    evaluation = evaluate(run.classifier, test, device=device, remarks=remarks, brief=brief)
    evaluation.write_predictions(run.folder / "predictions.csv")
    write_json(run.folder / REPORT_FILE, report_json(evaluation, test, run.facts, run=run.folder.name))
    gallery, picture = run.folder / "mistakes.png", mistake_gallery(evaluation, test)
    if picture is None:
        with explain_write_errors(gallery):
            gallery.unlink(missing_ok=True)
    else:
        with atomic_replace(gallery) as temporary:
            picture.save(temporary)
    return evaluation


MIN_EPOCHS_TO_JUDGE = 5
"""With fewer epochs, of which the last was the best, a network from random weights is hardly trained."""


def _training_remarks(run: Run) -> Iterator[Remark]:
    """A remark on a training that ended while it still improved."""
    epochs, best = run.facts.get("epochs"), run.facts.get("best_epoch")
    if epochs and epochs < MIN_EPOCHS_TO_JUDGE and best == epochs and run.recipe.method in (None, "gradient"):
        only = (
            "Only 1 epoch was trained"
            if epochs == 1
            else f"Only {epochs} epochs were trained, and the last was the best"
        )
        yield Remark(
            "warning",
            f"{only}: more would probably do better. Give more epochs (--epochs {10 * epochs}) or time (--budget 30m), "
            "or a smaller --size or network.",
        )


def evaluate_on(bundle: Path | str, data: str | Path | Source, *, device: str = "auto") -> Evaluation:
    """Evaluate a run's or bundle's classifier on the labelled images of ``data``: their test split, or else all."""
    subject = open_subject(bundle, data, device=device)
    images, remarks = subject.images.labelled, ()
    if subject.run is None and (count := int(trained_on(bundle, images).sum())):
        text = (
            f"The classifier was trained or validated on {count:,} of these {len(images):,} images of "
            f"'{data}', so the result is too optimistic: leave DATA out to test on the images set aside."
        )
        remarks = (Remark("warning", text),)
    where = str(runtime.resolve_device(device))
    return evaluate(subject.classifier, images, device=where, remarks=remarks)


def report_json(
    evaluation: Evaluation,
    dataset: Dataset,
    training: Mapping[str, Any] | None = None,
    *,
    run: str = "",
    mistakes: int = 24,
) -> dict[str, Any]:
    """The content of ``report.json``, with thumbnails of mistakes.

    Args:
        dataset: the images evaluated; only the pixels of the examples are read.
        training: the content of ``training.json`` (``seconds``, ``epochs``, ``best_epoch``, ``peak_memory_mb``).
        run: name of the run's folder.
        mistakes: number of the most confident mistakes in the report.
    """
    worst = worst_mistakes(evaluation, top=mistakes)
    shown = _thumbnails(dataset, worst)
    rights = {}
    for name in USAGE_RIGHTS_COLUMNS:
        if name in dataset.columns:
            values, counts = np.unique(dataset.columns[name].astype(str), return_counts=True)
            rights[name] = {str(v) or "(not given)": int(n) for v, n in zip(values, counts, strict=True)}
    pairs = []
    for pair in confusable_pairs(evaluation):
        directions = []
        for one, chosen in zip(pair.directions, pair.examples, strict=True):
            images = _thumbnails(dataset, chosen, most=PAIR_THUMBNAIL_PIXELS)
            examples = [
                {"file": str(evaluation.files[i]), "confidence": float(evaluation.confidence[i]), **image}
                for i, image in zip(chosen, images, strict=True)
            ]
            directions.append(asdict(one) | {"examples": examples})
        pairs.append({"count": pair.count, "directions": directions})
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
        "usage_rights": rights,
        "confusable_pairs": pairs,
        "mistakes": [_prediction_json(evaluation, i) | image for i, image in zip(worst, shown, strict=True)],
    }


def mistake_gallery(evaluation: Evaluation, dataset: Dataset, *, top: int = 40) -> "Image | None":
    """The most confident mistakes as one picture: the true class, below it the predicted one with its confidence.

    None where there are no mistakes.
    """
    worst = worst_mistakes(evaluation, top=top)
    if not len(worst):
        return None
    rows = [_prediction_json(evaluation, i) for i in worst]
    notes = [f"{row['confidence']:.0%} {row['predicted']}" for row in rows]
    return contact_sheet(list(dataset[worst]), [row["label"] for row in rows], notes=notes)


def _roc_json(evaluation: Evaluation) -> dict[str, Any] | None:
    """The mean ROC curve and those of the classes, lowest AUC first; None where a single class was tested."""
    ranks = evaluation.one_vs_rest
    if ranks.macro_curve is None or ranks.macro_auc is None:
        return None
    rows = [
        {"class": name, "auc": auc.value, **curve.as_json()}
        for name, auc, curve in zip(evaluation.classes, ranks.aucs, ranks.curves, strict=True)
        if auc and curve
    ]
    rows.sort(key=lambda row: row["auc"])
    macro = {"auc": ranks.macro_auc.value, **ranks.macro_curve.as_json()}
    return {"macro": macro, "classes": rows[:MAX_ROC_CURVES]}


def _confusion_examples(evaluation: Evaluation, dataset: Dataset) -> list[dict[str, Any]]:
    """Examples of cells of the confusion matrix, the most frequent first, up to ``MAX_CELL_BYTES`` of images."""
    found, spent = [], 0
    for one in top_confusions(evaluation.confusion, evaluation.classes, top=len(evaluation.classes) ** 2):
        row, column = evaluation.classes.index(one.label), evaluation.classes.index(one.predicted)
        chosen = most_confident(evaluation, row, column, MAX_CELL_EXAMPLES)
        images = _thumbnails(dataset, chosen, most=CELL_THUMBNAIL_PIXELS)
        spent += sum(len(image["image"]) for image in images)
        if spent > MAX_CELL_BYTES:
            break
        examples = [_prediction_json(evaluation, i) | image for i, image in zip(chosen, images, strict=True)]
        found.append({"row": row, "column": column, "count": one.count, "examples": examples})
    return found


def _prediction_json(evaluation: Evaluation, i: np.integer | int) -> dict[str, Any]:
    return {
        "file": str(evaluation.files[i]),
        "label": evaluation.classes[evaluation.labels[i]],
        "predicted": evaluation.classes[evaluation.predicted[i]],
        "confidence": float(evaluation.confidence[i]),
    }


def _thumbnails(dataset: Dataset, chosen: Int[ndarray, " M"], *, most: int = 128) -> list[dict[str, str]]:
    """``{"image": data URL}`` for each of the images."""
    return [{"image": data_url(thumbnail(pixels, most=most))} for pixels in dataset[chosen]] if len(chosen) else []
