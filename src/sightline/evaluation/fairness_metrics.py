"""Metrics of each group of images, and the gaps between groups.

A group is a value of any column of the data. For each class c against the rest, with Y the true and A the
predicted class (Hardt, Price and Srebro 2016; Fairlearn's definitions):

    demographic parity difference   max - min over groups of P(A = c)
    equalised odds difference       the larger of the max - min of P(A = c | Y = c) and of P(A = c | Y != c)

Groups of fewer than 30 images are reported with their intervals, and are neither ranked nor compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray

from ..metrics import class_averages, confusion_matrix, paired_difference, safe_divide, wilson
from ..types import Interval
from .model_evaluation import MIN_RELIABLE_IMAGES

MAX_GAP_RESAMPLES = 1000
"""Bootstrap resamples behind a gap's interval; fewer for large tables."""


@dataclass(frozen=True)
class GroupMetrics:
    """The metrics of one group."""

    name: str
    n: int
    accuracy: Interval
    balanced_accuracy: Interval
    f1_macro: Interval
    confidence: float
    """Mean confidence; above the accuracy where the classifier is overconfident in this group."""
    worst_class: str | None
    """The class of lowest recall among those with at least 30 images here; None where there is none."""
    worst_recall: Interval | None
    small: bool
    """Whether the group has too few images to be ranked."""

    def as_json(self) -> dict[str, Any]:
        """A row of the table."""
        intervals = {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "f1_macro": self.f1_macro,
        }
        return {
            "group": self.name,
            "n": self.n,
            "small": self.small,
            **{name: one.value for name, one in intervals.items()},
            "confidence": self.confidence,
            "worst_class": self.worst_class,
            "worst_recall": self.worst_recall and self.worst_recall.value,
            "intervals": {name: one.as_json() for name, one in intervals.items()},
        }


@dataclass(frozen=True)
class ClassGaps:
    """Gaps between groups for one class against the rest; None where fewer than two groups define one."""

    name: str
    demographic_parity: float | None
    equalised_odds: float | None
    true_positive_rate: float | None
    """max - min over groups of the class's recall."""
    false_positive_rate: float | None
    """max - min over groups of the share of other images predicted as the class."""

    def as_json(self) -> dict[str, Any]:
        """A row of ``classes``."""
        return {
            "class": self.name,
            "demographic_parity": self.demographic_parity,
            "equalised_odds": self.equalised_odds,
            "found": self.true_positive_rate,
            "mistaken": self.false_positive_rate,
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupReport:
    """The metrics of every group of a column, and the gaps between them."""

    column: str
    n: int
    groups: tuple[GroupMetrics, ...]
    """Lowest accuracy first; then those too small to be ranked."""
    gap: Interval | None
    """Highest minus lowest accuracy of the ranked groups; None for fewer than two."""
    demographic_parity: Interval | None
    """The largest difference over classes."""
    equalised_odds: Interval | None
    """The largest difference over classes."""
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
        """The report, with the mean over classes of each gap."""
        means = {}
        for name in ("demographic_parity", "equalised_odds"):
            known = [value for one in self.classes if (value := vars(one)[name]) is not None]
            means[name] = float(np.mean(known)) if known else None
        return {
            "column": self.column,
            "n": self.n,
            "groups": [one.as_json() for one in self.groups],
            "worst_group": self.worst and self.worst.name,
            "worst_accuracy": self.worst and self.worst.accuracy.value,
            "gap": self.gap and self.gap.as_json(),
            "demographic_parity": self.demographic_parity and self.demographic_parity.as_json(),
            "equalised_odds": self.equalised_odds and self.equalised_odds.as_json(),
            "means_over_classes": means,
            "classes": [one.as_json() for one in self.classes],
            "remarks": list(self.remarks),
        }


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
    """Metrics of every group of ``values``, and the gaps between the groups of at least ``least`` images.

    Metrics have Wilson's intervals, gaps those of ``bootstrap_gaps``.
    """
    names, code = np.unique(values.astype(str), return_inverse=True)
    k, predicted, confidence = probabilities.shape[1], probabilities.argmax(1), probabilities.max(1)
    tables = np.stack([confusion_matrix(labels[code == g], predicted[code == g], k) for g in range(len(names))])
    groups = [
        _measure_group(str(name), table, float(confidence[code == g].mean()), classes, least, level)
        for g, (name, table) in enumerate(zip(names, tables, strict=True))
    ]
    large = tables[[not one.small for one in groups]]
    gaps = measure_gaps(GroupCounts.from_tables(large)) if len(large) > 1 else None
    intervals = bootstrap_gaps(large, level=level, seed=seed) if len(large) > 1 else (None, None, None)
    class_gaps = []
    for c, name in enumerate(classes):
        found: list[float | None] = [None] * 4
        if gaps is not None:
            rates = gaps.demographic_parity, gaps.equalised_odds, gaps.true_positive_rate, gaps.false_positive_rate
            found = [None if np.isnan(rate[0, c]) else float(rate[0, c]) for rate in rates]
        class_gaps.append(ClassGaps(str(name), *found))
    remarks = []
    if small := [one for one in groups if one.small]:
        listed = ", ".join(f"'{one.name}' ({one.n})" for one in small[:5]) + (" ..." if len(small) > 5 else "")
        remarks.append(f"Groups of fewer than {least} images are not ranked, and no gap includes them: {listed}.")
    if len(large) < 2:
        remarks.append(f"Fewer than two groups of '{column}' have {least} images, so no gap can be measured.")
    return GroupReport(
        column=column,
        n=len(labels),
        groups=tuple(sorted(groups, key=lambda one: (one.small, one.accuracy.value, one.name))),
        gap=intervals[0],
        demographic_parity=intervals[1],
        equalised_odds=intervals[2],
        classes=tuple(class_gaps),
        remarks=tuple(remarks),
    )


def _measure_group(
    name: str, table: Int[ndarray, "K K"], confidence: float, classes: Sequence[str], least: int, level: float
) -> GroupMetrics:
    n, rows, correct = int(table.sum()), table.sum(1), table.diagonal()
    averages = class_averages(table, level)
    recalls = {
        c: wilson(float(correct[c]), float(rows[c]), level=level) for c in np.flatnonzero(rows >= max(1, least))
    }
    worst = min(recalls, key=lambda c: recalls[c].value, default=None)
    return GroupMetrics(
        name=name,
        n=n,
        accuracy=wilson(float(correct.sum()), n, level=level),
        balanced_accuracy=averages["balanced_accuracy"],
        f1_macro=averages["f1_macro"],
        confidence=confidence,
        worst_class=None if worst is None else str(classes[int(worst)]),
        worst_recall=None if worst is None else recalls[worst],
        small=n < least,
    )


@dataclass(frozen=True)
class GroupChange:
    """How another classifier changes the accuracy of one group, on the same images."""

    group: str
    before: float
    after: float
    difference: Interval
    """After minus before, with the paired interval."""


def compare_groups(
    groups: GroupReport,
    values: Shaped[ndarray, " N"],
    before: Bool[ndarray, " N"],
    after: Bool[ndarray, " N"],
) -> tuple[GroupChange, ...]:
    """The change of accuracy for all images, and for each group in the report's order.

    ``before`` and ``after`` say whether each classifier has each image correct.
    """
    words = values.astype(str)
    parts = [("all", np.ones(len(words), bool)), *((one.name, words == one.name) for one in groups.groups)]
    return tuple(
        GroupChange(name, float(before[w].mean()), float(after[w].mean()), paired_difference(after[w], before[w]))
        for name, w in parts
    )


@dataclass(frozen=True, eq=False)
class GroupCounts:
    """Images of G groups by true class, by predicted class, and correct, in each of R sets of predictions."""

    true: Int[ndarray, "R G K"]
    predicted: Int[ndarray, "R G K"]
    correct: Int[ndarray, "R G K"]

    @classmethod
    def from_tables(cls, tables: Int[ndarray, "G K K"]) -> "GroupCounts":
        """The counts of G confusion matrices, as one set."""
        correct = np.diagonal(tables, axis1=1, axis2=2)
        return cls(tables.sum(2)[None], tables.sum(1)[None], correct[None])


@dataclass(frozen=True, eq=False)
class GroupGaps:
    """Gaps between groups in each of R sets of predictions; NaN where fewer than two groups define one."""

    accuracy: Float[ndarray, " R"]
    demographic_parity: Float[ndarray, "R K"]
    """max - min over groups of P(A = c)."""
    true_positive_rate: Float[ndarray, "R K"]
    """max - min of P(A = c | Y = c)."""
    false_positive_rate: Float[ndarray, "R K"]
    """max - min of P(A = c | Y != c)."""

    @property
    def equalised_odds(self) -> Float[ndarray, "R K"]:
        """The larger of the gaps in true and in false positive rate."""
        return np.fmax(self.true_positive_rate, self.false_positive_rate)

    def largest(self) -> Float[ndarray, "R 3"]:
        """The accuracy gap, and the largest demographic parity and equalised odds differences over classes."""
        columns = [self.accuracy]
        for values in (self.demographic_parity, self.equalised_odds):
            highest = np.where(np.isnan(values), -1.0, values).max(1)
            columns.append(np.where(highest < 0, np.nan, highest))
        return np.stack(columns, 1)


def measure_gaps(counts: GroupCounts) -> GroupGaps:
    """The gaps in each set of predictions."""
    n = counts.true.sum(2, keepdims=True)
    return GroupGaps(
        accuracy=_range_over_groups(counts.correct.sum(2, keepdims=True), n)[:, 0],
        demographic_parity=_range_over_groups(counts.predicted, n),
        true_positive_rate=_range_over_groups(counts.correct, counts.true),
        false_positive_rate=_range_over_groups(counts.predicted - counts.correct, n - counts.true),
    )


def _range_over_groups(top: Int[ndarray, "R G M"], bottom: Int[ndarray, "R G _"]) -> Float[ndarray, "R M"]:
    """Highest minus lowest top / bottom over the groups whose bottom is above 0; NaN for fewer than two."""
    bottom = np.broadcast_to(bottom, top.shape)
    shares, known = safe_divide(top, bottom), bottom > 0
    high, low = np.where(known, shares, -1.0).max(1), np.where(known, shares, 2.0).min(1)
    return np.where(known.sum(1) > 1, high - low, np.nan)


def bootstrap_gaps(
    tables: Int[ndarray, "G K K"], *, level: float = 0.95, seed: int = 0
) -> tuple[Interval | None, Interval | None, Interval | None]:
    """The accuracy gap and the largest parity and odds differences with their intervals; None where undefined.

    A gap is a maximum of differences: it is biased upwards, and its resamples twice as much. As for the ECE, the
    interval therefore reaches as far below the value as the resamples reach above it, and includes 0 where groups
    drawn from the pooled table, which do not differ, show such a gap by chance. Resamples keep the size of groups.
    """
    rng, n = np.random.default_rng(seed), int(tables.sum())
    values = measure_gaps(GroupCounts.from_tables(tables)).largest()[0]
    cells, own, pool = _smooth_shares(tables)
    resampled = measure_gaps(_resample_counts(tables, cells, own, rng)).largest()
    chance = measure_gaps(_resample_counts(tables, cells, np.broadcast_to(pool, own.shape), rng)).largest()
    found: list[Interval | None] = []
    for value, above, null in zip(values.tolist(), resampled.T, chance.T, strict=True):
        if np.isnan(value):
            found.append(None)
            continue
        reach = max(0.0, float(np.nanquantile(above, (1 + level) / 2)) - value)
        by_chance = float(np.nanquantile(null, level)) if np.isfinite(null).any() else 1.0
        low = 0.0 if value <= by_chance else max(0.0, value - reach)
        found.append(Interval(value, low, min(1.0, value + reach), n))
    accuracy, parity, odds = found
    return accuracy, parity, odds


def _smooth_shares(
    tables: Int[ndarray, "G K K"],
) -> tuple[Int[ndarray, " m"], Float[ndarray, "G m"], Float[ndarray, " m"]]:
    """The cells (true, predicted) to resample, and the share of each in every group and in the pool.

    Half a correct and half a wrong pseudo-image, distributed as in the pool, are added to each group and the pool:
    without them a group without an error would have none in any resample.
    """
    pool, k = tables.sum(0).astype(float), tables.shape[1]
    present = np.flatnonzero(pool.sum(1))
    correct, wrong = np.diag(pool.diagonal()), pool * (1 - np.eye(k))
    if not correct.any():
        correct[present, present] = 1
    if not wrong.any():
        wrong[present, (present + 1) % k] = 1
    extra = (correct / correct.sum() + wrong / wrong.sum()).ravel() / 2
    cells = np.flatnonzero(extra)
    own = tables.reshape(len(tables), -1)[:, cells] + extra[cells]
    whole = pool.ravel()[cells] + extra[cells]
    return cells, own / own.sum(1, keepdims=True), whole / whole.sum()


def _resample_counts(
    tables: Int[ndarray, "G K K"],
    cells: Int[ndarray, " m"],
    shares: Float[ndarray, "G m"],
    rng: np.random.Generator,
) -> GroupCounts:
    """Resamples in which every group keeps its number of images."""
    k = tables.shape[1]
    rounds = int(np.clip(20_000_000 // (len(tables) * (len(cells) + 3 * k)), 100, MAX_GAP_RESAMPLES))
    true, predicted = cells // k, cells % k
    sums = [np.equal.outer(side, np.arange(k)).astype(float) for side in (true, predicted)]  # (m, K)
    sums.append(sums[0] * (true == predicted)[:, None])
    parts: Sequence[list[ndarray]] = ([], [], [])
    for table, share in zip(tables, shares, strict=True):
        counts = rng.multinomial(int(table.sum()), share, size=rounds).astype(float)
        for part, onto in zip(parts, sums, strict=True):
            part.append((counts @ onto).astype(np.int64))
    return GroupCounts(*(np.stack(part, 1) for part in parts))
