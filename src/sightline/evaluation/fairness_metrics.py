"""For whom: how a classifier fares in each group of images, and how far the groups are apart.

A group is a value of any column of the data. For each class against the rest, with Y the true and A the answered
class (Hardt, Price and Srebro 2016; Fairlearn's definitions):

    demographic parity difference   max - min over groups of P(A = c)
    equalised odds difference       the larger of the max - min of P(A = c | Y = c) and of P(A = c | Y != c)

Groups of fewer than 30 images are shown with their intervals, and are neither ranked nor compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray

from ..metrics import class_averages, confusion_matrix, paired_difference, wilson
from ..types import Interval
from .gaps import GroupCounts, GroupGaps, bootstrap_gaps, measure_gaps
from .model_evaluation import MIN_RELIABLE_IMAGES


@dataclass(frozen=True)
class GroupMetrics:
    """One group's own numbers."""

    name: str
    n: int
    accuracy: Interval
    balanced_accuracy: Interval
    f1_macro: Interval
    confidence: float
    """Mean confidence of the answers: above the accuracy where the classifier is too sure of itself here."""
    worst_class: str | None
    """The class of at least 30 images here that is found least often; None where there is no such class."""
    worst_recall: Interval | None
    small: bool
    """Of too few images to be ranked."""

    def as_json(self) -> dict[str, Any]:
        """A row of the table."""
        named = {name: vars(self)[name] for name in ("accuracy", "balanced_accuracy", "f1_macro")}
        return {
            "group": self.name,
            "n": self.n,
            "small": self.small,
            **{name: one.value for name, one in named.items()},
            "confidence": self.confidence,
            "worst_class": self.worst_class,
            "worst_recall": self.worst_recall and self.worst_recall.value,
            "intervals": {name: one.as_json() for name, one in named.items()},
        }


@dataclass(frozen=True)
class ClassGaps:
    """How far the groups are apart for one class against the rest; None where fewer than two groups can tell."""

    name: str
    demographic_parity: float | None
    equalised_odds: float | None
    found: float | None
    """max - min of the share of the class that is found."""
    mistaken: float | None
    """max - min of the share of other images that are given the class."""


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupReport:
    """What ``evaluate_groups`` measured."""

    column: str
    n: int
    groups: tuple[GroupMetrics, ...]
    """Lowest accuracy first; then those too small to be ranked."""
    gap: Interval | None
    """Highest less lowest accuracy of the ranked groups; None where there are not two."""
    demographic_parity: Interval | None
    """The largest over classes."""
    equalised_odds: Interval | None
    """The largest over classes."""
    classes: tuple[ClassGaps, ...]
    remarks: tuple[str, ...] = ()

    @property
    def ranked(self) -> tuple[GroupMetrics, ...]:
        """Groups of at least 30 images, lowest accuracy first."""
        return tuple(one for one in self.groups if not one.small)

    @property
    def worst(self) -> GroupMetrics | None:
        """The ranked group of lowest accuracy; None where none is ranked."""
        return self.ranked[0] if self.ranked else None

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        gaps = {name: vars(self)[name] for name in ("gap", "demographic_parity", "equalised_odds")}
        found: dict[str, Any] = {
            "column": self.column,
            "n": self.n,
            "groups": [one.as_json() for one in self.groups],
        }
        worst = self.worst
        found |= {"worst_group": worst and worst.name, "worst_accuracy": worst and worst.accuracy.value}
        found |= {name: one and one.as_json() for name, one in gaps.items()}
        found["means_over_classes"] = {
            name: _mean_known([vars(one)[name] for one in self.classes])
            for name in ("demographic_parity", "equalised_odds")
        }
        found["classes"] = [vars(one) | {"class": one.name} for one in self.classes]
        for row in found["classes"]:
            del row["name"]
        return found | {"remarks": list(self.remarks)}


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def evaluate_groups(
    column: str,
    values: Shaped[ndarray, " N"],
    labels: Int[ndarray, " N"],
    probabilities: Float[ndarray, "N K"],
    classes: Sequence[str],
    *,
    least: int = MIN_RELIABLE_IMAGES,
    level: float = 0.95,
    seed: int = 0,
) -> GroupReport:
    """Measure every group of ``values``, and the gaps between those of at least ``least`` images.

    Group metrics have Wilson's intervals as everywhere; gaps have a bootstrap's (see ``bootstrap_gaps``).
    """
    names, code = np.unique(values.astype(str), return_inverse=True)
    k, predicted = probabilities.shape[1], probabilities.argmax(1)
    confidence = probabilities.max(1)
    tables = np.stack([confusion_matrix(labels[code == g], predicted[code == g], k) for g in range(len(names))])
    groups = [
        _measure_group(str(name), table, float(confidence[code == g].mean()), classes, least, level)
        for g, (name, table) in enumerate(zip(names, tables, strict=True))
    ]
    order = sorted(range(len(groups)), key=lambda g: (groups[g].small, groups[g].accuracy.value, groups[g].name))
    kept = tables[[not one.small for one in groups]]
    apart = measure_gaps(GroupCounts.from_tables(kept)) if len(kept) > 1 else None
    intervals = bootstrap_gaps(kept, level=level, seed=seed) if len(kept) > 1 else (None, None, None)
    return GroupReport(
        column=column,
        n=len(labels),
        groups=tuple(groups[g] for g in order),
        gap=intervals[0],
        demographic_parity=intervals[1],
        equalised_odds=intervals[2],
        classes=tuple(_build_class_gaps(str(name), apart, c) for c, name in enumerate(classes)),
        remarks=_group_remarks(column, groups, least),
    )


def _measure_group(
    name: str, table: Int[ndarray, "K K"], confidence: float, classes: Sequence[str], least: int, level: float
) -> GroupMetrics:
    n = int(table.sum())
    overall = class_averages(table, level)
    rows, right = table.sum(1), table.diagonal()
    recalls = {
        c: wilson(float(right[c]), float(rows[c]), level=level) for c in np.flatnonzero(rows >= max(1, least))
    }
    worst = min(recalls, key=lambda c: recalls[c].value, default=None)
    return GroupMetrics(
        name=name,
        n=n,
        accuracy=wilson(float(right.sum()), n, level=level),
        balanced_accuracy=overall["balanced_accuracy"],
        f1_macro=overall["f1_macro"],
        confidence=confidence,
        worst_class=None if worst is None else str(classes[int(worst)]),
        worst_recall=None if worst is None else recalls[worst],
        small=n < least,
    )


def _group_remarks(column: str, groups: Sequence[GroupMetrics], least: int) -> tuple[str, ...]:
    small = [one for one in groups if one.small]
    said = []
    if small:
        names = ", ".join(f"'{one.name}' ({one.n})" for one in small[:5]) + (" ..." if len(small) > 5 else "")
        said.append(f"Groups of fewer than {least} images are not ranked, and are in no gap: {names}.")
    if len(groups) - len(small) < 2:
        said.append(f"Fewer than two groups of '{column}' have {least} images, so no gap can be measured.")
    return tuple(said)


def _build_class_gaps(name: str, found: GroupGaps | None, c: int) -> ClassGaps:
    if found is None:
        return ClassGaps(name, None, None, None, None)
    values = (
        gap[0, c]
        for gap in (
            found.demographic_parity,
            found.equalised_odds,
            found.true_positive_rate,
            found.false_positive_rate,
        )
    )
    return ClassGaps(name, *(None if np.isnan(value) else float(value) for value in values))


@dataclass(frozen=True)
class GroupChange:
    """What another classifier changes for one group, on the same images."""

    group: str
    before: float
    after: float
    difference: Interval
    """After less before, with the paired interval."""


def compare_groups(
    column: GroupReport,
    values: Shaped[ndarray, " N"],
    before: Bool[ndarray, " N"],
    after: Bool[ndarray, " N"],
) -> tuple[GroupChange, ...]:
    """For each group, in the order of ``column``, and for all images: accuracy of two classifiers and its change.

    ``before`` and ``after`` say of each image whether it was answered rightly.
    """
    words = values.astype(str)
    parts = [("all", np.ones(len(words), bool)), *((one.name, words == one.name) for one in column.groups)]
    return tuple(
        GroupChange(name, float(before[w].mean()), float(after[w].mean()), paired_difference(after[w], before[w]))
        for name, w in parts
    )
