"""The classifier meets the world: releases, a service that answers from one, and a client.

Its verbs are ``publish``, ``promote``, ``rollback`` and ``prune``, ``serve``, and ``Client(url).predict``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import error_responses, require_journal, require_scope
    from .api_keys import ApiKey, Keyring, create_key, hash_key, list_keys, revoke_key
    from .client import Client, read_api_key
    from .engine import Engine, open_engine
    from .monitor import log_event
    from .publishing import publish
    from .releases import (
        Release,
        append_audit,
        current_number,
        current_release,
        current_user,
        list_releases,
        load_release,
        previous_numbers,
        promote,
        prune,
        rollback,
        verify,
    )
    from .requests import PredictRequest, RankedPrediction, RequestError, RequestLimits, build_limits
    from .server import is_loopback, serve
    from .service import JOURNAL_UNAVAILABLE_DETAIL, Service

__all__ = [
    "JOURNAL_UNAVAILABLE_DETAIL",
    "ApiKey",
    "Client",
    "Engine",
    "Keyring",
    "PredictRequest",
    "RankedPrediction",
    "Release",
    "RequestError",
    "RequestLimits",
    "Service",
    "append_audit",
    "build_limits",
    "create_key",
    "current_number",
    "current_release",
    "current_user",
    "error_responses",
    "hash_key",
    "is_loopback",
    "list_keys",
    "list_releases",
    "load_release",
    "log_event",
    "open_engine",
    "previous_numbers",
    "promote",
    "prune",
    "publish",
    "read_api_key",
    "require_journal",
    "require_scope",
    "revoke_key",
    "rollback",
    "serve",
    "verify",
]

_MEMBERS = {
    "api": ("error_responses", "require_journal", "require_scope"),
    "api_keys": ("ApiKey", "Keyring", "create_key", "hash_key", "list_keys", "revoke_key"),
    "client": ("Client", "read_api_key"),
    "engine": ("Engine", "open_engine"),
    "monitor": ("log_event",),
    "publishing": ("publish",),
    "releases": (
        "Release",
        "append_audit",
        "current_number",
        "current_release",
        "current_user",
        "list_releases",
        "load_release",
        "previous_numbers",
        "promote",
        "prune",
        "rollback",
        "verify",
    ),
    "requests": ("PredictRequest", "RankedPrediction", "RequestError", "RequestLimits", "build_limits"),
    "server": ("is_loopback", "serve"),
    "service": ("JOURNAL_UNAVAILABLE_DETAIL", "Service"),
}


def __getattr__(name: str) -> Any:
    """Import a member when a name of it is first used: a service starts without what publishing needs."""
    for member, names in _MEMBERS.items():
        if name in names:
            return getattr(import_module(f".{member}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
