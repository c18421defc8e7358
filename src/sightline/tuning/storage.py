"""The database of a study: its address, opening it, and its errors in one sentence."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

SQLITE_TIMEOUT_SECONDS = 30.0
"""Seconds a write to SQLite waits for the write of another process."""

_REMEDIES = {
    "locked": "another program locks it: close that program and repeat the command",
    "readonly": "it is read-only: change its permissions, or choose another --storage",
    "read-only": "it is read-only: change its permissions, or choose another --storage",
    "not a database": "it is not a database, or is damaged: choose another --storage",
    "malformed": "it is damaged: choose another --storage",
    "unable to open": "it cannot be opened: check that its folder exists and is writable, or choose another "
    "--storage",
    "connection refused": "no server answers at that address: start it, or correct the address",
    "resolve host": "its host is unknown: correct the address",
    "translate host": "its host is unknown: correct the address",
    "authentication failed": "the server rejects that user or password: correct them in the address",
    "password supplied": "the server asks for a password: write postgresql://user:password@host/name",
    "does not exist": "the server has no such database or user: create it, or correct the address",
    "timeout expired": "the server did not answer in time: start it, or correct the address",
    "no longer compatible": "another version of Optuna made it: use that version, upgrade the database with "
    "`optuna storage upgrade`, or choose another --storage",
    "can't locate revision": "another version of Optuna made it: use that version, or choose another --storage",
    "invalid literal": "that is not the address of a database: write a file's path, or postgresql://user@host/name",
    "could not parse": "that is not the address of a database: write a file's path, or postgresql://user@host/name",
    "can't load plugin": "that kind of database is unknown: write a file's path, or postgresql://user@host/name",
    "failed to import": "its driver is not installed: install the driver that SQLAlchemy names for it with pip",
    "no module named": "its driver is not installed: install the driver that SQLAlchemy names for it with pip",
    "disk is full": "the disk is full: free some space and repeat the command",
}


def database_url(storage: str | Path | None, folder: Path) -> str:
    """The SQLAlchemy URL of a study: the given URL or path of a SQLite file, or ``study.db`` in the folder.

    Raises OutputError if the path is a folder.
    """
    text = str(folder / "study.db") if storage is None else str(storage)
    if "://" not in text and Path(text).is_dir():
        raise OutputError(
            f"--storage is the folder '{text}': name a file in it, such as '{Path(text) / 'study.db'}'."
        )
    return text if "://" in text else f"sqlite:///{Path(text).resolve()}"


def open_storage(url: str, heartbeat_seconds: int, grace_seconds: int) -> "RDBStorage":
    """The Optuna storage at a URL, with its tables, which records a heartbeat of each running trial.

    Raises OutputError with a remedy.
    """
    with explain_database_errors(url):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # Sightline prints its own line for each trial
        waiting: dict[str, Any] = {"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.storages.RDBStorage(
                    url,
                    engine_kwargs=waiting if url.startswith("sqlite") else {},
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=grace_seconds,
                )
        except (RuntimeError, ValueError, ImportError, AssertionError) as error:  # another version, no driver
            raise OutputError(_error_sentence(url, error)) from error


@contextmanager
def explain_database_errors(url: str) -> Iterator[None]:
    """Turn database errors into an OutputError with a remedy."""
    from alembic.util import CommandError
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError, CommandError) as error:
        raise OutputError(_error_sentence(url, error)) from error


def _error_sentence(url: str, error: BaseException) -> str:
    cause: BaseException | None = error
    texts: list[str] = []
    while cause is not None:
        texts.append(" ".join(str(cause).split()))
        cause = cause.__cause__
    known = (remedy for sign, remedy in _REMEDIES.items() if any(sign in text.lower() for text in texts))
    reason = next(known, f"it says '{texts[-1].partition(' [SQL')[0]}': correct the address, or choose another")
    return f"The study's database '{redact_url(url)}' cannot be used: {reason}."


def redact_url(url: str) -> str:
    """The address for messages: the path of a file, or the URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):
        return url
    return parts.database or url if parts.drivername == "sqlite" else parts.render_as_string(hide_password=True)
