"""Testing a run: evaluate on its test images, and write down what was found."""

from pathlib import Path

from .. import runtime
from ..classifier import Classifier
from ..data import load
from ..files import atomic_replace, explain_write_errors, write_json
from ..sources import find
from ..training import Run
from ..types import Dataset, Remark
from .model_evaluation import Evaluation, evaluate
from .report_file import mistake_gallery, report_json


def evaluate_run(run: Run) -> Evaluation:
    """Evaluate a run on its test split; write its ``predictions.csv``, ``report.json`` and ``mistakes.png``.

    A learning curve of the run, where there is one, enters the report.
    """
    test = run.splits.test
    evaluation = evaluate(run.classifier, test, device=str(run.classifier.device))
    evaluation.write_predictions(run.folder / "predictions.csv")
    record = report_json(evaluation, test, run.facts, run=run.folder.name)
    write_json(run.folder / "report.json", record)
    _write_gallery(evaluation, test, run.folder / "mistakes.png")
    return evaluation


def _write_gallery(evaluation: Evaluation, test: Dataset, path: Path) -> None:
    picture = mistake_gallery(evaluation, test)
    if picture is None:
        with explain_write_errors(path):
            path.unlink(missing_ok=True)
    else:
        with atomic_replace(path) as temporary:
            picture.save(temporary)


def evaluate_on(bundle: Path | str, data: str | Path, *, device: str = "auto") -> Evaluation:
    """Evaluate a run's or bundle's classifier on other labelled images: their test split, or else all of them."""
    classifier = Classifier.load(bundle)
    dataset = load(find(data, several=False), classifier.geometry)
    part = test_split(dataset)
    remarks: tuple[Remark, ...] = ()
    if part is dataset and dataset.fingerprint == classifier.provenance.get("data_fingerprint"):
        remarks = (Remark("warning", f"'{data}' {_TRAINED_ON_WARNING}"),)
    return evaluate(classifier, part, device=str(runtime.resolve_device(device)), remarks=remarks)


_TRAINED_ON_WARNING = (
    "holds the very images this classifier was trained on, so the result flatters: "
    "leave DATA out to test on those set aside."
)


def test_split(dataset: Dataset) -> Dataset:
    """The test images where the data have parts, else all."""
    splits = dataset.columns.get("split")
    return dataset if splits is None or "test" not in splits else dataset.subset(splits == "test")
