"""The classifier meets the world: releases, a service, a journal of what it answered, and a client.

``publish`` is ``serving.publishing``'s: it needs what training needs, and a service should start without.
"""

from .api_keys import Keyring, create_key, revoke_key
from .client import Client, read_api_key
from .engine import Engine, open_engine
from .limits import RequestLimits, build_limits
from .publishing import publish
from .releases import Release, current_release, list_releases, load_release, promote, prune, rollback, verify
from .server import serve

__all__ = [
    "Client",
    "Engine",
    "Keyring",
    "Release",
    "RequestLimits",
    "build_limits",
    "create_key",
    "current_release",
    "list_releases",
    "load_release",
    "open_engine",
    "promote",
    "prune",
    "publish",
    "read_api_key",
    "revoke_key",
    "rollback",
    "serve",
    "verify",
]
