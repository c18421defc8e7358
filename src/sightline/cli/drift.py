"""The verb drift: whether a service's images are still those its release was tested on."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ChoiceError
from .journal import open_site_journal
from .output import OUTPUT_DEFAULTS, OutputOptions, Switch, emit, make_table

if TYPE_CHECKING:
    from rich.console import Console

MAX_SHOWN_CHANNELS = 6
"""Watched scores in the table, those with the most evidence."""


def drift(
    site: Path,
    /,
    *,
    release: int | None = None,
    promise: int = 100_000,
    accept: Switch = False,
    restart: Switch = False,
    url: str | None = None,
    options: OutputOptions = OUTPUT_DEFAULTS,
) -> None:
    """Report whether the images that a service sees are still those its release was tested on.

    Parameters
    ----------
    site: Path
        The folder of the service.
    release: int
        The release whose answers to examine. Default: the current one.
    promise: int
        Mean number of answers to a false alarm, at least. A larger number finds a change later.
    accept: bool
        Take the last answers, at most 500, as normal: from now on, changes from these are reported.
    restart: bool
        Forget what was seen, and begin with the next answer.
    url: str
        URL of the journal's database; safer in the variable SIGHTLINE_JOURNAL. Default: a file of the site.
    """
    from ..feedback import examine_drift

    if promise < 1000:
        raise ChoiceError(f"--promise is {promise}: give 1000 answers or more, or false alarms come all the time.")
    if accept and restart:
        raise ChoiceError("--accept and --restart exclude each other: --accept restarts with what it accepts.")
    with open_site_journal(site, url) as held:
        found = examine_drift(site, journal=held, release=release, promise=promise, accept=accept, restart=restart)
    emit({"site": str(site), **found.as_json()}, options.json, print_drift)


def print_drift(console: "Console", value: Mapping[str, Any]) -> None:
    """The verdict in sentences, and the watched scores with the most evidence as a table."""

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False)

    answers, promise = value["answers"], value["promise"]
    thinned = f" ({value['thinned']:,} almost equal ones within a minute left out)" if value["thinned"] else ""
    say(f"Release {value['release']}: {answers:,} answers{thinned}.")
    if not answers:
        say("Nothing to compare yet: answers count from release to release, and only those of a service.")
        return
    first = value["first"]
    if first is not None and first["like_tested"]:
        say(f"The first {first['n']:,} answers are like the tested images.")
    elif first is not None:
        say(
            f"The first {first['n']:,} answers differ from the tested images (p = {first['p']:.1g}; classes "
            f"{', '.join(first['classes'][:5])}). If this is normal here: sightline drift {value['site']} --accept"
        )
    if value["alarm"]:
        say(f"ALARM: the images changed. Without a change this happens once in {promise:,} answers or more.")
        for one in [one for one in value["changes"] if one["evidence"] > promise][:MAX_SHOWN_CHANNELS]:
            say(f"  - {one['words']}")
        if value["images"]:
            say("Typical images: " + ", ".join(value["images"][:3]) + ", ...")
        else:
            say("No images are kept: serve with --keep-images to see which ones changed.")
    else:
        say(f"No change: the evidence is {value['evidence']:,.0f} of the {promise:,} that raise an alarm.")
    if accuracy := value["accuracy"]:
        say(
            f"Accuracy was {accuracy['tested']:.1%} when tested; without labels it is estimated as "
            f"{accuracy['atc']:.1%} now (an estimate that does not see new kinds of thing)."
        )
    audit = value["audit"]
    say(
        f"Answers drawn at random and reviewed: {audit['value']:.1%} of {audit['n']:,} right "
        f"[{audit['low']:.1%}, {audit['high']:.1%}]."
        if audit["n"]
        else f"No answer that was drawn at random was reviewed, which alone would prove it: sightline review "
        f"{value['site']}"
    )
    console.print(
        make_table(
            ("watched", "evidence", "tested", "now"),
            [
                (one["channel"], f"{one['evidence']:,.0f}", f"{one['before']:.3g}", f"{one['now']:.3g}")
                for one in value["changes"][:MAX_SHOWN_CHANNELS]
            ],
        )
    )
