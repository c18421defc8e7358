"""The classifier meets the world: releases, a service, a journal of what it answered, and a client.

``publish`` is ``serving.publishing``'s: it needs what training needs, and a service should start without.
"""

from .client import Client
from .engine import Engine, open_engine
from .entries import Correction, Entry, Row
from .journal import Journal
from .keys import Keyring, make, revoke
from .limits import Limits
from .releases import Release, current, promote, prune, release, released, rollback, verify
from .server import serve

__all__ = [
    "Client",
    "Correction",
    "Engine",
    "Entry",
    "Journal",
    "Keyring",
    "Limits",
    "Release",
    "Row",
    "current",
    "make",
    "open_engine",
    "promote",
    "prune",
    "release",
    "released",
    "revoke",
    "rollback",
    "serve",
    "verify",
]
