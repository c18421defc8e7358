"""Candidates in order of accuracy, each tested against the best one on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ..metrics import bootstrap_difference, holm, mcnemar
from ..types import Interval
from .candidates import Trial

SIGNIFICANCE_LEVEL = 0.05
"""Corrected p-value below which two candidates are reported as different."""


@dataclass(frozen=True, eq=False)
class CandidateResult:
    """What a comparison measured of one candidate."""

    candidate: str
    kind: str
    """``network`` or ``baseline``."""
    accuracy: Interval
    """On the common images, with Wilson's interval; the mean of several seeds."""
    correct: Float[ndarray, " N"]
    """For each image, the share of the seeds that classified it correctly."""
    trials: tuple[Trial, ...]
    folder: str
    fold_interval: Interval | None = None
    """Mean over folds with Nadeau and Bengio's interval; None without folds."""
    notes: tuple[str, ...] = ()

    @property
    def train_seconds(self) -> float:
        """Seconds of training, mean over the trials."""
        return fmean(trial.seconds for trial in self.trials)

    @property
    def ms_per_image(self) -> float:
        """Milliseconds of one prediction, in batches; mean over the trials."""
        return 1000 * fmean(trial.seconds_per_image for trial in self.trials)

    @property
    def val_accuracy(self) -> float | None:
        """Mean accuracy on validation images; None where nothing was validated."""
        known = [trial.val_accuracy for trial in self.trials if trial.val_accuracy is not None]
        return fmean(known) if known else None

    def as_json(self) -> dict[str, Any]:
        """A row of ``compare.json``, without rank and test against the best."""
        accuracies = [trial.accuracy for trial in self.trials]
        return {
            "entrant": self.candidate,
            "kind": self.kind,
            "accuracy": self.accuracy.value,
            "intervals": {"accuracy": self.accuracy.as_json()},
            "n": self.accuracy.n,
            "validation": self.val_accuracy,
            "accuracies": accuracies,
            "deviation": stdev(accuracies) if len(accuracies) > 1 else None,
            "over_folds": self.fold_interval and self.fold_interval.as_json(),
            "train_seconds": self.train_seconds,
            "ms_per_image": self.ms_per_image,
            "bytes": round(fmean(trial.bundle_bytes for trial in self.trials)),
            "folder": self.folder,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class VersusBest:
    """A candidate compared with the best one on the same images."""

    difference: Interval
    """Its accuracy minus the best one's, paired bootstrap."""
    p: float
    """McNemar's exact test on the first seed."""
    p_holm: float
    """The same, corrected for the number of candidates (Holm)."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Candidates ranked by accuracy on common images, each compared with the best."""

    data: str
    folds: int
    seeds: int
    results: tuple[CandidateResult, ...]
    """Best first."""
    versus_best: tuple[VersusBest | None, ...]
    """For each result; None for the best itself."""
    failures: tuple[tuple[str, str], ...]
    """Candidates without a result, each with the reason."""
    notes: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the table shows, and its limits."""
        if not self.results:
            return ("No candidate gave a result.",)
        best = self.results[0]
        images = f"{best.accuracy.n:,} {'held-out' if self.folds else 'test'} images"
        found = [f"{best.candidate} is first: {best.accuracy.value:.2%} of {images}."]
        near = [
            one.candidate
            for one, versus in zip(self.results, self.versus_best, strict=True)
            if versus and versus.p_holm >= SIGNIFICANCE_LEVEL
        ]
        if near:
            found.append(
                f"These images do not distinguish it from {', '.join(near)} (corrected p of at least "
                f"{SIGNIFICANCE_LEVEL})."
            )
        elif len(self.results) > 1:
            found.append(f"It is significantly better than every other (corrected p below {SIGNIFICANCE_LEVEL}).")
        found.append(
            "The ranking uses the images that are reported, so the accuracy of the first is slightly optimistic. "
            "Confirm it on new images."
        )
        validated = [(one.val_accuracy, one) for one in self.results if one.val_accuracy is not None]
        if validated and not self.folds:
            chosen = max(validated, key=lambda pair: pair[0])[1]
            accuracy = f"{chosen.accuracy.value:.2%} on the test images"
            found.append(f"Validation alone would choose {chosen.candidate} ({accuracy}).")
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """Everything but the single images."""
        rows = []
        for rank, (one, versus) in enumerate(zip(self.results, self.versus_best, strict=True), 1):
            tests = {
                "difference": versus and versus.difference.as_json(),
                "p_mcnemar": versus and versus.p,
                "p_holm": versus and versus.p_holm,
            }
            rows.append({"rank": rank, **one.as_json(), **tests})
        return {
            "data": self.data,
            "folds": self.folds,
            "seeds": self.seeds,
            "n": self.results[0].accuracy.n if self.results else 0,
            "entrants": rows,
            "failures": [{"entrant": word, "error": reason} for word, reason in self.failures],
            "sentences": list(self.sentences),
            "notes": list(self.notes),
        }


def rank_candidates(
    data: str,
    folds: int,
    seeds: int,
    results: Sequence[CandidateResult],
    failures: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> Comparison:
    """Results in order of accuracy, then of speed, each tested against the first."""
    order = sorted(results, key=lambda one: (-one.accuracy.value, one.ms_per_image))
    others = order[1:]
    # the first repetition: one trial for each fold, or one in all; every candidate has its folds in the same order
    first = [np.concatenate([trial.correct for trial in one.trials[: max(1, folds)]]) for one in order]
    p = [mcnemar(one, first[0]) for one in first[1:]]
    versus = [
        VersusBest(bootstrap_difference(one.correct, order[0].correct), plain, corrected)
        for one, plain, corrected in zip(others, p, holm(p), strict=True)
    ]
    every = (*((None,) if order else ()), *versus)
    return Comparison(data, folds, seeds, tuple(order), every, tuple(failures), tuple(notes))
