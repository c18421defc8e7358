"""How answers are printed: a table for people, one JSON object for programs."""

import json as json_module
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import OutputError

_COMMON = Group("Everywhere", sort_key=90)

Json = Annotated[
    bool,
    Parameter(help="Print one JSON object on stdout; all else goes to stderr.", negative=(), group=_COMMON),
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or mps.", group=_COMMON)]


def emit(value: Mapping[str, Any], json: bool, render: Callable[[Console, Mapping[str, Any]], None]) -> None:
    """Print ``value``: as JSON, or by ``render``."""
    if json:
        sys.stdout.write(json_module.dumps(value, ensure_ascii=False) + "\n")
    else:
        # A pipe has no width: cutting its lines would only hinder whoever searches them.
        width = None if sys.stdout.isatty() else 1000
        render(Console(highlight=False, width=width), value)


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table; columns whose cells are numbers are set to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_header=any(columns))
    for number, name in enumerate(columns):
        numeric = all(row[number][:1].isdigit() or row[number] in {"", "-"} for row in rows) and number > 0
        made.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def update_report(run: Path, data: str | None = None) -> None:
    """Draw a run's page anew, where what was examined was the run itself."""
    if data is None and (run / "recipe.toml").is_file():
        from ..evidence import write_report

        write_report(run)


def check_picture_path(path: Path) -> Path:
    """The path, if its ending names a kind of picture; else an OutputError."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise OutputError(
            f"'{path}' does not end like a picture. Call it {path.stem or 'check'}.png, for example."
        )
    return path


def print_evaluation(console: Console, value: Mapping[str, Any]) -> None:
    """The result of an evaluation: the numbers with their intervals, and what to look at next."""
    from ..evidence import METRIC_LABELS

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
        f"\n{costs['parameters']:,} parameters, {costs['multiply_adds']:,} multiply-adds an image; "
        f"one image takes {costs['latency_ms']:.2g} ms, in batches {costs['seconds_per_image'] * 1e3:.2g} ms each"
    )
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
        console.print(
            make_table(("Accuracy under", *map(str, range(1, 6))), _corruption_rows(shift["corruptions"]))
        )
        console.print(f"\n{shift['sentence']}", markup=False)
    if value.get("report"):
        console.print(f"\nLook at [bold]{escape(value['report'])}[/bold]")
        console.print(f"Then try: sightline predict {shlex.quote(value['run'])} IMAGE...", markup=False)


def _corruption_rows(rows: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line for each corruption, its accuracy at each severity."""
    return [(name, *(f"{one['value']:.1%}" for one in row)) for name, row in rows.items()]
