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
from ..baselines.features import features_of
from ..baselines.fit import Baseline, baseline
from ..data.loader import batches
from ..data.parts import folds as folds_of
from ..errors import DataError, RecipeError
from ..files import replacing, write_json
from ..metrics import wilson
from ..models.estimator import EstimatorNetwork, scores
from ..pictures import contact_sheet
from ..training.calibrate import logits_of, temperature
from ..training.recipe import Recipe
from ..types import Dataset, Interval
from .crossval import Held, splits_of
from .entrants import Entrant, entrant
from .mistakes import confused_pairs

DEFAULT = "svm-rbf@hog"
"""What answers: see docs/suspects.md for what else was tried, and what it found in what time."""

PLANTED = 0.03
"""Share of the labels changed on purpose to see how many such errors are found; at least 20 images."""

SHOWN = 40
"""Suspects in the gallery."""


@dataclass(frozen=True)
class Suspect:
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
class Probe:
    """How many labels changed on purpose were found, in this very data: what to expect of the list."""

    planted: int
    recall: Interval
    """Share of the planted errors that were listed."""
    precision: Interval
    """Share of planted errors among what was listed and was not before: real errors count against it."""


@dataclass(frozen=True, eq=False)
class Suspects:
    """The suspects of a dataset, the likeliest error first."""

    by: str
    folds: int
    classes: tuple[str, ...]
    n: int
    accuracy: Interval
    """Share of the images whose label the classifiers that never saw them would have given."""
    suspects: tuple[Suspect, ...]
    joint: Int[ndarray, "K K"]
    """Images labelled i (row) that count as truly j (column)."""
    estimated: float
    """Share of all labels that are wrong, as the joint counts suggest: rows scaled to the images of each label."""
    probe: Probe | None
    remarks: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What was found, and what to expect of it."""
        found = len(self.suspects)
        labels = "1 label looks" if found == 1 else f"{found:,} labels look"
        said = f"{labels} wrong among {self.n:,} ({self.by}, {self.folds} folds)."
        if self.probe is None:
            return said
        p = self.probe
        return (
            f"{said} Of {p.planted:,} labels changed on purpose it listed {p.recall.value:.0%} "
            f"({p.recall.low:.0%} to {p.recall.high:.0%}), and {p.precision.value:.0%} of what it then listed "
            f"anew was one of them ({p.precision.low:.0%} to {p.precision.high:.0%}): errors at random are easier "
            "than real ones."
        )

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        probe = self.probe and {
            "planted": self.probe.planted,
            "recall": _interval(self.probe.recall),
            "precision": _interval(self.probe.precision),
        }
        return {
            "by": self.by,
            "folds": self.folds,
            "n": self.n,
            "agreement": _interval(self.accuracy),
            "estimated_wrong": self.estimated,
            "probe": probe,
            "pairs": [asdict(pair) for pair in confused_pairs(self.joint, self.classes, top=20)],
            "suspects": [asdict(one) | {"margin": one.margin} for one in self.suspects],
            "sentence": self.sentence,
            "remarks": list(self.remarks),
        }


def _interval(one: Interval) -> dict[str, float]:
    return {"value": one.value, "low": one.low, "high": one.high, "n": one.n}


def find_suspects(
    dataset: Dataset,
    by: str = DEFAULT,
    *,
    folds: int = 5,
    seed: int = 0,
    recipe: Recipe | None = None,
    probe: bool = True,
    device: str = "auto",
) -> Suspects:
    """Rank the labels of a dataset that look wrong, whatever part they are in.

    ``by`` is a baseline (its features are made once) or a network, trained by ``recipe`` on each fold. A
    ``probe``, of baselines only, changes some labels on purpose and looks again. Copies and near duplicates
    stay in one fold. Raises DataError where fewer than two classes have two distinct images, ChoiceError for an
    unknown ``by``.
    """
    chosen = entrant(by, (recipe or Recipe(epochs=8)).replace(seed=seed))
    kept, remarks = _usable(dataset)
    part = dataset.subset(kept)
    dealt = _dealt(part, folds, seed, None if recipe is None else recipe.group)
    trained = len(dealt) * (2 if probe and chosen.kind == "baseline" else 1)
    progress.say(f"Looking for labels that look wrong: {trained} fits of {chosen.word} to {len(part):,} images.")
    planted: Probe | None = None
    if chosen.kind == "baseline":
        word = baseline(chosen.word)
        vectors = _vectors(part, word)
        with progress.bar("Folds", trained) as advance:
            answers = _out_of_fold(vectors, part.labels, len(part.classes), dealt, word, seed, advance)
            found = _listed(part.labels, answers)
            if probe:
                planted = _probed(vectors, part, found, dealt, word, seed, advance)
    else:
        answers = _by_network(part, chosen, dealt, device)
        found = _listed(part.labels, answers)
    joint = confident_joint(part.labels, answers)
    return Suspects(
        by=chosen.word,
        folds=len(dealt),
        classes=part.classes,
        n=len(part),
        accuracy=wilson(float((answers.argmax(1) == part.labels).sum()), len(part)),
        suspects=tuple(_suspect(part, answers, kept, i, j) for i, j in found),
        joint=joint,
        estimated=_estimated(joint, part.counts),
        probe=planted,
        remarks=remarks,
    )


def confident_joint(labels: Int[ndarray, " N"], probabilities: Float[ndarray, "N K"]) -> Int[ndarray, "K K"]:
    """Images labelled i that count as truly j: see the head of this file. Some count nowhere."""
    k = probabilities.shape[1]
    truly = _truly(labels, probabilities)
    known = truly >= 0
    return np.bincount(labels[known] * k + truly[known], minlength=k * k).reshape(k, k)


def _truly(labels: ndarray, probabilities: ndarray) -> Int[ndarray, " N"]:
    """The class each image counts as; -1 for none. A class without images is nobody's."""
    k = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    counts = np.bincount(labels, minlength=k)
    sums = np.bincount(labels, weights=own, minlength=k)
    thresholds = np.divide(sums, counts, out=np.full(k, np.inf), where=counts > 0)
    passing = np.where(probabilities >= thresholds - 1e-12, probabilities, -1.0)
    return np.where(passing.max(1) >= 0, passing.argmax(1), -1)


def _listed(labels: ndarray, probabilities: ndarray) -> list[tuple[int, int]]:
    """(image, suggested class) of the suspects, the largest margin first."""
    truly = _truly(labels, probabilities)
    rows = np.flatnonzero((truly >= 0) & (truly != labels))
    margin = probabilities[rows, truly[rows]] - probabilities[rows, labels[rows]]
    rows = rows[np.argsort(-margin, kind="stable")]
    return [(int(i), int(truly[i])) for i in rows]


def _estimated(joint: Int[ndarray, "K K"], counts: Int[ndarray, " K"]) -> float:
    """Share of wrong labels, each row of the joint scaled to the images of its label (Northcutt 2021, eq. 3)."""
    rows = joint.sum(1)
    wrong = np.divide(rows - joint.diagonal(), rows, out=np.zeros(len(rows)), where=rows > 0)
    return float(wrong @ counts / max(1, counts.sum()))


def _suspect(part: Dataset, answers: ndarray, kept: ndarray, i: int, j: int) -> Suspect:
    label = int(part.labels[i])
    return Suspect(
        index=int(kept[i]),
        file=str(part.files[i]),
        label=part.classes[label],
        suggested=part.classes[j],
        p_label=float(answers[i, label]),
        p_suggested=float(answers[i, j]),
    )


def _usable(dataset: Dataset) -> tuple[Int[ndarray, " n"], tuple[str, ...]]:
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


def _dealt(part: Dataset, folds: int, seed: int, group: str | None) -> list[Held]:
    """The folds; fewer of them where a class has fewer distinct images."""
    if folds < 2:
        raise RecipeError(f"{folds} folds were asked for: it takes at least 2.")
    present = np.unique(part.labels)
    distinct = [len(np.unique(part.digests[part.labels == k])) for k in present]
    names = tuple(part.classes[k] for k in present)  # classes that were left out are not dealt
    alone = replace(part, labels=np.searchsorted(present, part.labels), classes=names)
    parted = folds_of(alone, min(folds, *distinct), seed=seed, group=group)
    places = [np.flatnonzero(np.isin(part.rows, fold.held_out.rows)) for fold in parted]
    return [Held(number, seed, where) for number, where in enumerate(places, 1) if len(where)]


def _vectors(part: Dataset, word: Baseline) -> Float[ndarray, "N D"]:
    """The features of every image, in one unit; made once for all folds."""
    features = features_of(word.features, part.geometry)
    network = EstimatorNetwork(len(part.classes), part.geometry.channels, part.geometry.size, features)
    found = np.empty((len(part), sum(network.widths)), np.float32)
    for batch in batches(part, 256):
        found[batch.index.numpy()] = network.vectors(batch.pixels).numpy()
    network.fit_units(found)
    found -= network.shift.numpy()
    found /= network.scale.numpy()
    return found


def _out_of_fold(
    vectors: Float[ndarray, "N D"],
    labels: Int[ndarray, " N"],
    classes: int,
    dealt: Sequence[Held],
    word: Baseline,
    seed: int,
    advance: progress.Advance,
) -> Float[ndarray, "N K"]:
    """Probabilities of each image from the fit that never saw it, with one temperature for all of them."""
    logits = np.zeros((len(labels), classes))
    for held in dealt:
        others = np.setdiff1d(np.arange(len(labels)), held.where)
        fitted = word.estimator(seed).fit(vectors[others], labels[others])
        seen = scores(fitted, vectors[held.where])
        whole = np.repeat(seen.min(1, keepdims=True) - 1, classes, 1)
        whole[:, np.asarray(fitted.classes_, np.int64)] = seen
        logits[held.where] = whole
        advance(1)
    return _softened(torch.from_numpy(logits), labels)


def _softened(logits: torch.Tensor, labels: ndarray) -> Float[ndarray, "N K"]:
    """Softmax at the temperature that fits these labels: one number, from images that were not trained on."""
    t = temperature(logits.float(), torch.from_numpy(labels))
    return torch.softmax(logits.double() / t, 1).numpy()


def _by_network(part: Dataset, chosen: Entrant, dealt: Sequence[Held], device: str) -> Float[ndarray, "N K"]:
    """The same by networks, trained fold by fold; each is stopped at its best epoch on images of other folds."""
    logits = torch.zeros(len(part), len(part.classes))
    open_to_all = {name: column for name, column in part.columns.items() if name != "split"}
    pool = replace(part, columns=open_to_all)
    with progress.bar("Folds", len(dealt)) as advance:
        for held in dealt:
            splits = splits_of(pool, held, chosen.recipe)
            with tempfile.TemporaryDirectory() as place:
                run, _ = chosen.train(splits, Path(place), seed=held.seed, device=runtime.device(device))
            logits[torch.from_numpy(held.where)] = logits_of(run.classifier, pool.subset(held.where))[0]
            advance(1)
    return _softened(logits, part.labels)


def _probed(
    vectors: ndarray,
    part: Dataset,
    found: Sequence[tuple[int, int]],
    dealt: Sequence[Held],
    word: Baseline,
    seed: int,
    advance: progress.Advance,
) -> Probe | None:
    """Change some labels that are not suspect, look again, and count; None where there are too few images."""
    rng = np.random.default_rng([seed, 5])
    before = np.array([i for i, _ in found], np.int64)
    innocent = np.setdiff1d(np.arange(len(part)), before)
    count = min(max(20, round(PLANTED * len(part))), len(innocent) // 4)
    present = np.unique(part.labels)
    if count < 5:
        return None
    chosen = rng.choice(innocent, count, replace=False)
    shift = rng.integers(1, len(present), count)
    labels = part.labels.copy()
    labels[chosen] = present[(np.searchsorted(present, labels[chosen]) + shift) % len(present)]
    answers = _out_of_fold(vectors, labels, len(part.classes), dealt, word, seed, advance)
    listed = np.array([i for i, _ in _listed(labels, answers)], np.int64)
    right = float(np.isin(chosen, listed).sum())
    return Probe(count, wilson(right, count), wilson(right, float(len(np.setdiff1d(listed, before)))))


# on disk


def write_suspects(found: Suspects, dataset: Dataset, folder: Path) -> dict[str, str]:
    """Write ``suspects.csv``, ``suspects.json`` and a gallery ``suspects.png`` of the first 40 into a folder."""
    with (
        replacing(folder / "suspects.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow(["rank", "file", "label", "suggested", "p_label", "p_suggested"])
        for rank, one in enumerate(found.suspects, 1):
            numbers = f"{one.p_label:.6f}", f"{one.p_suggested:.6f}"
            writer.writerow([rank, one.file, one.label, one.suggested, *numbers])
    write_json(folder / "suspects.json", found.as_json())
    files = {"table": str(folder / "suspects.csv"), "record": str(folder / "suspects.json")}
    worst = found.suspects[:SHOWN]
    if not worst:
        (folder / "suspects.png").unlink(missing_ok=True)
        return files
    pixels = dataset[np.array([one.index for one in worst])]
    sheet = contact_sheet(
        list(pixels),
        [one.label for one in worst],
        notes=[f"{one.p_suggested:.0%} {one.suggested}" for one in worst],
    )
    with replacing(folder / "suspects.png") as temporary:
        sheet.save(temporary)
    return files | {"gallery": str(folder / "suspects.png")}
