"""Testing a run: evaluate on its test images, and write down what was found."""

from pathlib import Path

from .. import runtime
from ..files import atomic_replace, explain_write_errors, write_json
from ..runs import open_subject, trained_on
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
    subject = open_subject(bundle, data, device=device)
    remarks: tuple[Remark, ...] = ()
    if count := int(trained_on(bundle, subject.images).sum()):
        text = (
            f"The classifier was trained or validated on {count:,} of these {len(subject.images):,} images of "
            f"'{data}', so the result is too optimistic: leave DATA out to test on the images set aside."
        )
        remarks = (Remark("warning", text),)
    where = str(runtime.resolve_device(device))
    return evaluate(subject.classifier, subject.images, device=where, remarks=remarks)
