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
from ..baselines.classifiers import CHEAP
from ..data.parts import split
from ..errors import DataError, Interrupted, OutputError, RecipeError, SightlineError, TrainingError
from ..files import explaining, replacing, write_json
from ..metrics import wilson
from ..training import choices
from ..training.recipe import Recipe, seconds
from ..training.run import read
from ..types import Dataset, Splits
from .crossval import Held, deal, explained, open_part, validated
from .entrants import Entrant, Kept, attempt, begin, entrant
from .standings import Comparison, Result, picture, ranked

RIVAL = {"lenet5": "resnet20", "resnet20": "small-cnn"}
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
    _named(asked, models or (), baselines or (), features)  # a misspelt name, before an hour of decoding
    dataset, chosen = read(asked)
    for note in (*dataset.notes, *(choice.why for choice in chosen)):
        progress.say(note)
    asked = asked.replace(**{choice.field: choice.value for choice in chosen})
    if models is None:
        first = next(c.value for c in choices.network(asked, train_images=len(dataset)) if c.field == "model")
        models = (str(first), RIVAL.get(str(first), "lenet5"))
    entrants = _named(asked, models, CHEAP if baselines is None else baselines, features)
    if len(entrants) < 2:
        raise RecipeError("A comparison takes at least two entrants: add --models or --baselines.")
    plan = _Plan.of(dataset, asked, folds, seeds)
    place = _place(out, asked, [asked.replace(data=None).to_toml(), dataset.fingerprint, f"{folds} {seeds}"])
    _announce(entrants, plan, asked, place)
    return _carried_out(_shared(entrants, asked, plan.trainings), plan, place, runtime.device(device))


def _named(
    recipe: Recipe, models: Sequence[str], baselines: Sequence[str], features: Sequence[str]
) -> list[Entrant]:
    found = [entrant(word, recipe) for word in models]
    for one in found:
        if one.kind != "network":
            raise RecipeError(f"'{one.word}' is a baseline: name it with --baselines.")
    for word in baselines:
        found += [entrant(word, recipe, features=each) for each in (("",) if "@" in word else features)]
    strange = [one.word for one in found[len(models) :] if one.kind == "network"]
    if strange:
        raise RecipeError(f"'{strange[0]}' is a network: name it with --models.")
    return list({one.word: one for one in found}.values())


def _shared(entrants: Sequence[Entrant], recipe: Recipe, trainings: int) -> list[Entrant]:
    """Each network with its share of the time."""
    networks = sum(one.kind == "network" for one in entrants)
    budget = f"{seconds(recipe.budget) / max(1, networks * trainings):g}s"
    return [replace(one, recipe=recipe.replace(budget=budget)) for one in entrants]


@dataclass(frozen=True, eq=False)
class _Plan:
    """On which images everybody is trained and tested."""

    recipe: Recipe
    folds: int
    seeds: int
    splits: Splits | None
    pool: Dataset
    dealt: Sequence[Held]

    @classmethod
    def of(cls, dataset: Dataset, recipe: Recipe, folds: int, seeds: int) -> "_Plan":
        if folds:
            pool = open_part(dataset)
            return cls(recipe, folds, seeds, None, pool, deal(pool, folds, seeds, recipe))
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

    def result(self, by: Entrant, place: Path, device: torch.device) -> Result:
        """Everything about one entrant, trained where that is not done yet."""
        folder = place / by.name
        if self.splits is None:
            cross = validated(by, self.pool, self.dealt, folder, self.recipe, device, say=progress.say)
            return Result(
                by.word, by.kind, cross.pooled, cross.right, cross.trials, str(folder), cross.accuracy, cross.notes
            )
        facts = [*by.identity(), self.recipe.to_toml(), self.pool.fingerprint, f"{len(self.pool)} test"]
        kept, trials = Kept(folder, facts), []
        for seed in range(self.recipe.seed, self.recipe.seed + self.seeds):
            trial = kept.find("test", seed)
            if trial is None:
                own = folder if seed == self.recipe.seed else folder / f"seed-{seed}"
                with explained(by):
                    trial = kept.add(attempt(by, "test", self.splits, own, seed=seed, device=device))
            trials.append(trial)
        right = np.mean([trial.right for trial in trials], axis=0)
        notes = tuple(dict.fromkeys(note for trial in trials for note in trial.notes))
        accuracy = wilson(float(right.sum()), len(right))
        return Result(by.word, by.kind, accuracy, right, tuple(trials), str(folder), None, notes)


def _carried_out(entrants: Sequence[Entrant], plan: _Plan, place: Path, device: torch.device) -> Comparison:
    """Every entrant in turn; the record is written after each, so that a stopped comparison shows what it has."""
    results, failures = [], []
    comparison = None
    for number, by in enumerate(entrants, 1):
        try:
            results.append(plan.result(by, place, device))
        except Interrupted:
            raise
        except Exception as error:  # whatever one entrant does, the others go on
            failures.append((by.word, _reason(error)))
            begin(place / by.name)
            progress.say(f"{number} of {len(entrants)}, {by.word}: failed. {failures[-1][1]}")
        else:
            one = results[-1]
            said = f"{one.accuracy.value:.2%}, trained in {one.train_seconds:,.1f} s"
            progress.say(f"{number} of {len(entrants)}, {by.word}: {said}.")
        comparison = ranked(plan.recipe.data or "", plan.folds, plan.seeds, results, failures, plan.notes)
        _write(comparison, place)
    if comparison is None or not results:
        word, reason = failures[0]
        raise TrainingError(f"No entrant gave a result. {word}: {reason}")
    return comparison


def _reason(error: Exception) -> str:
    """One sentence about why an entrant failed."""
    if isinstance(error, SightlineError):
        return str(error)
    text = (str(error).splitlines() or [""])[0].strip().rstrip(".")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "llocate memory" in text:
        return "It ran out of memory: take a smaller --size, --batch-size, --limit or other --features."
    return f"{type(error).__name__}: {text}." if text else f"{type(error).__name__}."


def _write(comparison: Comparison, place: Path) -> None:
    write_json(place / "compare.json", {**_known(place), **comparison.as_json()})
    if comparison.results:
        with replacing(place / "compare.png") as temporary:
            picture(comparison).save(temporary, format="PNG")


def _known(place: Path) -> dict[str, Any]:
    """What the folder says it belongs to; empty where it says nothing."""
    with suppress(OSError, ValueError):
        content = json.loads((place / "compare.json").read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return {name: content[name] for name in ("key",) if name in content}
    return {}


def _place(out: str | Path | None, recipe: Recipe, facts: Sequence[str]) -> Path:
    """The comparison's folder, given or in runs/; raises OutputError where it holds something else."""
    key = hashlib.blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()
    name = f"{Path(recipe.data or '').name.partition('.')[0]}-compare".replace(":", "_")
    for place in (Path(out),) if out is not None else _numbered(Path("runs") / name):
        taken = place.is_file() or (place.is_dir() and any(place.iterdir()))
        if not taken or _known(place).get("key") == key:
            with explaining(place):
                place.mkdir(parents=True, exist_ok=True)
            write_json(place / "compare.json", _written(place) | {"key": key})
            return place
    raise OutputError(
        f"'{out}' holds something else than this comparison (other images, recipe, --folds or --seeds). "
        "Choose another --out."
    )


def _written(place: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return dict(json.loads((place / "compare.json").read_text(encoding="utf-8")))
    return {}


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name}-{number}")


def _announce(entrants: Sequence[Entrant], plan: _Plan, recipe: Recipe, place: Path) -> None:
    """Say what it will cost, and how the images were parted."""
    for note in plan.notes:
        progress.say(note)
    networks = sum(one.kind == "network" for one in entrants)
    several = f", {plan.trainings} trainings each" if plan.trainings > 1 else ""
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    time = f"{epochs} each" if recipe.epochs is not None else f"{recipe.budget} together (--budget)"
    progress.say(
        f"{len(entrants)} entrants{several}: networks ({networks}), {time}; "
        f"baselines ({len(entrants) - networks}). In '{place}'; stop and go on as you like."
    )
