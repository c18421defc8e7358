"""Numbered, immutable, checksummed releases of a classifier, and which of them answers.

A site is a folder: ``releases/0001/`` (``classifier/``, the bundle; ``model.onnx`` where it can be exported;
``release.json``), ``current`` (which release answers, and which did before) and ``releases.jsonl`` (who did what).
Nothing here needs torch: that is ``publishing``'s.
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

RELEASE_FORMAT = 1
"""Version of the layout of a release; a release of Sightline reads its own and every earlier one."""

RELEASE_FILE, CURRENT_FILE, AUDIT_FILE, BUNDLE_FOLDER, ONNX_FILE = (
    "release.json",
    "current",
    "releases.jsonl",
    "classifier",
    "model.onnx",
)

_MAX_PREVIOUS_RELEASES = 100
"""Releases that ``current`` remembers to have answered before."""


@dataclass(frozen=True)
class Release:
    """A classifier as it was published."""

    number: int
    path: Path
    facts: Mapping[str, Any] = field(compare=False)
    """What ``release.json`` says: ``time``, ``by``, ``source``, ``note``, ``sightline``, ``classes``, ``metrics``,
    ``onnx`` (how it was compared, or why there is none) and ``files`` with their checksums."""

    @property
    def bundle(self) -> Path:
        """The folder that ``Classifier.load`` opens."""
        return self.path / BUNDLE_FOLDER

    @property
    def onnx(self) -> Path | None:
        """The exported file; None for a classifier that ONNX cannot hold."""
        path = self.path / ONNX_FILE
        return path if path.is_file() else None


def is_site(folder: Path | str) -> bool:
    """Whether a folder holds releases."""
    return (Path(folder) / "releases").is_dir()


def list_releases(site: Path | str) -> list[Release]:
    """Every release of a site, oldest first; of one that cannot be read the facts only say why: ``damaged``.

    Raises ReleaseError where there is no site.
    """
    return [_or_damaged(site, number) for number in release_numbers(site)]


def _or_damaged(site: Path | str, number: int) -> Release:
    try:
        return load_release(site, number)
    except ReleaseError as error:  # one must not hide the others
        return Release(number, _folder(site, number), {"number": number, "damaged": str(error)})


def load_release(site: Path | str, number: int) -> Release:
    """Release ``number``; raises ReleaseError where it is not there, or cannot be read."""
    path = _folder(site, number)
    if not path.is_dir():
        known = ", ".join(map(str, release_numbers(site))) or "none yet"
        raise ReleaseError(f"'{site}' has no release {number}. It has: {known}.")
    facts = _read_json(path / RELEASE_FILE, f"Release {number} of '{site}'")
    _check_format(facts, number, site)
    return Release(number, path, facts)


def current_release(site: Path | str) -> Release:
    """The release that answers; raises ReleaseError where none was promoted yet."""
    number = _read_pointer(site)["release"]
    if number is None:
        has = release_numbers(site)
        what = f"promote {has[-1]}" if has else "publish RUN"
        raise ReleaseError(f"No release of '{site}' answers yet. Make one: sightline releases {site} {what}")
    return load_release(site, number)


def current_number(site: Path | str) -> int | None:
    """Number of the release that answers; None where none does yet."""
    return _read_pointer(site)["release"]


def previous_numbers(site: Path | str) -> list[int]:
    """Releases that answered before the current one, the latest first."""
    return _read_pointer(site)["before"]


def pointer_stamp(site: Path | str) -> tuple[int, ...]:
    """Changes whenever another release is promoted; costs one look at the file system."""
    try:
        status = os.stat(Path(site) / CURRENT_FILE)  # noqa: PTH116 asked twice a second
    except OSError:
        return ()
    return (status.st_mtime_ns, status.st_ino, status.st_size)


def promote(site: Path | str, number: int, *, by: str | None = None) -> Release:
    """Let release ``number`` answer from now on.

    Raises ReleaseError where it is not there, was tampered with, or is newer than this Sightline reads.
    """
    found = load_release(site, number)
    verify(found)
    with lock_releases(site):
        set_current(site, found, "promote", by)
    return found


def rollback(site: Path | str, *, by: str | None = None) -> Release:
    """Let the release answer that did before the current one; raises ReleaseError where there is none."""
    release_numbers(site)  # says where there is no site
    with lock_releases(site):
        pointer = _read_pointer(site)
        if not pointer["before"]:
            raise ReleaseError(f"There is no release to go back to: '{site}' had no other one before.")
        number, *older = pointer["before"]
        found = load_release(site, number)
        verify(found)
        _write_pointer(site, {"release": number, "before": older})
        append_audit(site, "rollback", number, by, was=pointer["release"])
    return found


def prune(site: Path | str, *, keep: int = 5, by: str | None = None) -> list[int]:
    """Remove all but the ``keep`` newest releases, never the current one nor the one before; which these were."""
    if keep < 1:
        raise ReleaseError(f"--keep is {keep}: it must be at least 1 release.")
    release_numbers(site)  # says where there is no site
    with lock_releases(site):
        pointer = _read_pointer(site)
        spared = {pointer["release"], *pointer["before"][:1], *release_numbers(site)[-keep:]}
        gone = [number for number in release_numbers(site) if number not in spared]
        for number in gone:
            path = _folder(site, number)
            hidden = path.with_name(f".{path.name}.gone")
            with explain_write_errors(path):
                path.rename(hidden)  # whoever looks sees all of it or nothing
                shutil.rmtree(hidden)
            append_audit(site, "prune", number, by)
        if gone:
            left = [number for number in pointer["before"] if number not in gone]
            _write_pointer(site, pointer | {"before": left})
    return gone


def verify(release: Release) -> None:
    """Raise ReleaseError, naming the file, where a release is not what was published."""
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
                f"{what} was tampered with: '{name}' is not the file that was published. Publish the run again."
            )


# what publishing uses too


def release_numbers(site: Path | str) -> list[int]:
    """Numbers of the releases, oldest first; raises ReleaseError where there is no site."""
    folder = Path(site) / "releases"
    if not folder.is_dir():
        raise ReleaseError(
            f"'{site}' is no site: it has no releases. Make one: sightline releases {site} publish RUN"
        )
    names = [path.name for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]
    return sorted(int(name) for name in names if name == f"{int(name):04d}")


def release_folder(site: Path | str, number: int) -> Path:
    """Where a release lies."""
    return _folder(site, number)


def release_files(folder: Path) -> dict[str, Path]:
    """The files of a release but ``release.json``, by their names within it."""
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {name: path for path in files if (name := path.relative_to(folder).as_posix()) != RELEASE_FILE}


@contextmanager
def lock_releases(site: Path | str) -> Iterator[None]:
    """One process at a time numbers, promotes and removes."""
    with explain_write_errors(Path(site)):
        lock = FileLock(Path(site) / ".releases.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def set_current(site: Path | str, release: Release, what: str, by: str | None) -> None:
    """Make a release the current one; the lock is held."""
    pointer = _read_pointer(site)
    was = pointer["release"]
    if was != release.number:
        older = [was, *pointer["before"]] if was is not None else pointer["before"]
        older = [number for number in older if number != release.number]
        _write_pointer(site, {"release": release.number, "before": older[:_MAX_PREVIOUS_RELEASES]})
    append_audit(site, what, release.number, by, was=was)


def append_audit(site: Path | str, what: str, number: int, by: str | None, **more: Any) -> None:
    """A line for ``releases.jsonl``: who did what, and when."""
    line = {"time": timestamp(), "by": by or current_user(), "what": what, "release": number, **more}
    path = Path(site) / AUDIT_FILE
    with explain_write_errors(path), path.open("ab") as stream:
        stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def timestamp() -> str:
    """The time, for people and programs."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def current_user() -> str:
    """The user's name, where the system tells."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def _folder(site: Path | str, number: int) -> Path:
    return Path(site) / "releases" / f"{number:04d}"


def _read_pointer(site: Path | str) -> dict[str, Any]:
    path = Path(site) / CURRENT_FILE
    if not path.exists():
        return {"release": None, "before": []}
    found = _read_json(path, f"The file '{CURRENT_FILE}' of '{site}'")
    try:
        return {"release": int(found["release"]), "before": [int(number) for number in found["before"]]}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged_error(f"The file '{CURRENT_FILE}' of '{site}'") from error


def _write_pointer(site: Path | str, pointer: Mapping[str, Any]) -> None:
    write_json(Path(site) / CURRENT_FILE, pointer)


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
            f"Release {number} of '{site}' has format {version}, newer than this Sightline reads ({RELEASE_FORMAT}). "
            "Upgrade with: pip install --upgrade sightline"
        )
