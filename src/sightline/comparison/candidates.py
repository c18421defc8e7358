"""What a comparison trains: a network by a recipe, or a baseline; one trial of it, and the cache of trials."""

import base64
import hashlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from numpy import ndarray

from ..baselines import BASELINES, FEATURES, fit_baseline, parse_baseline
from ..choose import suggest
from ..classifier import find_bundle
from ..errors import ChoiceError, Interrupted
from ..evaluation import predict_timed
from ..features import predict_logits_cached
from ..files import checksum, explain_write_errors, read_json_object, write_json
from ..inference import to_probabilities, validate
from ..models import NETWORKS
from ..training import (
    HEAD_METHODS,
    PRETRAINED,
    QUALITY_MODELS,
    Recipe,
    Run,
    SilentRunFolder,
    train_on_splits,
    validate_recipe,
)
from ..types import Splits

TRIALS_FILE = "trials.json"
"""File of a candidate's folder that holds its finished trials."""


@dataclass(frozen=True)
class Candidate:
    """A network or a baseline, and the recipe that trains it."""

    word: str
    """``resnet20``, ``enhanced:dropout=0.2``; ``probe``, a head on published weights; ``knn@hog``."""
    kind: Literal["network", "baseline"]
    recipe: Recipe
    """A baseline uses only its seed, splits and geometry."""

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a recipe that the word of a network sets."""
        if not names_head(self.word):
            return {"model": self.word}
        model = self.recipe.model or QUALITY_MODELS[self.recipe.quality or "standard"]
        return {"model": model, "method": self.word, "normalize": PRETRAINED}

    @property
    def folder_name(self) -> str:
        """The word with every character replaced that a file name may not have."""
        return re.sub(r"[^\w.@+=-]+", "_", self.word)

    def train(self, splits: Splits, folder: Path, *, seed: int, device: torch.device | str) -> tuple[Run, float]:
        """Train on given splits into ``folder``, which is emptied first; the run and the seconds of training.

        A network's seconds are those of its epochs, without the search for the fastest way to train; those of a head
        and a baseline include their features, where these are not kept already.
        """
        clear_run_folder(folder)
        recipe = self.recipe.replace(seed=seed)
        run_folder = SilentRunFolder(folder)
        if self.kind == "network":
            run = train_on_splits(splits, recipe.replace(**self.fields), run_folder, device=device)
            (folder / "last.ckpt").unlink(missing_ok=True)  # a finished training is not resumed
            return run, float(run.facts["seconds"]) + run.facts.get("head", {}).get("seconds", 0.0)
        started = time.perf_counter()
        classifier = fit_baseline(splits, self.word, seed=seed)
        facts = {
            "epochs": 0,
            "seconds": round(time.perf_counter() - started, 3),
            "temperature": classifier.temperature,
            "val_accuracy": validate(classifier, splits.val)[1] if len(splits.val) else None,
        }
        classifier.save(run_folder.bundle)
        write_json(folder / "training.json", facts)
        recipe = recipe.replace(model=self.word, epochs=0, devices=1)
        remarks = tuple(classifier.provenance["remarks"])
        return Run(folder, recipe, classifier.to(device), splits, facts, remarks), float(facts["seconds"])

    def cache_facts(self) -> list[str]:
        """What its result depends on besides recipe and images: the word, and the bundles named in it."""
        runs = re.findall(r"embedding:([^+@]+)", self.word)
        return [self.word, *(checksum(find_bundle(run) / "config.json") for run in runs)]


def names_head(word: str) -> bool:
    """Whether the word is a method of the last layer on published weights: ``probe``, ``lda``, ``finetune``."""
    return word.strip().partition(":")[0] in HEAD_METHODS.keys() - {"gradient"}


def parse_candidate(word: str, recipe: Recipe | None = None, *, features: str = "pixels") -> Candidate:
    """The candidate that a word names: a network (``resnet20``), a head (``probe``) or a baseline (``knn@hog``).

    ``features`` are the baseline's where its word names none. Raises ChoiceError for unknown names, RecipeError
    for a recipe that cannot train the network.
    """
    recipe = recipe or Recipe()
    name = re.split(r"[:@]", word.strip(), maxsplit=1)[0]
    if name in BASELINES:
        return Candidate(str(parse_baseline(word.strip(), features)), "baseline", recipe)
    if "@" in word:
        raise ChoiceError(f"There is no baseline called '{name}'. {suggest(name, BASELINES)}")
    if name in FEATURES:
        raise ChoiceError(
            f"'{name}' is a feature: name the baseline that learns from it, for example svm-rbf@{word}."
        )
    if name not in NETWORKS and ":" not in word and not names_head(word):
        known = [*NETWORKS, *BASELINES, *HEAD_METHODS]
        raise ChoiceError(f"There is no model or baseline called '{name}'. {suggest(name, known)}")
    candidate = Candidate(word.strip(), "network", recipe)
    validate_recipe(recipe.replace(**candidate.fields))
    return candidate


@dataclass(frozen=True, eq=False)
class Trial:
    """One training of a candidate and its test."""

    part: str
    """The images it was tested on: ``test``, or ``fold 2``."""
    seed: int
    correct: Bool[ndarray, " N"]
    """Whether each tested image was classified correctly."""
    seconds: float
    """Seconds of training."""
    seconds_per_image: float
    """Seconds of one prediction, in batches, from pixels to probabilities."""
    bundle_bytes: int
    val_accuracy: float | None
    notes: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of the tested images classified correctly."""
        return float(self.correct.mean())

    def as_json(self) -> dict[str, Any]:
        """A row of ``trials.json``."""
        return {
            "part": self.part,
            "seed": self.seed,
            "right": pack_bits(self.correct),
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
        return cls(
            part=row["part"],
            seed=row["seed"],
            correct=unpack_bits(row["right"], row["n"]),
            seconds=row["seconds"],
            seconds_per_image=row["seconds_per_image"],
            bundle_bytes=row["size"],
            val_accuracy=row["validation"],
            notes=tuple(row["notes"]),
        )


def pack_bits(values: Bool[ndarray, " N"]) -> str:
    """Booleans as base64 of their bits, eight to a byte."""
    return base64.b64encode(np.packbits(values).tobytes()).decode("ascii")


def unpack_bits(text: str, n: int) -> Bool[ndarray, " N"]:
    """The ``n`` booleans that ``pack_bits`` wrote."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=n).astype(bool)


def run_candidate_trial(
    candidate: Candidate, part: str, splits: Splits, folder: Path, *, seed: int, device: torch.device | str
) -> Trial:
    """Train a candidate on ``splits`` into the run folder ``folder``, and test it on the test split.

    A computed head on a backbone that was not trained on is tested on kept features: folds share one pass over the
    images.
    """
    run, seconds = candidate.train(splits, folder, seed=seed, device=device)
    if run.facts.get("head") and not run.recipe.epochs:
        _, seconds_per_image = predict_timed(run.classifier, splits.test.subset(np.arange(len(splits.test))[:64]))
        probabilities = to_probabilities(predict_logits_cached(run.classifier, splits.test))
    else:
        probabilities, seconds_per_image = predict_timed(run.classifier, splits.test)
    if run.recipe.data is not None:
        SilentRunFolder(folder).write_header(run.recipe, splits, run.notes)
    return Trial(
        part=part,
        seed=seed,
        correct=probabilities.argmax(1) == splits.test.labels,
        seconds=seconds,
        seconds_per_image=seconds_per_image,
        bundle_bytes=sum(file.stat().st_size for file in (folder / "classifier").iterdir()),
        val_accuracy=run.facts.get("val_accuracy"),
        notes=run.notes,
    )


class TrialCache:
    """The finished trials of a candidate, in its folder.

    ``facts`` are what the trials depend on: trials saved under other facts are ignored.
    """

    def __init__(self, folder: Path, facts: Sequence[str]) -> None:
        self.file = folder / TRIALS_FILE
        self.key = hashlib.blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()
        self.trials: list[Trial] = []
        content = read_json_object(self.file)
        with suppress(ValueError, KeyError):
            if content["key"] == self.key:
                self.trials = [Trial.from_json(row) for row in content["trials"]]

    def find(self, part: str, seed: int) -> Trial | None:
        """The finished trial of this part and seed; None where there is none."""
        return next((one for one in self.trials if (one.part, one.seed) == (part, seed)), None)

    def add(self, trial: Trial) -> Trial:
        """Save a trial and return it."""
        self.trials.append(trial)
        write_json(self.file, {"key": self.key, "trials": [one.as_json() for one in self.trials]})
        return trial


def clear_run_folder(folder: Path) -> None:
    """Empty the folder for a run, but for its finished trials."""
    file = folder / TRIALS_FILE
    trials = file.read_bytes() if file.is_file() else None
    with explain_write_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if trials is not None:
            file.write_bytes(trials)


@contextmanager
def explain_interruption(what: str, remedy: str = "Run the same command to go on.") -> Iterator[None]:
    """Replace training's own message of an interruption, which names a temporary folder."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(f"Stopped during {what}; finished trainings are saved. {remedy}") from error
