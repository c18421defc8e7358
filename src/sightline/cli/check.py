"""The verb check: problems of a data set, before training."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from ..errors import DataError, RecipeError
from .flags import NO_LABEL_FLAGS, Labels
from .output import READ_DEFAULTS, ReadOptions, check_picture_path, emit

if TYPE_CHECKING:
    from rich.console import Console

    from ..types import Dataset

MAX_PRINTED_LABEL_ISSUES = 10
"""Label issues that are printed; the table has all of them."""

_LABELS = Group("Label issues", sort_key=20)


def check(
    data: str,
    target: str | None = None,
    /,
    *,
    limit: int | None = None,
    size: int | None = None,
    resize_mode: str | None = None,
    window: str | None = None,
    out: Path | None = None,
    deep: Annotated[bool, Parameter(negative=(), group=_LABELS)] = False,
    label_issues: Annotated[bool, Parameter(negative=(), group=_LABELS)] = False,
    by: Annotated[str | None, Parameter(group=_LABELS)] = None,
    out_dir: Annotated[Path | None, Parameter(group=_LABELS)] = None,
    labels: Labels = NO_LABEL_FLAGS,
    options: ReadOptions = READ_DEFAULTS,
) -> None:
    """Find unreadable files, duplicates, leaks between splits, imbalance and wrong labels, before training.

    With a second place, say what differs between both worlds (framing, size, ink, colour, features) and what to do.

    Parameters
    ----------
    data: str
        A folder, archive, table or name, as for train.
    target: str
        Images of another world (a second camera, place or year), labelled or not, to compare with DATA.
    limit: int
        Check about this many images.
    size: int
        Image size (pixels) to judge by. Default: the size that training would choose.
    resize_mode: str
        squash (the default; of --deep, what training would choose), crop or pad.
    window: str
        Values of images with more than 8 bits that become black and white: 0:4095. Default: the full range of 16 bits,
        or what the values of a sample of 32-bit images span.
    out: Path
        A picture (check.png): a contact sheet of the images as the network would see them. A table (clean.csv):
        the images worth keeping, for train; a second table lists what was left out and why.
    deep: bool
        Judge labels as --label-issues does, and list photos that look alike and those least like the others. Photos
        are read as training from published weights reads them, and their features are kept for it: seconds.
    label_issues: bool
        Also rank labels that look wrong, by classifiers that were not trained on the image: seconds for a thousand
        small images.
    by: str
        Method of --label-issues: a head on kept features (probe, the default for photos; lda), a baseline (else
        svm-rbf@hog, or svm-rbf@pixels where only that can tell the classes apart) or a network.
    out_dir: Path
        Folder for the results of --label-issues, and a table of the images that repeat others. Default:
        runs/DATA-suspects.
    """
    from ..data import audit, draw_sample_sheet, format_audit, format_clean_summary, write_clean_manifest
    from ..files import atomic_replace
    from ..training import Recipe, read_dataset, resolve

    is_table = out is not None and out.suffix.lower() in (".csv", ".tsv")
    picture = None if out is None or is_table else check_picture_path(out)
    mode: Any = resize_mode or (None if deep else "squash")
    recipe = Recipe(data=data, limit=limit, size=size, resize_mode=mode, window=window, **vars(labels))
    dataset, chosen = read_dataset(recipe, plan=resolve(recipe) if deep else None, max_bad=1.0)
    windows = [default.reason for default in chosen if default.field == "window"]
    dataset = replace(dataset, notes=(*dataset.notes, *windows))
    if target is not None:
        more = bool(out or deep or label_issues or by or out_dir)
        emit(compare_places(dataset, target, alone=not more), options.json, print_shifts)
        return
    findings = audit(dataset)
    value, text = dict(findings.values) | {"remarks": [vars(r) for r in findings.remarks]}, format_audit(findings)
    if picture is not None:
        with atomic_replace(picture) as temporary:
            draw_sample_sheet(dataset).save(temporary)
    if is_table and out is not None:
        value["clean"] = write_clean_manifest(dataset, data, out)
        text += f"\n\n{format_clean_summary(value['clean'], out)}"
    if deep or label_issues or by or out_dir:
        name = re.sub(r"[^\w.-]+", "_", Path(data).name.partition(".")[0]) or "data"
        judged, more = judge_images(dataset, by, out_dir or Path("runs") / f"{name}-suspects", deep=deep)
        value, text = value | judged, text + more
    emit(value, options.json, lambda console, _: console.print(text, markup=False))


def compare_places(source: "Dataset", target: str, *, alone: bool) -> dict[str, Any]:
    """What differs between the images and those at ``target``, whose labels are read where it has any.

    Raises RecipeError unless nothing else is asked for.
    """
    from ..adaptation import compare_worlds
    from ..data import load_dataset
    from ..sources import find, find_unlabelled

    if not alone:
        raise RecipeError("A comparison of two places takes no other flags of check: leave them, or TARGET, out.")
    try:
        found = find(target, several=False)
    except DataError:
        found = find_unlabelled(target)
    findings = compare_worlds(source, load_dataset(found, source.geometry))
    return dict(findings.values) | {"remarks": [vars(remark) for remark in findings.remarks]}


def print_shifts(console: "Console", value: Mapping[str, Any]) -> None:
    """The properties as a table, what shifted marked; then what to do."""
    from .output import make_table

    rows = [
        (
            one["group"],
            one["name"],
            *("" if one[side] is None else f"{one[side]:.3g}" for side in ("source", "target")),
            "{value:.0%} [{low:.0%}, {high:.0%}]".format(**one["larger"]),
            "shifted" if one["shifted"] else "",
        )
        for one in value["shifts"]
    ]
    console.print(make_table(("", "", "source", "target", "target larger", ""), rows))
    for remark in value["remarks"]:
        console.print(f"\n{remark['level'].upper()}: {remark['text']}", markup=False)


def judge_images(dataset: "Dataset", by: str | None, out_dir: Path, *, deep: bool) -> tuple[dict[str, Any], str]:
    """The labels that look wrong, written to ``out_dir``; if ``deep``, what features show of photos. And the text."""
    from ..comparison import are_photos, check_features, find_label_issues, write_label_issues
    from ..data import format_remarks, write_duplicate_table

    found = find_label_issues(dataset, by)
    value: dict[str, Any] = {"suspects": {**found.as_json(), "files": write_label_issues(found, dataset, out_dir)}}
    value["suspects"]["files"]["duplicates"] = str(write_duplicate_table(dataset, out_dir / "duplicates.csv"))
    text = f"\n\n{format_label_issues(value['suspects'])}"
    if deep and are_photos(dataset):
        shown = check_features(dataset)
        value["features"] = dict(shown.values) | {"remarks": [vars(r) for r in shown.remarks]}
        text += f"\n\n{format_remarks(shown)}"
    return value, text


def format_label_issues(value: Mapping[str, Any]) -> str:
    """The labels that look most wrong, and what to expect of the list."""
    lines = [value["sentence"]]
    for rank, one in enumerate(value["suspects"][:MAX_PRINTED_LABEL_ISSUES], 1):
        lines.append(
            f"  {rank}. {one['file']}: labelled {one['label']} ({one['p_label']:.1%}), "
            f"looks like {one['suggested']} ({one['p_suggested']:.1%})"
        )
    if (more := len(value["suspects"]) - MAX_PRINTED_LABEL_ISSUES) > 0:
        lines.append(f"  ... and {more:,} more in {value['files']['table']}")
    lines += value["remarks"]
    if "gallery" in value["files"]:
        lines.append(f"Look at {value['files']['gallery']}: each image with its label and the suggested one.")
    return "\n".join(lines)
