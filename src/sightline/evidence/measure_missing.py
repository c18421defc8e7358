"""``report --collect``: whatever the page could show of a run and does not yet, measured within a time budget."""

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

LEAST, MOST = 40, 1000
"""Images attacked or corrupted: fewer say too little, more are for a run of the verb itself."""

ATTACK_STEPS = 20
"""Of the attack."""

ATTACK_RADII = {1: 0.3, 3: 8 / 255}
"""Radius by channels: the usual one for digits, and for photographs."""


@dataclass(frozen=True)
class Measurement:
    """One thing to be measured."""

    name: str
    """As in the run's files; what the page calls it."""
    title: str
    answers: float
    """Work for each image, in answers of the network; 0 where the number of images is not for us to choose."""
    do: Callable[[Run, int], Any]
    """(run, images)."""


def _sureness(run: Run, images: int) -> None:
    del images
    evaluate_uncertainty_run(run)


def _attack(run: Run, images: int) -> None:
    attack = default_attack(run.classifier, steps=ATTACK_STEPS)
    attack_run(run.folder, by=attack, eps=_radius(run), limit=images, device=str(run.classifier.device))


def _radius(run: Run) -> float:
    return ATTACK_RADII[run.classifier.geometry.channels]


def _corrupt(run: Run, images: int) -> None:
    corrupt_run(run, limit=images)


def _explain(run: Run, images: int) -> None:
    del images
    explain_answers_run(run)


MEASUREMENTS = (
    Measurement("report", "testing", 0, lambda run, _: evaluate_run(run)),
    Measurement("calibration", "how sure it is", 0, _sureness),
    Measurement("explanations", "where it looks", 0, _explain),
    Measurement("corruptions", "bad pictures", 90, _corrupt),
    Measurement("robustness", "an attacker", 3 * 3 * ATTACK_STEPS, _attack),
)
"""In the order of use; the last ones take what is left of the budget."""


def measure_missing_evidence(
    folder: Path | str, *, budget: str = "10m", columns: Sequence[str] = (), device: str = "auto"
) -> dict[str, str]:
    """Measure what a run's page lacks, and its ``columns`` as groups; what came of each, by name.

    Attacks and corruptions are made on as many images as fit what is left of the budget, 40 to 1,000. What cannot
    be measured (attacks on what has no gradient, groups without their column) is said, and the rest goes on.
    Raises what ``reopen`` raises, and RecipeError for an impossible budget.
    """
    ends = time.perf_counter() + parse_duration(budget)
    run = reopen(folder, device=device)
    have = load_evidence(run.folder)
    missing = [
        task for task in MEASUREMENTS if not (have.report if task.name == "report" else have.extras.get(task.name))
    ]
    came: dict[str, str] = {}
    for number, task in enumerate(missing):
        rest = sum(bool(other.answers) for other in missing[number:])
        images = _images_in_time(run, task, (ends - time.perf_counter()) / max(rest, 1))
        came[task.name] = _measure(task.title, lambda task=task, images=images: task.do(run, images))
    for column in columns:
        came[f"groups, {column}"] = _measure(column, lambda column=column: evaluate_groups_run(run, column))
    return came


def _images_in_time(run: Run, task: Measurement, time_left: float) -> int:
    """Images for which the time is enough, at the speed of the run's own test."""
    each = float((load_evidence(run.folder).measured.get("efficiency") or {}).get("seconds_per_image") or 0.001)
    return LEAST if not task.answers else int(min(MOST, max(LEAST, time_left / (each * task.answers))))


def _measure(title: str, do: Callable[[], object]) -> str:
    """Do it; ``done``, or the sentence that says why not."""
    progress.notify(f"Measuring: {title}.")
    started = time.perf_counter()
    try:
        do()
    except SightlineError as error:
        if error.exit_code == 130:
            raise
        progress.notify(str(error))
        return str(error)
    return f"done in {time.perf_counter() - started:.0f} s"
