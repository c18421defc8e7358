"""Leave one domain out: train on all values of a column but one (site, camera, patient group), and test on that one."""

import hashlib
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from .. import progress
from ..data import FACT_COLUMNS, concat
from ..errors import DataError
from ..files import write_json
from ..inference import predict_correct
from ..metrics import seeds_interval, wilson
from ..training import Run
from ..types import Interval
from .candidates import Candidate, TrialCache, explain_interruption, run_candidate_trial
from .cross_validation import HeldOutFold, fold_splits, missing_class_notes

LEAVE_OUT_FILE = "leave_out.json"

MAX_DOMAINS = 30
"""Values of a column that are left out in turn; each costs a training."""

MIN_DOMAIN_IMAGES = 10
"""Labelled images of a value below which it is trained on and not tested: its interval would span nearly all."""


@dataclass(frozen=True)
class LeftOut:
    """One value of the column."""

    domain: str
    accuracy: Interval
    """On all its images, by a classifier that saw none of the domain."""
    inside: Interval | None
    """On the run's own test images of the domain, by the run, which saw others of it; None where there are none."""

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        inside = None if self.inside is None else self.inside.as_json()
        return {"domain": self.domain, "accuracy": self.accuracy.as_json(), "inside": inside}


@dataclass(frozen=True)
class LeaveOut:
    """Every value of a column left out in turn."""

    column: str
    domains: tuple[LeftOut, ...]
    mean: Interval
    """Mean over the domains with Student's interval: what to expect of another domain like these; n counts them."""
    notes: tuple[str, ...]

    def sentences(self) -> tuple[str, ...]:
        """What the numbers say."""
        worst = min(self.domains, key=lambda one: one.accuracy.value)
        said = [
            f"On a new {self.column} expect {self.mean.value:.1%} [{self.mean.low:.1%}, {self.mean.high:.1%}], the "
            f"mean over {self.mean.n} left out in turn; the worst is '{worst.domain}' with {worst.accuracy.value:.1%} "
            f"[{worst.accuracy.low:.1%}, {worst.accuracy.high:.1%}]."
        ]
        lower = [
            one.domain for one in self.domains if one.inside is not None and one.inside.low > one.accuracy.high
        ]
        if lower:
            names = ", ".join(map(repr, lower[:5]))
            said.append(
                f"Beyond noise lower than where the {self.column} is trained on: {names}. The test set of a random "
                "split is too optimistic for a new one."
            )
        return (*said, *self.notes)

    def as_json(self) -> dict[str, Any]:
        """The contents of ``leave_out.json``."""
        return {
            "column": self.column,
            "domains": [one.as_json() for one in self.domains],
            "mean": self.mean.as_json(),
            "sentences": list(self.sentences()),
        }


def leave_out_run(run: Run, column: str) -> LeaveOut:
    """Train by the run's recipe on all its images but those of one value of ``column``, for each value in turn.

    All labelled images of the run take part; training images split off their own validation, as in the run. Finished
    trainings are kept in the run and not repeated. Writes ``leave_out.json`` into the run.

    Raises DataError where there is no such column, or it has not 2 to 30 values with enough images of two classes.
    """
    parts = [part.labelled for part in (run.splits.train, run.splits.val, run.splits.test) if len(part)]
    names = [name for name in parts[0].columns if name != "split" and all(name in part.columns for part in parts)]
    if column not in names:
        known = ", ".join(sorted({*names} - {*FACT_COLUMNS})) or "none"
        raise DataError(
            f"The images have no column '{column}' to leave out values of. There are: {known}. A table of the images "
            "may have one, such as site or camera."
        )
    pool = concat([replace(part, columns={name: part.columns[name] for name in names}) for part in parts])
    values = pool.columns[column].astype(str)
    domains, few = choose_domains(values, column)
    recipe = run.recipe.replace(split_seed=None)
    candidate = Candidate(recipe.model or "", "network", recipe.replace(data=None))
    key = hashlib.blake2b(recipe.to_toml().encode(), digest_size=8).hexdigest()
    folder = run.folder / f"leave-out-{re.sub(r'[^A-Za-z0-9_.-]+', '_', column)}"
    folder.mkdir(exist_ok=True)
    cache = TrialCache(folder, [key, pool.fingerprint, column, str(len(pool))])
    tested = run.splits.test.labelled
    answers = predict_correct(run.classifier, tested) if len(tested) else np.zeros(0, bool)
    found, notes = [], list(few)
    for number, domain in enumerate(domains, 1):
        fold = HeldOutFold(number, recipe.seed, np.flatnonzero(values == domain))
        splits = fold_splits(pool, fold, recipe)
        notes += [
            note.replace(f"Fold {number}", f"Without {domain}") for note in missing_class_notes(splits, fold)
        ]
        trial = cache.find(domain, recipe.seed)
        if trial is None:
            size = max(2, min(recipe.batch_size or 2, len(splits.train)))
            ready = replace(candidate, recipe=candidate.recipe.replace(batch_size=size))
            with (
                tempfile.TemporaryDirectory(prefix=".left-out-", dir=folder) as place,
                explain_interruption(
                    f"the training without {domain}", "Continue with: sightline evaluate RUN --leave-out COLUMN"
                ),
            ):
                trial = run_candidate_trial(
                    ready, domain, splits, Path(place), seed=recipe.seed, device=run.classifier.device
                )
            cache.add(trial)
            progress.notify(f"Without {domain} ({number} of {len(domains)}): {trial.accuracy:.2%} on it.")
        right, inside = (
            trial.correct,
            tested.columns[column].astype(str) == domain if len(tested) else tested.labels,
        )
        found.append(
            LeftOut(
                domain,
                wilson(float(right.sum()), len(right)),
                wilson(float(answers[inside].sum()), int(inside.sum())) if inside.any() else None,
            )
        )
    mean = seeds_interval([one.accuracy.value for one in found], bounds=(0.0, 1.0))
    result = LeaveOut(column, tuple(found), mean, tuple(dict.fromkeys(notes)))
    write_json(run.folder / LEAVE_OUT_FILE, result.as_json())
    return result


def choose_domains(values: Shaped[ndarray, " N"], column: str) -> tuple[list[str], Sequence[str]]:
    """The values to leave out, and a sentence about those with too few images. Raises DataError for too few or many."""
    names, counts = np.unique(values, return_counts=True)
    domains = [str(name) for name, count in zip(names, counts, strict=True) if count >= MIN_DOMAIN_IMAGES]
    if not 2 <= len(domains) <= MAX_DOMAINS:
        raise DataError(
            f"The column '{column}' has {len(domains)} values with {MIN_DOMAIN_IMAGES} images or more: it takes 2 to "
            f"{MAX_DOMAINS} to leave one out. Choose another column, or one of coarser groups."
        )
    few = len(names) - len(domains)
    return domains, (
        [f"{few} values of {column} have fewer than {MIN_DOMAIN_IMAGES} images: trained on, not tested."]
        if few
        else []
    )
