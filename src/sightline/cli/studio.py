"""The verb studio: the same verbs, with a mouse."""

import secrets
import webbrowser
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..files import explain_write_errors
from .output import OUTPUT_DEFAULTS, OutputOptions, emit

if TYPE_CHECKING:
    from rich.console import Console


def studio(
    folder: Path = Path("site"),
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    browser: bool = True,
    keep_images: bool = True,
    quota_mb: float = 1000.0,
    options: OutputOptions = OUTPUT_DEFAULTS,
) -> None:
    """Open the web interface of a site: images, training, reports, releases, reviews. It answers requests too.

    Parameters
    ----------
    folder: Path
        The folder of the service, which is made if there is none.
    host: str
        The address to listen on. Any other than this machine's own needs keys: sightline keys.
    port: int
        The port; 0 takes any free one.
    browser: bool
        Open a browser.
    keep_images: bool
        Store the images that are answered, so that people can review them.
    quota_mb: float
        Maximum MB of stored images.
    """
    from ..feedback import add_review_routes, watch_drift
    from ..serving import is_loopback
    from ..serving import serve as run_service

    if folder.exists() and not folder.is_dir():
        raise DataError(f"'{folder}' is a file: name the folder of a site, which may be empty.")
    with explain_write_errors(folder):
        (folder / "releases").mkdir(parents=True, exist_ok=True)
    token, routes = make_studio_routes(local=is_loopback(host))
    report = partial(report_address, token=token, browser=browser, json=options.json)
    run_service(
        folder, host=host, port=port, keep_images=keep_images, quota_mb=quota_mb, report=report,
        observer=watch_drift, routers=[add_review_routes, routes], body_bytes=routes.body_bytes, wait_for_release=True,
    )  # fmt: skip


def make_studio_routes(*, local: bool) -> tuple[str, Any]:
    """The routes of the studio, and the one-time token that signs in where only this machine listens; else ''."""
    from ..serving import hash_key
    from ..studio import StudioRoutes

    token = secrets.token_urlsafe(24) if local else ""
    return token, StudioRoutes(hash_key(token) if token else None)


def report_address(value: Mapping[str, Any], *, token: str, browser: bool, json: bool) -> None:
    """Print the address of the studio, and open it."""
    address = f"{value['url']}/studio" + (f"/sign-in?token={token}" if token else "")
    emit({**value, "studio": address}, json, print_studio)
    if browser:
        webbrowser.open(address)


def print_studio(console: "Console", value: Mapping[str, Any]) -> None:
    """The address of the studio."""
    console.print(f"\nThe studio of '{value['path']}' is open at\n{value['studio']}\n", markup=False)
    console.print("The address signs you in once. Ctrl-C closes the studio; jobs that run go on.")
