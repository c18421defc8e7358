"""Judges of labels: classifiers that predict every image without having been trained on it."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy import ndarray

from .. import progress, runtime
from ..baselines import extract_features, parse_baseline
from ..choose import choose
from ..features import embed_cached
from ..inference import predict_logits, to_probabilities
from ..models import estimator_scores
from ..training import HEAD_METHODS, build_published_start, fit_temperature
from ..types import Dataset
from .candidates import Candidate
from .cross_validation import HeldOutFold, fold_splits

HEAD_JUDGES = ("probe", "lda")
"""Heads on the kept features of the published network that can judge labels."""

Scores = Callable[[ndarray, ndarray, ndarray], tuple[ndarray, ndarray]]
"""``(features, labels, features of others) -> (known classes, scores of the others)`` of a fitted classifier."""


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Labels -> the probabilities that a classifier, fitted to them on the other folds, gives each image."""

    scores: Scores
    features: Float[ndarray, "N D"]
    classes: int
    held_out: Sequence[HeldOutFold]

    def __call__(self, labels: Int[ndarray, " N"]) -> Float[ndarray, "N K"]:
        """Fit every fold; one temperature is fitted to all of them together."""
        logits = np.zeros((len(labels), self.classes))
        with progress.progress_bar("Folds", len(self.held_out)) as advance:
            for fold in self.held_out:
                others = np.setdiff1d(np.arange(len(labels)), fold.indices)
                known, found = self.scores(self.features[others], labels[others], self.features[fold.indices])
                whole = np.repeat(found.min(1, keepdims=True) - 1, self.classes, 1)
                whole[:, known] = found
                logits[fold.indices] = whole
                advance(1)
        return _calibrate_out_of_fold(torch.from_numpy(logits), labels)


def baseline_judge(word: str, part: Dataset, held_out: Sequence[HeldOutFold], seed: int) -> OutOfFold:
    """The judge of a baseline, whose features are extracted once."""
    baseline = parse_baseline(word)
    _, features = extract_features(baseline, part)

    def scores(images: ndarray, labels: ndarray, others: ndarray) -> tuple[ndarray, ndarray]:
        fitted = baseline.make_estimator(seed).fit(images, labels)
        return np.asarray(fitted.classes_, np.int64), estimator_scores(fitted, others)

    return OutOfFold(scores, features, len(part.classes), held_out)


def head_judge(word: str, part: Dataset, held_out: Sequence[HeldOutFold], seed: int) -> OutOfFold:
    """The judge of a head on kept features; a penalty that the word leaves open is chosen once, on all images.

    Eight penalties are too few to fit one wrong label by the choice among them.
    """
    features = embed_cached(build_published_start(part, runtime.resolve_device()), part)
    judges: Mapping[str, Callable[..., Any]] = {name: HEAD_METHODS[name] for name in HEAD_JUDGES}
    head: Any = choose(judges, word, "judge")
    if getattr(head, "penalty", 0) is None:
        present, packed = np.unique(part.labels, return_inverse=True)
        chosen = head.fit(features, packed, len(present), seed=seed)
        head = replace(head, penalty=chosen.facts["penalty"])

    def scores(images: ndarray, labels: ndarray, others: ndarray) -> tuple[ndarray, ndarray]:
        present, packed = np.unique(labels, return_inverse=True)
        fitted = head.fit(images, packed, len(present), seed=seed)
        return present, F.linear(torch.from_numpy(others), fitted.weight, fitted.bias).numpy()

    return OutOfFold(scores, features, len(part.classes), held_out)


def network_probabilities(
    part: Dataset, candidate: Candidate, held_out: Sequence[HeldOutFold], device: str
) -> Float[ndarray, "N K"]:
    """Out-of-fold probabilities of networks; each keeps its best epoch on validation images of the other folds."""
    logits = torch.zeros(len(part), len(part.classes))
    columns = {name: column for name, column in part.columns.items() if name != "split"}
    pool = replace(part, columns=columns)
    with progress.progress_bar("Folds", len(held_out)) as advance:
        for fold in held_out:
            splits = fold_splits(pool, fold, candidate.recipe)
            with tempfile.TemporaryDirectory() as folder:
                run, _ = candidate.train(
                    splits, Path(folder), seed=fold.seed, device=runtime.resolve_device(device)
                )
            logits[torch.from_numpy(fold.indices)] = predict_logits(run.classifier, pool.subset(fold.indices))[0]
            advance(1)
    return _calibrate_out_of_fold(logits, part.labels)


def _calibrate_out_of_fold(logits: torch.Tensor, labels: Int[ndarray, " N"]) -> Float[ndarray, "N K"]:
    """Probabilities at the temperature that fits these labels; no image was trained on."""
    return to_probabilities(logits.double(), fit_temperature(logits.float(), torch.from_numpy(labels)))
