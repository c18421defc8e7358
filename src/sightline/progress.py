"""Progress bars with the remaining time, on a terminal only, always on stderr."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Advance = Callable[..., None]

LINE_SECONDS = float(os.environ.get("SIGHTLINE_LOG_SECONDS", "25"))
"""Seconds between two lines where there is no terminal: a log that is silent for half a minute looks like a hang. The
studio, which shows the log as it grows, asks for a line every second."""


@contextmanager
def progress_bar(what: str, total: float | None) -> Iterator[Advance]:
    """A progress bar of ``total`` steps: the block calls ``advance(n=1, note="", total=None)``.

    Where stderr is not a terminal, a line is printed within 30 s instead, so that logs and pipes stay clean.
    """
    if not sys.stderr.isatty():
        done = 0.0

        def advance_lines(n: float = 1, note: str = "", total: float | None = total) -> None:
            nonlocal done
            done += n
            break_silence(
                f"{what}: {done:,.0f}{f' of {total:,.0f}' if total else ''}{f', {note}' if note else ''}"
            )

        yield advance_lines
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

        def advance(n: float = 1, note: str = "", total: float | None = None) -> None:
            progress.update(task, advance=n, total=total)
            if note:
                progress.update(task, note=note)

        yield advance


_printed = [time.monotonic()]
"""When the last line was printed, by any stage."""

_latest = ["Starting"]
"""What the work came to last, printed or not."""


@contextmanager
def heartbeat() -> Iterator[None]:
    """While the block runs, a thread sees to it that a pipe hears a line within 30 s, also where a stage has no end."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(max(0.1, _printed[0] + LINE_SECONDS - time.monotonic())):
            break_silence(f"Still working. {_latest[0]}")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def break_silence(text: str) -> None:
    """Print a line where stderr is not a terminal and nothing was printed for a while: the work goes on."""
    _latest[0] = text.removeprefix("Still working. ")
    if time.monotonic() - _printed[0] >= LINE_SECONDS and not sys.stderr.isatty():
        notify(text)


PACE_SECONDS = 2.0
"""Work on images is timed for so long before its whole cost is estimated."""

LARGE_SECONDS, LARGE_BYTES = 60.0, 1e9
"""Time and disk from which the cost of work on images is announced."""


@contextmanager
def image_progress(
    what: str, images: int, *, disk_bytes: float = 0, place: Path | None = None
) -> Iterator[Advance]:
    """A progress bar over images that also says once what the whole work takes, where that is much.

    After ``PACE_SECONDS``, where the whole is over a minute or over a GB of disk, the user is told the estimated
    time, the ``disk_bytes`` that ``place`` gets, and the memory taken so far: early enough to stop it.
    """
    started, done, announced = time.perf_counter(), 0.0, False
    with progress_bar(what, images) as advance:

        def advance_images(n: float = 1, note: str = "") -> None:
            nonlocal done, announced
            advance(n, note)
            done += n
            seconds = time.perf_counter() - started
            if announced or seconds < PACE_SECONDS:
                return
            announced, whole = True, seconds * images / done
            if whole < LARGE_SECONDS and disk_bytes < LARGE_BYTES:
                return
            from . import runtime  # brings NumPy, which a command line that is only parsed does without

            duration = f"{whole / 60:,.1f} minutes" if whole < 2 * 3600 else f"{whole / 3600:,.1f} hours"
            disk = f", {disk_bytes / 1e9:,.1f} GB of disk in '{place}'" if disk_bytes else ""
            memory = runtime.peak_memory_mb() / 1e3
            notify(f"{what}: {images:,} in about {duration}{disk}, {memory:,.1f} GB of memory so far.")

        yield advance_images


def notify(text: str) -> None:
    """Print a sentence for the user to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
    _printed[0] = time.monotonic()
    _latest[0] = text.removeprefix("Still working. ")
