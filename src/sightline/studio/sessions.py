"""Who is signed in: sessions of browsers, each bound to an API key or to the address that the terminal showed.

A session is a file of the site, so that every worker and every restart knows it. It holds the hash of its cookie and
of its key, never the values; a key that is revoked or has expired ends its sessions at the next request.
"""

import hashlib
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path

from starlette.requests import HTTPConnection
from starlette.responses import Response

from ..files import explain_write_errors, read_json_object, write_json
from ..serving import RequestError, Service, current_user, hash_key

SESSION_SECONDS = 12 * 3600.0
"""Seconds after which one must sign in again."""

_COOKIE_VALUE = re.compile(r"[A-Za-z0-9_-]{43}")


class SignInNeeded(Exception):
    """Nobody is signed in; the message is one sentence for the sign-in page, or empty."""


@dataclass(frozen=True)
class Session:
    """A person at a browser."""

    name: str
    """Of the key; of this machine's user, who opened the address that the terminal showed."""
    scopes: tuple[str, ...]
    local: bool
    """Whether it is bound to the terminal, not to a key."""

    def allows(self, scope: str) -> bool:
        """Whether the person may do what needs this scope."""
        return scope in self.scopes or "admin" in self.scopes


class Sessions:
    """The sessions of a site. ``token_sha256`` is the hash of the one-time token that the terminal showed."""

    def __init__(self, folder: Path, service: Service, token_sha256: str | None):
        self.folder, self.service, self.token_sha256 = folder, service, token_sha256
        site = hashlib.sha256(str(service.settings.path.resolve()).encode()).hexdigest()[:8]
        self.cookie = f"sightline_{site}"  # cookies do not know ports: two studios on one machine need two names

    def find(self, request: HTTPConnection) -> Session:
        """The session of a request; raise SignInNeeded with the reason why there is none (any more)."""
        value = request.cookies.get(self.cookie, "")
        if not _COOKIE_VALUE.fullmatch(value):
            raise SignInNeeded("")
        facts = read_json_object(self._file(value))
        if not facts or time.time() > facts["until"]:
            raise SignInNeeded("Your session is over: sign in again.")
        if facts["key"] is None:
            if not self.service.settings.loopback_only:
                raise SignInNeeded("This studio is open to other machines, so it needs a key.")
            return Session(facts["name"], ("admin",), True)
        keyring = self.service.keyring
        key = None if keyring is None else keyring.find(facts["key"])
        if key is None:
            raise SignInNeeded("Your key was revoked: sign in with another one.")
        if key.expired:
            raise SignInNeeded(f"The key '{key.name}' has expired: make another one, and sign in with it.")
        return Session(key.name, key.scopes, False)

    def sign_in(self, secret: str, request: HTTPConnection, response: Response) -> None:
        """Sign in by a key or the one-time token; raise RequestError (401) with the reason."""
        digest, keyring = hash_key(secret.strip()[:200]), self.service.keyring
        if self.token_sha256 is not None and compare_digest(digest, self.token_sha256):
            self._use_token(digest)
            key, name = None, current_user()
        else:
            found = None if keyring is None else keyring.find(digest)
            if found is None:
                raise RequestError(401, "This is no key of this site: it may have been revoked, or mistyped.")
            if found.expired:
                raise RequestError(401, f"The key '{found.name}' has expired: make another one.")
            key, name = digest, found.name
        value = secrets.token_urlsafe(32)
        facts = {"key": key, "name": name, "until": time.time() + SESSION_SECONDS}
        with explain_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._remove_old()
            write_json(self._file(value), facts)
        response.set_cookie(
            self.cookie, value, max_age=int(SESSION_SECONDS), path="/studio", httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip

    def sign_out(self, request: HTTPConnection, response: Response) -> None:
        """End the session of a request."""
        value = request.cookies.get(self.cookie, "")
        if _COOKIE_VALUE.fullmatch(value):
            self._file(value).unlink(missing_ok=True)
        response.delete_cookie(self.cookie, path="/studio")

    def _file(self, value: str) -> Path:
        return self.folder / f"{hashlib.sha256(value.encode()).hexdigest()}.json"

    def _use_token(self, digest: str) -> None:
        """Remember that the token was used, for all workers; raise RequestError (401) the second time."""
        with explain_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                (self.folder / f"used-{digest}").touch(exist_ok=False)
            except FileExistsError as error:
                raise RequestError(
                    401, "This address was used already: it signs in once. Start the studio again for another one."
                ) from error

    def _remove_old(self) -> None:
        for path in self.folder.iterdir():
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > SESSION_SECONDS:
                    path.unlink()


def check_same_origin(request: HTTPConnection) -> None:
    """Refuse (403) a changing request that another site's page sent."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if origin is None or origin == "null":
        same = request.headers.get("sec-fetch-site") == "same-origin"
    else:
        same = origin.lower() == f"{request.url.scheme}://{host.lower()}"
    if not same:
        raise RequestError(403, "This request came from another page than the studio's, so nothing was changed.")
