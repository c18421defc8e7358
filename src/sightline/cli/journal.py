"""The verb journal: predictions of a service, their corrections, export and erasure."""

import dataclasses
import math
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ChoiceError, JournalError, OutputError
from .output import OUTPUT_DEFAULTS, OutputOptions, emit, make_table, require_argument

if TYPE_CHECKING:
    from rich.console import Console

    from ..journal import Erasure, Journal


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
    options: OutputOptions = OUTPUT_DEFAULTS,
) -> None:
    """Manage the predictions of a site and their corrections: list, export, erase SUBJECT, or retain.

    Parameters
    ----------
    site: Path
        The folder of the service.
    action: str
        export writes rows to a .csv, or stored images with corrected labels to a folder to train on; erase deletes
        the images and hashes of a subject; retain deletes those older than --days.
    subject: str
        The subject whose images to erase, as named in the requests.
    url: str
        URL of the journal's database; safer in the variable SIGHTLINE_JOURNAL. Default: a file of the site.
    limit: int
        With list: the number of rows.
    label: str
        With list and export to .csv: only predictions of this class.
    release: int
        Only predictions of this release.
    corrected: bool
        Only corrected predictions, or with --no-corrected the others.
    before: str
        Only predictions before this id: the next page.
    out: Path
        With export: a .csv, or a new folder.
    days: float
        With retain: days to keep images and hashes.
    """
    wanted = {"label": label, "release": release, "corrected": corrected, "before": before}
    if subject is not None and action != "erase":
        raise ChoiceError(f"`journal SITE {action}` takes no further argument, got '{subject}'.")
    with open_site_journal(site, url) as held:
        if action == "erase":
            value: dict[str, Any] = _erasure_json(held.erase(require_argument(subject, "erase", "the subject")))
        elif action == "retain":
            if days is None:
                raise ChoiceError("Set how long to keep images and hashes, such as --days 90.")
            value = _erasure_json(held.retain(days))
        elif action == "export":
            if out is None:
                raise ChoiceError("Set the destination: --out answers.csv, or a folder for the images.")
            held.note_export(out)
            value = {"out": str(out), "n": _export_rows(held, out, wanted)}
        else:
            rows = held.predictions(limit=limit, **wanted)
            value = {**held.count(), "rows": [dataclasses.asdict(row) for row in rows]}
    emit({"site": str(site), **value}, options.json, print_journal)


def open_site_journal(site: Path, url: str | None) -> "Journal":
    """Open the journal of a site, with all answers in its database; raise JournalError if there is none yet."""
    from ..journal import JOURNAL_FILE, Journal

    url = url or os.environ.get("SIGHTLINE_JOURNAL")
    if not url and not (site / JOURNAL_FILE).is_file() and not (site / "spool").is_dir():
        raise JournalError(f"'{site}' has no journal yet: `sightline serve {site}` creates it.")
    held = Journal.open(url or site, site=site, quota_mb=math.inf)  # a dead server's images were within quota
    held.flush()
    return held


def _erasure_json(done: "Erasure") -> dict[str, Any]:
    return {"erased": done.rows, "remains": list(done.remains)}


def _export_rows(held: "Journal", out: Path, wanted: Mapping[str, Any]) -> int:
    """Export rows to a table, or labelled images to a folder for training; returns their number."""
    from ..files import atomic_replace, write_csv
    from ..journal import JournalRow

    if out.exists():
        raise OutputError(f"'{out}' exists already. Choose another --out.")
    if out.suffix.lower() == ".csv":
        rows: list[JournalRow] = []
        conditions = dict(wanted)
        while page := held.predictions(limit=10_000, **conditions):
            rows += page
            conditions["before"] = page[-1].id
        cells = [dataclasses.astuple(row) for row in reversed(rows)]
        write_csv(out, [[field.name for field in dataclasses.fields(JournalRow)], *cells])
        return len(rows)
    labelled = [(row, path) for row in held.labelled_rows() if (path := held.image_path(row)) is not None]
    if not labelled:
        raise JournalError(
            "The journal has no labelled images: serve with --keep-images and correct some predictions."
        )
    grouped = any(row.subject for row, _ in labelled)
    with atomic_replace(out) as temporary:
        (temporary / "images").mkdir(parents=True)
        for _, path in labelled:
            shutil.copyfile(path, temporary / "images" / path.name)
        write_csv(
            temporary / "labels.csv",
            [
                ["path", "label", "release", "prediction", *(["group"] if grouped else [])],
                *(
                    [
                        f"images/{row.image}",
                        row.correction,
                        row.release,
                        row.id,
                        *([row.subject or row.id] if grouped else []),
                    ]
                    for row, _ in labelled
                ),
            ],
        )
    return len(labelled)


def print_journal(console: "Console", value: Mapping[str, Any]) -> None:
    """Rows as a table, or the outcome of an action."""
    if "erased" in value and "rows" not in value:
        console.print(f"Image and hash were deleted from {value['erased']:,} rows; the rows stay and are marked.")
        for sentence in value["remains"]:
            console.print(f"Remains: {sentence}", markup=False)
        return
    if "rows" not in value:
        console.print(f"{value['n']:,} rows are in {value['out']}", markup=False)
        return
    rows = [
        (
            one["id"],
            datetime.fromtimestamp(one["at"], UTC).strftime("%Y-%m-%d %H:%M:%S"),
            one["release"],
            f"{one['label']} {one['confidence']:.1%}" + (" (unknown)" if one["abstained"] else ""),
            one["correction"] or "",
            one["subject"] or "",
        )
        for one in value["rows"]
    ]
    console.print(make_table(("id", "time (UTC)", "release", "prediction", "corrected to", "subject"), rows))
    console.print(
        f"\n{value['predictions']:,} predictions, {value['abstained']:,} of them unknown; {value['corrected']:,} "
        f"corrected; {value['images']:,} images stored ({value['image_bytes'] / 1e6:.1f} MB); "
        f"{value['erased']:,} erased."
    )
