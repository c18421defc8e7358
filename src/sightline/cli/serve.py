"""The verb serve: a classifier as an HTTP service."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from .output import OUTPUT_DEFAULTS, OutputOptions, Switch, emit

if TYPE_CHECKING:
    from rich.console import Console

_LIMITS = Parameter(group=Group("Limits", sort_key=10), negative=())
_JOURNAL = Parameter(group=Group("Journal", sort_key=11), negative=())


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LimitFlags:
    """Limits on requests."""

    max_body_mb: Annotated[float, _LIMITS] = 20.0
    """Maximum size of a request, in MB."""
    max_pixels: Annotated[int, _LIMITS] = 50_000_000
    """Maximum pixels of an image, read from its header."""
    max_images: Annotated[int, _LIMITS] = 64
    """Maximum images of a request."""
    queue: Annotated[int, _LIMITS] = 256
    """Maximum requests that wait."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class JournalFlags:
    """What the journal stores, and where."""

    journal: Annotated[str | None, _JOURNAL] = None
    """URL of the journal's database; safer in the variable SIGHTLINE_JOURNAL. Default: a file of the site."""
    keep_images: Annotated[bool, _JOURNAL] = False
    """Store the images too, without their EXIF data."""
    quota_mb: Annotated[float, _JOURNAL] = 1000.0
    """Maximum MB of stored images."""


def serve(
    path: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    threads: int | None = None,
    watch: Path | None = None,
    http: bool = True,
    open: Switch = False,
    studio: Switch = False,
    origin: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    bounds: LimitFlags | None = None,
    memory: JournalFlags | None = None,
    options: OutputOptions = OUTPUT_DEFAULTS,
) -> None:
    """Serve a classifier over HTTP, with a journal of predictions and corrections.

    Parameters
    ----------
    path: Path
        A site, whose current release is served; or a run, a bundle or an ONNX file.
    host: str
        The address to listen on. Any other than this machine's own needs keys, or --open.
    port: int
        The port; 0 takes any free one.
    workers: int
        Number of processes; more than one is for many cores.
    threads: int
        Cores of each process. Default: all cores, divided among the workers.
    watch: Path
        A folder to watch: new images in it are classified, one JSON line each.
    http: bool
        With --no-http it only watches the folder.
    open: bool
        Accept requests from anyone, without keys.
    studio: bool
        Show the web interface too, below /studio.
    origin: tuple[str, ...]
        Origin of a web page that may send requests, such as https://example.org; may be repeated.
    """
    from ..feedback import add_review_routes, watch_drift
    from ..serving import build_limits, is_loopback
    from ..serving import serve as run_service

    given = {"host": host, "port": port, "workers": workers, "threads": threads, "watch": watch, "open": open}
    limits = build_limits(
        **{name.removeprefix("max_"): value for name, value in vars(bounds or LimitFlags()).items()}
    )
    report: Callable[[Mapping[str, Any]], None] = partial(emit, json=options.json, render=print_address)
    routers: list[Any] = [add_review_routes]
    body_bytes = None
    if studio:
        from .studio import make_studio_routes, report_address

        token, routes = make_studio_routes(local=is_loopback(host))
        routers, body_bytes = [*routers, routes], routes.body_bytes
        report = partial(report_address, token=token, browser=False, json=options.json)
    stored = vars(memory or JournalFlags())
    run_service(
        path,
        http=http,
        origins=origin,
        limits=limits,
        report=report,
        observer=watch_drift,
        routers=routers,
        body_bytes=body_bytes,
        **given,
        **stored,
    )


def print_address(console: "Console", value: Mapping[str, Any]) -> None:
    """The address of the service and how to use it."""
    number = value.get("release")  # each of several workers knows its own
    release = "" if number is None else f" (release {number})" if number else " (no releases)"
    if value["url"]:
        console.print(f"\n'{value['path']}'{release} is served at {value['url']}", markup=False)
        console.print(f"Try: curl -F image=@IMAGE {value['url']}/predict", markup=False)
    if value.get("journal") is False:
        console.print("No journal: serve a site, or set --journal, to store predictions and corrections.")
    if value.get("keys") is False:
        console.print("No key is needed: anyone who reaches the address may send requests.")
