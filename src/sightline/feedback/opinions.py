"""What people said of answers, put together: one label for each image, the accuracy of the audit, and agreement."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from .. import metrics
from ..journal import JournalRow, Review
from ..types import Interval

WANTED_HALF_WIDTH = 0.05
"""Half the width of an interval of the accuracy that people find useful."""


@dataclass(frozen=True)
class SettledLabel:
    """What people agree on for one image."""

    row: JournalRow
    label: str | None
    """None where it has no class, is unusable, or people contradict each other."""
    contradictory: bool
    audited: bool
    """Whether it was drawn at random."""


def settle_labels(reviews: Sequence[Review]) -> list[SettledLabel]:
    """One label for each image: that of most people, each by their latest word; none where as many say another."""
    said: dict[str, dict[str | None, Review]] = {}
    for one in reviews:
        said.setdefault(one.row.image or one.row.id, {})[one.by] = one
    found = []
    for opinions in said.values():
        votes = Counter(one.label or one.kind for one in opinions.values()).most_common()
        divided = len(votes) > 1 and votes[0][1] == votes[1][1]
        winner = next(one for one in opinions.values() if (one.label or one.kind) == votes[0][0])
        audited = any(one.why == "audit" for one in opinions.values())
        found.append(SettledLabel(winner.row, None if divided else winner.label, divided, audited))
    return found


def audit_accuracy(reviews: Sequence[Review], release: int | None = None) -> Interval:
    """Accuracy of what was answered, from the audit alone, at any number of looks; unusable images do not count.

    ``release`` takes the answers of that release only.
    """
    latest = {one.row.id: one for one in reviews if one.why == "audit"}
    counted = [
        one
        for one in latest.values()
        if one.kind != "unusable" and (release is None or one.row.release == release)
    ]
    return metrics.anytime_interval(sum(one.kind == "confirmed" for one in counted), len(counted))


def half_width_after(known: Interval, more: int, *, guess: float = 0.9) -> float:
    """Half the width of the interval of an accuracy after ``more`` answers, if the share of right ones stays."""
    n, share = known.n + more, known.value if known.n else guess
    later = metrics.anytime_interval(round(share * n), n)
    return (later.high - later.low) / 2


def answers_needed(known: Interval, half_width: float = WANTED_HALF_WIDTH) -> int:
    """How many more answers of the audit narrow the interval to this half width, about."""
    low, high = 0, 1
    if half_width_after(known, 0) <= half_width:
        return 0
    while half_width_after(known, high) > half_width:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if half_width_after(known, middle) > half_width else (low, middle)
    return high


def agreement(reviews: Sequence[Review]) -> list[dict[str, Any]]:
    """Cohen's kappa of every two people who reviewed the same answers."""
    said: dict[str, dict[str, str]] = {}
    for one in reviews:
        said.setdefault(one.by or "unnamed", {})[one.row.id] = one.label or one.kind
    found = []
    for first, second in combinations(sorted(said), 2):
        common = sorted(said[first].keys() & said[second].keys())
        if common:
            kappa = metrics.cohen_kappa(*([said[who][id] for id in common] for who in (first, second)))
            found.append(
                {"people": [first, second], "n": len(common), "kappa": None if np.isnan(kappa) else kappa}
            )
    return found
