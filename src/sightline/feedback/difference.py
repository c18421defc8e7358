"""The difference of two releases, image by image: negative flips first, and what the gate says of it."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from numpy import ndarray

from ..data import FACT_COLUMNS, load_dataset
from ..errors import DataError
from ..evaluation import group_values
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
"""Single images answered by each release in turn; the fastest counts, as other programs only add to it."""


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
    engines = [open_release(one) for one in releases]
    sets, sample = _open_images(releases[1], [one.geometry for one in engines], images)
    names = sets[0].classes
    latencies = time_answers(engines, sets)
    answers = [
        replace(answer_images(engine, one), latency=spent)
        for engine, one, spent in zip(engines, sets, latencies, strict=True)
    ]
    said = [
        np.array(engine.classes)[one.probabilities.argmax(1)] for engine, one in zip(engines, answers, strict=True)
    ]
    truth = np.array(names)[sets[0].labels]
    before, after = (one.right for one in answers)
    lost = [name for name in engines[0].classes if name not in engines[1].classes and name not in ordered_removals]
    verdict = judge_candidate(
        answers[1], answers[0], groups={"class": truth, **find_groups(sets[0])}, lost_classes=lost, rules=rules
    )
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


def open_release(release: Release) -> Engine:
    """The engine of a release, on one thread."""
    return open_engine(release.onnx or release.bundle, release=release.number, threads=1)


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


def answer_images(engine: Engine, images: Dataset) -> JudgedAnswers:
    """What a release says of labelled images; -1 is the label of those of classes that it does not know."""
    runner, known = engine.shared_runner, {name: k for k, name in enumerate(engine.classes)}
    parts = [runner.probabilities(images[i : i + _BATCH_IMAGES]) for i in range(0, len(images), _BATCH_IMAGES)]
    labels = np.array([known.get(images.classes[k], -1) for k in images.labels.tolist()], np.int64)
    return JudgedAnswers(probabilities=np.concatenate(parts), labels=labels, threshold=engine.threshold)


def find_groups(images: Dataset, others: int = 0) -> dict[str, Shaped[ndarray, " N"]]:
    """Names of the groups of images by column, of those columns of their table that define groups (docs/groups.md).

    ``others`` images that follow are in none: their name is empty.
    """
    found = {}
    for column in images.columns:
        if column not in (*FACT_COLUMNS, "split", "group"):  # "group" keeps images together and compares nothing
            with suppress(DataError):
                found[column] = np.concatenate([group_values(images, column)[0], np.full(others, "")])
    return found


def time_answers(engines: Sequence[Engine], sets: Sequence[Dataset | UInt8[ndarray, "N H W C"]]) -> list[float]:
    """Milliseconds for one image of each engine: the fastest of some answers in turn."""
    times: list[list[float]] = [[] for _ in engines]
    for i in range(_TIMED_ANSWERS):
        for engine, images, spent in zip(engines, sets, times, strict=True):
            start = time.perf_counter()
            engine.shared_runner.probabilities(images[[i % len(images)]])
            spent.append(1000 * (time.perf_counter() - start))
    return [min(one) for one in times]
