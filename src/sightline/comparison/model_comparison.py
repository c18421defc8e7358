"""Networks and baselines on the same images: who is best, by how much, how surely, and at what price."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import progress, runtime
from ..baselines import DEFAULT_BASELINES
from ..data import split
from ..errors import DataError, Interrupted, OutputError, RecipeError, SightlineError, TrainingError
from ..files import atomic_replace, explain_write_errors, write_json
from ..metrics import wilson
from ..training import Recipe, defaults, parse_duration, read_dataset
from ..types import Dataset, Splits
from .candidates import Candidate, TrialCache, clear_run_folder, parse_candidate, run_candidate_trial
from .cross_validation import (
    HeldOutFold,
    assign_folds,
    cross_validation_pool,
    explain_interruption,
    run_cross_validation,
)
from .ranking import CandidateResult, Comparison, plot_comparison, rank_candidates

SECOND_NETWORK = {"lenet5": "resnet20", "resnet20": "small-cnn"}
"""Chosen network -> the second one that a comparison takes by itself."""


def compare(
    data: str | Path,
    *,
    models: Sequence[str] | None = None,
    baselines: Sequence[str] | None = None,
    features: Sequence[str] = ("pixels",),
    folds: int = 0,
    seeds: int = 1,
    recipe: Recipe | None = None,
    out: str | Path | None = None,
    device: str = "auto",
) -> Comparison:
    """Train networks and fit baselines on the same training images, test them on the same others, and rank them.

    ``models`` and ``baselines`` are words; by themselves two networks that fit the images and six baselines; the
    baselines without features of their own take each of ``features``. The recipe's budget is shared by the
    networks. ``folds`` cross-validates instead of one split. ``out`` (runs/DATA-compare) gets compare.json,
    compare.png and a run of each entrant; what is finished there is not repeated. An entrant that fails becomes a
    failure with its reason. Raises SightlineError for names or data nobody can use, Interrupted when stopped.
    """
    asked = (recipe or Recipe()).replace(data=str(data))
    if folds < 0 or folds == 1:
        raise RecipeError(f"--folds is {folds}: it takes at least 2, or 0 for one test without folds.")
    if seeds < 1:
        raise RecipeError(f"--seeds is {seeds}: it takes at least 1.")
    if asked.model is not None:
        raise RecipeError("A comparison takes several networks: name them with --models, separated by commas.")
    _parse_candidates(
        asked, models or (), baselines or (), features
    )  # a misspelt name, before an hour of decoding
    dataset, chosen = read_dataset(asked)
    for note in (*dataset.notes, *(choice.reason for choice in chosen)):
        progress.notify(note)
    asked = asked.replace(**{choice.field: choice.value for choice in chosen})
    if models is None:
        first = next(
            c.value for c in defaults.default_network(asked, train_images=len(dataset)) if c.field == "model"
        )
        models = (str(first), SECOND_NETWORK.get(str(first), "lenet5"))
    entrants = _parse_candidates(asked, models, DEFAULT_BASELINES if baselines is None else baselines, features)
    if len(entrants) < 2:
        raise RecipeError("A comparison takes at least two entrants: add --models or --baselines.")
    plan = _ComparisonPlan.from_dataset(dataset, asked, folds, seeds)
    place = _prepare_folder(
        out, asked, [asked.replace(data=None).to_toml(), dataset.fingerprint, f"{folds} {seeds}"]
    )
    _announce_cost(entrants, plan, asked, place)
    return _run_candidates(
        _split_budget(entrants, asked, plan.trainings), plan, place, runtime.resolve_device(device)
    )


def _parse_candidates(
    recipe: Recipe, models: Sequence[str], baselines: Sequence[str], features: Sequence[str]
) -> list[Candidate]:
    found = [parse_candidate(word, recipe) for word in models]
    for one in found:
        if one.kind != "network":
            raise RecipeError(f"'{one.word}' is a baseline: name it with --baselines.")
    for word in baselines:
        found += [parse_candidate(word, recipe, features=each) for each in (("",) if "@" in word else features)]
    strange = [one.word for one in found[len(models) :] if one.kind == "network"]
    if strange:
        raise RecipeError(f"'{strange[0]}' is a network: name it with --models.")
    return list({one.word: one for one in found}.values())


def _split_budget(entrants: Sequence[Candidate], recipe: Recipe, trainings: int) -> list[Candidate]:
    """Each network with its share of the time."""
    networks = sum(one.kind == "network" for one in entrants)
    budget = f"{parse_duration(recipe.budget) / max(1, networks * trainings):g}s"
    return [replace(one, recipe=recipe.replace(budget=budget)) for one in entrants]


@dataclass(frozen=True, eq=False)
class _ComparisonPlan:
    """On which images everybody is trained and tested."""

    recipe: Recipe
    folds: int
    seeds: int
    splits: Splits | None
    pool: Dataset
    held_out_folds: Sequence[HeldOutFold]

    @classmethod
    def from_dataset(cls, dataset: Dataset, recipe: Recipe, folds: int, seeds: int) -> "_ComparisonPlan":
        if folds:
            pool = cross_validation_pool(dataset)
            return cls(recipe, folds, seeds, None, pool, assign_folds(pool, folds, seeds, recipe))
        splits = split(dataset, val=recipe.val, test=recipe.test, seed=recipe.seed, group=recipe.group)
        counts = zip(splits.train.classes, splits.train.counts, strict=True)
        if lacking := [name for name, count in counts if not count]:
            names = ", ".join(map(repr, lacking[:5]))
            raise DataError(f"No image is left to learn {names} from: add images, or remove the class.")
        return cls(recipe, 0, seeds, splits, splits.test, ())

    @property
    def trainings(self) -> int:
        """Of each entrant."""
        return max(1, self.folds) * self.seeds

    @property
    def notes(self) -> tuple[str, ...]:
        """How the images were parted."""
        if self.splits is not None:
            return self.splits.notes
        left = "" if "split" not in self.pool.columns else " The given test part is left alone."
        return (f"{self.folds} folds of {len(self.pool):,} images, dealt {self.seeds} times.{left}",)

    def evaluate_candidate(self, by: Candidate, place: Path, device: torch.device) -> CandidateResult:
        """Everything about one entrant, trained where that is not done yet."""
        folder = place / by.folder_name
        if self.splits is None:
            cross = run_cross_validation(
                by, self.pool, self.held_out_folds, folder, self.recipe, device, say=progress.notify
            )
            return CandidateResult(
                by.word,
                by.kind,
                cross.pooled,
                cross.correct,
                cross.trials,
                str(folder),
                cross.accuracy,
                cross.notes,
            )
        facts = [*by.cache_facts(), self.recipe.to_toml(), self.pool.fingerprint, f"{len(self.pool)} test"]
        kept, trials = TrialCache(folder, facts), []
        for seed in range(self.recipe.seed, self.recipe.seed + self.seeds):
            trial = kept.find("test", seed)
            if trial is None:
                own = folder if seed == self.recipe.seed else folder / f"seed-{seed}"
                with explain_interruption(by):
                    trial = kept.add(run_candidate_trial(by, "test", self.splits, own, seed=seed, device=device))
            trials.append(trial)
        right = np.mean([trial.right for trial in trials], axis=0)
        notes = tuple(dict.fromkeys(note for trial in trials for note in trial.notes))
        accuracy = wilson(float(right.sum()), len(right))
        return CandidateResult(by.word, by.kind, accuracy, right, tuple(trials), str(folder), None, notes)


def _run_candidates(
    entrants: Sequence[Candidate], plan: _ComparisonPlan, place: Path, device: torch.device
) -> Comparison:
    """Every entrant in turn; the record is written after each, so that a stopped comparison shows what it has."""
    results, failures = [], []
    comparison = None
    for number, by in enumerate(entrants, 1):
        try:
            results.append(plan.evaluate_candidate(by, place, device))
        except Interrupted:
            raise
        except Exception as error:  # whatever one entrant does, the others go on
            failures.append((by.word, _failure_reason(error)))
            clear_run_folder(place / by.folder_name)
            progress.notify(f"{number} of {len(entrants)}, {by.word}: failed. {failures[-1][1]}")
        else:
            one = results[-1]
            said = f"{one.accuracy.value:.2%}, trained in {one.train_seconds:,.1f} s"
            progress.notify(f"{number} of {len(entrants)}, {by.word}: {said}.")
        comparison = rank_candidates(plan.recipe.data or "", plan.folds, plan.seeds, results, failures, plan.notes)
        _write_comparison(comparison, place)
    if comparison is None or not results:
        word, reason = failures[0]
        raise TrainingError(f"No entrant gave a result. {word}: {reason}")
    return comparison


def _failure_reason(error: Exception) -> str:
    """One sentence about why an entrant failed."""
    if isinstance(error, SightlineError):
        return str(error)
    text = (str(error).splitlines() or [""])[0].strip().rstrip(".")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "llocate memory" in text:
        return "It ran out of memory: take a smaller --size, --batch-size, --limit or other --features."
    return f"{type(error).__name__}: {text}." if text else f"{type(error).__name__}."


def _write_comparison(comparison: Comparison, place: Path) -> None:
    write_json(place / "compare.json", {**_read_key(place), **comparison.as_json()})
    if comparison.results:
        with atomic_replace(place / "compare.png") as temporary:
            plot_comparison(comparison).save(temporary, format="PNG")


def _read_key(place: Path) -> dict[str, Any]:
    """What the folder says it belongs to; empty where it says nothing."""
    with suppress(OSError, ValueError):
        content = json.loads((place / "compare.json").read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return {name: content[name] for name in ("key",) if name in content}
    return {}


def _prepare_folder(out: str | Path | None, recipe: Recipe, facts: Sequence[str]) -> Path:
    """The comparison's folder, given or in runs/; raises OutputError where it holds something else."""
    key = hashlib.blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()
    name = f"{Path(recipe.data or '').name.partition('.')[0]}-compare".replace(":", "_")
    for place in (Path(out),) if out is not None else _numbered_paths(Path("runs") / name):
        taken = place.is_file() or (place.is_dir() and any(place.iterdir()))
        if not taken or _read_key(place).get("key") == key:
            with explain_write_errors(place):
                place.mkdir(parents=True, exist_ok=True)
            write_json(place / "compare.json", _read_saved(place) | {"key": key})
            return place
    raise OutputError(
        f"'{out}' holds something else than this comparison (other images, recipe, --folds or --seeds). "
        "Choose another --out."
    )


def _read_saved(place: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return dict(json.loads((place / "compare.json").read_text(encoding="utf-8")))
    return {}


def _numbered_paths(path: Path) -> Iterator[Path]:
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name}-{number}")


def _announce_cost(entrants: Sequence[Candidate], plan: _ComparisonPlan, recipe: Recipe, place: Path) -> None:
    """Say what it will cost, and how the images were parted."""
    for note in plan.notes:
        progress.notify(note)
    networks = sum(one.kind == "network" for one in entrants)
    several = f", {plan.trainings} trainings each" if plan.trainings > 1 else ""
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    time = f"{epochs} each" if recipe.epochs is not None else f"{recipe.budget} together (--budget)"
    progress.notify(
        f"{len(entrants)} entrants{several}: networks ({networks}), {time}; "
        f"baselines ({len(entrants) - networks}). In '{place}'; stop and go on as you like."
    )
