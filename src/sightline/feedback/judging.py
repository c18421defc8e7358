"""A candidate judged on the test set, the audit and held-out corrections; a release judged after the fact."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import metrics
from ..errors import DataError, SightlineError
from ..journal import Journal
from ..serving import Release
from ..types import Dataset
from .difference import answer_images, find_groups, open_release, time_answers
from .gate import PROVEN_EVIDENCE, GateRules, GateVerdict, JudgedAnswers, judge_candidate
from .lessons import FieldImages
from .opinions import settle_labels

DECISIONS: dict[str, Literal["promoted", "kept", "cannot tell"]] = {
    "promote": "promoted",
    "keep": "kept",
    "cannot tell": "cannot tell",
}
"""What becomes of a candidate, by the gate's decision."""

MAX_LATENCY_RATIO = 2.0
"""Times the previous release's time for an image from which a release is rolled back: a busy machine makes less."""

_CHECKED_IMAGES = 16
"""Images on which errors and latency of a release are checked."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Judged:
    """The gate's verdict on a candidate, and on which images."""

    verdict: GateVerdict
    tested: int
    """Images of the frozen test set."""
    audited: int
    """Images drawn at random from the traffic."""
    accuracy: tuple[float, float]
    """Of the current release and of the candidate, on both."""
    corrections: tuple[int, int, int]
    """Held-out corrections, and how many of them the current release and the candidate have right."""
    newly_wrong: tuple[str, ...]
    """Files and ids of the images that the current release alone has right."""
    is_best: bool
    """Whether it is at least as good as the best release so far."""

    @property
    def decision(self) -> Literal["promoted", "kept", "cannot tell"]:
        """What becomes of the candidate."""
        return DECISIONS[self.verdict.decision]

    def describe(self) -> str:
        """One clause for the list of releases."""
        before, after = self.accuracy
        return f"{before:.1%} to {after:.1%} of {self.tested:,} test and {self.audited:,} audit images"

    def as_json(self) -> dict[str, Any]:
        """The values as one JSON object."""
        return {
            **vars(self),
            "verdict": self.verdict.as_json(),
            "accuracy": list(self.accuracy),
            "corrections": list(self.corrections),
            "newly_wrong": list(self.newly_wrong),
        }


def judge_release(
    candidate: Release,
    current: Release,
    anchor: Release | None,
    test: Dataset,
    field: FieldImages,
    *,
    removed: Sequence[str] = (),
    rules: GateRules,
) -> Judged:
    """Let a candidate, the current release and the best one so far answer the same images, and judge.

    The test set and the audit are both random samples, of the tested world and of the present one, and count together.
    Held-out corrections are images that the current release had wrong, mostly: they count only where they prove that
    the candidate is worse on them. ``removed`` are classes whose loss is ordered. Raises DataError where there is
    nothing to judge on.
    """
    audit, corrections = field.part("audit"), field.part("held out")
    if not len(test) + len(audit):
        raise DataError("There is neither a test image nor an answer of the audit to judge a candidate on.")
    engines = [open_release(one) for one in (candidate, current, *(() if anchor is None else (anchor,)))]
    sets = [one for one in (test, audit) if len(one)]
    times = time_answers(engines[:2], [sets[0], sets[0]])
    answers: list[JudgedAnswers] = []
    for engine in engines:
        parts = [answer_images(engine, one) for one in sets]
        probabilities = np.concatenate([one.probabilities for one in parts])
        labels = np.concatenate([one.labels for one in parts])
        answers.append(replace(parts[0], probabilities=probabilities, labels=labels))
    for i, release in enumerate((candidate, current)):
        files = [release.onnx] if release.onnx else [path for path in release.bundle.rglob("*") if path.is_file()]
        answers[i] = replace(answers[i], latency=times[i], size=sum(Path(one).stat().st_size for one in files))
    truth = np.concatenate([np.array(one.classes, object)[one.labels] for one in sets])
    lost = [name for name in engines[1].classes if name not in (*engines[0].classes, *removed)]
    verdict = judge_candidate(
        answers[0], answers[1], answers[2] if anchor is not None else None,
        audited=np.arange(len(truth)) >= len(test), groups={"class": truth, **find_groups(test, len(audit))},
        lost_classes=lost, rules=rules,
    )  # fmt: skip
    before, after = answers[1].right, answers[0].right
    files = np.concatenate([test.files, audit.columns["prediction"] if len(audit) else audit.files])
    had, has = (
        answer_images(engine, corrections).right if len(corrections) else np.zeros(0, bool)
        for engine in (engines[1], engines[0])
    )
    lost_corrections, won = int((had & ~has).sum()), int((has & ~had).sum())
    if metrics.disagreement_e_value(lost_corrections, won) >= PROVEN_EVIDENCE:
        reason = (
            f"held-out corrections prove a loss: only the current release has {lost_corrections} of {len(corrections)} "
            f"right, only the candidate {won}"
        )
        reasons = verdict.reasons if verdict.decision == "keep" else ()
        verdict = replace(verdict, decision="keep", reasons=(*reasons, reason), needed=0)
    return Judged(
        verdict=verdict,
        tested=len(test),
        audited=len(audit),
        accuracy=(float(before.mean()), float(after.mean())),
        corrections=(len(corrections), int(had.sum()), int(has.sum())),
        newly_wrong=tuple(map(str, files[before & ~after])),
        is_best=bool(after.mean() >= answers[-1].right.mean()),
    )


def find_regression(current: Release, previous: Release, journal: Journal) -> str | None:
    """Why a release has to go: it fails, it is slow, or the audit proves that the previous one was better; else None.

    Corrections prove nothing: people see what is wrong now, and not what would have been wrong before.
    """
    audited = [
        one
        for one in settle_labels(journal.reviews())
        if one.audited and one.label is not None and one.row.release == current.number
        and journal.image_path(one.row) is not None
    ]  # fmt: skip
    try:
        engine = open_release(current)
    except SightlineError as error:
        return f"Release {current.number} cannot be opened: {error}"
    before = open_release(previous)
    shape = engine.geometry.shape
    drawn = np.random.default_rng(0).integers(0, 256, (_CHECKED_IMAGES, *shape), dtype=np.uint8)
    probabilities = engine.shared_runner.probabilities(drawn)
    if not np.isfinite(probabilities).all():
        return f"Release {current.number} answers with numbers that are not finite."
    if before.geometry == engine.geometry:
        slow, fast = time_answers([engine, before], [drawn, drawn])
        if slow > MAX_LATENCY_RATIO * fast:
            return (
                f"Release {current.number} takes {slow / fast:.1f} times as long for an image as the previous one."
            )
    if not audited:
        return None
    rows = [replace(one.row, correction=one.label) for one in audited]
    now, was = (answer_images(one, journal.load_images(rows, one.geometry)).right for one in (engine, before))
    better, worse = int((was & ~now).sum()), int((now & ~was).sum())
    if metrics.disagreement_e_value(better, worse) < PROVEN_EVIDENCE:
        return None
    return (
        f"The audit proves release {current.number} worse than {previous.number}: {better} images that only the "
        f"previous one has right, {worse} the reverse."
    )
