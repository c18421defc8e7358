"""Whether the labels ask the question that is meant: names of classes and columns that show otherwise."""

import re
import unicodedata
from collections import Counter

import numpy as np

from ..sources import parse_split
from ..types import Dataset, Remark

_MAX_EXAMPLES = 5
_PART_NAME = re.compile(
    r".*?(part|images?|imgs?|pictures|photos|batch|fold|folder|chunk|archive)[\W_]*\d*", re.IGNORECASE
)
_UNIT_WORDS = frozenset(
    (
        *"patient subject lesion person individual animal case study specimen slide session".split(),  # noqa: SIM905
        *"video sequence clip scene site camera location participant donor plot".split(),  # noqa: SIM905
    )
)
"""What several images may be of, so that a table's column of its ids defines groups."""


def audit_class_names(dataset: Dataset) -> list[Remark]:
    """Classes that differ in case only, name several labels, or are parts of a set or names of images."""
    classes, remarks = dataset.classes, []
    forms: dict[str, list[str]] = {}
    for name in classes:
        form = re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
        number = re.fullmatch(r"0*(\d+)(\.0+)?", form, re.ASCII)
        forms.setdefault((number[1] if number else form) or name, []).append(name)
    if alike := [names for names in forms.values() if len(names) > 1]:
        text = (
            "Classes differ in case, spaces, dashes or zeros only: give them one name, or they are learned as two "
            "classes."
        )
        remarks.append(
            Remark(
                "problem",
                text,
                tuple(" / ".join(f"'{name}'" for name in names) for names in alike[:_MAX_EXAMPLES]),
            )
        )
    for sign in "|;,":
        several = [name for name in classes if sign in name.strip(sign)]
        parts = Counter(part.strip(" '\"[]") for name in several for part in name.split(sign))
        if any(part in classes or (sign == "|" and count > 1) for part, count in parts.items()) or (
            several and all(name.startswith("[") and name.endswith("]") for name in several)
        ):
            text = (
                f"{len(several):,} of the {len(classes):,} classes name several labels at once, and each combination "
                "is learned as a class of its own: keep the images with one label, or make a column for one question."
            )
            remarks.append(Remark("problem", text, tuple(several[:_MAX_EXAMPLES])))
            break
    if all(parse_split(name) or _PART_NAME.fullmatch(name) for name in classes):
        text = (
            "The classes are called like parts of a data set: a classifier would learn to tell the parts. Put the "
            "images of each class in a folder of its own, or give the table with the labels."
        )
        remarks.append(Remark("problem", text, tuple(classes[:_MAX_EXAMPLES])))
    labelled = int(dataset.is_labelled.sum())
    if len(classes) >= 10 and len(classes) > labelled / 2:
        text = f"{len(classes):,} classes for {labelled:,} images: the labels look like names of images."
        remarks.append(Remark("problem", text, tuple(classes[:_MAX_EXAMPLES])))
    return remarks


def audit_group_columns(dataset: Dataset) -> list[Remark]:
    """Columns of ids that several images share, unless a column ``group`` says which images belong together."""
    if "group" in dataset.columns:
        return []
    remarks = []
    for name, column in dataset.columns.items():
        if not _UNIT_WORDS & {*re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())}:
            continue
        count = len(np.unique(column.astype(str)))
        if 1 < count < len(dataset):
            text = (
                f"The column '{name}' has {count:,} values for {len(dataset):,} images: if it says what an image is "
                f"of, train with --group {name!r}, or the test set has images of the same ones as train."
            )
            remarks.append(Remark("warning", text))
    return remarks
