"""``report --collect``: whatever the page could show of a run and does not yet, measured within a time budget."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import progress
from ..errors import SightlineError
from ..evaluation import examine_groups, examine_sureness
from ..evaluation.examine import examine
from ..explanation import explain_answers
from ..robustness import attack, corrupt
from ..training.recipe import seconds
from ..training.run import Run, reopen
from .collect import collect

LEAST, MOST = 40, 1000
"""Images attacked or corrupted: fewer say too little, more are for a run of the verb itself."""

STEPS = 20
"""Of the attack."""

RADII = {1: 0.3, 3: 8 / 255}
"""Radius by channels: the usual one for digits, and for photographs."""


@dataclass(frozen=True)
class Task:
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
    examine_sureness(run)


def _attack(run: Run, images: int) -> None:
    if not run.classifier.differentiable:
        attack(
            run.folder, by="rays", eps=_radius(run), limit=images, checks=False, device=str(run.classifier.device)
        )
    else:
        attack(run.folder, by=f"pgd:{STEPS}", eps=_radius(run), limit=images, device=str(run.classifier.device))


def _radius(run: Run) -> float:
    return RADII[run.classifier.geometry.channels]


def _corrupt(run: Run, images: int) -> None:
    corrupt(run, limit=images)


def _explain(run: Run, images: int) -> None:
    del images
    explain_answers(run)


TASKS = (
    Task("report", "testing", 0, lambda run, _: examine(run)),
    Task("calibration", "how sure it is", 0, _sureness),
    Task("explanations", "where it looks", 0, _explain),
    Task("corruptions", "bad pictures", 90, _corrupt),
    Task("robustness", "an attacker", 3 * 3 * STEPS, _attack),
)
"""In the order of use; the last ones take what is left of the budget."""


def gather(
    folder: Path | str, *, budget: str = "10m", columns: Sequence[str] = (), device: str = "auto"
) -> dict[str, str]:
    """Measure what a run's page lacks, and its ``columns`` as groups; what came of each, by name.

    Attacks and corruptions are made on as many images as fit what is left of the budget, 40 to 1,000. What cannot
    be measured (attacks on what has no gradient, groups without their column) is said, and the rest goes on.
    Raises what ``reopen`` raises, and RecipeError for an impossible budget.
    """
    ends = time.perf_counter() + seconds(budget)
    run = reopen(folder, device=device)
    have = collect(run.folder)
    missing = [
        task for task in TASKS if not (have.report if task.name == "report" else have.extras.get(task.name))
    ]
    came: dict[str, str] = {}
    for number, task in enumerate(missing):
        rest = sum(bool(other.answers) for other in missing[number:])
        images = _images(run, task, (ends - time.perf_counter()) / max(rest, 1))
        came[task.name] = _done(task.title, lambda task=task, images=images: task.do(run, images))
    for column in columns:
        came[f"groups, {column}"] = _done(column, lambda column=column: examine_groups(run, column))
    return came


def _images(run: Run, task: Task, time_left: float) -> int:
    """Images for which the time is enough, at the speed of the run's own test."""
    each = float(collect(run.folder).measured.get("seconds_per_image") or 0.001)
    return LEAST if not task.answers else int(min(MOST, max(LEAST, time_left / (each * task.answers))))


def _done(title: str, do: Callable[[], object]) -> str:
    """Do it; ``done``, or the sentence that says why not."""
    progress.say(f"Measuring: {title}.")
    started = time.perf_counter()
    try:
        do()
    except SightlineError as error:
        if error.exit_code == 130:
            raise
        progress.say(str(error))
        return str(error)
    return f"done in {time.perf_counter() - started:.0f} s"
