"""Exemplars: images kept by learning, once by hash next to the runs, so that each can be erased.

A folder of runs holds ``exemplars/SHA256.png`` and, in each run, ``exemplars.jsonl``, a table that labels its own. No
bundle holds an image, so erasing one breaks no checksum.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

from ..files import atomic_replace, explain_write_errors, write_text

EXEMPLARS_FOLDER, EXEMPLARS_FILE = "exemplars", "exemplars.jsonl"


def store_exemplar(folder: Path, image: bytes, suffix: str) -> str:
    """Keep an image file among those of the runs in ``folder``, once; returns its path relative to a run."""
    place = folder / EXEMPLARS_FOLDER
    name = hashlib.sha256(image).hexdigest() + suffix
    with explain_write_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        if not (place / name).is_file():
            with atomic_replace(place / name) as temporary:
                temporary.write_bytes(image)
    return f"../{EXEMPLARS_FOLDER}/{name}"


def write_exemplar_table(run: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Write the table of a run's exemplars: ``path``, ``label`` and ``split`` of each."""
    write_text(run / EXEMPLARS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
    return run / EXEMPLARS_FILE


def read_exemplar_table(run: Path) -> list[dict[str, str]]:
    """The rows of a run's exemplars whose images are there; the others leave the table."""
    file = run / EXEMPLARS_FILE
    if not file.is_file():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    left = [row for row in rows if (run / row["path"]).is_file()]
    if len(left) < len(rows):
        write_exemplar_table(run, left)
    return left


def erase_exemplars(folder: Path, hashes: Collection[str]) -> int:
    """Delete the exemplars of these SHA-256 hashes that the runs in ``folder`` share; returns how many there were."""
    gone = [file for file in (folder / EXEMPLARS_FOLDER).glob("*") if file.stem in hashes]
    with explain_write_errors(folder / EXEMPLARS_FOLDER):
        for file in gone:
            file.unlink(missing_ok=True)
    for table in folder.glob(f"*/{EXEMPLARS_FILE}") if gone else ():
        read_exemplar_table(table.parent)
    return len(gone)
