"""Numbered, immutable, checksummed releases of a classifier, and the pointer to the current one.

A site is a folder: ``releases/0001/`` with ``classifier/`` (the bundle), ``model.onnx`` (if it can be exported)
and ``release.json``; ``current`` with the number of the release that answers, and the previous ones; and
``releases.jsonl``, who did what. Nothing here runs a network.
"""

import getpass
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import ReleaseError
from ..files import checksum, explain_write_errors, write_json
from ..journal import REFERENCE_FILE, Reference

RELEASE_FORMAT = 1
"""Version of the layout of a release; Sightline reads its own version and every earlier one."""

RELEASE_FILE, CURRENT_FILE, AUDIT_FILE, BUNDLE_FOLDER, ONNX_FILE = (
    "release.json",
    "current",
    "releases.jsonl",
    "classifier",
    "model.onnx",
)

_MAX_PREVIOUS_RELEASES = 100
"""Previous releases that ``current`` lists."""


@dataclass(frozen=True)
class Release:
    """A published classifier."""

    number: int
    path: Path
    facts: Mapping[str, Any] = field(compare=False)
    """Content of ``release.json``: ``time``, ``by``, ``source``, ``note``, ``sightline``, ``classes``,
    ``metrics``, ``onnx`` (the comparison, or why there is no file) and ``files`` with their checksums."""

    @property
    def bundle(self) -> Path:
        """The folder for ``Classifier.load``."""
        return self.path / BUNDLE_FOLDER

    @property
    def onnx(self) -> Path | None:
        """The exported file; None if the classifier cannot be exported."""
        path = self.path / ONNX_FILE
        return path if path.is_file() else None

    def reference(self) -> Reference | None:
        """What its answers are compared with; None if it was published without held-out images.

        Raise JournalError if it cannot be read.
        """
        path = self.path / REFERENCE_FILE
        return Reference.load(path) if path.is_file() else None


def is_site(folder: Path | str) -> bool:
    """Return whether a folder holds releases."""
    return (Path(folder) / "releases").is_dir()


def list_releases(site: Path | str) -> list[Release]:
    """Return every release of a site, oldest first; raise ReleaseError if there is no site.

    One that cannot be read has the reason as its fact ``damaged``, so that it does not hide the others.
    """
    found = []
    for number in release_numbers(site):
        try:
            found.append(load_release(site, number))
        except ReleaseError as error:
            facts = {"number": number, "damaged": str(error)}
            found.append(Release(number, release_folder(site, number), facts))
    return found


def load_release(site: Path | str, number: int) -> Release:
    """Return release ``number``; raise ReleaseError if it does not exist or cannot be read."""
    path = release_folder(site, number)
    if not path.is_dir():
        known = ", ".join(map(str, release_numbers(site))) or "none yet"
        raise ReleaseError(f"'{site}' has no release {number}. It has: {known}.")
    facts = _read_json(path / RELEASE_FILE, f"Release {number} of '{site}'")
    _check_format(facts, number, site)
    return Release(number, path, facts)


def current_release(site: Path | str) -> Release:
    """Return the release that answers; raise ReleaseError if none was promoted yet."""
    number = _read_pointer(site)["release"]
    if number is None:
        has = release_numbers(site)
        what = f"promote {has[-1]}" if has else "publish RUN"
        raise ReleaseError(f"No release of '{site}' answers yet. Make one: sightline releases {site} {what}")
    return load_release(site, number)


def current_number(site: Path | str) -> int | None:
    """Return the number of the release that answers; None if none was promoted yet."""
    return _read_pointer(site)["release"]


def previous_numbers(site: Path | str) -> list[int]:
    """Return the numbers of the releases that answered before the current one, the latest first."""
    return _read_pointer(site)["before"]


def pointer_stamp(site: Path | str) -> tuple[int, ...]:
    """Return a value that changes whenever another release is promoted, at the cost of one ``stat``."""
    try:
        status = os.stat(Path(site) / CURRENT_FILE)  # noqa: PTH116 called four times a second
    except OSError:
        return ()
    return (status.st_mtime_ns, status.st_ino, status.st_size)


def promote(site: Path | str, number: int, *, by: str | None = None) -> Release:
    """Make release ``number`` the current one and return it.

    Raise ReleaseError if it does not exist, was changed since it was published, or has a newer format.
    """
    release_numbers(site)  # raises if there is no site
    with lock_releases(site):  # read under it too: a concurrent prune may remove the release
        found = load_release(site, number)
        verify(found)
        set_current(site, found, "promote", by)
    return found


def rollback(site: Path | str, *, by: str | None = None) -> Release:
    """Make the previous release the current one and return it; raise ReleaseError if there is none."""
    release_numbers(site)  # raises if there is no site
    with lock_releases(site):
        pointer = _read_pointer(site)
        if not pointer["before"]:
            raise ReleaseError(f"There is no release to go back to: '{site}' had no other one before.")
        number, *older = pointer["before"]
        found = load_release(site, number)
        verify(found)
        write_json(Path(site) / CURRENT_FILE, {"release": number, "before": older})
        append_audit(site, "rollback", number, by, was=pointer["release"])
    return found


def prune(site: Path | str, *, keep: int = 5, by: str | None = None) -> list[int]:
    """Remove all but the ``keep`` newest releases, the current one and the previous one; return their numbers."""
    if keep < 1:
        raise ReleaseError(f"--keep is {keep}: it must be at least 1 release.")
    release_numbers(site)  # raises if there is no site
    with lock_releases(site):
        pointer = _read_pointer(site)
        kept = {pointer["release"], *pointer["before"][:1], *release_numbers(site)[-keep:]}
        gone = [number for number in release_numbers(site) if number not in kept]
        for number in gone:
            path = release_folder(site, number)
            hidden = path.with_name(f".{path.name}.gone")
            with explain_write_errors(path):
                path.rename(hidden)  # so that others see all of it or nothing
                shutil.rmtree(hidden)
            append_audit(site, "prune", number, by)
        if gone:
            left = [number for number in pointer["before"] if number not in gone]
            write_json(Path(site) / CURRENT_FILE, pointer | {"before": left})
    return gone


def verify(release: Release) -> None:
    """Raise ReleaseError, with the file's name, if a release differs from what was published."""
    what = f"Release {release.number} ('{release.path}')"
    _check_format(release.facts, release.number, release.path.parent.parent)
    listed = release.facts.get("files")
    if not isinstance(listed, dict) or not listed:
        raise ReleaseError(f"{what} is damaged: its {RELEASE_FILE} lists no files. Publish the run again.")
    present = release_files(release.path)
    for name in sorted(listed.keys() - present.keys()):
        raise ReleaseError(f"{what} lacks its file '{name}'. Publish the run again, or bring the file back.")
    for name in sorted(present.keys() - listed.keys()):
        raise ReleaseError(f"{what} holds '{name}', which was not published. Remove that file.")
    for name, path in present.items():
        if path.is_symlink() or checksum(path) != listed[name]:
            raise ReleaseError(
                f"{what} was changed: '{name}' is not the file that was published. Publish the run again."
            )


# Used by publishing too


def release_numbers(site: Path | str) -> list[int]:
    """Return the numbers of the releases, oldest first; raise ReleaseError if there is no site."""
    folder = Path(site) / "releases"
    if not folder.is_dir():
        raise ReleaseError(
            f"'{site}' is no site: it has no releases. Make one: sightline releases {site} publish RUN"
        )
    names = [path.name for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]
    return sorted(int(name) for name in names if name == f"{int(name):04d}")


def release_folder(site: Path | str, number: int) -> Path:
    """Return the folder of a release."""
    return Path(site) / "releases" / f"{number:04d}"


def release_files(folder: Path) -> dict[str, Path]:
    """Return the files of a release except ``release.json``, by relative name."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {name: path for path in files if (name := path.relative_to(folder).as_posix()) != RELEASE_FILE}


@contextmanager
def lock_releases(site: Path | str) -> Iterator[None]:
    """Hold the lock under which a site's releases are numbered, promoted and removed."""
    with explain_write_errors(Path(site)):
        lock = FileLock(Path(site) / ".releases.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def set_current(site: Path | str, release: Release, action: str, by: str | None) -> None:
    """Make a release the current one and log ``action``; the caller holds the lock."""
    pointer = _read_pointer(site)
    was = pointer["release"]
    if was != release.number:
        older = [was, *pointer["before"]] if was is not None else pointer["before"]
        older = [number for number in older if number != release.number]
        write_json(
            Path(site) / CURRENT_FILE, {"release": release.number, "before": older[:_MAX_PREVIOUS_RELEASES]}
        )
    append_audit(site, action, release.number, by, was=was)


def append_audit(site: Path | str, action: str, number: int, by: str | None, **more: Any) -> None:
    """Append a line to ``releases.jsonl``: who did what, and when."""
    line = {"time": timestamp(), "by": by or current_user(), "what": action, "release": number, **more}
    path = Path(site) / AUDIT_FILE
    with explain_write_errors(path), path.open("ab") as stream:
        stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def timestamp() -> str:
    """Return the present time in ISO format, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def current_user() -> str:
    """Return the user's name, or "unknown"."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def _read_pointer(site: Path | str) -> dict[str, Any]:
    path = Path(site) / CURRENT_FILE
    if not path.exists():
        return {"release": None, "before": []}
    found = _read_json(path, f"The file '{CURRENT_FILE}' of '{site}'")
    try:
        return {"release": int(found["release"]), "before": [int(number) for number in found["before"]]}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged_error(f"The file '{CURRENT_FILE}' of '{site}'") from error


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged_error(what) from error
    if not isinstance(found, dict):
        raise _damaged_error(what)
    return found


def _damaged_error(what: str) -> ReleaseError:
    return ReleaseError(f"{what} is damaged or cannot be read. Promote or publish another release.")


def _check_format(facts: Mapping[str, Any], number: int, site: Path | str) -> None:
    version = facts.get("format")
    if not isinstance(version, int) or facts.get("number") != number:
        raise _damaged_error(f"Release {number} of '{site}'")
    if version > RELEASE_FORMAT:
        raise ReleaseError(
            f"Release {number} of '{site}' has format {version}, newer than this Sightline reads "
            f"({RELEASE_FORMAT}). Upgrade with: pip install --upgrade sightline"
        )
