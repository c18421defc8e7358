"""Networks and baselines trained and tested on the same images: which is best, by how much, and at what cost."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .. import progress, runtime
from ..baselines import DEFAULT_BASELINES
from ..data import split
from ..errors import DataError, Interrupted, RecipeError, SightlineError, TrainingError
from ..files import atomic_replace, open_comparison_folder, read_json_object, write_json
from ..metrics import wilson
from ..pictures import plot_candidates
from ..training import Recipe, default_network, parse_duration, read_dataset, resolve
from ..types import Dataset, Splits
from .candidates import (
    Candidate,
    TrialCache,
    clear_run_folder,
    explain_interruption,
    names_head,
    parse_candidate,
    run_candidate_trial,
)
from .cross_validation import HeldOutFold, assign_folds, cross_validation_pool, run_cross_validation
from .ranking import CandidateResult, Comparison, rank_candidates

COMPARISON_FILE, COMPARISON_PICTURE = "compare.json", "compare.png"

SECOND_NETWORK = {"lenet5": "resnet20", "resnet20": "small-cnn"}
"""Default network -> the network that a comparison adds to it; lenet5 for every other one."""

PHOTO_MODELS = ("prototypes", "lda", "probe", "finetune", "small-cnn")
"""What a comparison of photos tries: heads on published weights, fine-tuning, and a small network from scratch."""

PHOTO_BASELINES = ("svm-rbf@hog", "knn@hog")
"""Its baselines: raw pixels of photos are too many to learn from."""


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
    """Train networks and baselines on the same training images, test them on the same test images, and rank them.

    Args:
        data: what ``sources.find`` takes.
        models: words of networks, or of heads on published weights such as ``probe``; by default ``PHOTO_MODELS`` for
            photos, else the network that fits the images and a second one.
        baselines: words of baselines; by default ``PHOTO_BASELINES`` or ``DEFAULT_BASELINES``.
        features: what a baseline without features of its own learns from: each of these in turn.
        folds: 0 for one split; otherwise the number of cross-validation folds.
        seeds: trainings of each candidate (and divisions into folds).
        recipe: how networks are trained; its budget is shared by all of them.
        out: folder of compare.json, compare.png and a run for each candidate; ``runs/DATA-compare`` by default.
            Finished trainings in it are not repeated.

    A candidate that fails is listed with its reason. Raises SightlineError for unknown names and for data that
    cannot be used, Interrupted when stopped.
    """
    recipe = (recipe or Recipe()).replace(data=str(data))
    if folds < 0 or folds == 1:
        raise RecipeError(f"--folds is {folds}: it takes at least 2, or 0 for one test without folds.")
    if seeds < 1:
        raise RecipeError(f"--seeds is {seeds}: it takes at least 1.")
    if recipe.model is not None:
        raise RecipeError("A comparison takes several networks: name them with --models, separated by commas.")
    named = _parse_candidates(recipe, models or (), baselines or (), features)  # a misspelt name fails early
    heads = [one.fields for one in named if one.kind == "network" and names_head(one.word)]
    start = resolve(recipe.replace(**(heads[0] if heads else {}))) if heads or models is None else None
    dataset, defaults = read_dataset(recipe, plan=start)
    photos = any(default.field == "model" for default in defaults)
    for note in (*dataset.notes, *(one.reason for one in defaults if one.reason and one.field != "model")):
        progress.notify(note)
    own = ("model", "normalize")  # of each candidate
    recipe = recipe.replace(**{one.field: one.value for one in defaults if one.field not in own})
    if models is None and not photos:
        chosen = default_network(resolve(recipe), train_images=len(dataset))
        network = next(default for default in chosen if default.field == "model")
        models = (str(network.value), SECOND_NETWORK.get(str(network.value), "lenet5"))
    usual = PHOTO_BASELINES if photos else DEFAULT_BASELINES
    others = usual if baselines is None else baselines
    candidates = _parse_candidates(recipe, PHOTO_MODELS if models is None else models, others, features)
    if len(candidates) < 2:
        raise RecipeError("A comparison takes at least two candidates: add --models or --baselines.")
    protocol = _Protocol.from_dataset(dataset, recipe, folds, seeds)
    chosen_fields = " ".join(sorted(recipe.fields_set))
    facts = [recipe.replace(data=None).to_toml(), chosen_fields, dataset.fingerprint, f"{folds} {seeds}"]
    name = f"{Path(recipe.data or '').name.partition('.')[0]}-compare".replace(":", "_")
    folder = open_comparison_folder(out, name, COMPARISON_FILE, facts, "images, recipe, --folds or --seeds")
    for note in (*protocol.notes, protocol.announcement(candidates, folder)):
        progress.notify(note)
    networks = sum(one.kind == "network" for one in candidates)
    budget = f"{parse_duration(recipe.budget) / max(1, networks * protocol.trainings):g}s"
    shared = [replace(one, recipe=recipe.replace(budget=budget)) for one in candidates]
    return _run_candidates(shared, protocol, folder, runtime.resolve_device(device))


def _parse_candidates(
    recipe: Recipe, models: Sequence[str], baselines: Sequence[str], features: Sequence[str]
) -> list[Candidate]:
    """The candidates, each once; RecipeError for a network among the baselines or the reverse."""
    found = [parse_candidate(word, recipe) for word in models]
    for one in found:
        if one.kind != "network":
            raise RecipeError(f"'{one.word}' is a baseline: name it with --baselines.")
    for word in baselines:
        found += [parse_candidate(word, recipe, features=each) for each in (("",) if "@" in word else features)]
    for one in found[len(models) :]:
        if one.kind == "network":
            raise RecipeError(f"'{one.word}' is a network: name it with --models.")
    return list({one.word: one for one in found}.values())


@dataclass(frozen=True, eq=False)
class _Protocol:
    """The images on which every candidate is trained and tested: one split, or folds."""

    recipe: Recipe
    folds: int
    seeds: int
    splits: Splits | None
    pool: Dataset
    """All images that are tested."""
    held_out: Sequence[HeldOutFold]

    @classmethod
    def from_dataset(cls, dataset: Dataset, recipe: Recipe, folds: int, seeds: int) -> "_Protocol":
        """Split the images; raises DataError where a class would have no training images."""
        if folds:
            pool = cross_validation_pool(dataset)
            return cls(recipe, folds, seeds, None, pool, assign_folds(pool, folds, seeds, recipe))
        splits = split(
            dataset, val=recipe.val_fraction, test=recipe.test_fraction, seed=recipe.seed, group=recipe.group
        )
        counts = zip(splits.train.classes, splits.train.counts, strict=True)
        if missing := [name for name, n in counts if not n]:
            names = ", ".join(map(repr, missing[:5]))
            raise DataError(f"No image is left to learn {names} from: add images, or remove the class.")
        return cls(recipe, 0, seeds, splits, splits.test, ())

    @property
    def trainings(self) -> int:
        """Trainings of each candidate."""
        return max(1, self.folds) * self.seeds

    @property
    def notes(self) -> tuple[str, ...]:
        """How the images were split, one sentence each."""
        if self.splits is not None:
            return self.splits.notes
        unused = "" if "split" not in self.pool.columns else " The given test split is not used."
        times = "" if self.seeds == 1 else f", divided {self.seeds} times"
        return (f"{self.folds} folds of {len(self.pool):,} images{times}.{unused}",)

    def announcement(self, candidates: Sequence[Candidate], folder: Path) -> str:
        """A sentence about the work ahead."""
        networks = sum(one.kind == "network" for one in candidates)
        several = f", {self.trainings} trainings each" if self.trainings > 1 else ""
        epochs = "1 epoch" if self.recipe.epochs == 1 else f"{self.recipe.epochs} epochs"
        time = f"{epochs} each" if self.recipe.epochs is not None else f"{self.recipe.budget} together (--budget)"
        return (
            f"{len(candidates)} candidates{several}: networks ({networks}), {time}; baselines "
            f"({len(candidates) - networks}). Results go to '{folder}'. If stopped, the same command continues."
        )

    def evaluate(self, candidate: Candidate, folder: Path, device: torch.device) -> CandidateResult:
        """The candidate's result; trains where ``folder`` holds no finished trial."""
        if self.splits is None:
            cross = run_cross_validation(candidate, self.pool, self.held_out, folder, self.recipe, device)
            accuracy, correct, trials = cross.pooled, cross.correct, cross.trials
            interval, notes = cross.accuracy, cross.notes
        else:
            facts = [*candidate.cache_facts(), self.recipe.to_toml(), self.pool.fingerprint]
            cache = TrialCache(folder, [*facts, f"{len(self.pool)} test"])
            for seed in range(self.recipe.seed, self.recipe.seed + self.seeds):
                if cache.find("test", seed) is None:
                    place = folder if seed == self.recipe.seed else folder / f"seed-{seed}"
                    with explain_interruption(f"the training of {candidate.word}"):
                        cache.add(
                            run_candidate_trial(candidate, "test", self.splits, place, seed=seed, device=device)
                        )
            seeds = range(self.recipe.seed, self.recipe.seed + self.seeds)
            trials = tuple(trial for seed in seeds if (trial := cache.find("test", seed)) is not None)
            correct = np.mean([trial.correct for trial in trials], axis=0)
            accuracy, interval = wilson(float(correct.sum()), len(correct)), None
            notes = tuple(dict.fromkeys(note for trial in trials for note in trial.notes))
        return CandidateResult(
            candidate=candidate.word,
            kind=candidate.kind,
            accuracy=accuracy,
            correct=correct,
            trials=trials,
            folder=str(folder),
            fold_interval=interval,
            notes=notes,
        )


def _run_candidates(
    candidates: Sequence[Candidate], protocol: _Protocol, folder: Path, device: torch.device
) -> Comparison:
    """Evaluate every candidate in turn; the files are written after each, for whoever stops here."""
    results, failures = [], []
    comparison = None
    for number, candidate in enumerate(candidates, 1):
        own = folder / candidate.folder_name
        try:
            result = protocol.evaluate(candidate, own, device)
        except Interrupted:
            raise
        except Exception as error:  # the other candidates go on, even if one of them raises
            failures.append((candidate.word, _failure_reason(error)))
            clear_run_folder(own)
            outcome = f"failed. {failures[-1][1]}"
        else:
            results.append(result)
            outcome = f"{result.accuracy.value:.2%}, trained in {result.train_seconds:,.1f} s."
        progress.notify(f"{number} of {len(candidates)}, {candidate.word}: {outcome}")
        comparison = rank_candidates(
            protocol.recipe.data or "", protocol.folds, protocol.seeds, results, failures, protocol.notes
        )
        value = comparison.as_json()
        write_json(
            folder / COMPARISON_FILE, {"key": read_json_object(folder / COMPARISON_FILE).get("key"), **value}
        )
        if results:
            with atomic_replace(folder / COMPARISON_PICTURE) as temporary:
                plot_candidates(value["entrants"]).save(temporary, format="PNG")
    if comparison is None or not results:
        word, reason = failures[0]
        raise TrainingError(f"No candidate gave a result. {word}: {reason}")
    return comparison


def _failure_reason(error: Exception) -> str:
    """One sentence about why a candidate failed."""
    if isinstance(error, SightlineError):
        return str(error)
    text = (str(error).splitlines() or [""])[0].strip().rstrip(".")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "llocate memory" in text:
        return "It ran out of memory: choose a smaller --size, --batch-size or --limit, or other --features."
    return f"{type(error).__name__}: {text}." if text else f"{type(error).__name__}."
