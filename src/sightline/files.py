"""Atomic writing, with errors of the operating system as one sentence and a remedy."""

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from .errors import OutputError

_WRITE_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space or choose another place",
    errno.EDQUOT: "your disk quota is used up: free some space or choose another place",
    errno.EROFS: "that file system is read-only: choose another place",
    errno.EACCES: "you may not write there: choose another place or change its permissions",
    errno.EPERM: "you may not write there: choose another place or change its permissions",
    errno.EEXIST: "part of that path is a file, not a folder: choose another place",
    errno.ENOTDIR: "part of that path is a file, not a folder: choose another place",
    errno.EISDIR: "there is a folder of that name: choose another name",
}


_FORMULA_STARTS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""First characters of cells that a spreadsheet may run, and their full-width forms."""

_NUMBERS_ON_LINES = re.compile(r"\[\n([-+.,\d\seE]++)\]")
"""A list of numbers over several lines; a string of JSON has no line break of its own."""


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Raise an operating-system error about ``path`` as an OutputError with a remedy."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        remedy = _WRITE_REMEDIES.get(error.errno or 0, f"{reason}: choose another place")
        raise OutputError(f"Cannot write '{path}': {remedy}.") from error


def check_output(path: Path, *, overwrite: bool, marker: str, kind: str) -> None:
    """Raise OutputError where the folder ``path`` may not be written.

    A missing folder may be, and one that is empty but for hidden files, such as a killed process leaves; with
    ``overwrite`` also one that holds the file ``marker``, which makes it ``kind``, such as "a run".
    """
    if not path.exists() or (path.is_dir() and not _holds_files(path)):
        return
    if not overwrite:
        raise OutputError(f"'{path}' exists already. Choose another --out, or add --overwrite to replace it.")
    if not (path / marker).is_file():
        raise OutputError(f"'{path}' is not {kind}, so it is not overwritten. Choose another --out.")


def _holds_files(folder: Path) -> bool:
    """Whether anything but hidden files is in a folder."""
    return any(entry.name[0] != "." for entry in folder.iterdir())


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``, and rename it to ``path`` if the block succeeds.

    The block creates a file or a folder there. A process killed while writing leaves the old content unchanged, and
    at most a hidden temporary file that readers ignore. Raises OutputError where it cannot be written.
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary = holder / path.name
        try:
            yield temporary
            for file in temporary.rglob("*") if temporary.is_dir() else [temporary]:
                if file.is_file():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
            if temporary.is_dir() and path.exists():
                path.replace(holder / "old")
            temporary.replace(path)
        finally:
            shutil.rmtree(holder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_replace(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically; a list of numbers is one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, _NUMBERS_ON_LINES.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none that can be read."""
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def open_comparison_folder(
    out: str | Path | None, name: str, file: str, facts: Iterable[str], others: str
) -> Path:
    """The folder of a comparison that a repeated call continues: ``out``, or the first free ``runs/name``.

    The JSON object ``file`` in it holds as ``key`` a hash of ``facts``, all that the results depend on: a folder with
    the same key is continued. Raises OutputError where ``out`` holds something else, such as ``others``.
    """
    key = hashlib.blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()
    for number in count(1):
        folder = Path(out) if out is not None else Path("runs") / (name if number == 1 else f"{name}-{number}")
        saved = read_json_object(folder / file)
        if folder.is_file() or (folder.is_dir() and _holds_files(folder) and saved.get("key") != key):
            if out is None:
                continue
            break
        with explain_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / file, saved | {"key": key})
        return folder
    raise OutputError(
        f"'{out}' holds something other than this comparison (other {others}). Choose another --out."
    )


def write_csv(path: Path, rows: Iterable[Iterable[object]], delimiter: str = ",") -> None:
    """Write rows, the header first, as UTF-8, atomically, without cells that a spreadsheet would run."""
    with atomic_replace(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        write_csv_rows(stream, rows, delimiter)


def write_csv_rows(stream: Any, rows: Iterable[Iterable[object]], delimiter: str = ",") -> None:
    """Write rows to anything with a ``write`` of text; see ``quote_formula``."""
    csv.writer(stream, delimiter=delimiter).writerows(map(quote_formula, row) for row in rows)


def read_csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows that ``write_csv`` wrote, by the names of their columns."""
    with path.open(newline="", encoding="utf-8") as stream:
        header, *rows = [[unquote_formula(cell) for cell in row] for row in csv.reader(stream)] or [[]]
    return [dict(zip(header, row, strict=False)) for row in rows]


def quote_formula(cell: object) -> object:
    """A cell with a quote before what a spreadsheet would run as a formula; ``unquote_formula`` takes it away.

    >>> quote_formula("=1+1"), quote_formula("-dog"), quote_formula("-1.5"), quote_formula("cat")
    ("'=1+1", "'-dog", '-1.5', 'cat')
    """
    if not isinstance(cell, str) or not cell.lstrip("'").startswith(_FORMULA_STARTS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def unquote_formula(cell: str) -> str:
    """The cell that ``quote_formula`` was given."""
    return cell[1:] if cell[:1] == "'" and cell.lstrip("'").startswith(_FORMULA_STARTS) else cell


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
