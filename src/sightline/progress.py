"""Progress bars with the remaining time, on a terminal only, always on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]


@contextmanager
def progress_bar(what: str, total: float | None) -> Iterator[Advance]:
    """A progress bar of ``total`` steps: the block calls ``advance(n=1, note="")``.

    Nothing is printed where stderr is not a terminal, so that logs and pipes stay clean.
    """
    if not sys.stderr.isatty():
        yield lambda *_, **__: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total, note="")

        def advance(n: float = 1, note: str = "") -> None:
            if note:
                progress.update(task, advance=n, note=note)
            else:
                progress.update(task, advance=n)

        yield advance


def notify(text: str) -> None:
    """Print a sentence for the user to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
