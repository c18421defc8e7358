"""What can enter a comparison: a network trained by a recipe, or a baseline; and one trial of it."""

import base64
import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from numpy import ndarray

from ..baselines import BASELINES, FEATURES, fit_baseline, parse_baseline
from ..choose import suggest
from ..classifier import find_bundle
from ..errors import ChoiceError
from ..files import checksum, explain_write_errors, write_json
from ..inference import validate
from ..models import NETWORKS
from ..training import Recipe, Run, SilentRunFolder, train_on_splits, validate_recipe
from ..types import Splits

TRIALS_FILE = "trials.json"


@dataclass(frozen=True)
class Candidate:
    """A network's or baseline's word, and the recipe by which networks are trained."""

    word: str
    kind: Literal["network", "baseline"]
    recipe: Recipe
    """For a baseline only its seed, shares and geometry matter."""

    @property
    def folder_name(self) -> str:
        """The word as a file name."""
        return re.sub(r"[^\w.@+=-]+", "_", self.word)

    def train(self, splits: Splits, folder: Path, *, seed: int, device: torch.device | str) -> tuple[Run, float]:
        """Train or fit it on images already split, into a run folder; the run and the seconds it took.

        A network's seconds are those of its epochs, without measuring the machine; a baseline's are all it took.
        """
        clear_run_folder(folder)
        recipe = self.recipe.replace(seed=seed)
        if self.kind == "network":
            run = train_on_splits(splits, recipe.replace(model=self.word), SilentRunFolder(folder), device=device)
            (folder / "last.ckpt").unlink(missing_ok=True)  # it is finished: nobody resumes it
        else:
            run = _fit_baseline_run(splits, recipe.replace(model=self.word, epochs=0, processes=1), folder, device)
        return run, float(run.facts["seconds"])

    def cache_facts(self) -> list[str]:
        """What its result depends on beside recipe and images: the word, and the bundles that the word names."""
        runs = re.findall(r"embedding:([^+@]+)", self.word)
        return [self.word, *(checksum(find_bundle(run) / "config.json") for run in runs)]


def clear_run_folder(folder: Path) -> None:
    """An empty folder for a run: what a stopped trial left there is no use."""
    kept = folder / TRIALS_FILE
    trials = kept.read_bytes() if kept.is_file() else None
    with explain_write_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if trials is not None:
            kept.write_bytes(trials)


def _fit_baseline_run(splits: Splits, recipe: Recipe, folder: Path, device: torch.device | str) -> Run:
    started = time.perf_counter()
    classifier = fit_baseline(splits, recipe.model or "", seed=recipe.seed)
    facts = {
        "epochs": 0,
        "seconds": round(time.perf_counter() - started, 3),
        "temperature": classifier.temperature,
        "val_accuracy": validate(classifier, splits.val)[1] if len(splits.val) else None,
    }
    where = SilentRunFolder(folder)
    classifier.save(where.bundle)
    write_json(folder / "training.json", facts)
    return Run(folder, recipe, classifier.to(device), splits, facts, tuple(classifier.provenance["remarks"]))


def parse_candidate(word: str, recipe: Recipe | None = None, *, features: str = "pixels") -> Candidate:
    """The entrant a word names: a network (``resnet20``, ``enhanced:dropout=0.2``) or a baseline (``knn@hog``).

    ``features`` are a baseline's where its word names none. Raises ChoiceError for names nobody knows, RecipeError
    for a recipe that a network cannot be trained by.
    """
    recipe = recipe or Recipe()
    name = re.split(r"[:@]", word.strip(), maxsplit=1)[0]
    if name in BASELINES:
        return Candidate(str(parse_baseline(word.strip(), features)), "baseline", recipe)
    if "@" in word:
        raise ChoiceError(f"There is no baseline called '{name}'. {suggest(name, BASELINES)}")
    if name in FEATURES:
        raise ChoiceError(f"'{name}' is a feature: say what learns from it, for example svm-rbf@{word}.")
    if name not in NETWORKS and ":" not in word:
        raise ChoiceError(
            f"There is no model or baseline called '{name}'. {suggest(name, [*NETWORKS, *BASELINES])}"
        )
    validate_recipe(recipe.replace(model=word.strip()))
    return Candidate(word.strip(), "network", recipe)


@dataclass(frozen=True, eq=False)
class Trial:
    """One training and its test."""

    part: str
    """What it was tested on: ``test``, or ``fold 2``."""
    seed: int
    correct: Bool[ndarray, " N"]
    """Which of the tested images it answered rightly."""
    seconds: float
    """To train."""
    seconds_per_image: float
    """To answer, in batches, from pixels to probabilities."""
    bundle_bytes: int
    """Bytes of its bundle."""
    val_accuracy: float | None
    """Accuracy on the validation images."""
    notes: tuple[str, ...] = field(default=())

    @property
    def accuracy(self) -> float:
        """Share of the tested images that it answered rightly."""
        return float(self.correct.mean())

    def as_json(self) -> dict[str, Any]:
        """A row of ``trials.json``; ``right`` is ``correct`` as packed bits."""
        return {
            "part": self.part,
            "seed": self.seed,
            "right": base64.b64encode(np.packbits(self.correct).tobytes()).decode("ascii"),
            "seconds": self.seconds,
            "seconds_per_image": self.seconds_per_image,
            "size": self.bundle_bytes,
            "validation": self.val_accuracy,
            "notes": self.notes,
            "n": len(self.correct),
            "accuracy": self.accuracy,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Trial":
        """Read a row that ``as_json`` wrote."""
        bits = np.unpackbits(np.frombuffer(base64.b64decode(row["right"]), np.uint8), count=row["n"])
        return cls(
            part=row["part"],
            seed=row["seed"],
            correct=bits.astype(bool),
            seconds=row["seconds"],
            seconds_per_image=row["seconds_per_image"],
            bundle_bytes=row["size"],
            val_accuracy=row["validation"],
            notes=tuple(row["notes"]),
        )


def run_candidate_trial(
    entrant: Candidate, part: str, splits: Splits, folder: Path, *, seed: int, device: torch.device | str
) -> Trial:
    """Train an entrant on a split, into ``folder`` as a run, and test it there."""
    run, seconds = entrant.train(splits, folder, seed=seed, device=device)
    probabilities, per_image = predict_timed(run.classifier, splits.test)
    if run.recipe.data is not None:
        run_folder = SilentRunFolder(folder)
        run_folder.write_header(run.recipe, splits, run.notes)
    return Trial(
        part=part,
        seed=seed,
        correct=probabilities.argmax(1) == splits.test.labels,
        seconds=seconds,
        seconds_per_image=per_image,
        bundle_bytes=sum(file.stat().st_size for file in (folder / "classifier").iterdir()),
        val_accuracy=run.facts.get("val_accuracy"),
        notes=run.notes,
    )


class TrialCache:
    """Trials of an entrant that are done, in its folder: what is there is not repeated."""

    def __init__(self, folder: Path, facts: Sequence[str]) -> None:
        self.file = folder / TRIALS_FILE
        self.key = hashlib.blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()
        self.trials: list[Trial] = []
        with suppress(OSError, ValueError, KeyError):
            content = json.loads(self.file.read_text(encoding="utf-8"))
            if content["key"] == self.key:
                self.trials = [Trial.from_json(row) for row in content["trials"]]

    def find(self, part: str, seed: int) -> Trial | None:
        """The trial, if it is done."""
        return next((one for one in self.trials if (one.part, one.seed) == (part, seed)), None)

    def add(self, trial: Trial) -> Trial:
        """Keep a trial."""
        self.trials.append(trial)
        write_json(self.file, {"key": self.key, "trials": [one.as_json() for one in self.trials]})
        return trial
