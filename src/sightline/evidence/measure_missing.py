"""``report --collect``: measures, within a time budget, what the page of a run lacks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import progress
from ..attacks import default_attack
from ..errors import SightlineError
from ..evaluation import evaluate_groups_run, evaluate_run, evaluate_uncertainty_run
from ..explanation import explain_answers_run
from ..robustness import attack_run, corrupt_run
from ..training import Run, parse_duration, reopen
from .load import load_evidence

MIN_IMAGES, MAX_IMAGES = 40, 1000
"""Images that are attacked or corrupted: fewer are too uncertain; for more, run the verb itself."""

ATTACK_STEPS = 20
"""Steps of the attack."""

ATTACK_RADII = {1: 0.3, 3: 8 / 255}
"""Channels -> radius of the attack: the usual ones for digits and for photographs."""


@dataclass(frozen=True)
class Measurement:
    """A result that the page can show."""

    name: str
    """Name of the result in `Evidence.extras`."""
    title: str
    passes: float
    """Forward passes per image; 0 if the number of images cannot be chosen."""
    measure: Callable[[Run, int], Any]
    """Measures the run on this many images."""


def attack_default(run: Run, images: int) -> None:
    """Attack the classifier of a run with the default attack for it."""
    attack = default_attack(run.classifier, steps=ATTACK_STEPS)
    eps = ATTACK_RADII[run.classifier.geometry.channels]
    attack_run(run.folder, by=attack, eps=eps, limit=images, device=str(run.classifier.device))


MEASUREMENTS = (
    Measurement("report", "test metrics", 0, lambda run, _: evaluate_run(run)),
    Measurement("calibration", "confidence", 0, lambda run, _: evaluate_uncertainty_run(run)),
    Measurement("explanations", "saliency maps", 0, lambda run, _: explain_answers_run(run)),
    Measurement("corruptions", "corruptions", 90, lambda run, images: corrupt_run(run, limit=images)),
    Measurement("robustness", "attack", 3 * 3 * ATTACK_STEPS, attack_default),
)
"""In this order; the last ones use the rest of the budget."""


def measure_missing_evidence(
    folder: Path | str, *, budget: str = "10m", columns: Sequence[str] = (), device: str = "auto"
) -> dict[str, str]:
    """Measure what the page of a run lacks, and accuracy by the values of `columns`; returns the outcome of each.

    Attacks and corruptions use as many images as fit in the rest of the budget, 40 to 1,000, at the measured speed
    of the classifier. If something cannot be measured, the outcome says why and the rest is measured. Raises what
    `reopen` raises, and RecipeError for an impossible budget.
    """
    ends = time.perf_counter() + parse_duration(budget)
    run = reopen(folder, device=device)
    have = load_evidence(run.folder)
    missing = [
        one for one in MEASUREMENTS if not (have.report if one.name == "report" else have.extras.get(one.name))
    ]
    outcomes: dict[str, str] = {}
    for number, one in enumerate(missing):
        images = MIN_IMAGES
        if one.passes:
            efficiency = load_evidence(run.folder).measured.get("efficiency") or {}
            seconds = float(efficiency.get("seconds_per_image") or 0.001) * one.passes
            waiting = sum(bool(other.passes) for other in missing[number:])
            images = int(min(MAX_IMAGES, max(MIN_IMAGES, (ends - time.perf_counter()) / waiting / seconds)))
        outcomes[one.name] = _measure(one.title, lambda one=one, images=images: one.measure(run, images))
    for column in columns:
        outcomes[f"groups, {column}"] = _measure(column, lambda column=column: evaluate_groups_run(run, column))
    return outcomes


def _measure(title: str, measure: Callable[[], object]) -> str:
    """Measure; returns "done in N s", or the sentence of the error."""
    progress.notify(f"Measuring: {title}.")
    started = time.perf_counter()
    try:
        measure()
    except SightlineError as error:
        if error.exit_code == 130:
            raise
        progress.notify(str(error))
        return str(error)
    return f"done in {time.perf_counter() - started:.0f} s"
