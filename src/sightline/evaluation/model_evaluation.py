"""One pass of a classifier over a dataset: its predictions, their metrics, and their cost."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray

from .. import metrics as measures
from .. import runtime
from ..classifier import Classifier
from ..files import write_csv
from ..inference import match_labels
from ..types import Dataset, Interval, Remark, RemarkLevel
from .efficiency import Efficiency, WarmupCost, measure_warmup, predict_timed, summarise_efficiency

MIN_RELIABLE_IMAGES = 30
"""Images of a class or group below which its own metrics are unreliable."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """A classifier's predictions on N images of K classes, their metrics and their cost."""

    split: str
    classes: tuple[str, ...]
    labels: Int[ndarray, " N"]
    """True class of each image, as an index into ``classes``."""
    probabilities: Float[ndarray, "N K"]
    files: Shaped[ndarray, " N"]
    metrics: Mapping[str, Interval]
    """``accuracy``, ``balanced_accuracy``, ``precision_macro``, ...: see ``metrics.overall_metrics``."""
    per_class: tuple[measures.ClassMetrics, ...]
    one_vs_rest: measures.OneVsRest
    """ROC curves and their areas, one class against the rest."""
    confusion: Int[ndarray, "K K"]
    """Images of class i (row) predicted as class j (column)."""
    reliability: measures.ReliabilityDiagram
    efficiency: Efficiency
    remarks: tuple[Remark, ...] = ()

    @property
    def n(self) -> int:
        """Images evaluated."""
        return len(self.labels)

    @property
    def predicted(self) -> Int[ndarray, " N"]:
        """The most probable class of each image."""
        return self.probabilities.argmax(1)

    @property
    def confidence(self) -> Float[ndarray, " N"]:
        """The probability of the predicted class."""
        return self.probabilities.max(1)

    @property
    def correct(self) -> Bool[ndarray, " N"]:
        """Whether the predicted class is the true one."""
        return self.predicted == self.labels

    def as_json(self) -> dict[str, Any]:
        """Everything but the single predictions: ``evaluation`` of ``report.json``."""
        per_class = []
        for one in self.per_class:
            intervals = {"precision": one.precision, "recall": one.recall, "f1": one.f1}
            if one.roc_auc is not None:
                intervals["roc_auc"] = one.roc_auc
            row = {"class": self.classes[one.index], "n": one.n, "predicted": one.predicted, "roc_auc": None}
            values = {name: interval.value for name, interval in intervals.items()}
            bounds = {name: interval.as_json() for name, interval in intervals.items()}
            per_class.append({**row, **values, "intervals": bounds})
        return {
            "split": self.split,
            "n": self.n,
            **{name: interval.value for name, interval in self.metrics.items()},
            "intervals": {name: interval.as_json() for name, interval in self.metrics.items()},
            "classes": list(self.classes),
            "per_class": per_class,
            **measures.confusion_as_json(self.confusion),
            "efficiency": self.efficiency.as_json(),
            "remarks": [remark.text for remark in self.remarks],
        }

    def write_predictions(self, path: Path | str) -> None:
        """Write ``file,label,predicted,confidence,correct`` and, up to 20 classes, ``p_<class>`` as CSV."""
        names = np.asarray(self.classes)
        wide = self.probabilities if len(names) <= 20 else self.probabilities[:, :0]
        columns = (self.files, names[self.labels], names[self.predicted], self.confidence, self.correct, wide)
        head = ["file", "label", "predicted", "confidence", "correct"]
        rows = (
            [file, label, answer, f"{confidence:.6f}", int(correct), *(f"{p:.6f}" for p in row)]
            for file, label, answer, confidence, correct, row in zip(*columns, strict=True)
        )
        write_csv(Path(path), chain([[*head, *(f"p_{name}" for name in names[: wide.shape[1]])]], rows))


def evaluate(
    classifier: Classifier,
    dataset: Dataset,
    *,
    batch_size: int = 256,
    device: str = "auto",
    split: str = "test",
    remarks: tuple[Remark, ...] = (),
    brief: bool = False,
) -> Evaluation:
    """Measure a classifier on labelled images in one pass, in eval mode.

    Args:
        dataset: N images; labels are matched by class name, so its classes may be fewer or in another order.
        device: where to run; the classifier moves there.
        split: name of the images in remarks and records.
        remarks: what the caller knows and a reader of the metrics should.
        brief: measure no memory, and the latency of one image alone, because time is short.

    Raises DataError where the dataset is empty, has images of a class that the classifier does not know, or was
    decoded with another geometry.
    """
    labels = match_labels(classifier, dataset)
    training = classifier.training
    classifier.to(runtime.resolve_device(device))
    warmup: list[WarmupCost] = []
    try:
        probabilities, seconds = predict_timed(
            classifier,
            dataset,
            batch_size=batch_size,
            warm_up=lambda pixels: warmup.append(measure_warmup(classifier, pixels, brief=brief)),
        )
    finally:
        classifier.train(training)
    measures.check_probabilities(labels, probabilities)
    classes = tuple(classifier.classes)
    ranks = measures.one_vs_rest(labels, probabilities)
    one_by_one = measures.per_class_metrics(labels, probabilities, ranks=ranks)
    return Evaluation(
        split=split,
        classes=classes,
        labels=labels,
        probabilities=probabilities,
        files=dataset.files,
        metrics=measures.overall_metrics(labels, probabilities, ranks=ranks),
        per_class=one_by_one,
        one_vs_rest=ranks,
        confusion=measures.confusion_matrix(labels, probabilities.argmax(1), len(classes)),
        reliability=measures.reliability(labels, probabilities),
        efficiency=summarise_efficiency(classifier, warmup[0], batch_size, seconds),
        remarks=(
            *_guess_remarks(classes, labels, probabilities),
            *remarks,
            *_class_remarks(classes, one_by_one, split),
        ),
    )


def _guess_remarks(
    classes: tuple[str, ...], labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]
) -> Iterator[Remark]:
    """A remark where the accuracy may be that of always naming the most frequent class."""
    counts = np.bincount(labels, minlength=len(classes))
    guessed, common = counts.max() / len(labels), classes[int(counts.argmax())]
    found = measures.wilson(float((probabilities.argmax(1) == labels).sum()), len(labels))
    if guessed < 1 and found.low <= guessed:
        sure = "No better than guessing" if found.value <= guessed else "Perhaps no better than guessing"
        yield Remark(
            "warning",
            f"{sure}: {found.value:.0%} of {len(labels):,} images are right ({found.low:.0%} to {found.high:.0%}), and "
            f"always answering '{common}' gives {guessed:.0%}. Train longer or on more images, and look for wrong "
            "labels: sightline check DATA --label-issues.",
        )


def _class_remarks(
    classes: tuple[str, ...], per_class: tuple[measures.ClassMetrics, ...], split: str
) -> Iterator[Remark]:
    """A remark about classes without images, and one about classes with few."""
    absent = tuple(classes[one.index] for one in per_class if one.n == 0)
    few = tuple(classes[one.index] for one in per_class if 0 < one.n < MIN_RELIABLE_IMAGES)
    found: tuple[tuple[RemarkLevel, tuple[str, ...], str], ...] = (
        ("warning", absent, f"no {split} images and are left out of balanced accuracy and AUC"),
        ("note", few, f"fewer than {MIN_RELIABLE_IMAGES} {split} images, so their own metrics are unreliable"),
    )
    for level, names, sentence in found:
        if names:
            listed = ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")
            yield Remark(level, f"{len(names)} of {len(classes)} classes have {sentence}: {listed}.", names[:8])
