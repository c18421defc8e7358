"""Labels that look wrong: confident learning on answers from classifiers that never saw the image.

Every image is answered by a classifier trained on the other folds. With t_j the mean probability of class j among
images labelled j, an image labelled i counts as truly j where p_j >= t_j, the likeliest such j (Northcutt, Jiang
and Chuang 2021, eq. 1): those with j != i are the suspects, ranked by how much likelier another class is.
"""

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from .. import progress, runtime
from ..baselines import Baseline, parse_baseline, parse_features
from ..data import iterate_batches
from ..data import make_folds as folds_of
from ..errors import DataError, RecipeError
from ..evaluation import top_confusions
from ..files import atomic_replace, write_json
from ..inference import predict_logits
from ..metrics import wilson
from ..models import EstimatorNetwork, estimator_scores
from ..pictures import contact_sheet
from ..training import Recipe, fit_temperature
from ..types import Dataset, Interval
from .candidates import Candidate, parse_candidate
from .cross_validation import HeldOutFold, fold_splits

DEFAULT_LABEL_CHECKER = "svm-rbf@hog"
"""What answers: see docs/suspects.md for what else was tried, and what it found in what time."""

PLANTED_ERROR_SHARE = 0.03
"""Share of the labels changed on purpose to see how many such errors are found; at least 20 images."""

MAX_ISSUE_THUMBNAILS = 40
"""Suspects in the gallery."""


@dataclass(frozen=True)
class LabelIssue:
    """One label that looks wrong."""

    index: int
    """Position of the image in its dataset."""
    file: str
    label: str
    suggested: str
    p_label: float
    """Probability of the given class, from classifiers that never saw the image."""
    p_suggested: float

    @property
    def margin(self) -> float:
        """How much likelier the suggested class is: suspects are ranked by it."""
        return self.p_suggested - self.p_label


@dataclass(frozen=True)
class PlantedErrorProbe:
    """How many labels changed on purpose were found, in this very data: what to expect of the list."""

    n_planted: int
    recall: Interval
    """Share of the planted errors that were listed."""
    precision: Interval
    """Share of planted errors among what was listed and was not before: real errors count against it."""


@dataclass(frozen=True, eq=False)
class LabelIssueReport:
    """The suspects of a dataset, the likeliest error first."""

    by: str
    folds: int
    classes: tuple[str, ...]
    n: int
    accuracy: Interval
    """Share of the images whose label the classifiers that never saw them would have given."""
    issues: tuple[LabelIssue, ...]
    joint: Int[ndarray, "K K"]
    """Images labelled i (row) that count as truly j (column)."""
    estimated_error_rate: float
    """Share of all labels that are wrong, as the joint counts suggest: rows scaled to the images of each label."""
    probe: PlantedErrorProbe | None
    remarks: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What was found, and what to expect of it."""
        found = len(self.issues)
        labels = "1 label looks" if found == 1 else f"{found:,} labels look"
        said = f"{labels} wrong among {self.n:,} ({self.by}, {self.folds} folds)."
        if self.probe is None:
            return said
        p = self.probe
        return (
            f"{said} Of {p.n_planted:,} labels changed on purpose it listed {p.recall.value:.0%} "
            f"({p.recall.low:.0%} to {p.recall.high:.0%}), and {p.precision.value:.0%} of what it then listed "
            f"anew was one of them ({p.precision.low:.0%} to {p.precision.high:.0%}): errors at random are easier "
            "than real ones."
        )

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        probe = self.probe and {
            "planted": self.probe.n_planted,
            "recall": self.probe.recall.as_json(),
            "precision": self.probe.precision.as_json(),
        }
        return {
            "by": self.by,
            "folds": self.folds,
            "n": self.n,
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
    by: str = DEFAULT_LABEL_CHECKER,
    *,
    folds: int = 5,
    seed: int = 0,
    recipe: Recipe | None = None,
    probe: bool = True,
    device: str = "auto",
) -> LabelIssueReport:
    """Rank the labels of a dataset that look wrong, whatever part they are in.

    ``by`` is a baseline (its features are made once) or a network, trained by ``recipe`` on each fold. A
    ``probe``, of baselines only, changes some labels on purpose and looks again. Copies and near duplicates
    stay in one fold. Raises DataError where fewer than two classes have two distinct images, ChoiceError for an
    unknown ``by``.
    """
    chosen = parse_candidate(by, (recipe or Recipe(epochs=8)).replace(seed=seed))
    kept, remarks = _select_images(dataset)
    part = dataset.subset(kept)
    dealt = _assign_label_folds(part, folds, seed, None if recipe is None else recipe.group)
    trained = len(dealt) * (2 if probe and chosen.kind == "baseline" else 1)
    progress.notify(
        f"Looking for labels that look wrong: {trained} fits of {chosen.word} to {len(part):,} images."
    )
    planted: PlantedErrorProbe | None = None
    if chosen.kind == "baseline":
        word = parse_baseline(chosen.word)
        vectors = _feature_matrix(part, word)
        with progress.progress_bar("Folds", trained) as advance:
            answers = _out_of_fold_probabilities(
                vectors, part.labels, len(part.classes), dealt, word, seed, advance
            )
            found = _rank_issues(part.labels, answers)
            if probe:
                planted = _probe_planted_errors(vectors, part, found, dealt, word, seed, advance)
    else:
        answers = _network_probabilities(part, chosen, dealt, device)
        found = _rank_issues(part.labels, answers)
    joint = confident_joint(part.labels, answers)
    return LabelIssueReport(
        by=chosen.word,
        folds=len(dealt),
        classes=part.classes,
        n=len(part),
        accuracy=wilson(float((answers.argmax(1) == part.labels).sum()), len(part)),
        issues=tuple(_build_issue(part, answers, kept, i, j) for i, j in found),
        joint=joint,
        estimated_error_rate=_estimate_error_rate(joint, part.counts),
        probe=planted,
        remarks=remarks,
    )


def confident_joint(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> Int[ndarray, "K K"]:
    """Images labelled i that count as truly j: see the head of this file. Some count nowhere."""
    k = probabilities.shape[1]
    truly = _confident_classes(labels, probabilities)
    known = truly >= 0
    return np.bincount(labels[known] * k + truly[known], minlength=k * k).reshape(k, k)


def _confident_classes(labels: ndarray, probabilities: ndarray) -> Int[ndarray, " N"]:
    """The class each image counts as; -1 for none. A class without images is nobody's."""
    k = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    counts = np.bincount(labels, minlength=k)
    sums = np.bincount(labels, weights=own, minlength=k)
    thresholds = np.divide(sums, counts, out=np.full(k, np.inf), where=counts > 0)
    passing = np.where(probabilities >= thresholds - 1e-12, probabilities, -1.0)
    return np.where(passing.max(1) >= 0, passing.argmax(1), -1)


def _rank_issues(labels: ndarray, probabilities: ndarray) -> list[tuple[int, int]]:
    """(image, suggested class) of the suspects, the largest margin first."""
    truly = _confident_classes(labels, probabilities)
    rows = np.flatnonzero((truly >= 0) & (truly != labels))
    margin = probabilities[rows, truly[rows]] - probabilities[rows, labels[rows]]
    rows = rows[np.argsort(-margin, kind="stable")]
    return [(int(i), int(truly[i])) for i in rows]


def _estimate_error_rate(joint: Int[ndarray, "K K"], counts: Int[ndarray, " K"]) -> float:
    """Share of wrong labels, each row of the joint scaled to the images of its label (Northcutt 2021, eq. 3)."""
    rows = joint.sum(1)
    wrong = np.divide(rows - joint.diagonal(), rows, out=np.zeros(len(rows)), where=rows > 0)
    return float(wrong @ counts / max(1, counts.sum()))


def _build_issue(part: Dataset, answers: ndarray, kept: ndarray, i: int, j: int) -> LabelIssue:
    label = int(part.labels[i])
    return LabelIssue(
        index=int(kept[i]),
        file=str(part.files[i]),
        label=part.classes[label],
        suggested=part.classes[j],
        p_label=float(answers[i, label]),
        p_suggested=float(answers[i, j]),
    )


def _select_images(dataset: Dataset) -> tuple[Int[ndarray, " n"], tuple[str, ...]]:
    """Images of classes with two distinct ones, and what is left out."""
    distinct = np.array(
        [len(np.unique(dataset.digests[dataset.labels == k])) for k in range(len(dataset.classes))]
    )
    lonely = np.flatnonzero(distinct == 1)
    if (distinct >= 2).sum() < 2:
        raise DataError(
            "Labels can be doubted where two classes or more have two distinct images each: add images."
        )
    kept = np.flatnonzero(~np.isin(dataset.labels, lonely))
    if not len(lonely):
        return kept, ()
    names = ", ".join(repr(dataset.classes[k]) for k in lonely[:5]) + (" ..." if len(lonely) > 5 else "")
    return kept, (f"Classes of a single image cannot be doubted, and were left out: {names}.",)


def _assign_label_folds(part: Dataset, folds: int, seed: int, group: str | None) -> list[HeldOutFold]:
    """The folds; fewer of them where a class has fewer distinct images."""
    if folds < 2:
        raise RecipeError(f"{folds} folds were asked for: it takes at least 2.")
    present = np.unique(part.labels)
    distinct = [len(np.unique(part.digests[part.labels == k])) for k in present]
    names = tuple(part.classes[k] for k in present)  # classes that were left out are not dealt
    alone = replace(part, labels=np.searchsorted(present, part.labels), classes=names)
    parted = folds_of(alone, min(folds, *distinct), seed=seed, group=group)
    places = [np.flatnonzero(np.isin(part.rows, fold.held_out.rows)) for fold in parted]
    return [HeldOutFold(number, seed, where) for number, where in enumerate(places, 1) if len(where)]


def _feature_matrix(part: Dataset, word: Baseline) -> Float[ndarray, "N D"]:
    """The features of every image, in one unit; made once for all folds."""
    features = parse_features(word.features, part.geometry)
    network = EstimatorNetwork(len(part.classes), part.geometry.channels, part.geometry.size, features)
    found = np.empty((len(part), sum(network.widths)), np.float32)
    for batch in iterate_batches(part, 256):
        found[batch.index.numpy()] = network.feature_vectors(batch.pixels).numpy()
    network.fit_units(found)
    found -= network.shift.numpy()
    found /= network.scale.numpy()
    return found


def _out_of_fold_probabilities(
    vectors: Float[ndarray, "N D"],
    labels: Int[ndarray, " N"],
    classes: int,
    dealt: Sequence[HeldOutFold],
    word: Baseline,
    seed: int,
    advance: progress.Advance,
) -> Float[ndarray, "N K"]:
    """Probabilities of each image from the fit that never saw it, with one temperature for all of them."""
    logits = np.zeros((len(labels), classes))
    for held in dealt:
        others = np.setdiff1d(np.arange(len(labels)), held.indices)
        fitted = word.estimator(seed).fit(vectors[others], labels[others])
        seen = estimator_scores(fitted, vectors[held.indices])
        whole = np.repeat(seen.min(1, keepdims=True) - 1, classes, 1)
        whole[:, np.asarray(fitted.classes_, np.int64)] = seen
        logits[held.indices] = whole
        advance(1)
    return _calibrate_out_of_fold(torch.from_numpy(logits), labels)


def _calibrate_out_of_fold(logits: torch.Tensor, labels: ndarray) -> Float[ndarray, "N K"]:
    """Softmax at the temperature that fits these labels: one number, from images that were not trained on."""
    t = fit_temperature(logits.float(), torch.from_numpy(labels))
    return torch.softmax(logits.double() / t, 1).numpy()


def _network_probabilities(
    part: Dataset, chosen: Candidate, dealt: Sequence[HeldOutFold], device: str
) -> Float[ndarray, "N K"]:
    """The same by networks, trained fold by fold; each is stopped at its best epoch on images of other folds."""
    logits = torch.zeros(len(part), len(part.classes))
    open_to_all = {name: column for name, column in part.columns.items() if name != "split"}
    pool = replace(part, columns=open_to_all)
    with progress.progress_bar("Folds", len(dealt)) as advance:
        for held in dealt:
            splits = fold_splits(pool, held, chosen.recipe)
            with tempfile.TemporaryDirectory() as place:
                run, _ = chosen.train(splits, Path(place), seed=held.seed, device=runtime.resolve_device(device))
            logits[torch.from_numpy(held.indices)] = predict_logits(run.classifier, pool.subset(held.indices))[0]
            advance(1)
    return _calibrate_out_of_fold(logits, part.labels)


def _probe_planted_errors(
    vectors: ndarray,
    part: Dataset,
    found: Sequence[tuple[int, int]],
    dealt: Sequence[HeldOutFold],
    word: Baseline,
    seed: int,
    advance: progress.Advance,
) -> PlantedErrorProbe | None:
    """Change some labels that are not suspect, look again, and count; None where there are too few images."""
    rng = np.random.default_rng([seed, 5])
    before = np.array([i for i, _ in found], np.int64)
    innocent = np.setdiff1d(np.arange(len(part)), before)
    count = min(max(20, round(PLANTED_ERROR_SHARE * len(part))), len(innocent) // 4)
    present = np.unique(part.labels)
    if count < 5:
        return None
    chosen = rng.choice(innocent, count, replace=False)
    shift = rng.integers(1, len(present), count)
    labels = part.labels.copy()
    labels[chosen] = present[(np.searchsorted(present, labels[chosen]) + shift) % len(present)]
    answers = _out_of_fold_probabilities(vectors, labels, len(part.classes), dealt, word, seed, advance)
    listed = np.array([i for i, _ in _rank_issues(labels, answers)], np.int64)
    right = float(np.isin(chosen, listed).sum())
    return PlantedErrorProbe(count, wilson(right, count), wilson(right, float(len(np.setdiff1d(listed, before)))))


# on disk


def write_label_issues(found: LabelIssueReport, dataset: Dataset, folder: Path) -> dict[str, str]:
    """Write ``suspects.csv``, ``suspects.json`` and a gallery ``suspects.png`` of the first 40 into a folder."""
    with (
        atomic_replace(folder / "suspects.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(["rank", "file", "label", "suggested", "p_label", "p_suggested"])
        for rank, one in enumerate(found.issues, 1):
            numbers = f"{one.p_label:.6f}", f"{one.p_suggested:.6f}"
            writer.writerow([rank, one.file, one.label, one.suggested, *numbers])
    write_json(folder / "suspects.json", found.as_json())
    files = {"table": str(folder / "suspects.csv"), "record": str(folder / "suspects.json")}
    worst = found.issues[:MAX_ISSUE_THUMBNAILS]
    if not worst:
        (folder / "suspects.png").unlink(missing_ok=True)
        return files
    pixels = dataset[np.array([one.index for one in worst])]
    sheet = contact_sheet(
        list(pixels),
        [one.label for one in worst],
        notes=[f"{one.p_suggested:.0%} {one.suggested}" for one in worst],
    )
    with atomic_replace(folder / "suspects.png") as temporary:
        sheet.save(temporary)
    return files | {"gallery": str(folder / "suspects.png")}
