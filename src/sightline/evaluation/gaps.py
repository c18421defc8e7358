"""How far groups of images are apart: accuracy, demographic parity, equalised odds, with bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from ..metrics import safe_divide
from ..types import Interval

MAX_GAP_RESAMPLES = 1000
"""Resamples behind an interval, at most."""


@dataclass(frozen=True, eq=False)
class GroupCounts:
    """What gaps are made of, for G groups in each of R sets of answers: images by true class, answer, and both."""

    true: Int[ndarray, "R G K"]
    predicted: Int[ndarray, "R G K"]
    correct: Int[ndarray, "R G K"]

    @classmethod
    def from_tables(cls, tables: Int[ndarray, "G K K"]) -> "GroupCounts":
        """The one set of G confusion tables."""
        right = np.diagonal(tables, axis1=1, axis2=2)
        return cls(tables.sum(2)[None], tables.sum(1)[None], right[None])


@dataclass(frozen=True, eq=False)
class GroupGaps:
    """Gaps between groups in each of R sets of answers; nan where fewer than two groups can tell."""

    accuracy: Float[ndarray, " R"]
    demographic_parity: Float[ndarray, "R K"]
    """max - min over groups of P(A = c): demographic parity."""
    true_positive_rate: Float[ndarray, "R K"]
    """max - min of P(A = c | Y = c)."""
    false_positive_rate: Float[ndarray, "R K"]
    """max - min of P(A = c | Y != c)."""

    @property
    def equalised_odds(self) -> Float[ndarray, "R K"]:
        """Equalised odds: the larger of found and mistaken."""
        return np.fmax(self.true_positive_rate, self.false_positive_rate)

    def largest(self) -> Float[ndarray, "R 3"]:
        """The accuracy gap, and the largest parity and odds differences over classes."""
        return np.stack(
            [
                self.accuracy,
                _largest_over_classes(self.demographic_parity),
                _largest_over_classes(self.equalised_odds),
            ],
            1,
        )


def measure_gaps(counts: GroupCounts) -> GroupGaps:
    """The gaps in each set."""
    n = counts.true.sum(2, keepdims=True)
    return GroupGaps(
        accuracy=_range_over_groups(counts.correct.sum(2, keepdims=True), n)[:, 0],
        demographic_parity=_range_over_groups(counts.predicted, n),
        true_positive_rate=_range_over_groups(counts.correct, counts.true),
        false_positive_rate=_range_over_groups(counts.predicted - counts.correct, n - counts.true),
    )


def _range_over_groups(top: Int[ndarray, "R G M"], bottom: Int[ndarray, "R G _"]) -> Float[ndarray, "R M"]:
    """Highest less lowest top / bottom over the groups whose bottom is above 0; nan for fewer than two of them."""
    bottom = np.broadcast_to(bottom, top.shape)
    shares, known = safe_divide(top, bottom), bottom > 0
    high, low = np.where(known, shares, -1.0).max(1), np.where(known, shares, 2.0).min(1)
    return np.where(known.sum(1) > 1, high - low, np.nan)


def _largest_over_classes(values: Float[ndarray, "R K"]) -> Float[ndarray, " R"]:
    """The largest over classes that are numbers; nan where none is."""
    highest = np.where(np.isnan(values), -1.0, values).max(1)
    return np.where(highest < 0, np.nan, highest)


def bootstrap_gaps(
    tables: Int[ndarray, "G K K"], *, level: float = 0.95, seed: int = 0
) -> tuple[Interval | None, Interval | None, Interval | None]:
    """The accuracy gap and the largest parity and odds differences, each with its interval; None where none is.

    A gap is the largest of several differences: it is biased upwards, and resamples of it twice as much. As with
    ECE, the interval therefore reaches as far below as resamples reach above, and to 0 where groups that do not
    differ, all drawn from the pooled table, would as easily show such a gap. Groups keep their numbers of images.
    """
    rng, n = np.random.default_rng(seed), int(tables.sum())
    values = measure_gaps(GroupCounts.from_tables(tables)).largest()[0]
    cells, own, pool = _smooth_shares(tables)
    resampled = measure_gaps(_resample_counts(tables, cells, own, rng)).largest()
    chance = measure_gaps(_resample_counts(tables, cells, np.broadcast_to(pool, own.shape), rng)).largest()
    one, two, three = (
        _gap_interval(float(values[i]), resampled[:, i], chance[:, i], level, n) for i in range(len(values))
    )
    return one, two, three


def _gap_interval(
    value: float, resampled: Float[ndarray, " R"], chance: Float[ndarray, " R"], level: float, n: int
) -> Interval | None:
    if np.isnan(value):
        return None
    reach = max(0.0, float(np.nanquantile(resampled, (1 + level) / 2)) - value)
    by_chance = float(np.nanquantile(chance, level)) if np.isfinite(chance).any() else 1.0
    low = 0.0 if value <= by_chance else max(0.0, value - reach)
    return Interval(value, low, min(1.0, value + reach), n)


def _smooth_shares(
    tables: Int[ndarray, "G K K"],
) -> tuple[Int[ndarray, " m"], Float[ndarray, "G m"], Float[ndarray, " m"]]:
    """Cells (true, answered) that can be drawn, and the share of each in every group and in the pool.

    Each gets half a right and half a wrong image more, as the pool has them: without them a group without an error
    would count as surely without one.
    """
    pool, k = tables.sum(0).astype(float), tables.shape[1]
    present = np.flatnonzero(pool.sum(1))
    right, wrong = np.diag(pool.diagonal()), pool * (1 - np.eye(k))
    if not right.any():
        right[present, present] = 1
    if not wrong.any():
        wrong[present, (present + 1) % k] = 1
    imagined = (right / right.sum() + wrong / wrong.sum()).ravel() / 2
    cells = np.flatnonzero(imagined)
    own = tables.reshape(len(tables), -1)[:, cells] + imagined[cells]
    whole = pool.ravel()[cells] + imagined[cells]
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
    true, answered = cells // k, cells % k
    sums = [np.equal.outer(side, np.arange(k)).astype(float) for side in (true, answered)]  # (m, K)
    sums.append(sums[0] * (true == answered)[:, None])
    parts: Sequence[list[ndarray]] = ([], [], [])
    for table, share in zip(tables, shares, strict=True):
        drawn = rng.multinomial(int(table.sum()), share, size=rounds).astype(float)
        for part, onto in zip(parts, sums, strict=True):
            part.append((drawn @ onto).astype(np.int64))
    return GroupCounts(*(np.stack(part, 1) for part in parts))
