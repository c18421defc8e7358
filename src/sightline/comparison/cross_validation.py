"""Cross-validation: every image is tested once by a classifier that was not trained on it."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from .. import progress, runtime
from ..data import make_folds, split
from ..errors import DataError, RecipeError
from ..metrics import nadeau_bengio_interval, wilson
from ..training import Recipe, parse_duration, read_dataset, resolve
from ..types import Dataset, Interval, Splits
from .candidates import Candidate, Trial, TrialCache, explain_interruption, parse_candidate, run_candidate_trial


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """A candidate's results on k folds, one or several times."""

    candidate: str
    folds: int
    trials: tuple[Trial, ...]
    """Fold by fold, repetition by repetition."""
    correct: Float[ndarray, " N"]
    """For each labelled image, the share of the repetitions that classified it correctly while it was held out."""
    accuracy: Interval
    """Mean over folds and repetitions, with Nadeau and Bengio's interval; n counts the trainings."""
    std: float
    """Standard deviation of the folds' accuracies."""
    pooled: Interval
    """Accuracy over all held-out images, with Wilson's interval; n counts the images."""
    notes: tuple[str, ...] = ()

    @property
    def repetitions(self) -> int:
        """How often the images were divided into folds."""
        return len(self.trials) // self.folds

    def as_json(self) -> dict[str, Any]:
        """The numbers, without the single images."""
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
    """Train a candidate on all folds but one and test it on that one, for each fold in turn.

    Folds are stratified and keep groups and copies of an image together. A validation split is set aside of the
    training images, as in ``train``. A given test split is not used.

    Args:
        data: images, or what ``sources.find`` takes.
        by: a network's or baseline's word, or a candidate.
        folds: number of folds, at least 2.
        seeds: repetitions, each with other folds: the recipe's seed, that plus 1, ...
        folder: where finished trainings are saved, and not repeated; a temporary folder by default.

    Raises RecipeError for fewer than two folds or one repetition, DataError for more folds than the rarest class
    has distinct images, Interrupted when stopped.
    """
    recipe = recipe or Recipe()
    if not isinstance(data, Dataset):
        recipe = recipe.replace(data=str(data))
    candidate = parse_candidate(by, recipe) if isinstance(by, str) else by
    if isinstance(data, Dataset):
        dataset = data
        recipe = recipe.replace(size=dataset.geometry.size[0], channels=dataset.geometry.channels)
    else:
        plan = resolve(recipe.replace(**candidate.fields)) if candidate.kind == "network" else None
        dataset, chosen = read_dataset(recipe, plan=plan)
        own = {} if candidate.kind == "baseline" else candidate.fields
        recipe = recipe.replace(**{choice.field: choice.value for choice in chosen if choice.field not in own})
    budget = f"{parse_duration(recipe.budget) / (folds * seeds):g}s" if folds > 0 and seeds > 0 else recipe.budget
    candidate = replace(candidate, recipe=recipe.replace(budget=budget))
    pool = cross_validation_pool(dataset)
    held_out = assign_folds(pool, folds, seeds, recipe)
    with ExitStack() as stack:
        place = Path(folder or stack.enter_context(tempfile.TemporaryDirectory()))
        return run_cross_validation(candidate, pool, held_out, place, recipe, runtime.resolve_device(device))


def cross_validation_pool(dataset: Dataset) -> Dataset:
    """All images but those of a given test split."""
    given = dataset.columns.get("split")
    return dataset if given is None else dataset.subset(np.flatnonzero(given != "test"))


@dataclass(frozen=True, eq=False)
class HeldOutFold:
    """One fold of one repetition."""

    number: int
    seed: int
    indices: Int[ndarray, " n"]
    """Positions of the held-out images in the pool."""

    @property
    def name(self) -> str:
        """``fold 2``."""
        return f"fold {self.number}"


def assign_folds(pool: Dataset, folds: int, seeds: int, recipe: Recipe) -> list[HeldOutFold]:
    """The folds of each repetition. Raises RecipeError or DataError where the images cannot be divided so."""
    if seeds < 1:
        raise RecipeError(f"{seeds} repetitions were asked for: it takes at least 1.")
    found = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        for number, fold in enumerate(make_folds(pool, folds, seed=seed, group=recipe.group), 1):
            indices = np.flatnonzero(np.isin(pool.rows, fold.held_out.rows))
            if not len(indices):
                raise DataError(f"Fold {number} of {folds} would have no images: ask for fewer folds.")
            found.append(HeldOutFold(number, seed, indices))
    return found


def fold_splits(pool: Dataset, fold: HeldOutFold, recipe: Recipe) -> Splits:
    """The fold as the test split; training and validation splits of the rest. Groups and copies stay together."""
    words = np.full(len(pool), "train", dtype="<U5")
    words[fold.indices] = "test"
    marked = replace(pool, columns={**pool.columns, "split": words})
    return split(marked, val=recipe.val_fraction, seed=fold.seed, group=recipe.group)


def missing_class_notes(splits: Splits, fold: HeldOutFold) -> list[str]:
    """A sentence where some classes have no images to train on in a fold, and one where some have none to test."""
    found = []
    for purpose, dataset, consequence in (
        ("train on", splits.train, "it is never predicted there"),
        ("test", splits.test, "it is not tested there"),
    ):
        missing = [name for name, n in zip(dataset.classes, dataset.counts, strict=True) if not n]
        if missing:
            names = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
            found.append(
                f"Fold {fold.number} (seed {fold.seed}) has no images of {names} to {purpose}, so {consequence}: "
                "its images belong to too few groups, or are copies of each other. Ask for fewer folds, or add "
                "images."
            )
    return found


def run_cross_validation(
    candidate: Candidate,
    pool: Dataset,
    held_out: Sequence[HeldOutFold],
    folder: Path,
    recipe: Recipe,
    device: torch.device,
) -> CrossValidation:
    """Train and test on every fold that ``folder`` holds no finished trial of, and summarise all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    folds = max(fold.number for fold in held_out)
    asked = [recipe.to_toml(), " ".join(sorted(recipe.fields_set))]
    facts = [*candidate.cache_facts(), *asked, pool.fingerprint, f"{len(pool)} in {folds}"]
    cache = TrialCache(folder, facts)
    unsaved = replace(candidate, recipe=candidate.recipe.replace(data=None))  # its run folder is deleted
    trials, notes, correct = [], [], np.zeros(len(pool))
    with progress.progress_bar(candidate.word, len(held_out)) as advance:
        for fold in held_out:
            splits = fold_splits(pool, fold, recipe)
            notes += missing_class_notes(splits, fold)
            trial = cache.find(fold.name, fold.seed)
            if trial is None:
                with (
                    tempfile.TemporaryDirectory(prefix=".fold-", dir=folder) as place,
                    explain_interruption(f"the training of {candidate.word}"),
                ):
                    trial = run_candidate_trial(
                        unsaved, fold.name, splits, Path(place), seed=fold.seed, device=device
                    )
                cache.add(trial)
                result = f"{trial.accuracy:.2%} in {trial.seconds:,.1f} s"
                progress.notify(f"{candidate.word}, fold {fold.number} of {folds}: {result}.")
            trials.append(trial)
            correct[fold.indices] += trial.correct
            advance(1)
    correct = correct[pool.is_labelled] / (len(trials) // folds)
    accuracies = [trial.accuracy for trial in trials]
    return CrossValidation(
        candidate=candidate.word,
        folds=folds,
        trials=tuple(trials),
        correct=correct,
        accuracy=nadeau_bengio_interval(accuracies, 1 / (folds - 1), bounds=(0.0, 1.0)),
        std=stdev(accuracies),
        pooled=wilson(float(correct.sum()), len(correct)),
        notes=tuple(dict.fromkeys([*notes, *(note for trial in trials for note in trial.notes)])),
    )
