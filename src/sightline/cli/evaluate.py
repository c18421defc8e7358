"""Verbs that examine: check, evaluate."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ..errors import DataError, RecipeError
from . import trusting
from .output import Device, Json, check_picture_path, emit, print_evaluation

LearningCurveFlag = Annotated[
    bool,
    Parameter(
        help="Also train on 10, 25 and 50 % of the training images: would more images help? Takes about as long "
        "as training did.",
        negative=(),
    ),
]

NO_OPTIONS = trusting.EvaluateOptions()
CorruptionsFlag = Annotated[
    bool,
    Parameter(
        help="Also test on up to 1,000 of its images in 75 corrupted forms: noise, blur, weather, compression.",
        negative=(),
    ),
]


def check(
    data: str,
    /,
    *,
    limit: int | None = None,
    size: int | None = None,
    fit: str = "squash",
    window: str | None = None,
    out: Path | None = None,
    deep: trusting.LabelIssuesFlag = False,
    by: trusting.LabelIssuesMethod = None,
    suspects: trusting.LabelIssuesFolder = None,
    json: Json = False,
) -> None:
    """What is wrong with these images, before it costs you a week.

    Parameters
    ----------
    data: str
        A folder, archive, table or name, as for train.
    limit: int
        Look at about this many images.
    size: int
        Working size to judge by. Default: the one training would choose.
    fit: str
        squash, crop or pad.
    window: str
        Values of 16-bit images that become black and white: 0:4095.
    out: Path
        A picture (check.png): a contact sheet of images as the network would see them. A table (clean.csv): the
        images worth keeping, for train; what was left out and why is written beside it.
    """
    from ..data import audit, draw_sample_sheet, format_audit, format_clean_summary, write_clean_manifest
    from ..files import atomic_replace
    from ..training import Recipe, read_dataset

    tabular = out is not None and out.suffix.lower() in (".csv", ".tsv")
    picture = None if out is None or tabular else check_picture_path(out)
    dataset, _ = read_dataset(
        Recipe().replace(data=data, limit=limit, size=size, fit=fit, window=window), max_bad=1.0
    )
    findings = audit(dataset)
    value, text = dict(findings.values) | {"remarks": [vars(r) for r in findings.remarks]}, format_audit(findings)
    if picture is not None:
        with atomic_replace(picture) as temporary:
            draw_sample_sheet(dataset).save(temporary)
    if tabular and out is not None:
        value["clean"] = write_clean_manifest(dataset, data, out)
        text += f"\n\n{format_clean_summary(value['clean'], out)}"
    if deep or by or suspects:
        found = trusting.rank_label_issues(dataset, data, by, suspects)
        value["suspects"] = found
        text += f"\n\n{trusting.label_issues_text(found)}"
    emit(value, json, lambda console, _: console.print(text, markup=False))


def evaluate(
    run: Path,
    data: str | None = None,
    /,
    *,
    learning_curve: LearningCurveFlag = False,
    corruptions: CorruptionsFlag = False,
    wishes: trusting.EvaluateOptions = NO_OPTIONS,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Test a classifier, on its own test images or on others; or find out for whom, and how sure, it is good.

    Parameters
    ----------
    run: Path
        A run or bundle folder, or an exported .onnx file.
    data: str
        Other labelled images. Default: the run's own test split.
    """
    if wishes.any_given:
        if learning_curve or corruptions:
            raise RecipeError("--learning-curve and --corruptions come alone: leave the other flags out.")
        trusting.evaluate_trust(run, data, wishes, device, json)
        return
    from ..comparison import learning_curve_run as grow
    from ..evaluation import evaluate_on, evaluate_run
    from ..evidence import write_report
    from ..robustness import corrupt_run
    from ..runs import open_run

    if data is not None and (learning_curve or corruptions):
        what = "A learning curve is" if learning_curve else "Corruptions are"
        raise DataError(f"{what} tested on the run's own test images: leave DATA out.")
    if data is None:
        opened = open_run(run, device=device)
        grown = {"learning_curve": grow(opened).as_json()} if learning_curve else {}
        shift = {"corruptions": corrupt_run(opened).as_json()} if corruptions else {}
        value: dict[str, Any] = evaluate_run(opened).as_json() | grown | shift
        write_report(opened.folder)
    else:
        value = {"data": data, **evaluate_on(run, data, device=device).as_json()}
    emit({"run": str(run), **value}, json, print_evaluation)
