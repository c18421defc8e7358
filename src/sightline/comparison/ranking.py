"""What a comparison gave: entrants in order of accuracy, each against the best, on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ..metrics import bootstrap_difference, holm, mcnemar
from ..types import Interval
from .candidates import Trial

if TYPE_CHECKING:
    from PIL.Image import Image

SIGNIFICANCE_LEVEL = 0.05
"""A corrected p-value below this is called a difference."""


@dataclass(frozen=True, eq=False)
class CandidateResult:
    """What one entrant gave."""

    candidate: str
    kind: str
    accuracy: Interval
    """On the common images, Wilson's; several seeds: their mean."""
    correct: Float[ndarray, " N"]
    """For each image, the share of the seeds that answered it rightly."""
    trials: tuple[Trial, ...]
    folder: str
    fold_interval: Interval | None = None
    """Of folds: their mean with the interval of Nadeau and Bengio."""
    notes: tuple[str, ...] = ()

    @property
    def train_seconds(self) -> float:
        """Mean over its trainings."""
        return fmean(trial.seconds for trial in self.trials)

    @property
    def ms_per_image(self) -> float:
        """Milliseconds to answer one image, in batches; mean over its trainings."""
        return 1000 * fmean(trial.seconds_per_image for trial in self.trials)

    @property
    def bundle_bytes(self) -> int:
        """Bytes of its bundle, mean over its trainings."""
        return round(fmean(trial.bundle_bytes for trial in self.trials))

    @property
    def val_accuracy(self) -> float | None:
        """Mean accuracy on validation images."""
        known = [trial.val_accuracy for trial in self.trials if trial.val_accuracy is not None]
        return fmean(known) if known else None

    @property
    def std(self) -> float | None:
        """Standard deviation of the trainings' accuracies; None of one."""
        return stdev(trial.accuracy for trial in self.trials) if len(self.trials) > 1 else None


@dataclass(frozen=True)
class VersusBest:
    """An entrant against the best one, on the same images."""

    difference: Interval
    """Its accuracy less the best one's, paired bootstrap."""
    p: float
    """McNemar's exact test, on the answers of the first seed."""
    p_holm: float
    """Corrected for the number of entrants (Holm)."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Entrants ranked by accuracy on common images, each against the best."""

    data: str
    folds: int
    seeds: int
    results: tuple[CandidateResult, ...]
    """Best first."""
    versus_best: tuple[VersusBest | None, ...]
    """For each result; None for the best itself."""
    failures: tuple[tuple[str, str], ...]
    """Entrants that gave no result, and why."""
    notes: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the table says, and what it does not."""
        if not self.results:
            return ("No entrant gave a result.",)
        best = self.results[0]
        what = f"{best.accuracy.n:,} {'held-out' if self.folds else 'test'} images"
        said = [f"{best.candidate} is first: {best.accuracy.value:.2%} of {what}."]
        near = [
            one.candidate
            for one, a in zip(self.results, self.versus_best, strict=True)
            if a and a.p_holm >= SIGNIFICANCE_LEVEL
        ]
        if near:
            said.append(
                f"These images cannot tell it from {', '.join(near)} (corrected p of at least {SIGNIFICANCE_LEVEL})."
            )
        elif len(self.results) > 1:
            said.append(
                f"It is better than every other by more than chance (corrected p below {SIGNIFICANCE_LEVEL})."
            )
        said.append(
            "Ranked by the very images that are reported: whoever takes the first one chooses on the test, and "
            "its figure flatters a little. Confirm it on new images."
        )
        return (*said, *self._validation_choice())

    def _validation_choice(self) -> tuple[str, ...]:
        known = [(one.val_accuracy, one) for one in self.results if one.val_accuracy is not None]
        if self.folds or not known:
            return ()
        chosen = max(known, key=lambda pair: pair[0])[1]
        return (f"Validation alone would choose {chosen.candidate} ({chosen.accuracy.value:.2%} of the test).",)

    def as_json(self) -> dict[str, Any]:
        """All of it but the answers to single images."""
        rows = [
            _candidate_row(rank, *pair)
            for rank, pair in enumerate(zip(self.results, self.versus_best, strict=True), 1)
        ]
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


def _candidate_row(rank: int, one: CandidateResult, against: VersusBest | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "rank": rank,
        "entrant": one.candidate,
        "kind": one.kind,
        "accuracy": one.accuracy.value,
        "intervals": {"accuracy": one.accuracy.as_json()},
        "n": one.accuracy.n,
        "validation": one.val_accuracy,
        "accuracies": [trial.accuracy for trial in one.trials],
        "deviation": one.std,
        "over_folds": None if one.fold_interval is None else one.fold_interval.as_json(),
        "train_seconds": one.train_seconds,
        "ms_per_image": one.ms_per_image,
        "bytes": one.bundle_bytes,
        "folder": one.folder,
        "notes": list(one.notes),
    }
    compared = {"difference": None, "p_mcnemar": None, "p_holm": None}
    if against is not None:
        compared = {
            "difference": against.difference.as_json(),
            "p_mcnemar": against.p,
            "p_holm": against.p_holm,
        }
    return row | compared


def rank_candidates(
    data: str,
    folds: int,
    seeds: int,
    results: Sequence[CandidateResult],
    failures: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> Comparison:
    """Results in order of accuracy (then of speed), each tested against the first."""
    order = sorted(results, key=lambda one: (-one.accuracy.value, one.ms_per_image))
    others = order[1:]
    p = [mcnemar(_first_repetition(one, folds), _first_repetition(order[0], folds)) for one in others]
    against = [
        VersusBest(bootstrap_difference(one.correct, order[0].correct), plain, corrected)
        for one, plain, corrected in zip(others, p, holm(p), strict=True)
    ]
    every = (*((None,) if order else ()), *against)
    return Comparison(data, folds, seeds, tuple(order), every, tuple(failures), tuple(notes))


def _first_repetition(one: CandidateResult, folds: int) -> ndarray:
    """Whether each image was right in the first repetition; folds one after the other, alike for every entrant."""
    return np.concatenate([trial.correct for trial in one.trials[: max(1, folds)]])


def plot_comparison(comparison: Comparison) -> "Image":
    """Accuracy with its interval, and the time of one answer, best first."""
    from ..pictures import plot_candidates

    return plot_candidates(comparison.as_json()["entrants"])
