"""Verbs that examine: check, evaluate, report."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ..errors import DataError
from .show import Device, Json, emit, picture_path, result

Curve = Annotated[
    bool,
    Parameter(
        help="Also train on 10, 25 and 50 % of the training images: would more images help? Takes about as long "
        "as training did.",
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
    from ..data.findings import as_text, audit, clean_text, sample_sheet, write_clean
    from ..files import replacing
    from ..training.recipe import Recipe
    from ..training.run import read

    tabular = out is not None and out.suffix.lower() in (".csv", ".tsv")
    picture = None if out is None or tabular else picture_path(out)
    dataset, _ = read(Recipe().replace(data=data, limit=limit, size=size, fit=fit, window=window), max_bad=1.0)
    findings = audit(dataset)
    value, text = dict(findings.values) | {"remarks": [vars(r) for r in findings.remarks]}, as_text(findings)
    if picture is not None:
        with replacing(picture) as temporary:
            sample_sheet(dataset).save(temporary)
    if tabular and out is not None:
        value["clean"] = write_clean(dataset, data, out)
        text += f"\n\n{clean_text(value['clean'], out)}"
    emit(value, json, lambda console, _: console.print(text, markup=False))


def evaluate(
    run: Path,
    data: str | None = None,
    /,
    *,
    learning_curve: Curve = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Test a classifier, on its own test images or on others.

    Parameters
    ----------
    run: Path
        A run or bundle folder.
    data: str
        Other labelled images. Default: the run's own test split.
    """
    from ..evaluation.examine import examine, examine_on
    from ..evaluation.growth import learning_curve as grow
    from ..evidence.page import complete
    from ..training.run import reopen

    if data is None and (run / "config.json").is_file():
        raise DataError(f"'{run}' is a classifier without its run: name the images to test it on, after it.")
    if data is not None and learning_curve:
        raise DataError("A learning curve is tested on the run's own test images: leave DATA out.")
    if data is None:
        opened = reopen(run, device=device)
        grown = {"learning_curve": grow(opened).as_json()} if learning_curve else {}
        value: dict[str, Any] = examine(opened).as_json() | grown
        complete(opened.folder)
    else:
        value = {"data": data, **examine_on(run, data, device=device).as_json()}
    emit({"run": str(run), **value}, json, result)


def report(run: Path, /, *, json: Json = False) -> None:
    """One page with all the evidence that is saved in a run."""
    from ..evidence.page import complete
    from ..training.folder import RunFolder

    RunFolder(run).recipe()  # a page is not put into just any folder
    page = complete(run)
    emit({"run": str(run), "report": str(page)}, json, lambda console, v: console.print(v["report"], markup=False))
