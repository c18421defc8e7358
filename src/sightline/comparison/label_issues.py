"""Label issues: confident learning on predictions of classifiers that were not trained on the image.

Every image is predicted by a classifier trained on the other folds. With t_j the mean probability of class j over
the images labelled j, an image labelled i counts as truly j where p_j >= t_j, the most probable such j (Northcutt,
Jiang and Chuang 2021, eq. 1). Images with j != i are the candidates, ranked by log(p_j / p_i). How many of them are
wrong labels is estimated from the margins that every image would have under other labels (``count_wrong_labels``).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from .. import progress
from ..data import make_folds
from ..errors import DataError, RecipeError
from ..evaluation import top_confusions
from ..files import atomic_replace, write_csv, write_json
from ..metrics import wilson
from ..pictures import contact_sheet
from ..training import PHOTO_SIDE, Recipe
from ..types import Dataset, Interval
from .candidates import parse_candidate
from .confident_learning import confident_joint, count_wrong_labels, rank_issues
from .cross_validation import HeldOutFold
from .judges import HEAD_JUDGES, OutOfFold, baseline_judge, head_judge, network_probabilities

DEFAULT_LABEL_CHECKER = "svm-rbf@hog"
"""The candidate whose predictions are compared with the labels; docs/suspects.md has the alternatives measured."""

COLOUR_LABEL_CHECKER = "svm-rbf@pixels"
"""Tried where the default, which sees no colour, cannot tell the classes apart."""

PHOTO_LABEL_CHECKER = "probe"
"""The judge of photos: out-of-fold logistic regression on the features of the published network."""

MIN_JUDGE_SKILL = 0.5
"""Skill below which nothing is listed: most of the list would be right labels."""

PLANTED_ERROR_SHARE = 0.03
"""Share of the labels that the probe changes, of at least 20 images."""

MAX_ISSUE_THUMBNAILS = 40
"""Images in the gallery of issues."""


@dataclass(frozen=True)
class LabelIssue:
    """One label that looks wrong."""

    index: int
    """Position of the image in its dataset."""
    file: str
    label: str
    suggested: str
    p_label: float
    """Out-of-fold probability of the given class."""
    p_suggested: float
    """Out-of-fold probability of the suggested class."""

    @property
    def margin(self) -> float:
        """log(p_suggested / p_label): issues are ranked by it."""
        return math.log(max(self.p_suggested, 1e-300)) - math.log(max(self.p_label, 1e-300))


@dataclass(frozen=True)
class PlantedErrorProbe:
    """How many deliberately changed labels of this dataset were found."""

    n_planted: int
    recall: Interval
    """Share of the planted errors that were listed."""
    precision: Interval
    """Share of planted errors among the issues that were not listed before: real errors count against it."""


@dataclass(frozen=True, eq=False)
class LabelIssueReport:
    """The label issues of a dataset, the largest margin first."""

    by: str
    folds: int
    classes: tuple[str, ...]
    n: int
    accuracy: Interval
    """Share of the images whose label is their out-of-fold prediction."""
    issues: tuple[LabelIssue, ...]
    joint: Int[ndarray, "K K"]
    """Images labelled i (row) that count as truly j (column)."""
    estimated_error_rate: float
    """Share of all labels that are wrong, each row of the joint scaled to the images of its label (eq. 3)."""
    probe: PlantedErrorProbe | None
    remarks: tuple[str, ...] = ()

    candidates: int = 0
    """Labels that the judge contradicts; only as many of them are listed as are expected to be wrong."""
    expected_errors: float = 0.0
    """Wrong labels among all, estimated from the margins of the candidates."""
    skill: float = 1.0
    """(accuracy - chance) / (1 - chance), with the share of the largest class as chance; issues need some."""

    @property
    def sentence(self) -> str:
        """How many issues were found, and how far the list can be trusted."""
        if self.skill < MIN_JUDGE_SKILL:
            return (
                f"No label is listed: {self.by} agrees with {self.accuracy.value:.0%} of {self.n:,} labels, which is "
                "too weak to judge them. Judge by a network: --by resnet20."
            )
        count = len(self.issues)
        labels = "1 label looks" if count == 1 else f"{count:,} labels look"
        found = f"{labels} wrong among {self.n:,} ({self.by}, {self.folds} folds)."
        if self.candidates and not count:
            found = (
                f"No label is listed: {self.by} contradicts {self.candidates:,} of {self.n:,}, which its own "
                "errors can explain. A stronger judge may find more: --by resnet20."
            )
        elif self.candidates > count:
            found += (
                f" They are the first of {self.candidates:,} that it contradicts, as many as are expected to be."
            )
        if self.probe is None:
            return found
        recall, precision = self.probe.recall, self.probe.precision
        return (
            f"{found} Of {self.probe.n_planted:,} deliberately changed labels it found {recall.value:.0%} "
            f"({recall.low:.0%} to {recall.high:.0%}); {precision.value:.0%} of the new issues were changed "
            f"labels ({precision.low:.0%} to {precision.high:.0%}). Random errors are easier to find than real "
            "ones."
        )

    def as_json(self) -> dict[str, Any]:
        """``suspects.json``."""
        probe = self.probe and {
            "planted": self.probe.n_planted,
            "recall": self.probe.recall.as_json(),
            "precision": self.probe.precision.as_json(),
        }
        return {
            "by": self.by,
            "folds": self.folds,
            "n": self.n,
            "candidates": self.candidates,
            "expected_wrong": self.expected_errors,
            "agreement": self.accuracy.as_json(),
            "estimated_wrong": self.estimated_error_rate,
            "probe": probe,
            "pairs": [asdict(pair) for pair in top_confusions(self.joint, self.classes, top=20)],
            "suspects": [asdict(one) | {"margin": one.margin} for one in self.issues],
            "sentence": self.sentence,
            "remarks": list(self.remarks),
        }


def find_label_issues(
    dataset: Dataset,
    by: str | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
    recipe: Recipe | None = None,
    probe: bool = True,
    device: str = "auto",
) -> LabelIssueReport:
    """Rank the labels of a dataset that look wrong, in all of its splits.

    Args:
        dataset: N images of K classes.
        by: a baseline (its features are extracted once), a head on the published network's kept features (probe,
            lda), or a network, trained by ``recipe`` on each fold. Default: ``PHOTO_LABEL_CHECKER`` for photos, else
            ``DEFAULT_LABEL_CHECKER``, or ``COLOUR_LABEL_CHECKER`` where only that can tell the classes apart.
        folds: at most; fewer where a class has fewer distinct images. Copies and near duplicates share a fold.
        probe: for baselines and heads, change some labels and report how many of them are found.

    Raises DataError where fewer than two classes have two distinct images, RecipeError for fewer than two folds,
    ChoiceError for an unknown ``by``.
    """
    if by is None:
        return _judge_by_default(dataset, folds=folds, seed=seed, recipe=recipe, probe=probe, device=device)
    head = by.partition(":")[0] in HEAD_JUDGES
    candidate = None if head else parse_candidate(by, (recipe or Recipe(epochs=8)).replace(seed=seed))
    word = f"{by} on kept features" if candidate is None else candidate.word
    rows, remarks = _select_images(dataset)
    part = dataset.subset(rows)
    held_out = _assign_label_folds(part, folds, seed, None if recipe is None else recipe.group)
    judged = candidate is None or candidate.kind == "baseline"
    fits = len(held_out) * (2 if probe and judged else 1)
    progress.notify(f"Looking for label issues: {fits} fits of {word} to {len(part):,} images.")
    planted: PlantedErrorProbe | None = None
    if candidate is None or judged:
        predict = head_judge(by, part, held_out, seed) if head else baseline_judge(word, part, held_out, seed)
        ranked = rank_issues(part.labels, probabilities := predict(part.labels))
        planted = _probe_planted_errors(predict, part.labels, ranked, seed) if probe else None
    else:
        assert candidate is not None
        probabilities = network_probabilities(part, candidate, held_out, device)
        ranked = rank_issues(part.labels, probabilities)
    accuracy = wilson(float((probabilities.argmax(1) == part.labels).sum()), len(part))
    chance = float(part.counts.max() / part.counts.sum())
    if (skill := (accuracy.value - chance) / (1 - chance)) < MIN_JUDGE_SKILL:
        ranked, planted = [], None
    candidates = len(ranked)
    listed, expected = count_wrong_labels(part.labels, probabilities) if candidates else (0, 0.0)
    ranked = ranked[:listed]
    joint = confident_joint(part.labels, probabilities)
    counted = joint.sum(1)
    wrong = np.divide(counted - joint.diagonal(), counted, out=np.zeros(len(counted)), where=counted > 0)
    issues = (
        LabelIssue(
            index=int(rows[i]),
            file=str(part.files[i]),
            label=part.classes[part.labels[i]],
            suggested=part.classes[j],
            p_label=float(probabilities[i, part.labels[i]]),
            p_suggested=float(probabilities[i, j]),
        )
        for i, j in ranked
    )
    return LabelIssueReport(
        by=word,
        folds=len(held_out),
        classes=part.classes,
        n=len(part),
        accuracy=accuracy,
        issues=tuple(issues),
        joint=joint,
        estimated_error_rate=float(wrong @ part.counts / max(1, part.counts.sum())),
        probe=planted,
        remarks=remarks,
        skill=skill,
        candidates=candidates,
        expected_errors=expected,
    )


def _judge_by_default(dataset: Dataset, **how: Any) -> LabelIssueReport:
    if are_photos(dataset):
        return find_label_issues(dataset, PHOTO_LABEL_CHECKER, **how)
    found = find_label_issues(dataset, DEFAULT_LABEL_CHECKER, **how)
    if found.skill >= MIN_JUDGE_SKILL:
        return found
    return max(found, find_label_issues(dataset, COLOUR_LABEL_CHECKER, **how), key=lambda one: one.skill)


def are_photos(dataset: Dataset) -> bool:
    """Whether training would start from published weights: colour, and large enough at the working size and before."""
    short = np.minimum(dataset.columns["width"], dataset.columns["height"])
    colour = dataset.geometry.channels == 3
    return colour and min(dataset.geometry.size) >= PHOTO_SIDE and float(np.median(short)) >= PHOTO_SIDE


def _select_images(dataset: Dataset) -> tuple[Int[ndarray, " n"], tuple[str, ...]]:
    """Images of the classes with at least two distinct images, and a sentence about the other classes."""
    distinct = np.array(
        [len(np.unique(dataset.digests[dataset.labels == k])) for k in range(len(dataset.classes))]
    )
    single = np.flatnonzero(distinct == 1)
    if (distinct >= 2).sum() < 2:
        raise DataError(
            "Label issues are found where at least two classes have two distinct images each: add images."
        )
    rows = np.flatnonzero(dataset.is_labelled & ~np.isin(dataset.labels, single))
    if not len(single):
        return rows, ()
    names = ", ".join(repr(dataset.classes[k]) for k in single[:5]) + (" ..." if len(single) > 5 else "")
    return rows, (f"Classes of a single image were left out, because their labels cannot be checked: {names}.",)


def _assign_label_folds(part: Dataset, folds: int, seed: int, group: str | None) -> list[HeldOutFold]:
    """The folds; fewer of them where a class has fewer distinct images."""
    if folds < 2:
        raise RecipeError(f"{folds} folds were asked for: it takes at least 2.")
    present = np.unique(part.labels)
    distinct = [len(np.unique(part.digests[part.labels == k])) for k in present]
    names = tuple(part.classes[k] for k in present)  # classes that were left out have no folds
    packed = replace(part, labels=np.searchsorted(present, part.labels), classes=names)
    found = make_folds(packed, min(folds, *distinct), seed=seed, group=group)
    indices = [np.flatnonzero(np.isin(part.rows, fold.held_out.rows)) for fold in found]
    return [HeldOutFold(number, seed, held) for number, held in enumerate(indices, 1) if len(held)]


def _probe_planted_errors(
    predict: OutOfFold, labels: Int[ndarray, " N"], ranked: Sequence[tuple[int, int]], seed: int
) -> PlantedErrorProbe | None:
    """Change some labels that are no issues, look again, and count; None where there are too few images."""
    rng = np.random.default_rng([seed, 5])
    before = np.array([i for i, _ in ranked], np.int64)
    unlisted = np.setdiff1d(np.arange(len(labels)), before)
    count = min(max(20, round(PLANTED_ERROR_SHARE * len(labels))), len(unlisted) // 4)
    present = np.unique(labels)
    if count < 5:
        return None
    planted = rng.choice(unlisted, count, replace=False)
    shift = rng.integers(1, len(present), count)
    changed = labels.copy()
    changed[planted] = present[(np.searchsorted(present, changed[planted]) + shift) % len(present)]
    probabilities = predict(changed)
    issues = rank_issues(changed, probabilities)[: count_wrong_labels(changed, probabilities)[0]]
    listed = np.array([i for i, _ in issues], np.int64)
    found, new = float(np.isin(planted, listed).sum()), float(len(np.setdiff1d(listed, before)))
    return PlantedErrorProbe(count, wilson(found, count), wilson(found, new))


def write_label_issues(report: LabelIssueReport, dataset: Dataset, folder: Path) -> dict[str, str]:
    """Write ``suspects.csv``, ``suspects.json`` and ``suspects.png``, a gallery of the first issues, into a
    folder.

    ``dataset`` is the one that was searched. Returns the paths under ``table``, ``record`` and, where there are
    issues, ``gallery``.
    """
    table, record, picture = (folder / f"suspects.{suffix}" for suffix in ("csv", "json", "png"))
    rows: list[list[object]] = [["rank", "file", "label", "suggested", "p_label", "p_suggested"]]
    for rank, one in enumerate(report.issues, 1):
        rows.append([rank, one.file, one.label, one.suggested, f"{one.p_label:.6f}", f"{one.p_suggested:.6f}"])
    write_csv(table, rows)
    write_json(record, report.as_json())
    files = {"table": str(table), "record": str(record)}
    shown = report.issues[:MAX_ISSUE_THUMBNAILS]
    if not shown:
        picture.unlink(missing_ok=True)
        return files
    sheet = contact_sheet(
        list(dataset[np.array([one.index for one in shown])]),
        [one.label for one in shown],
        notes=[f"{one.p_suggested:.0%} {one.suggested}" for one in shown],
    )
    with atomic_replace(picture) as temporary:
        sheet.save(temporary)
    return files | {"gallery": str(picture)}
