"""Cross-validation: every image is tested once by a classifier that never saw it, and what that tells."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from .. import progress, runtime
from ..data import make_folds as folds_of
from ..data import split
from ..errors import DataError, Interrupted, RecipeError
from ..metrics import nadeau_bengio_interval, wilson
from ..training import Recipe, parse_duration, read_dataset
from ..types import Dataset, Interval, Splits
from .candidates import Candidate, Trial, TrialCache, parse_candidate, run_candidate_trial


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """What an entrant gave on k folds, one or several times."""

    candidate: str
    folds: int
    trials: tuple[Trial, ...]
    """Fold by fold, repetition by repetition."""
    correct: Float[ndarray, " N"]
    """For each image, the share of the repetitions that answered it rightly while it was held out."""
    accuracy: Interval
    """Mean over folds and repetitions, with the interval of Nadeau and Bengio; n counts the trainings."""
    std: float
    """Standard deviation of the folds' accuracies."""
    pooled: Interval
    """Accuracy over all held-out images, with Wilson's interval; n counts the images."""
    notes: tuple[str, ...] = ()

    @property
    def repetitions(self) -> int:
        """Times that the images were dealt anew."""
        return len(self.trials) // self.folds

    def as_json(self) -> dict[str, Any]:
        """The numbers, under the names of the field."""
        return {
            "entrant": self.candidate,
            "folds": self.folds,
            "repetitions": self.repetitions,
            "accuracy": self.accuracy.value,
            "intervals": {"accuracy": self.accuracy.as_json()},
            "deviation": self.std,
            "fold_accuracies": [trial.accuracy for trial in self.trials],
            "pooled": self.pooled.as_json(),
            "n": self.pooled.n,
            "train_seconds": fmean(trial.seconds for trial in self.trials),
            "seconds_per_image": fmean(trial.seconds_per_image for trial in self.trials),
            "bytes": round(fmean(trial.bundle_bytes for trial in self.trials)),
            "notes": list(self.notes),
        }


def cross_validate(
    data: str | Path | Dataset,
    by: str | Candidate,
    *,
    folds: int = 5,
    seeds: int = 1,
    recipe: Recipe | None = None,
    folder: str | Path | None = None,
    device: str = "auto",
) -> CrossValidation:
    """Train ``by`` (a network's or baseline's word) on all folds but one and test it there, in turn.

    Folds are stratified, keep groups and copies together, and are dealt anew for each of ``seeds``: the recipe's,
    that plus one, ... Of the training images a validation part is split off, as in ``train``. A given test
    part is left alone. Finished trainings are kept in ``folder`` and not repeated. Raises RecipeError for fewer
    than two folds, DataError for more than the rarest class has images, Interrupted when stopped.
    """
    recipe = recipe or Recipe()
    if not isinstance(data, Dataset):
        recipe = recipe.replace(data=str(data))
    by = parse_candidate(by, recipe) if isinstance(by, str) else by
    if isinstance(data, Dataset):
        dataset = data
        recipe = recipe.replace(size=dataset.geometry.size[0], channels=dataset.geometry.channels)
    else:
        dataset, chosen = read_dataset(recipe)
        recipe = recipe.replace(**{choice.field: choice.value for choice in chosen})
    budget = f"{parse_duration(recipe.budget) / (folds * seeds):g}s" if folds > 0 and seeds > 0 else recipe.budget
    by = replace(by, recipe=recipe.replace(budget=budget))
    pool = cross_validation_pool(dataset)
    dealt = assign_folds(pool, folds, seeds, recipe)
    with ExitStack() as stack:
        place = Path(folder or stack.enter_context(tempfile.TemporaryDirectory()))
        return run_cross_validation(
            by, pool, dealt, place, recipe, runtime.resolve_device(device), say=progress.notify
        )


def cross_validation_pool(dataset: Dataset) -> Dataset:
    """The images that cross-validation may use: all but a given test part."""
    given = dataset.columns.get("split")
    return dataset if given is None else dataset.subset(np.flatnonzero(given != "test"))


@dataclass(frozen=True, eq=False)
class HeldOutFold:
    """One fold of one repetition."""

    number: int
    seed: int
    indices: Int[ndarray, " n"]
    """Positions of the held-out images."""

    @property
    def name(self) -> str:
        """Its name among the trials."""
        return f"fold {self.number}"


def assign_folds(pool: Dataset, folds: int, seeds: int, recipe: Recipe) -> list[HeldOutFold]:
    """The folds of each repetition; raises RecipeError or DataError where there can be none."""
    if seeds < 1:
        raise RecipeError(f"{seeds} repetitions were asked for: it takes at least 1.")
    found = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        for number, fold in enumerate(folds_of(pool, folds, seed=seed, group=recipe.group), 1):
            where = np.flatnonzero(np.isin(pool.rows, fold.held_out.rows))
            if not len(where):
                raise DataError(f"Fold {number} of {folds} would have no images: ask for fewer folds.")
            found.append(HeldOutFold(number, seed, where))
    return found


def fold_splits(pool: Dataset, held: HeldOutFold, recipe: Recipe) -> Splits:
    """The fold as a test part, and a validation part split off the rest, whole units on one side."""
    words = np.full(len(pool), "train", dtype="<U5")
    words[held.indices] = "test"
    return split(
        replace(pool, columns={**pool.columns, "split": words}), val=recipe.val, seed=held.seed, group=recipe.group
    )


def missing_class_notes(splits: Splits, held: HeldOutFold) -> list[str]:
    """A sentence for each class that a fold has no images of, to learn from or to test."""
    found = []
    for part, dataset, why in (
        ("learn from", splits.train, "it cannot be answered there"),
        ("test", splits.test, "nothing is said about it there"),
    ):
        lacking = [name for name, n in zip(dataset.classes, dataset.counts, strict=True) if not n]
        if lacking:
            names = ", ".join(map(repr, lacking[:3])) + (", ..." if len(lacking) > 3 else "")
            found.append(
                f"Fold {held.number} (seed {held.seed}) has no images of {names} to {part}, so {why}: its images "
                "are of too few groups, or copies of each other. Ask for fewer folds, or add images."
            )
    return found


def run_cross_validation(
    by: Candidate,
    pool: Dataset,
    dealt: Sequence[HeldOutFold],
    folder: Path,
    recipe: Recipe,
    device: torch.device,
    *,
    say: Callable[[str], None],
) -> CrossValidation:
    """The trials of all folds, those of ``folder`` as they are kept, summed up."""
    folder.mkdir(parents=True, exist_ok=True)
    count = max(held.number for held in dealt)
    kept = TrialCache(folder, [*by.cache_facts(), recipe.to_toml(), pool.fingerprint, f"{len(pool)} in {count}"])
    trials, notes, right = [], [], np.zeros(len(pool))
    with progress.progress_bar(by.word, len(dealt)) as advance:
        for held in dealt:
            splits = fold_splits(pool, held, recipe)
            notes += missing_class_notes(splits, held)
            trial = kept.find(held.name, held.seed)
            if trial is None:
                with tempfile.TemporaryDirectory(prefix=".fold-", dir=folder) as place, explain_interruption(by):
                    nowhere = replace(by, recipe=by.recipe.replace(data=None))  # nobody opens it again
                    trial = kept.add(
                        run_candidate_trial(nowhere, held.name, splits, Path(place), seed=held.seed, device=device)
                    )
                say(f"{by.word}, fold {held.number} of {count}: {trial.accuracy:.2%} in {trial.seconds:,.1f} s.")
            trials.append(trial)
            right[held.indices] += trial.correct
            advance(1)
    return summarise_folds(by.word, count, trials, right, notes)


def summarise_folds(
    word: str, folds: int, trials: Sequence[Trial], right: Float[ndarray, " N"], notes: Sequence[str]
) -> CrossValidation:
    """Trials of all folds, and how often each image was right, as one result."""
    share = right / (len(trials) // folds)
    accuracies = [trial.accuracy for trial in trials]
    complaints = (note for trial in trials for note in trial.notes)
    return CrossValidation(
        candidate=word,
        folds=folds,
        trials=tuple(trials),
        correct=share,
        accuracy=nadeau_bengio_interval(accuracies, 1 / (folds - 1), bounds=(0.0, 1.0)),
        std=stdev(accuracies),
        pooled=wilson(float(share.sum()), len(share)),
        notes=tuple(dict.fromkeys((*notes, *complaints))),
    )


@contextmanager
def explain_interruption(by: Candidate) -> Iterator[None]:
    """Training's own message of an interruption names a folder that is gone by then."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(
            f"Stopped while {by.word} was trained; what was finished before is kept. Go on with the same command."
        ) from error
