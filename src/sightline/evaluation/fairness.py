"""A run examined group by group, alone or beside another one, on the same test images."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from ..choose import suggest
from ..classifier import Classifier
from ..errors import DataError
from ..files import atomic_replace, write_json
from ..inference import predict_probabilities
from ..runs import open_subject, trained_on
from ..training import BLANK_GROUP, Run
from ..types import Dataset
from .fairness_metrics import compare_groups, evaluate_groups
from .plots import plot_groups

MAX_GROUPS = 200
"""Groups beyond which a column is no grouping."""

MAX_DISTINCT_VALUES = 12
"""Different numbers in a column beyond which they are put into four quarters."""


def group_values(dataset: Dataset, column: str) -> tuple[Shaped[ndarray, " N"], list[str]]:
    """The group of each image as text, and what was done to make it; many different numbers become four quarters.

    Raises DataError for a column that is not there, has one value, or has nearly as many values as images.
    """
    if column not in dataset.columns:
        known = ", ".join(sorted(dataset.columns)) or "none"
        raise DataError(
            f"The images have no column '{column}' (they have: {known}). Columns come from a table with a line "
            f"for each image. {suggest(column, dataset.columns) if dataset.columns else ''}".rstrip()
        )
    words = dataset.columns[column].astype(str)
    words = np.where(words == "", BLANK_GROUP, words)
    different = np.unique(words)
    if len(different) == 1:
        raise DataError(
            f"All {len(words):,} images have the value '{different[0]}' in the column '{column}': there are no "
            "groups to compare. Choose another column."
        )
    if len(different) <= MAX_DISTINCT_VALUES:
        return words, []
    if (numbers := _parse_numbers(words)) is not None:
        return _quartile_names(numbers), [
            f"The numbers of '{column}' were put into quarters of about as many images."
        ]
    if len(different) > MAX_GROUPS:
        raise DataError(
            f"The column '{column}' has {len(different):,} different values in {len(words):,} images: groups need "
            f"several images each, and at most {MAX_GROUPS} of them. Choose another column."
        )
    return words, []


def _parse_numbers(words: Shaped[ndarray, " N"]) -> ndarray | None:
    try:
        numbers = words.astype(float)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _quartile_names(numbers: ndarray) -> Shaped[ndarray, " N"]:
    edges = np.unique(np.quantile(numbers, [0.25, 0.5, 0.75], method="inverted_cdf"))
    place = np.searchsorted(edges, numbers)
    names = []
    for number in range(len(edges) + 1):
        inside = numbers[place == number]
        names.append(f"{inside.min():g} to {inside.max():g}" if len(inside) else "")
    return np.array(names)[place]


def evaluate_groups_run(run: Run, column: str, *, against: Run | None = None) -> dict[str, Any]:
    """Metrics of a run by a column of its test images, and beside those of another run; JSON-ready.

    Kept in the run's ``groups.json`` under the column's name, with a picture. Values that no training image has
    are said. Raises DataError as ``group_values``, and for a run that takes other pixels.
    """
    test, train = run.splits.test, run.splits.train
    found = _evaluate_column(
        run.classifier, test, column, against and against.classifier, against and against.folder.name
    )
    found = {"run": run.folder.name, "split": "test", **found}
    found["remarks"] += _unseen_remarks(train, test, column)
    if against is not None and (count := int(trained_on(against, test).sum())):
        found["remarks"].append(
            f"'{against.folder.name}' was trained or validated on {count:,} of these {len(test):,} test images, "
            "so its figures are too optimistic: train it on the same split (--split-seed)."
        )
    file = run.folder / "groups.json"
    write_json(file, _read_saved(file) | {column: found})
    with atomic_replace(run.folder / f"groups-{re.sub(r'[^A-Za-z0-9._-]+', '_', column)}.png") as temporary:
        plot_groups(found["groups"], column, after=found.get("against", {}).get("groups", ())).save(temporary)
    return found


def evaluate_groups_on(
    bundle: Path | str, data: str | Path, column: str, *, against: Path | str | None = None, device: str = "auto"
) -> dict[str, Any]:
    """The same on other labelled images, for classifiers with or without a run; nothing is written."""
    subject = open_subject(bundle, data, device=device)
    other = None if against is None else Classifier.load(against).to(subject.classifier.device)
    found = _evaluate_column(subject.classifier, subject.images, column, other, str(against))
    return {"data": str(data), **found}


def _evaluate_column(
    classifier: Classifier, test: Dataset, column: str, other: Classifier | None, name: str | None
) -> dict[str, Any]:
    values, notes = group_values(test, column)
    probabilities, labels = predict_probabilities(classifier, test)
    found = evaluate_groups(column, values, labels, probabilities, classifier.classes)
    value = found.as_json()
    value["remarks"] = [*notes, *value["remarks"]]
    if other is None:
        return value
    if other.geometry != classifier.geometry:
        raise DataError(
            f"The two classifiers take other pixels ({classifier.geometry} and {other.geometry}), so they cannot "
            "be asked the same images: train the second at the size, channels and fit of the first."
        )
    theirs, their_labels = predict_probabilities(other, test)
    beside = evaluate_groups(column, values, their_labels, theirs, other.classes)
    before, after = probabilities.argmax(1) == labels, theirs.argmax(1) == their_labels
    value["against"] = {"run": name, **beside.as_json()}
    value["changes"] = [asdict(one) for one in compare_groups(found, values, before, after)]
    return value


def _unseen_remarks(train: Dataset, test: Dataset, column: str) -> list[str]:
    """A sentence about values that no training image has."""
    if column not in train.columns or len(np.unique(test.columns[column].astype(str))) > MAX_DISTINCT_VALUES:
        return []
    new = np.setdiff1d(test.columns[column].astype(str), train.columns[column].astype(str))
    if not len(new):
        return []
    names = ", ".join(f"'{word or BLANK_GROUP}'" for word in new[:5]) + (" ..." if len(new) > 5 else "")
    return [f"No training image has {names} in the column '{column}': what is said of them is about strangers."]


def _read_saved(file: Path) -> dict[str, Any]:
    """What an earlier examination of other columns found."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
