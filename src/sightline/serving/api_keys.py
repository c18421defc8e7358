"""API keys: created and shown once, stored as hashes, and checked for a scope at every request."""

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hmac import compare_digest
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..choose import suggest
from ..errors import AuthError, ChoiceError, SightlineError
from ..files import atomic_replace, explain_write_errors

KEYS_FORMAT = 1
"""Version of the layout of ``keys.json``; a release reads its own version and every earlier one."""

KEYS_FILE = "keys.json"

KEY_SCOPES = ("read", "predict", "feedback", "review", "admin")
"""What a key may allow; ``admin`` includes the others."""

KEY_PREFIX = "sl_"
"""Prefix of every key, so that one that leaks into a log or a repository can be found."""

_MAX_KEY_LENGTH = 128
"""Characters of a key that is checked; longer ones are refused."""

_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Unauthorized(AuthError):
    """A refused key, with its HTTP status and no further reason."""

    def __init__(self, status: int):
        super().__init__("A valid key is needed." if status == 401 else "This key does not allow that.")
        self.status = status
        """401 for no key, a wrong or an expired one; 403 for one without the scope."""


@dataclass(frozen=True)
class ApiKey:
    """What is stored of a key: never the key itself."""

    name: str
    sha256: str
    """SHA-256 of the key, in hexadecimal."""
    scopes: tuple[str, ...]
    created: float
    """Seconds since 1970."""
    expires: float | None
    """Seconds since 1970; None for a key that does not expire."""

    @property
    def expired(self) -> bool:
        """Whether the key has expired."""
        return self.expires is not None and time.time() >= self.expires

    def allows(self, scope: str) -> bool:
        """Return whether the key has this scope."""
        return scope in self.scopes or "admin" in self.scopes

    def as_json(self) -> dict[str, Any]:
        """Return what may be shown: all but the hash."""
        return {key: value for key, value in asdict(self).items() if key != "sha256"} | {"expired": self.expired}


def create_key(site: Path | str, name: str, scopes: Sequence[str], *, expires_days: float | None = None) -> str:
    """Create a key and return it; it cannot be shown again.

    Raise ChoiceError for an unknown scope or a name that exists, OutputError if ``keys.json`` cannot be written.
    """
    if not _KEY_NAME.fullmatch(name):
        raise ChoiceError(f"'{name}' is no name for a key: use up to 64 letters, digits and . _ @ -")
    wanted = tuple(scope for scope in KEY_SCOPES if scope in scopes)
    if unknown := [scope for scope in scopes if scope not in KEY_SCOPES]:
        raise ChoiceError(f"There is no scope '{unknown[0]}'. {suggest(unknown[0], KEY_SCOPES)}")
    if not wanted:
        raise ChoiceError(f"A key needs a scope: give --scopes with some of {', '.join(KEY_SCOPES)}.")
    if expires_days is not None and not 0 < expires_days < 36_500:
        raise ChoiceError(f"--expires-days is {expires_days:g}: it must be a number of days above 0, such as 90.")
    secret, now = KEY_PREFIX + secrets.token_urlsafe(32), time.time()
    expires = None if expires_days is None else now + 86_400 * expires_days
    with _edit_keys(Path(site)) as keys:
        if any(key.name == name for key in keys):
            raise ChoiceError(f"There is a key named '{name}' already: revoke it first, or choose another name.")
        keys.append(ApiKey(name, hash_key(secret), wanted, now, expires))
    return secret


def list_keys(site: Path | str) -> list[ApiKey]:
    """Return the keys of a site in the order of creation; raise SightlineError if the file is damaged."""
    return _read_keys(Path(site) / KEYS_FILE)


def revoke_key(site: Path | str, name: str) -> ApiKey:
    """Remove a key, at once and for every worker; raise ChoiceError if there is none of this name."""
    with _edit_keys(Path(site)) as keys:
        for key in keys:
            if key.name == name:
                keys.remove(key)
                return key
        near = suggest(name, tuple(key.name for key in keys)) if keys else "There are none."
        raise ChoiceError(f"There is no key named '{name}'. {near}")


class Keyring:
    """The keys of a site, re-read when the file changes; thread-safe."""

    def __init__(self, site: Path | str, *, every: float = 0.0):
        """Check the file for changes every ``every`` seconds at most; 0 is at every use.

        A check releases Python's lock, and other threads may hold it for long. Raise SightlineError if
        ``keys.json`` is damaged.
        """
        self._path, self._every = Path(site) / KEYS_FILE, every
        self._checked_at = time.monotonic()
        self._stamp = _file_stamp(self._path)
        self._keys = _read_keys(self._path)

    @property
    def empty(self) -> bool:
        """Whether no key was ever created. A site whose last key was revoked is not empty: it refuses every key."""
        self._reload()
        return not self._stamp

    def authorize(self, secret: str | None, scope: str) -> str:
        """Return the name of the key ``secret``; raise Unauthorized if it does not allow ``scope``."""
        found = self.find(hash_key(secret) if secret is not None and len(secret) <= _MAX_KEY_LENGTH else "")
        if found is None or found.expired:
            raise Unauthorized(401)
        if not found.allows(scope):
            raise Unauthorized(403)
        return found.name

    def find(self, sha256: str) -> ApiKey | None:
        """Return the key of this hash, which may have expired; None if there is none (any more)."""
        found = None
        self._reload()
        for key in self._keys:  # all are compared, so that the time reveals nothing
            if compare_digest(key.sha256, sha256):
                found = key
        return found

    def _reload(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < self._every:
            return
        self._checked_at, stamp = now, _file_stamp(self._path)
        if stamp != self._stamp:
            try:
                self._keys = _read_keys(self._path)
            except SightlineError:
                self._keys = []  # a damaged file refuses every key
            self._stamp = stamp


def hash_key(secret: str) -> str:
    """Return the SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _file_stamp(path: Path) -> tuple[int, ...]:
    """Return a value that changes with the file; empty if there is no file."""
    try:
        status = os.stat(path)  # noqa: PTH116 called at every request
    except FileNotFoundError:
        return ()
    except OSError:  # unknown: the service must not believe that there are no keys
        return (-1,)
    return (status.st_mtime_ns, status.st_ino, status.st_size)


def _read_keys(path: Path) -> list[ApiKey]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise SightlineError(f"'{path}' cannot be read: check who may read it.") from error
    try:
        held = json.loads(text)
        if (version := int(held["format"])) > KEYS_FORMAT:
            raise SightlineError(
                f"'{path}' has format {version}, newer than this release reads ({KEYS_FORMAT}). "
                "Upgrade with: pip install --upgrade sightline"
            )
        return [ApiKey(**one | {"scopes": tuple(one["scopes"])}) for one in held["keys"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SightlineError(f"'{path}' is damaged: bring a copy back, or remove it and make new keys.") from error


@contextmanager
def _edit_keys(site: Path) -> Iterator[list[ApiKey]]:
    """The keys, to be changed by one process at a time; written whole, for the owner's eyes only."""
    path = site / KEYS_FILE
    with explain_write_errors(path):
        site.mkdir(parents=True, exist_ok=True)
        lock = FileLock(site / ".keys.lock")
    with lock:
        keys = _read_keys(path)
        yield keys
        held = {"format": KEYS_FORMAT, "keys": [asdict(key) for key in keys]}
        with atomic_replace(path) as temporary:
            temporary.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")
            temporary.chmod(0o600)
