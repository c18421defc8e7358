"""The difference of two releases, image by image: negative flips first, and what the gate says of it."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from ..data import load_dataset
from ..errors import DataError
from ..files import atomic_replace
from ..pictures import contact_sheet
from ..runs import open_subject
from ..serving import Engine, Release, load_release, open_engine
from ..sources import find
from ..types import Dataset, Geometry
from .gate import GateRules, GateVerdict, JudgedAnswers, judge_candidate

MAX_DRAWN_FLIPS = 60
"""Images on the contact sheet."""

_BATCH_IMAGES = 64

_TIMED_ANSWERS = 25
"""Single images answered by each release in turn; the median counts."""


@dataclass(frozen=True)
class AnswerChange:
    """An image that one release alone has right."""

    file: str
    label: str
    before: str
    after: str


@dataclass(frozen=True, eq=False)
class ReleaseDifference:
    """Two releases on the same labelled images."""

    first: int
    second: int
    n: int
    sample: str
    accuracy: tuple[float, float]
    """Of the first and the second release."""
    newly_wrong: tuple[AnswerChange, ...]
    """Negative flips: right before, wrong now."""
    newly_right: tuple[AnswerChange, ...]
    verdict: GateVerdict
    images: Dataset
    """The images, at the first release's working size; ``positions`` of the flips in them."""
    positions: Int[ndarray, " F"]

    def as_json(self) -> dict[str, Any]:
        """The values as one JSON object, without pixels."""
        return {
            "first": self.first,
            "second": self.second,
            "n": self.n,
            "sample": self.sample,
            "accuracy": list(self.accuracy),
            "newly_wrong": [vars(one) for one in self.newly_wrong],
            "newly_right": [vars(one) for one in self.newly_right],
            "newly_wrong_by_class": dict(Counter(one.label for one in self.newly_wrong).most_common()),
            "verdict": self.verdict.as_json(),
        }

    def draw(self, path: Path) -> None:
        """Write a contact sheet of the negative flips: the right class, and below it the new answer."""
        shown = self.newly_wrong[:MAX_DRAWN_FLIPS]
        if not shown:
            raise DataError("No image is newly wrong: there is nothing to draw.")
        pixels = list(self.images[self.positions[: len(shown)]])
        sheet = contact_sheet(pixels, [one.label for one in shown], notes=[one.after for one in shown])
        with atomic_replace(path) as temporary:
            sheet.save(temporary, format="PNG")


def compare_releases(
    site: Path | str,
    first: int,
    second: int,
    *,
    images: Path | str | None = None,
    ordered_removals: tuple[str, ...] = (),
    rules: GateRules | None = None,
) -> ReleaseDifference:
    """Let two releases of a site answer the same labelled images, and judge the second as a candidate.

    ``images`` default to the test images of the run that the second release was published from. Classes in
    ``ordered_removals`` may be missing from it. Raise ReleaseError for a release that does not exist, and DataError
    where there are no images.
    """
    releases = [load_release(site, number) for number in (first, second)]
    engines = [open_engine(one.onnx or one.bundle, release=one.number, threads=1) for one in releases]
    sets, sample = _open_images(releases[1], [one.geometry for one in engines], images)
    names = sets[0].classes
    probabilities = []
    for engine, same in zip(engines, sets, strict=True):
        answer, starts = engine.shared_runner.probabilities, range(0, len(same), _BATCH_IMAGES)
        probabilities.append(np.concatenate([answer(same[i : i + _BATCH_IMAGES]) for i in starts]))
    latencies = _time_answers(engines, sets)
    said = [np.array(engine.classes)[each.argmax(1)] for engine, each in zip(engines, probabilities, strict=True)]
    truth = np.array(names)[sets[0].labels]
    answers = [
        JudgedAnswers(
            probabilities=each,
            labels=np.array([engine.classes.index(name) if name in engine.classes else -1 for name in truth]),
            threshold=engine.threshold,
            latency=latency,
        )
        for engine, each, latency in zip(engines, probabilities, latencies, strict=True)
    ]
    before, after = (one.right for one in answers)
    lost = [name for name in engines[0].classes if name not in engines[1].classes and name not in ordered_removals]
    verdict = judge_candidate(answers[1], answers[0], groups={"class": truth}, lost_classes=lost, rules=rules)
    wrong, right = np.flatnonzero(before & ~after), np.flatnonzero(after & ~before)

    def list_changes(places: Int[ndarray, " F"]) -> tuple[AnswerChange, ...]:
        return tuple(
            AnswerChange(str(sets[0].files[i]), str(truth[i]), str(said[0][i]), str(said[1][i])) for i in places
        )

    return ReleaseDifference(
        first,
        second,
        len(truth),
        sample,
        (float(before.mean()), float(after.mean())),
        list_changes(wrong),
        list_changes(right),
        verdict,
        sets[0],
        wrong,
    )


def _open_images(
    release: Release, geometries: list[Geometry], images: Path | str | None
) -> tuple[list[Dataset], str]:
    """The same labelled images at each working size, and which they are."""
    if images is not None:
        source = find(images, several=False)
        return [load_dataset(source, geometry).labelled for geometry in geometries], f"images of '{images}'"
    run = Path(str(release.facts.get("source", "")))
    if not (run / "recipe.toml").is_file():
        raise DataError(
            f"Release {release.number} was not published from a run that is still there: name labelled images with "
            "--images."
        )
    subject = open_subject(run, device="cpu")
    if len(set(geometries)) > 1:
        raise DataError(
            "The two releases see images at different sizes: name labelled images, which are read for each, with "
            "--images."
        )
    return [subject.images] * 2, subject.sentence


def _time_answers(engines: list[Engine], sets: list[Dataset]) -> list[float]:
    """Median milliseconds for one image of each engine, in turn."""
    times: list[list[float]] = [[] for _ in engines]
    for i in range(_TIMED_ANSWERS):
        for engine, images, spent in zip(engines, sets, times, strict=True):
            start = time.perf_counter()
            engine.shared_runner.probabilities(images[[i % len(images)]])
            spent.append(1000 * (time.perf_counter() - start))
    return [float(np.median(one)) for one in times]
