"""Images at an address: a folder or file of a web server or an object store becomes a copy in the cache.

fsspec opens the address; a copy is a folder named after what the server says of each file (ETag or time, and size), is
whole or not there, and is asked about again at the next start. Of an address, what follows a question mark may be a
key: it is never printed or saved.
"""

import hashlib
import re
import shutil
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from .. import progress, runtime
from ..errors import DataError
from ..files import explain_write_errors, read_json_object, write_json
from .remote_files import (
    DRIVERS,
    RefusedError,
    copy_files,
    explain_error,
    list_remote,
    open_file_system,
    without_key,
)

RECHECK_SECONDS = 60.0
"""Seconds in which a program does not ask again whether a copy is still what the server has."""
_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://(?=.)")
_TARS = re.compile(r"[*?\[{].*\.t(ar(\.\w+)?|gz|bz2|xz)$", re.IGNORECASE)
"""A pattern of tars, which is a path though no file has its name."""
_HIDDEN_QUERY = re.compile(r"query-[0-9a-f]{16}$")

_whole_addresses: dict[str, str] = {}
"""Addresses of this process with what follows the question mark, by how they are shown."""
_checked: dict[str, tuple[float, Path]] = {}
"""The copy of an address, and when the server was last asked."""


def is_address(place: object) -> bool:
    """Whether this names a place that is not a path of this machine.

    >>> is_address("https://example.org/photos.zip"), is_address("photos.zip"), is_address("C:/photos")
    (True, False, False)
    """
    return isinstance(place, str) and _ADDRESS.match(place) is not None


def hide_query(place: str) -> str:
    """The place as it may be shown and saved; what follows the question mark of an address may be a key.

    In its place is a checksum, by which this process knows the address and every later one the copy.

    >>> hide_query("https://example.org/photos.zip?key=secret")
    'https://example.org/photos.zip?query-e9dbcf235e1c9e58'
    >>> hide_query("photos/what?.jpg")
    'photos/what?.jpg'
    """
    if not is_address(place) or place.partition(":")[0].lower() not in DRIVERS:
        return place
    whole = place.partition("#")[0]
    base, _, query = whole.partition("?")
    if not query or _HIDDEN_QUERY.match(query):
        return whole.rstrip("?")
    shown = f"{base}?query-{hashlib.blake2b(whole.encode(), digest_size=8).hexdigest()}"
    _whole_addresses[shown] = whole
    return shown


def absolute_place(place: str | None) -> str | None:
    """What a recipe saves for a place, so that it means the same from any folder: a full path, an address without keys,
    or a name.
    """
    if place is None or is_address(place):
        return place and hide_query(place)
    if Path(place).exists():
        return str(Path(place).resolve())
    return str(Path(place).expanduser().resolve()) if _TARS.search(place) else place


@contextmanager
def open_address(address: str) -> Iterator[tuple[str, Path]]:
    """The address without keys, and its copy. An error raised in the block names the address in place of the copy."""
    shown, copy = hide_query(address), fetch_address(address)
    try:
        yield shown, copy
    except DataError as error:
        raise type(error)(str(error).replace(str(copy), shown)) from error


def fetch_address(address: str) -> Path:
    """A copy, in the cache, of the file or folder at an address; the earlier one while the server has the same.

    Where the server cannot be asked, the latest copy is used, with a notice. Raises DataError, with the remedy, where
    there is none, where the server sends something else than it announces, and for an address that is not opened.
    """
    parts = urllib.parse.urlsplit(address)
    scheme = address.partition(":")[0].lower()
    if scheme not in DRIVERS:
        raise DataError(
            f"An address that begins with {scheme}:// is not opened. Give a path, or an "
            f"address of one of {', '.join(DRIVERS)}."
        )
    if "@" in parts.netloc and scheme not in ("abfs", "az"):
        raise DataError(
            f"The address at {parts.netloc.rpartition('@')[2]} holds a name or password, which would be saved with "
            f"what is trained: leave it out, and put it into ~/.netrc or FSSPEC_{scheme.upper()}."
        )
    shown = hide_query(address)
    asked, copy = _checked.get(shown, (0.0, Path()))
    if asked and time.monotonic() - asked < RECHECK_SECONDS and copy.exists():
        return copy
    home = runtime.cache_dir() / "remote" / hashlib.blake2b(shown.encode(), digest_size=12).hexdigest()
    with explain_write_errors(home):
        home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        _checked[shown] = time.monotonic(), (copy := _refresh(scheme, shown, home))
    return copy


def _refresh(scheme: str, shown: str, home: Path) -> Path:
    """The copy below ``home`` of what the server has now."""
    whole = shown if "?" not in shown else _whole_addresses.get(shown, "")
    latest = read_json_object(home / "latest.json")
    kept = home / latest["place"] if latest and (home / latest["place"]).exists() else None
    try:
        if not whole:
            raise RefusedError("what follows its question mark was not saved, because it may be a key")
        system = open_file_system(scheme)
        is_folder, files = list_remote(system, scheme, whole)
    except Exception as error:
        if kept is None and isinstance(error, DataError):
            raise
        reason = explain_error(error, private="?" in shown)
        if kept is not None:
            day = datetime.fromtimestamp(latest["at"], UTC).date()
            progress.notify(f"'{shown}' cannot be asked ({reason}): the copy of {day} is used.")
            return kept
        remedy = "name the whole address again" if not whole else "check the address, the network and your access"
        raise DataError(f"'{shown}' cannot be opened ({reason}): {remedy}.") from without_key(error, shown)
    facts = repr(sorted((each.name, each.size, each.identity) for each in files))
    version = hashlib.blake2b(facts.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    place = version if is_folder else f"{version}/{files[0].name}"
    if not (home / place).exists():
        part = home / f"{version}.part"
        for other in set(home.glob("*.part")) - {part}:  # of what the server had before
            shutil.rmtree(other, ignore_errors=True)
        with explain_write_errors(home):
            copy_files(system, scheme, files, part, shown, (kept, latest.get("files", {})))
            part.replace(home / version)
    if place != latest.get("place"):
        known = {each.name: [each.size, each.identity] for each in files if each.identity} if is_folder else {}
        write_json(home / "latest.json", {"place": place, "at": time.time(), "files": known})
    return home / place
