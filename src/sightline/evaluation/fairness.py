"""A run evaluated group by group, alone or compared with another run on the same test images."""

import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from ..choose import suggest
from ..classifier import Classifier
from ..errors import DataError
from ..files import atomic_replace, read_json_object, write_json
from ..inference import predict_probabilities
from ..pictures import plot_groups
from ..runs import open_subject, trained_on
from ..sources import Source
from ..training import BLANK_GROUP, Run
from ..types import Dataset
from .fairness_metrics import compare_groups, evaluate_groups

MAX_GROUPS = 200
"""Different values of a column, at most, for it to define groups."""

MAX_DISTINCT_VALUES = 12
"""Different numbers in a column above which they are replaced by quartiles."""

GROUPS_FILE = "groups.json"


def group_values(dataset: Dataset, column: str) -> tuple[Shaped[ndarray, " N"], list[str]]:
    """The group of each image as text, and sentences about how it was made.

    Many different numbers become four quartiles. Raises DataError for a column that does not exist, has one value,
    or has more than ``MAX_GROUPS`` different ones.
    """
    if column not in dataset.columns:
        known = ", ".join(sorted(dataset.columns)) or "none"
        raise DataError(
            f"The images have no column '{column}' (they have: {known}). Columns come from a table with a line "
            f"for each image. {suggest(column, dataset.columns) if dataset.columns else ''}".rstrip()
        )
    words = dataset.columns[column].astype(str)
    words = np.where(words == "", BLANK_GROUP, words)
    distinct = np.unique(words)
    if len(distinct) == 1:
        raise DataError(
            f"All {len(words):,} images have the value '{distinct[0]}' in the column '{column}': there are no "
            "groups to compare. Choose another column."
        )
    if len(distinct) <= MAX_DISTINCT_VALUES:
        return words, []
    with suppress(ValueError):
        numbers = words.astype(float)
        if np.isfinite(numbers).all():
            edges = np.unique(np.quantile(numbers, [0.25, 0.5, 0.75], method="inverted_cdf"))
            place = np.searchsorted(edges, numbers)
            quarters = [numbers[place == quarter] for quarter in range(len(edges) + 1)]
            names = [f"{one.min():g} to {one.max():g}" if len(one) else "" for one in quarters]
            return np.array(names)[place], [f"The numbers of '{column}' were divided into quartiles."]
    if len(distinct) > MAX_GROUPS:
        raise DataError(
            f"The column '{column}' has {len(distinct):,} different values in {len(words):,} images: groups need "
            f"several images each, and at most {MAX_GROUPS} of them are compared. Choose another column."
        )
    return words, []


def evaluate_groups_run(run: Run, column: str, *, against: Run | None = None) -> dict[str, Any]:
    """Metrics of a run for each group of its test images; JSON-ready.

    Writes the result into the run's ``groups.json`` under the column's name, and a picture ``groups-COLUMN.png``.

    Args:
        column: the column of the images' table that defines the groups.
        against: another run, measured on the same test images.

    Raises DataError as ``group_values``, and where the other run takes other pixels.
    """
    test, train = run.splits.test, run.splits.train
    other = None if against is None else (against.folder.name, against.classifier)
    found = {"run": run.folder.name, "split": "test", **_evaluate_column(run.classifier, test, column, other)}
    values = test.columns[column].astype(str)
    if column in train.columns and len(np.unique(values)) <= MAX_DISTINCT_VALUES:
        new = np.setdiff1d(values, train.columns[column].astype(str))
        names = ", ".join(f"'{word or BLANK_GROUP}'" for word in new[:5]) + (" ..." if len(new) > 5 else "")
        if len(new):
            found["remarks"].append(
                f"No training image has {names} in the column '{column}', so results for these groups are "
                "extrapolation."
            )
    if against is not None and (count := int(trained_on(against, test).sum())):
        found["remarks"].append(
            f"'{against.folder.name}' was trained or validated on {count:,} of these {len(test):,} test images, "
            "so its figures are too optimistic: train it on the same split (--split-seed)."
        )
    file = run.folder / GROUPS_FILE
    write_json(file, read_json_object(file) | {column: found})
    with atomic_replace(run.folder / f"groups-{re.sub(r'[^A-Za-z0-9._-]+', '_', column)}.png") as temporary:
        plot_groups(found["groups"], column, after=found.get("against", {}).get("groups", ())).save(temporary)
    return found


def evaluate_groups_on(
    bundle: Path | str,
    data: str | Path | Source,
    column: str,
    *,
    against: Path | str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """The same on other labelled images, for a run or bundle; nothing is written."""
    subject = open_subject(bundle, data, device=device)
    other = None
    if against is not None:
        other = str(against), Classifier.load(against).to(subject.classifier.device)
    found = _evaluate_column(subject.classifier, subject.images.labelled, column, other)
    if subject.seen:
        found["remarks"].append(subject.sentence)
    return {"data": str(data), **found}


def _evaluate_column(
    classifier: Classifier, test: Dataset, column: str, other: tuple[str, Classifier] | None
) -> dict[str, Any]:
    values, notes = group_values(test, column)
    probabilities, labels = predict_probabilities(classifier, test)
    groups = evaluate_groups(column, values, labels, probabilities, classifier.classes)
    found = groups.as_json()
    found["remarks"] = [*notes, *found["remarks"]]
    if other is None:
        return found
    name, second = other
    if second.geometry != classifier.geometry:
        raise DataError(
            f"The two classifiers take different pixels ({classifier.geometry} and {second.geometry}), so the "
            "same images cannot be given to both: train the second at the size, channels and resize mode of the "
            "first."
        )
    theirs, their_labels = predict_probabilities(second, test)
    after = evaluate_groups(column, values, their_labels, theirs, second.classes)
    correct = probabilities.argmax(1) == labels, theirs.argmax(1) == their_labels
    found["against"] = {"run": name, **after.as_json()}
    found["changes"] = [asdict(change) for change in compare_groups(groups, values, *correct)]
    return found
