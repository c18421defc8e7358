"""The verbs releases and keys, which manage the site of a service."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ChoiceError
from .output import OUTPUT_DEFAULTS, OutputOptions, Switch, emit, make_table, require_argument

if TYPE_CHECKING:
    from rich.console import Console

MAX_LISTED_FLIPS = 12
"""Newly wrong images in the table."""


def releases(
    site: Path,
    action: Literal["list", "publish", "promote", "rollback", "diff", "prune"] = "list",
    what: str | None = None,
    other: str | None = None,
    /,
    *,
    note: str = "",
    images: str | None = None,
    with_memory: Switch = False,
    only_publish: Switch = False,
    keep: int = 5,
    out: Path | None = None,
    options: OutputOptions = OUTPUT_DEFAULTS,
) -> None:
    """Manage the releases of a site: list, publish RUN, promote N, rollback, diff N M, or prune.

    Parameters
    ----------
    site: Path
        The folder of the service; publish creates it.
    action: str
        publish gives a run the next number and promotes it; promote makes a release the current one; rollback
        returns to the previous one; diff lets two releases answer the same images; prune deletes old ones.
    what: str
        The run to publish, the number to promote, or the first release of a diff.
    other: str
        With diff: the second release.
    note: str
        A note that the list shows.
    images: str
        Labelled images to compare the exported file on, and to make the reference for drift from. Default: the
        validation and test images of the run. With diff: the images to answer. Default: the run's test images.
    with_memory: bool
        Publish a bundle that contains images it learned from.
    only_publish: bool
        Publish without promoting.
    keep: int
        With prune: the number of newest releases to keep.
    out: Path
        With diff: a .png for the images that are newly wrong, if there are any.
    """
    if other is not None and action != "diff":
        raise ChoiceError(f"`releases SITE {action}` takes no second argument, got '{other}'.")
    if action == "diff":
        _print_difference(site, what, other, images, out, options)
        return
    from ..serving import current_number, list_releases, promote, prune, publish, rollback

    more: dict[str, Any] = {}
    if action == "publish":
        run = require_argument(what, "publish", "the run")
        made = publish(site, run, note=note, images=images, with_memory=with_memory, promote=not only_publish)
        more = {"published": made.number, "onnx": made.facts["onnx"], "reference": made.facts["reference"]}
    elif action == "promote":
        promote(site, _release_number(what, "promote"))
    elif what is not None:
        raise ChoiceError(f"`releases SITE {action}` takes no further argument, got '{what}'.")
    elif action == "rollback":
        rollback(site)
    elif action == "prune":
        more = {"removed": prune(site, keep=keep)}
    found = [
        {name: value for name, value in one.facts.items() if name != "files"} | {"path": str(one.path)}
        for one in list_releases(site)
    ]
    value = {"site": str(site), "current": current_number(site), "releases": found, **more}
    emit(value, options.json, print_releases)


def _release_number(word: str | None, action: str) -> int:
    number = require_argument(word, action, "the number of a release")
    if not (number.isascii() and number.isdigit()):
        raise ChoiceError(f"'{number}' is not the number of a release, such as 3.")
    return int(number)


def _print_difference(
    site: Path, first: str | None, second: str | None, images: str | None, out: Path | None, options: OutputOptions
) -> None:
    """Compare two releases, and print what changed."""
    from ..feedback import compare_releases

    numbers = _release_number(first, "diff"), _release_number(second, "diff")
    if out is not None and out.suffix.lower() != ".png":
        raise ChoiceError(f"--out is '{out}': the sheet of newly wrong images is a .png.")
    found = compare_releases(site, *numbers, images=images)
    drawn = out if found.newly_wrong else None
    if out is not None and drawn is not None:
        found.draw(out)
    emit(
        {"site": str(site), **found.as_json(), "out": drawn and str(drawn)},
        options.json,
        print_difference,
    )


def print_difference(console: "Console", value: Mapping[str, Any]) -> None:
    """Negative flips first, then what the gate says."""

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False)

    before, after = value["accuracy"]
    say(f"{value['sample']} Release {value['first']}: {before:.2%} right, release {value['second']}: {after:.2%}.")
    say(f"Newly wrong: {len(value['newly_wrong'])} of {value['n']:,}. Newly right: {len(value['newly_right'])}.")
    rows = [
        (one["file"], one["label"], one["before"], one["after"]) for one in value["newly_wrong"][:MAX_LISTED_FLIPS]
    ]
    if rows:
        console.print(
            make_table(("newly wrong", "is", f"release {value['first']}", f"release {value['second']}"), rows)
        )
    if (more := len(value["newly_wrong"]) - len(rows)) > 0:
        say(f"... and {more:,} more: add --json for all, or --out flips.png to see them.")
    if value["out"]:
        say(f"'{value['out']}' shows them.")
    verdict = value["verdict"]
    sentence = {
        "promote": "The gate would promote it: no loss beyond what is allowed.",
        "keep": "The gate would keep the first release:",
        "cannot tell": "The gate cannot tell:",
    }[verdict["decision"]]
    say(sentence)
    for reason in verdict["reasons"]:
        say(f"  - {reason}")
    if verdict["unproven"]:
        say(f"Too few images to judge: {'; '.join(verdict['unproven'][:5])}.")


def print_releases(console: "Console", value: Mapping[str, Any]) -> None:
    """Releases as a table, and the outcome of an action."""
    rows = []
    for one in value["releases"]:
        accuracy = one.get("metrics", {}).get("accuracy")
        rows.append(
            (
                "current" if one["number"] == value["current"] else "",
                one["number"],
                one.get("time", "-").replace("T", " ").partition("+")[0],
                "-" if accuracy is None else f"{accuracy:.2%}",
                one.get("source", "-"),
                one.get("damaged") or one["note"],
            )
        )
    console.print(make_table(("", "release", "published (UTC)", "accuracy", "from", "note"), rows))
    for number in value.get("removed", ()):
        console.print(f"Release {number} was deleted.")
    if onnx := value.get("onnx"):
        number = value["published"]
        console.print(
            f"\nRelease {number} has no ONNX file and is served with torch: {onnx['why']}"
            if onnx["file"] is None
            else f"\nThe ONNX file of release {number} gives the same prediction for {onnx['agreement']:.2%} of "
            f"{onnx['n']:,} images ({onnx['sample']}).",
            markup=False,
        )
    if (reference := value.get("reference")) and reference["file"] is None:
        console.print(
            f"Release {value['published']} has no reference, so `sightline drift` cannot watch it: {reference['why']}. "
            "Name labelled images that it was not trained on with --images.",
            markup=False,
        )
    if value["current"] is None and value["releases"]:
        console.print(f"No release is current: sightline releases {value['site']} promote N", markup=False)


def keys(
    site: Path,
    action: Literal["list", "make", "revoke"] = "list",
    name: str | None = None,
    /,
    *,
    scopes: str = "predict,feedback",
    expires_days: float | None = None,
    options: OutputOptions = OUTPUT_DEFAULTS,
) -> None:
    """Manage the API keys of a site: list, make NAME, or revoke NAME. A key is shown once, when it is made.

    Parameters
    ----------
    site: Path
        The folder of the service.
    action: str
        make a key, or revoke one: immediately, also for a running service.
    name: str
        The name of the key, such as camera-3.
    scopes: str
        What it allows, with commas: read, predict, feedback, review, admin (which includes the others).
    expires_days: float
        Days until it expires. Default: never.
    """
    from ..serving import Keyring, create_key, list_keys, revoke_key

    more: dict[str, Any] = {}
    if action == "make":
        wanted = [word for word in scopes.split(",") if word]
        name = require_argument(name, "make", "the name of a key")
        more["key"] = create_key(site, name, wanted, expires_days=expires_days)
    elif action == "revoke":
        more["revoked"] = revoke_key(site, require_argument(name, "revoke", "the name of a key")).name
    found = [key.as_json() for key in list_keys(site)]
    emit({"site": str(site), "keys": found, "open": Keyring(site).empty, **more}, options.json, print_keys)


def print_keys(console: "Console", value: Mapping[str, Any]) -> None:
    """Keys as a table; a new key once."""

    def day(seconds: float) -> str:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")

    if "key" in value:
        console.print(f"{value['key']}\n\nThis is the key. It is not stored and not shown again.\n", markup=False)
    rows = [
        (
            one["name"],
            ", ".join(one["scopes"]),
            day(one["created"]),
            "never" if one["expires"] is None else day(one["expires"]) + (" (expired)" if one["expired"] else ""),
        )
        for one in value["keys"]
    ]
    if rows:
        console.print(make_table(("name", "allows", "made", "expires"), rows))
    elif value["open"]:
        console.print("There are no keys: the service accepts requests from this machine only, without a key.")
    else:
        console.print("No key is left: the service refuses all requests until you make one or delete keys.json.")
