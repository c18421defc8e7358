"""The verb improve: what people said of a service's answers becomes a release, or reasons why not."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ChoiceError, RecipeError, RequirementNotMet
from .journal import open_site_journal
from .output import OUTPUT_DEFAULTS, OutputOptions, Words, emit, owns_process

if TYPE_CHECKING:
    from rich.console import Console

MAX_LISTED_WRONG = 12
"""Newly wrong images that are named."""


def improve(
    site: Path,
    /,
    *,
    every: str | None = None,
    by: Words = (),
    allowance: float = 0.01,
    remove: Words = (),
    memory: int = 2000,
    minimum: int = 10,
    seed: int = 0,
    url: str | None = None,
    options: OutputOptions = OUTPUT_DEFAULTS,
) -> None:
    """Learn from what people said of a service's answers, judge the result, and release it if it earns that.

    It runs at the lowest priority on one core, so that a service on the same machine keeps answering. Repeat the same
    command to continue an interrupted one. Exit code 3 if the candidate is not released.

    Parameters
    ----------
    site: Path
        The folder of the service.
    every: str
        Repeat after this time, such as 1d or 6h, until it is stopped.
    by: tuple[str, ...]
        Ways to learn; see sightline list strategies. Default: lda and ranpac, then replay.
    allowance: float
        Accuracy that may be lost, in all, compared with the current and with the best release; a share in [0, 1].
    remove: tuple[str, ...]
        Classes that the next release may lack.
    memory: int
        Old images that may be shown again.
    minimum: int
        Labelled images that must come before another candidate is made.
    seed: int
        Seed of every draw.
    url: str
        URL of the journal's database; safer in the variable SIGHTLINE_JOURNAL. Default: a file of the site.
    """
    if owns_process.get():
        for library in ("OMP", "OPENBLAS", "MKL"):  # before they are loaded
            os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    from .. import progress, runtime
    from ..feedback import GateRules
    from ..feedback import improve as run_improvement
    from ..training import parse_duration

    if not 0 <= allowance < 1:
        raise ChoiceError(f"--allowance is {allowance:g}: it is a share of the images, such as 0.01.")
    if minimum < 1:
        raise ChoiceError(f"--minimum is {minimum}: it must be at least 1 labelled image.")
    try:
        seconds = None if every is None else parse_duration(every)
    except RecipeError as error:
        raise ChoiceError(f"--every is '{every}': write a time such as 1d or 6h.") from error
    if owns_process.get():
        with suppress(OSError, AttributeError):  # some systems have no priorities
            os.nice(19)
        runtime.use_one_thread()
    while True:
        with open_site_journal(site, url) as held:
            found = run_improvement(
                site, journal=held, by=by, rules=GateRules(allowance=allowance), removed=remove, memory=memory,
                minimum=minimum, seed=seed, on_stage=lambda stage: progress.notify(f"Stage: {stage}."),
            )  # fmt: skip
        emit({"site": str(site), **found.as_json()}, options.json, print_improvement)
        if seconds is None:
            break
        time.sleep(seconds)
    if found.decision == "kept":
        raise RequirementNotMet(f"The candidate was not released: {'; '.join(found.reasons)}.")


def print_improvement(console: "Console", value: Mapping[str, Any]) -> None:
    """The decision, its reasons, and what would be newly wrong."""

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False)

    judged = value["judged"]
    if judged:
        before, after = judged["accuracy"]
        say(
            f"Learned from {value['labels']:,} labelled images. On {judged['tested']:,} test and {judged['audited']:,} "
            f"audit images: {before:.2%} before, {after:.2%} after; {len(judged['newly_wrong'])} newly wrong."
        )
        n, was, now = judged["corrections"]
        if n:
            say(f"Held-out corrections: {was} of {n} right before, {now} after.")
        if judged["newly_wrong"]:
            say("Newly wrong: " + ", ".join(judged["newly_wrong"][:MAX_LISTED_WRONG]))
        if unproven := judged["verdict"]["unproven"]:
            say(f"Too few images to judge: {'; '.join(unproven[:5])}.")
    sentence = {
        "promoted": f"Promoted: release {value['release']} answers now.",
        "kept": f"Release {value['release']} stays:",
        "cannot tell": f"Release {value['release']} stays, because the gate cannot tell:",
        "nothing to learn": "Nothing to learn:",
        "waits": "It waits:",
        "rolled back": f"Rolled back: release {value['release']} answers again.",
    }[value["decision"]]
    say(sentence)
    for reason in value["reasons"]:
        say(f"  - {reason}")
