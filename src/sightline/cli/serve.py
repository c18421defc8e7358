"""The verb that lets others ask: serve."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from .output import Json, emit

if TYPE_CHECKING:
    from rich.console import Console

    from ..serving import RequestLimits

_LIMITS = Parameter(group=Group("Limits", sort_key=10), negative=())
_JOURNAL = Parameter(group=Group("Journal", sort_key=11), negative=())
_Flag = Annotated[bool, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LimitFlags:
    """How much may be asked at once."""

    max_body_mb: Annotated[float, _LIMITS] = 20.0
    """Bytes of a request, in MB."""
    max_pixels: Annotated[int, _LIMITS] = 50_000_000
    """Pixels of an image, told by its header."""
    max_images: Annotated[int, _LIMITS] = 64
    """Images of a request."""
    queue: Annotated[int, _LIMITS] = 256
    """Requests that may wait."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class JournalFlags:
    """What is remembered, and where."""

    journal: Annotated[str | None, _JOURNAL] = None
    """A database's URL; safer in the variable SIGHTLINE_JOURNAL. Default: the site's own file."""
    keep_images: Annotated[bool, _JOURNAL] = False
    """Keep the images too, without their EXIF."""
    quota_mb: Annotated[float, _JOURNAL] = 1000.0
    """MB of images that are kept."""


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
    open: _Flag = False,
    origin: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    bounds: LimitFlags | None = None,
    memory: JournalFlags | None = None,
    json: Json = False,
) -> None:
    """Answer requests over HTTP, remember the answers, and take corrections.

    Parameters
    ----------
    path: Path
        A site, of which the current release answers; or a run, a bundle or an ONNX file.
    host: str
        The address to listen at. Any but this machine's own needs keys, or --open.
    port: int
        0 takes any free one.
    workers: int
        Processes. More than one is for many cores.
    threads: int
        Cores of each process. Default: all, shared among the workers.
    watch: Path
        A folder whose new images are classified too, one JSON line each.
    http: bool
        --no-http only watches the folder.
    open: bool
        Let everyone in, without keys.
    origin: tuple[str, ...]
        A web page that may ask, such as https://example.org; may be repeated.
    """
    from ..serving import serve as answer

    given = {"host": host, "port": port, "workers": workers, "threads": threads, "watch": watch, "open": open}
    limits, kept = _request_limits(bounds or LimitFlags()), vars(memory or JournalFlags())
    tell = partial(emit, json=json, render=_print_address)
    answer(path, http=http, origins=origin, limits=limits, tell=tell, **given, **kept)


def _request_limits(bounds: LimitFlags) -> "RequestLimits":
    from ..serving import build_limits

    named = {name.removeprefix("max_"): value for name, value in vars(bounds).items()}
    return build_limits(**named)


def _print_address(console: "Console", value: Mapping[str, Any]) -> None:
    number = value.get("release")  # several workers each know their own
    release = "" if number is None else f" (release {number})" if number else " (no releases)"
    if value["url"]:
        console.print(f"\n'{value['path']}'{release} answers at {value['url']}", markup=False)
        console.print(f"Try: curl -F image=@IMAGE {value['url']}/predict", markup=False)
    if value.get("journal") is False:
        console.print("Nothing is remembered: serve a site, or name a --journal, to keep answers and corrections.")
    if value.get("keys") is False:
        console.print("No key is needed: whoever reaches the address may ask.")
