"""The gate: whether a candidate may replace a classifier, why not, or what would decide it.

Judged on images that neither was trained on. The allowance is one for the whole chain of releases: besides the current
one the anchor, the best so far, is compared with, or fifty harmless steps of half a point would add up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray

from .. import metrics
from ..types import Interval

Decision = Literal["promote", "keep", "cannot tell"]

_POWER_FACTOR = 6.18
"""(z of 5 % + z of 80 % power) squared: images to show an allowance, times disagreement by its square."""

PROVEN_EVIDENCE = 20.0
"""E-value from which one classifier is proven better than another: 5 % at any number of looks."""

SMALL_BYTES = 10_000_000
"""Bytes that any candidate may have: a small network may grow by the features of a head."""

SMALL_MILLISECONDS = 1.0
"""Milliseconds by which any candidate may be slower for an image: a request itself takes longer."""


@dataclass(frozen=True, kw_only=True)
class GateRules:
    """What a candidate may lose; shares in [0, 1]."""

    allowance: float = 0.01
    """Accuracy, compared with the current release and with the anchor."""
    class_loss: float = 0.05
    """Accuracy on any one class or group, as observed."""
    calibration: float = 0.01
    """Rise of the calibration error (ECE), beyond its noise."""
    abstention: float = 0.01
    """Rise of the share of answers below the threshold, beyond its noise."""
    latency: float = 1.2
    """Ratio of the times for one image, where they differ by a millisecond or more."""
    size: float = 2.0
    """Ratio of the bytes of what answers, above ``SMALL_BYTES``."""
    level: float = 0.95
    """Confidence that a loss within the allowance needs, and a proven loss of a class."""


@dataclass(frozen=True, eq=False, kw_only=True)
class JudgedAnswers:
    """What one classifier says of N labelled images, its classes in the order of the labels' indices."""

    probabilities: Float[ndarray, "N K"]
    labels: Int[ndarray, " N"]
    """Indices into the columns of ``probabilities``; -1 for a class that this classifier does not know."""
    threshold: float = 0.0
    latency: float | None = None
    """Milliseconds for one image; None leaves the comparison out."""
    size: int | None = None
    """Bytes; None leaves the comparison out."""

    @property
    def right(self) -> Bool[ndarray, " N"]:
        """Which images it classifies correctly; an unknown class never is."""
        return self.probabilities.argmax(1) == self.labels

    @property
    def abstained(self) -> Bool[ndarray, " N"]:
        """Which answers are below the threshold."""
        return self.probabilities.max(1) < self.threshold

    @property
    def ece(self) -> Interval:
        """Calibration error on the images of classes that it knows."""
        known = self.labels >= 0
        return metrics.bootstrap_intervals(self.labels[known], self.probabilities[known], 0.95, 0)["ece"]


@dataclass(frozen=True)
class PairedChange:
    """A candidate compared with one classifier on the same images."""

    than: str
    """"current" or "anchor"."""
    accuracy: Interval
    """The candidate's accuracy minus the other's, with its paired interval."""
    wins: int
    """Images that the candidate alone has right."""
    losses: int
    """Negative flips: images that it alone has wrong."""
    e_value: float
    """Evidence that the candidate is better, valid at any number of looks: on all images, or the mean of that and of
    the evidence on the audit alone, which a change of the traffic does not dilute."""


@dataclass(frozen=True)
class GateVerdict:
    """What the gate decides, and all its reasons."""

    decision: Decision
    reasons: tuple[str, ...]
    """Why the candidate is not promoted; empty where it is."""
    unproven: tuple[str, ...]
    """Classes and groups with too few images to prove that they lose no more than is allowed."""
    needed: int
    """Further images that would probably decide; 0 where there are enough."""
    changes: tuple[PairedChange, ...]

    def as_json(self) -> dict[str, Any]:
        """The values as one JSON object."""
        return {
            **vars(self),
            "changes": [{**vars(one), "accuracy": one.accuracy.as_json()} for one in self.changes],
        }


def judge_candidate(
    candidate: JudgedAnswers,
    current: JudgedAnswers,
    anchor: JudgedAnswers | None = None,
    *,
    audited: Bool[ndarray, " N"] | None = None,
    groups: Mapping[str, Shaped[ndarray, " N"]] | None = None,
    lost_classes: Sequence[str] = (),
    rules: GateRules | None = None,
) -> GateVerdict:
    """Judge a candidate by its answers and those of the current classifier and the anchor on the same images.

    Args:
        candidate: the answers of the classifier that would be released.
        current: those of the one that answers now.
        anchor: those of the best release so far; None where it is the current one.
        audited: which images were drawn at random from the present traffic; None where none were.
        groups: names of classes and groups by column, such as ``{"class": ...}``, empty for an image that is in none;
            each of them may block, and the proof of a loss is corrected for all of them together (Holm).
        lost_classes: classes that the candidate does not know and that were removed without an order.
        rules: what may be lost.

    A proven loss, or an observed one beyond ``class_loss`` in a class or group with enough images, keeps the current
    classifier; a loss that may lie within the allowance or beyond it cannot be told. Raises ValueError where the
    numbers of images differ.
    """
    rules = rules or GateRules()
    others = {"current": current} | ({} if anchor is None else {"anchor": anchor})
    changes = []
    for than, other in others.items():
        after, before = candidate.right, other.right
        won, lost = after & ~before, before & ~after
        wins, losses = int(won.sum()), int(lost.sum())
        evidence = [metrics.disagreement_e_value(wins, losses)]
        if audited is not None and audited.any():
            evidence.append(metrics.disagreement_e_value(int((won & audited).sum()), int((lost & audited).sum())))
        two_sided = 2 * rules.level - 1  # each bound alone holds with ``level``
        accuracy = metrics.bootstrap_difference(after, before, level=two_sided)
        changes.append(PairedChange(than, accuracy, wins, losses, float(np.mean(evidence))))
    against = [f"it does not know {', '.join(lost_classes)}, and their removal was not ordered"] * bool(
        lost_classes
    )
    doubts, needed = [], 0
    for change in changes:
        if change.accuracy.high < -rules.allowance:
            against.append(
                f"its accuracy is {-change.accuracy.value:.1%} lower than the {change.than} classifier's (at least "
                f"{-change.accuracy.high:.1%}; {rules.allowance:.1%} is allowed)"
            )
        elif change.accuracy.low <= -rules.allowance and change.e_value < PROVEN_EVIDENCE:
            share = (change.wins + change.losses + 1) / (change.accuracy.n + 1)
            more = max(1, ceil(_POWER_FACTOR * share / rules.allowance**2) - change.accuracy.n)
            needed = max(needed, more)
            doubts.append(
                f"compared with the {change.than} classifier its accuracy may be up to {-change.accuracy.low:.1%} "
                f"lower ({rules.allowance:.1%} is allowed): about {more:,} more images would decide"
            )
    blocked, unproven = _judge_groups(candidate, current, groups or {}, rules)
    against += blocked
    ours, theirs = candidate.ece, current.ece
    if ours.value - theirs.value > rules.calibration and ours.low > theirs.value:
        rise = ours.value - theirs.value
        against.append(f"its calibration error is {rise:.1%} higher ({rules.calibration:.1%} is allowed)")
    shyer = metrics.bootstrap_difference(candidate.abstained, current.abstained)
    if shyer.value > rules.abstention and shyer.low > 0:
        against.append(f"it abstains from {shyer.value:.1%} more images ({rules.abstention:.1%} is allowed)")
    if candidate.latency is not None and current.latency is not None:
        ratio = candidate.latency / current.latency
        if ratio > rules.latency and candidate.latency - current.latency >= SMALL_MILLISECONDS:
            against.append(f"it takes {ratio:.1f} times as long for an image ({rules.latency:g} times is allowed)")
    if candidate.size and current.size and candidate.size > max(SMALL_BYTES, rules.size * current.size):
        against.append(
            f"it has {candidate.size / 1e6:.1f} MB instead of {current.size / 1e6:.1f} ({rules.size:g} times is "
            "allowed)"
        )
    decision: Decision = "keep" if against else "cannot tell" if doubts else "promote"
    return GateVerdict(
        decision, tuple(against or doubts), tuple(unproven), 0 if against else needed, tuple(changes)
    )


def _judge_groups(
    candidate: JudgedAnswers,
    current: JudgedAnswers,
    groups: Mapping[str, Shaped[ndarray, " N"]],
    rules: GateRules,
) -> tuple[list[str], list[str]]:
    """Reasons of classes and groups that block, and those whose loss cannot be told."""
    from scipy.stats import binom

    after, before = candidate.right, current.right
    found: list[tuple[str, int, int, int]] = []
    for column, names in groups.items():
        for name in filter(None, np.unique(names).tolist()):
            here = names == name
            gone, won = int((before & ~after & here).sum()), int((after & ~before & here).sum())
            found.append((f"{column} {name}", int(here.sum()), gone, won))
    # the chance of at least this many losses among the disagreements if both were equally good
    p = metrics.holm([float(binom.sf(gone - 1, gone + won, 0.5)) for _, _, gone, won in found])
    blocked, unproven = [], []
    for (name, n, gone, won), one in zip(found, p, strict=True):
        loss = (gone - won) / n
        few = n < _POWER_FACTOR * (gone + won + 1) / (n + 1) / rules.class_loss**2
        if one < 1 - rules.level and gone > won:
            blocked.append(
                f"{name} is proven to lose: {gone} of {n} right before and wrong now, {won} the reverse"
            )
        elif loss > rules.class_loss and not few:
            blocked.append(f"{name} loses {loss:.1%} of {n} images ({rules.class_loss:.0%} is allowed)")
        elif few:
            unproven.append(f"{name} ({n} images, {gone} newly wrong, {won} newly right)")
    return blocked, unproven
