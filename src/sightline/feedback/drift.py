"""``examine_drift``: whether the images of a service are still those its release was tested on.

Two questions, never mixed. Is traffic like the tested images? One test of the first 500 answers. Has it changed since?
A detector that may be read after every answer, with a promised mean number of answers to a false alarm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from jaxtyping import Float
from numpy import ndarray

from .. import metrics
from ..errors import JournalError
from ..files import explain_write_errors
from ..journal import (
    Journal,
    Reference,
    Sketches,
    confidences,
    decode_sketches,
    entropies,
    predicted_classes,
)
from ..serving import Release, append_audit, current_release, load_release
from .detector import Detector
from .opinions import audit_accuracy

FIRST_ANSWERS = 500
"""Answers that are compared with the tested images, once."""

FIRST_LEVEL = 0.01
"""Chance that the first comparison finds a difference where there is none, over all classes."""

DEFAULT_PROMISE = 100_000
"""Mean number of answers to a false alarm, at least."""

RECENT_ANSWERS = 300
"""Latest answers that describe a change in words, and among which its images are chosen."""

N_TYPICAL_IMAGES = 24
"""Images that show what changed."""

DRIFT_FOLDER = "drift"
"""Folder of a site for the states of its detectors."""

_READ_ROWS = 2000
"""Answers read from the journal at a time."""

_MAX_SIZED_ANSWERS = 500
"""Answers and reference images between which the energy distance is computed."""


@dataclass(frozen=True)
class ChannelChange:
    """How one watched score differs from the reference."""

    channel: str
    evidence: float
    """Its own e-detector, in answers."""
    before: float
    """Mean over the reference."""
    now: float
    """Mean over the latest answers."""
    deviations: float
    """The difference in standard deviations of the reference."""

    def describe(self) -> str:
        """One clause in plain words."""
        rising, falling = WORDS.get(self.channel, (f"{self.channel} is higher", f"{self.channel} is lower"))
        if self.channel.startswith("probability of "):
            name = self.channel.removeprefix("probability of ")
            return f"class {name} has {self.now:.0%} of the probability, {self.before:.0%} before"
        return f"{rising if self.deviations > 0 else falling} (by {abs(self.deviations):.1f} standard deviations)"


WORDS = {
    "brightness": ("images are brighter", "images are darker"),
    "contrast": ("images have more contrast", "images have less contrast"),
    "sharpness": ("images are sharper or noisier", "images are blurrier"),
    "megapixels": ("images have more pixels", "images have fewer pixels"),
    "aspect ratio": ("images are wider", "images are narrower"),
    "bytes per pixel": ("files are compressed less", "files are compressed more"),
    "confidence": ("answers are more confident", "answers are less confident"),
    "energy": ("images are less like those trained on", "images are more like those trained on"),
    "distance to the classes": ("images lie further from every class", "images lie closer to their classes"),
}
"""What a higher and a lower score of a channel mean."""


@dataclass(frozen=True)
class DriftReport:
    """What is known of the drift of one release."""

    release: int
    answers: int
    """Answers that counted."""
    thinned: int
    """Answers left out as part of a burst of almost equal images."""
    evidence: float
    """The detector now: an alarm is raised where its peak reached ``promise``."""
    peak: float
    promise: int
    alarm: bool
    first: Mapping[str, Any] | None
    """The comparison of the first answers with the tested images; None before there are enough."""
    changes: tuple[ChannelChange, ...]
    """The channels that drive the evidence, the strongest first."""
    accuracy: Mapping[str, float] | None
    """Estimates without labels over the latest answers, and the accuracy on reference images (``tested``)."""
    audit: Mapping[str, Any]
    """Accuracy of the answers that were drawn at random and reviewed, with an interval for any number of looks."""
    class_shares: Mapping[str, float] | None
    """Estimated shares of the classes among the latest answers, if only the mix of classes changed."""
    stability_index: float | None
    """Population stability index of predicted classes: a size, never an alarm."""
    images: tuple[str, ...]
    """Paths of kept images that are typical of what changed."""

    def as_json(self) -> dict[str, Any]:
        """The values as one JSON object."""
        return {**vars(self), "changes": [{**vars(one), "words": one.describe()} for one in self.changes]}


def examine_drift(
    site: Path | str,
    *,
    journal: Journal,
    release: int | None = None,
    promise: int = DEFAULT_PROMISE,
    accept: bool = False,
    restart: bool = False,
    by: str | None = None,
) -> DriftReport:
    """Advance the detector of a release over all answers in the journal, and report.

    ``accept`` takes the last answers, at most 500, as what is normal from now on, which is written to the site's log;
    ``restart`` forgets the state and begins after the answers there are. Raise JournalError where the release has no
    reference, or there are too few answers to accept.
    """
    site = Path(site)
    found = current_release(site) if release is None else load_release(site, release)
    folder = site / DRIFT_FOLDER
    with explain_write_errors(folder):
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / ".lock")
    with lock:
        reference, state = read_reference(found, folder), folder / f"{found.number:04d}.safetensors"
        if restart or not state.is_file():
            detector = Detector.start(reference, after=journal.last_sketch_number() if restart else 0)
        else:
            detector = Detector.load(state, reference)
        detector = _advance(detector, journal, found.number, promise)
        if accept:
            detector = _accept(detector, journal, found, folder)
            append_audit(site, "accept drift", found.number, by, answers=len(detector.reference.sketches))
        with explain_write_errors(folder):
            detector.save(state)
        return _describe(detector, journal, found.number, promise)


def watch_drift(site: Path, journal: Journal, release: int) -> dict[str, Any]:
    """Advance the detector of a release, as an observer of a service; ``why`` says why there is none."""
    try:
        return examine_drift(site, journal=journal, release=release).as_json()
    except JournalError as error:
        return {"release": release, "why": str(error)}


def _accepted_file(folder: Path, release: int) -> Path:
    return folder / f"{release:04d}-accepted.safetensors"


def read_reference(release: Release, folder: Path) -> Reference:
    """The accepted reference of a release, else the one it was published with; raise JournalError for none."""
    accepted = _accepted_file(folder, release.number)
    if accepted.is_file():
        return Reference.load(accepted)
    found = release.reference()
    if found is None:
        why = (release.facts.get("reference") or {}).get("why", "it was published by an older Sightline")
        raise JournalError(
            f"Release {release.number} has no reference to compare its answers with: {why}. Publish it again from its "
            "run, or with --images FOLDER of labelled held-out images."
        )
    return found


def _advance(detector: Detector, journal: Journal, release: int, promise: int) -> Detector:
    """Read all new answers; make the first comparison when there are enough of them."""
    while rows := journal.sketch_rows(release, after=detector.last, limit=_READ_ROWS):
        wanted = FIRST_ANSWERS - detector.counted
        detector.advance(rows[:wanted] if 0 < wanted < len(rows) else rows)
        if "first" not in detector.facts and detector.counted >= FIRST_ANSWERS:
            earlier = journal.sketch_rows(release, after=detector.facts["since"], limit=FIRST_ANSWERS)
            answers = _decode(detector.reference, [row.values for row in earlier])
            detector.facts["first"] = compare_first_answers(detector.reference, answers)
        if detector.peak >= promise and "alarm" not in detector.facts:
            detector.facts["alarm"] = detector.counted
    return detector


def _decode(reference: Reference, rows: list[bytes]) -> Sketches:
    return decode_sketches(rows, len(reference.classes), reference.projection.components.shape[1])


def compare_first_answers(reference: Reference, answers: Sketches) -> dict[str, Any]:
    """One test whether answers come from the same images as the reference (black-box shift detection, Lipton 2018).

    Kolmogorov-Smirnov on the probability of each class, Holm's correction over the classes (Rabanser et al. 2019).
    ``energy_distance`` is the size of the difference between the probabilities.
    """
    from scipy.stats import ks_2samp

    names = [name for name in reference.channels if name.startswith("probability of ")]
    ours, theirs = (reference.scores(one)[:, : len(names)] for one in (reference.sketches, answers))
    tests: list[Any] = [ks_2samp(a, b) for a, b in zip(ours.T, theirs.T, strict=True)]
    p = metrics.holm([float(one.pvalue) for one in tests])
    differ = [
        name.removeprefix("probability of ") for name, one in zip(names, p, strict=True) if one < FIRST_LEVEL
    ]
    return {
        "n": len(answers),
        "like_tested": not differ,
        "p": min(p),
        "classes": differ,
        "energy_distance": metrics.energy_distance(ours[:_MAX_SIZED_ANSWERS], theirs[:_MAX_SIZED_ANSWERS]),
    }


def _accept(detector: Detector, journal: Journal, release: Release, folder: Path) -> Detector:
    """A new detector, whose reference is the last answers; raise JournalError where there are fewer than 100."""
    rows = _latest_rows(detector, journal, release.number, FIRST_ANSWERS)
    if len(rows) < FIRST_ANSWERS // 5:
        raise JournalError(
            f"Only {len(rows)} answers of release {release.number} are in the journal: accept what is normal when "
            f"there are {FIRST_ANSWERS // 5} or more."
        )
    old = detector.reference
    sketches = _decode(old, [row.values for row in rows])
    reference = Reference(old.classes, old.projection, sketches, np.full(len(rows), -1))
    reference.save(_accepted_file(folder, release.number))
    fresh = Detector.start(reference, after=detector.last)
    fresh.facts |= {"first": None, "accepted": len(rows)}
    return fresh


def _latest_rows(detector: Detector, journal: Journal, release: int, limit: int) -> list[Any]:
    """The last answers that the detector has read."""
    return journal.latest_sketch_rows(release, until=detector.last, limit=limit)


def _describe(detector: Detector, journal: Journal, release: int, promise: int) -> DriftReport:
    reference = detector.reference
    rows = _latest_rows(detector, journal, release, RECENT_ANSWERS) if detector.counted else []
    changes: tuple[ChannelChange, ...] = ()
    accuracy = shares = index = None
    images: tuple[str, ...] = ()
    if rows:
        answers = _decode(reference, [row.values for row in rows])
        before, now = reference.scores(reference.sketches), reference.scores(answers)
        for q in np.argsort(-detector.bets.detector, kind="stable"):  # the strongest evidence first
            was, is_now = (np.nan_to_num(scores[:, q]) for scores in (before, now))
            moved = float(is_now.mean() - was.mean()) / (float(was.std()) or 1.0)
            evidence = float(detector.bets.detector[q])
            one = ChannelChange(reference.channels[q], evidence, float(was.mean()), float(is_now.mean()), moved)
            changes += (one,)
        tested = (reference.labels >= 0).all()
        if tested:
            estimate = metrics.estimate_accuracy(
                confidences(reference.sketches),
                reference.right,
                confidences(answers),
                entropies=(entropies(reference.sketches), entropies(answers)),
            )
            accuracy = {**vars(estimate), "tested": float(reference.right.mean())}
        shares, index = _class_mix(reference, answers, estimate=bool(tested))
        if detector.peak >= promise:
            places = [journal.image_path(row) for row in rows]
            typical = np.argsort(-change_scores(before, now), kind="stable")
            images = tuple(str(places[i]) for i in typical if places[i] is not None)[:N_TYPICAL_IMAGES]
    return DriftReport(
        release,
        detector.counted,
        detector.thinned,
        detector.bets.evidence,
        detector.peak,
        promise,
        detector.peak >= promise,
        detector.facts.get("first"),
        changes,
        accuracy,
        audit_accuracy(journal.reviews(), release).as_json(),
        shares,
        index,
        images,
    )


def _class_mix(
    reference: Reference, answers: Sketches, *, estimate: bool
) -> tuple[dict[str, float] | None, float]:
    """Estimated shares of the true classes, where labels of the reference are known, and the stability index."""
    n_classes = len(reference.classes)
    before, now = (
        np.bincount(predicted_classes(one), minlength=n_classes) / len(one)
        for one in (reference.sketches, answers)
    )
    index = metrics.population_stability_index(before, now, smoothing=0.5 / len(answers))
    if not estimate:
        return None, index
    confusion = metrics.joint_confusion(reference.labels, predicted_classes(reference.sketches), n_classes)
    _, shares = metrics.estimate_class_shares(confusion, now)
    return dict(zip(reference.classes, shares.tolist(), strict=True)), index


def change_scores(before: Float[ndarray, "R Q"], now: Float[ndarray, "N Q"]) -> Float[ndarray, " N"]:
    """How surely a classifier of the two samples tells each answer from the reference."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    both = np.nan_to_num(np.concatenate([before, now]), posinf=0, neginf=0)
    is_new = np.arange(len(both)) >= len(before)
    scaled = StandardScaler().fit_transform(both)
    judge = LogisticRegression(C=0.1, class_weight="balanced", max_iter=500).fit(scaled, is_new)
    return judge.decision_function(scaled[is_new])
