"""Output of the verbs: a table for people, one JSON object for programs."""

import codecs
import io
import json as json_module
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import ChoiceError, OutputError

if TYPE_CHECKING:
    from ..training import Run

_COMMON = Group("Common", sort_key=90)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Flags of every verb."""

    json: Annotated[
        bool,
        Parameter(help="Print one JSON object on stdout; messages go to stderr.", negative=(), group=_COMMON),
    ] = False


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ReadOptions(OutputOptions):
    """Flags of every verb that reads image files."""

    max_megapixels: Annotated[
        int | None,
        Parameter(
            help="Read files of more megapixels than 100, where they are trusted: they need about 4 MB for each. The "
            "same as SIGHTLINE_MAX_MEGAPIXELS.",
            group=_COMMON,
            show="--help-all" in sys.argv,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.max_megapixels is not None:  # the processes of a training inherit it
            os.environ["SIGHTLINE_MAX_MEGAPIXELS"] = str(self.max_megapixels)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options(ReadOptions):
    """Flags of every verb that computes."""

    device: Annotated[str, Parameter(help="auto, cpu, cuda or mps.", group=_COMMON)] = "auto"


OUTPUT_DEFAULTS, READ_DEFAULTS, DEFAULTS = OutputOptions(), ReadOptions(), Options()

Switch = Annotated[bool, Parameter(negative=())]
"""A flag that turns something on and has no opposite."""

Words = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]
"""A flag that takes one or more words."""


CURVE_SHARE = 0.1
"""Share of the budget that the learning curve of a computed head may take."""

PAGE_SECONDS = 2.5
"""Seconds in which a quiet machine writes the page of a report with its diagrams."""

JSON_ESCAPES = "json_escapes"
"""Name of the error handler for encodings: what cannot be written becomes JSON's escapes, valid in JSON and legible
in text."""


owns_process = ContextVar("owns_process", default=False)
"""Whether the command began with this process, imports included."""


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)), error.end


codecs.register_error(JSON_ESCAPES, _escape_unencodable)


def escape_in_streams(*streams: object) -> None:
    """Let streams of any encoding write every text: class and file names may have characters that it lacks."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):  # a test or a notebook may have put something else there
            stream.reconfigure(errors=JSON_ESCAPES)


def emit(value: Mapping[str, Any], json: bool, render: Callable[[Console, Mapping[str, Any]], None]) -> None:
    """Print `value` as JSON, or with `render`."""
    if json:
        sys.stdout.write(json_module.dumps(value, ensure_ascii=False) + "\n")
    else:
        # A pipe has no width: wrapped lines would be harder to search.
        width = None if sys.stdout.isatty() else 1000
        render(Console(highlight=False, width=width), value)


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table; columns of numbers are aligned to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_header=any(columns))
    for number, name in enumerate(columns):
        numeric = all(row[number][:1].isdigit() or row[number] in {"", "-"} for row in rows) and number > 0
        made.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def update_report(run: Path, data: str | None = None) -> None:
    """Rewrite the report page of a run, unless other images were examined."""
    if data is None and (run / "recipe.toml").is_file():
        from ..evidence import write_report

        write_report(run)


def require_argument(word: str | None, action: str, name: str) -> str:
    """The word after an action such as `publish`. Raises ChoiceError if it is missing."""
    if word is None:
        raise ChoiceError(f"`{action}` needs {name}, after the word '{action}'.")
    return word


def check_picture_path(path: Path) -> Path:
    """The path, if its suffix is that of a picture; else OutputError."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise OutputError(
            f"'{path}' is not the name of a picture: use .png, .jpg or .webp, such as {path.stem or 'check'}.png."
        )
    return path


def evaluate_and_report(run: "Run") -> dict[str, Any]:
    """Test a new run and write its report: what every verb that makes a run does at its end.

    Where a budget is nearly over, the learning curve of a computed head, then the page's diagrams are left out.
    """
    from .. import progress
    from ..comparison import head_curve_run
    from ..evaluation import evaluate_run
    from ..evidence import NO_PLOTS, write_report
    from ..training import parse_duration

    seconds, deadline = CURVE_SHARE * parse_duration(run.recipe.budget), run.deadline
    evaluation: dict[str, Any] = {"n": 0}
    if len(run.splits.test):
        evaluation = evaluate_run(run, deadline=deadline).as_json()
    if deadline is not None:
        seconds = min(seconds, deadline.time_left() - PAGE_SECONDS * deadline.load)
    if seconds <= 0 and "head" in run.facts:
        progress.notify("No learning curve of the head is measured, because the time budget was nearly over.")
    if curve := head_curve_run(run, seconds=seconds):
        evaluation["head_curve"] = curve.as_json()
    plots = deadline is None or deadline.time_left() > PAGE_SECONDS * deadline.load
    if not plots:
        progress.notify(NO_PLOTS)
    page = write_report(run.folder, plots=plots)
    return {"run": str(run.folder), **evaluation, "report": str(page)}


def print_evaluation(console: Console, value: Mapping[str, Any]) -> None:
    """Metrics with their intervals, costs, and the next command."""
    from ..evidence import METRIC_LABELS, format_duration

    if not value["n"]:
        console.print("\nNothing is tested: no image was set aside. sightline evaluate RUN DATA tests on others.")
        console.print(f"\nThen try: sightline predict {shlex.quote(value['run'])} IMAGE...", markup=False)
        return
    intervals = value["intervals"]
    rows = []
    for name, metric in METRIC_LABELS.items():
        if metric.first and value.get(name) is not None:
            bounds = (metric.format_terminal(intervals[name][edge]) for edge in ("low", "high"))
            rows.append((metric.title, metric.format_terminal(value[name]), " to ".join(bounds)))
    what = f"of '{value['data']}'" if value.get("data") else "never seen in training"
    console.print(f"\n[bold]Test on {value['n']:,} images {escape(what)}[/bold]\n")
    console.print(make_table(("", "", "95 % interval"), rows))
    for remark in value.get("remarks", ()):
        console.print(f"\n{remark}", markup=False)
    costs = value["efficiency"]
    console.print(
        f"\n{costs['parameters']:,} parameters, {costs['multiply_adds']:,} multiply-adds per image; "
        f"one image takes {format_duration(costs['latency_ms'] / 1000)}, in batches "
        f"{format_duration(costs['seconds_per_image'])} each"
        + (
            " (other programs used the processor)"
            if any(one.get("busy") for one in costs.get("latency", ()))
            else ""
        )
    )
    if curve := value.get("head_curve"):
        console.print(f"\n{curve['sentence']}", markup=False)
    if curve := value.get("learning_curve"):
        sizes = [
            (
                f"{one['images']:,}",
                f"{one['accuracy']:.2%}",
                "{low:.2%} to {high:.2%}".format(**one["intervals"]["accuracy"]),
            )
            for one in curve["sizes"]
        ]
        console.print()
        console.print(make_table(("Training images", "accuracy", "95 % interval"), sizes))
        console.print(f"\n{curve['sentence']}", markup=False)
    if shift := value.get("corruptions"):
        console.print()
        cells = [(name, *(f"{one['value']:.1%}" for one in row)) for name, row in shift["corruptions"].items()]
        console.print(make_table(("Accuracy at severity", *map(str, range(1, 6))), cells))
        console.print(f"\n{shift['sentence']}", markup=False)
    if value.get("report"):
        console.print(f"\nLook at [bold]{escape(value['report'])}[/bold]")
        console.print(f"Then try: sightline predict {shlex.quote(value['run'])} IMAGE...", markup=False)
