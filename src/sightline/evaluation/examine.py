"""Testing a run: evaluate on its test images, and write down what was found."""

from pathlib import Path

from .. import progress, runtime
from ..classifier import Classifier
from ..data.dataset import load
from ..files import write_json
from ..sources.source import find
from ..training.run import Run
from ..types import Dataset
from .measure import Evaluation, evaluate
from .record import report_json


def examine(run: Run) -> Evaluation:
    """Evaluate a run on its test split; write its ``predictions.csv`` and ``report.json``."""
    test = run.splits.test
    evaluation = evaluate(run.classifier, test, device=str(run.classifier.device))
    evaluation.write_predictions(run.folder / "predictions.csv")
    record = report_json(evaluation, test, run.facts, run=run.folder.name)
    write_json(run.folder / "report.json", record)
    return evaluation


def examine_on(bundle: Path | str, data: str | Path, *, device: str = "auto") -> Evaluation:
    """Evaluate a run's or bundle's classifier on other labelled images: their test split, or else all of them."""
    classifier = Classifier.load(bundle)
    dataset = load(find(data), classifier.geometry)
    part = _test_part(dataset)
    if part is dataset and dataset.fingerprint == classifier.provenance.get("data_fingerprint"):
        progress.say(
            f"'{data}' holds the very images this classifier was trained on, so the result flatters: "
            "leave DATA out to test on those set aside."
        )
    return evaluate(classifier, part, device=str(runtime.device(device)))


def _test_part(dataset: Dataset) -> Dataset:
    splits = dataset.columns.get("split")
    return dataset if splits is None or "test" not in splits else dataset.subset(splits == "test")
