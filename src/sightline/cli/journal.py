"""The verbs that look after a site: releases, keys, journal."""

import csv
import dataclasses
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ..errors import ChoiceError, JournalError, OutputError
from .output import Json, emit, make_table

if TYPE_CHECKING:
    from rich.console import Console

    from ..journal import Journal, JournalRow
    from ..serving import Release

_Flag = Annotated[bool, Parameter(negative=())]


def releases(
    site: Path,
    action: Literal["list", "publish", "promote", "rollback", "prune"] = "list",
    what: str | None = None,
    /,
    *,
    note: str = "",
    images: str | None = None,
    with_memory: _Flag = False,
    only_publish: _Flag = False,
    keep: int = 5,
    json: Json = False,
) -> None:
    """The releases of a site: list, publish RUN, promote N, rollback, or prune.

    Parameters
    ----------
    site: Path
        The folder of the service; publish makes it.
    action: str
        publish a run under the next number; promote lets a release answer; rollback the one before; prune removes
        old ones.
    what: str
        The run to publish, or the number to promote.
    note: str
        A word about the release, for whoever reads the list.
    images: str
        Labelled images to compare the exported file on. Default: the run's validation images.
    with_memory: bool
        Publish a bundle that holds images it learned from.
    only_publish: bool
        Publish without letting it answer yet.
    keep: int
        With prune: how many of the newest stay.
    """
    given = {"note": note, "images": images, "with_memory": with_memory, "promote": not only_publish}
    emit(_run_release_action(site, action, what, given, keep), json, _print_releases)


def _run_release_action(
    site: Path, action: str, what: str | None, given: Mapping[str, Any], keep: int
) -> dict[str, Any]:
    from ..serving import promote, prune, rollback

    gone: list[int] = []
    if action == "publish":
        from ..serving import publish

        made = publish(site, _require_argument(what, "publish", "the run"), **given)
        return _release_list(site) | {"published": made.number, "onnx": made.facts["onnx"]}
    if action == "promote":
        promote(site, _parse_release_number(_require_argument(what, "promote", "the number of a release")))
    elif what is not None:
        raise ChoiceError(f"There is no place for '{what}' after {action}.")
    elif action == "rollback":
        rollback(site)
    elif action == "prune":
        gone = prune(site, keep=keep)
    return _release_list(site) | ({"removed": gone} if action == "prune" else {})


def _require_argument(what: str | None, action: str, name: str) -> str:
    if what is None:
        raise ChoiceError(f"Say what to {action}: {name}, after the word '{action}'.")
    return what


def _parse_release_number(word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise ChoiceError(f"'{word}' is no number of a release, such as 3.")
    return int(word)


def _release_list(site: Path) -> dict[str, Any]:
    from ..serving import current_number, list_releases

    found = list_releases(site)
    return {
        "site": str(site),
        "current": current_number(site),
        "releases": [_release_json(one) for one in found],
    }


def _release_json(release: "Release") -> dict[str, Any]:
    facts = {name: value for name, value in release.facts.items() if name != "files"}
    return facts | {"path": str(release.path)}


def _print_releases(console: "Console", value: Mapping[str, Any]) -> None:
    rows = []
    for one in value["releases"]:
        accuracy = one.get("metrics", {}).get("accuracy")
        rows.append(
            (
                "answers" if one["number"] == value["current"] else "",
                one["number"],
                one.get("time", "-").replace("T", " ").partition("+")[0],
                "-" if accuracy is None else f"{accuracy:.2%}",
                one.get("source", "-"),
                one.get("damaged") or one["note"],
            )
        )
    console.print(make_table(("", "release", "published (UTC)", "accuracy", "from", "note"), rows))
    for number in value.get("removed", ()):
        console.print(f"Release {number} was removed.")
    if onnx := value.get("onnx"):
        _print_onnx(console, value["published"], onnx)
    if value["current"] is None and value["releases"]:
        console.print(f"None answers yet: sightline releases {value['site']} promote N", markup=False)


def _print_onnx(console: "Console", number: int, onnx: Mapping[str, Any]) -> None:
    if onnx["file"] is None:
        console.print(f"\nRelease {number} has no ONNX file and answers in torch: {onnx['why']}", markup=False)
    else:
        console.print(
            f"\nThe ONNX file of release {number} gives the same answer for {onnx['agreement']:.2%} of "
            f"{onnx['n']:,} images ({onnx['sample']}).",
            markup=False,
        )


def keys(
    site: Path,
    action: Literal["list", "make", "revoke"] = "list",
    name: str | None = None,
    /,
    *,
    scopes: str = "predict,feedback",
    expires_days: float | None = None,
    json: Json = False,
) -> None:
    """The keys of a site: list, make NAME, or revoke NAME. A key is shown once, when it is made.

    Parameters
    ----------
    site: Path
        The folder of the service.
    action: str
        make a key, or revoke one: at once, for a running service too.
    name: str
        Whose key it is, such as camera-3.
    scopes: str
        What it allows, with commas: read, predict, feedback, admin (which includes the others).
    expires_days: float
        Days until it is refused. Default: never.
    """
    from ..serving import Keyring, create_key, list_keys, revoke_key

    said: dict[str, Any] = {}
    if action == "make":
        wanted = [word for word in scopes.split(",") if word]
        said["key"] = create_key(
            site, _require_argument(name, "make", "the name of a key"), wanted, expires_days=expires_days
        )
    elif action == "revoke":
        said["revoked"] = revoke_key(site, _require_argument(name, "revoke", "the name of a key")).name
    found = [key.as_json() for key in list_keys(site)]
    emit({"site": str(site), "keys": found, "open": Keyring(site).empty, **said}, json, _print_keys)


def _print_keys(console: "Console", value: Mapping[str, Any]) -> None:
    if "key" in value:
        console.print(f"{value['key']}\n\nThis is the key; it is not kept and not shown again.\n", markup=False)
    rows = [
        (
            one["name"],
            ", ".join(one["scopes"]),
            _format_day(one["created"]),
            "never"
            if one["expires"] is None
            else _format_day(one["expires"]) + (" (over)" if one["expired"] else ""),
        )
        for one in value["keys"]
    ]
    if rows:
        console.print(make_table(("name", "allows", "made", "expires"), rows))
    elif value["open"]:
        console.print("There are no keys: the service answers on this machine only, and whoever asks.")
    else:
        console.print("No key is left: nobody is let in until another is made, or keys.json is removed.")


def journal(
    site: Path,
    action: Literal["list", "export", "erase", "retain"] = "list",
    subject: str | None = None,
    /,
    *,
    url: str | None = None,
    limit: int = 20,
    label: str | None = None,
    release: int | None = None,
    corrected: bool | None = None,
    before: str | None = None,
    out: Path | None = None,
    days: float | None = None,
    json: Json = False,
) -> None:
    """What a site has answered and was told since: list, export, erase SUBJECT, or retain.

    Parameters
    ----------
    site: Path
        The folder of the service.
    action: str
        export writes rows as a .csv, or kept and corrected images as a folder to train on; erase removes the
        images and hashes of a subject; retain those older than --days.
    subject: str
        Whose images to erase, as it was named in the requests.
    url: str
        A database's URL; safer in the variable SIGHTLINE_JOURNAL. Default: the site's own file.
    limit: int
        With list: how many rows.
    label: str
        With list and export to .csv: only answers of this class.
    release: int
        Only answers of this release.
    corrected: bool
        Only answers that were corrected, or with --no-corrected that were not.
    before: str
        Only answers before this id: the next page.
    out: Path
        With export: a .csv, or a folder that is made.
    days: float
        With retain: how long images and hashes are kept.
    """
    wanted = {"label": label, "release": release, "corrected": corrected, "before": before}
    with _open_journal(site, url or os.environ.get("SIGHTLINE_JOURNAL")) as held:
        value = _run_journal_action(held, action, subject, wanted, limit, out, days)
    emit({"site": str(site), **value}, json, _print_journal)


def _open_journal(site: Path, url: str | None) -> "Journal":
    from ..journal import JOURNAL_FILE, Journal

    if not url and not (site / JOURNAL_FILE).is_file() and not (site / "spool").is_dir():
        raise JournalError(f"'{site}' has no journal yet: one is made by sightline serve {site}.")
    held = Journal.open(url or site, site=site, quota_mb=math.inf)  # what a dead server left was within its quota
    held.flush()
    return held


def _run_journal_action(
    held: "Journal",
    action: str,
    subject: str | None,
    wanted: Mapping[str, Any],
    limit: int,
    out: Path | None,
    days: float | None,
) -> dict[str, Any]:
    if subject is not None and action != "erase":
        raise ChoiceError(f"There is no place for '{subject}' after {action}.")
    if action == "erase":
        return {"erased": held.erase(_require_argument(subject, "erase", "the subject"))}
    if action == "retain":
        if days is None:
            raise ChoiceError("Say how long images and hashes are kept: --days 90, for example.")
        return {"erased": held.retain(days)}
    if action == "export":
        if out is None:
            raise ChoiceError("Say where to write: --out answers.csv, or a folder for the images.")
        return {"out": str(out), "n": _export_rows(held, out, wanted)}
    rows = held.predictions(limit=limit, **wanted)
    return {**held.count(), "rows": [dataclasses.asdict(row) for row in rows]}


def _export_rows(held: "Journal", out: Path, wanted: Mapping[str, Any]) -> int:
    """Rows as a table, or labelled images as a folder that every verb takes as DATA; how many."""
    from ..files import atomic_replace

    if out.exists():
        raise OutputError(f"'{out}' exists already. Choose another --out.")
    if out.suffix.lower() == ".csv":
        with atomic_replace(out) as temporary:
            return _write_rows(temporary, _all_rows(held, wanted))
    rows = [(row, path) for row in held.labelled_rows() if (path := held.image_path(row)) is not None]
    if not rows:
        raise JournalError(
            "The journal has no labelled images: serve with --keep-images, and correct some answers."
        )
    with atomic_replace(out) as temporary:
        (temporary / "images").mkdir(parents=True)
        for _row, path in rows:
            shutil.copyfile(path, temporary / "images" / path.name)
        _write_labels(temporary / "labels.csv", [row for row, _ in rows])
    return len(rows)


def _all_rows(held: "Journal", wanted: Mapping[str, Any]) -> "Sequence[JournalRow]":
    """Every row, oldest first."""
    rows: list[JournalRow] = []
    last = wanted["before"]
    while page := held.predictions(limit=10_000, **{**wanted, "before": last}):
        rows += page
        last = page[-1].id
    return rows[::-1]


def _write_rows(path: Path, rows: "Sequence[JournalRow]") -> int:
    from ..journal import JournalRow

    names = [field.name for field in dataclasses.fields(JournalRow)]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows([_csv_cell(value) for value in dataclasses.astuple(row)] for row in rows)
    return len(rows)


def _csv_cell(value: object) -> object:
    """What a spreadsheet would take for a formula gets a quote before it: subjects come from strangers."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _write_labels(path: Path, rows: "Sequence[JournalRow]") -> None:
    grouped = any(row.subject for row in rows)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "release", "prediction", *(["group"] if grouped else [])])
        for row in rows:
            group = [_csv_cell(row.subject or row.id)] if grouped else []
            writer.writerow([f"images/{row.image}", row.correction, row.release, row.id, *group])


def _print_journal(console: "Console", value: Mapping[str, Any]) -> None:
    if "rows" in value:
        _print_rows(console, value)
    elif "erased" in value:
        console.print(f"Image and hash were removed from {value['erased']:,} rows; the rows stay, with a mark.")
    else:
        console.print(f"{value['n']:,} rows are in {value['out']}", markup=False)


def _print_rows(console: "Console", value: Mapping[str, Any]) -> None:
    rows = [
        (
            one["id"],
            _format_time(one["at"]),
            one["release"],
            f"{one['label']} {one['confidence']:.1%}" + (" (unknown)" if one["abstained"] else ""),
            one["correction"] or "",
            one["subject"] or "",
        )
        for one in value["rows"]
    ]
    console.print(make_table(("id", "time (UTC)", "release", "answer", "corrected to", "subject"), rows))
    console.print(
        f"\n{value['predictions']:,} answers, {value['abstained']:,} of them unknown; {value['corrected']:,} "
        f"corrected; {value['images']:,} images kept ({value['image_bytes'] / 1e6:.1f} MB); "
        f"{value['erased']:,} erased."
    )


def _format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _format_day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
